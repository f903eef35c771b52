//! `gradmem generate`: a continuation of a text by the language model alone.

use std::path::PathBuf;
use std::process::ExitCode;

use gradmem::Error;
use gradmem::kernels::KernelBackend;
use gradmem::model::generate;

use crate::args::{Backend, Sampling};
use crate::backend::{Job, dispatch};
use crate::model::{Model, Specials};
use crate::output::say;

/// Continue a text by the language model alone, without a memory.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  gradmem generate --model models/gpt2 'Once upon a time'
  gradmem generate --model models/gpt2 'Once upon a time' --temperature 0.8 --top-p 0.95 --seed 3")]
pub struct Args {
    /// Text to continue.
    prompt: String,
    /// Folder of a Hugging Face model (config.json, model.safetensors, tokenizer.json), of a checkpoint of
    /// the reference implementation, or of a trained run.
    #[arg(long, value_name = "FOLDER", env = "GRADMEM_MODEL")]
    model: PathBuf,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    backend: Backend,
}

pub fn run(args: Args) -> Result<ExitCode, Error> {
    let backend = args.backend.clone();
    let text = dispatch(&backend, args)?;
    say!("{text}");
    Ok(ExitCode::SUCCESS)
}

impl Job for Args {
    /// The prompt and its continuation.
    type Output = String;

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<String, Error> {
        let Model { method, text } = Model::<B>::open(&self.model, device)?;
        let config = text.generate_config(&self.sampling)?;
        let prompts = [text.encode(&self.prompt, Specials::With)?];
        let answers = generate::continue_prompts(method.model(), &prompts, &config)?;
        text.decode_continued(&prompts[0], &answers[0])
    }
}
