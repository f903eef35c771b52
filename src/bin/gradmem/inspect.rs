//! `gradmem inspect`: the contents of a memory file, and how well its memories reconstruct their contexts.

use std::path::PathBuf;
use std::process::ExitCode;

use burn::tensor::Tensor;
use gradmem::Error;
use gradmem::episode::Tokens;
use gradmem::kernels::KernelBackend;
use gradmem::memory::MemoryFile;
use gradmem::method::AnyMethod;
use serde_json::json;

use crate::args::{Backend, OptionalModelFolder};
use crate::backend::{Job, dispatch};
use crate::input::{in_file, read_text};
use crate::memories::{describe, dtype, name_of};
use crate::model::Model;
use crate::output::say;

/// Show what a memory file contains and, with --context, how well it reconstructs its contexts.
///
/// Without --context no model is needed.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  gradmem inspect notes.mem.safetensors
  gradmem inspect notes.mem.safetensors --context notes.txt --model runs/kv-quick")]
pub struct Args {
    /// Memory file.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Contexts of the memories, one text for each, in the file's order. Shows how well each memory
    /// reconstructs its context; needs --model.
    #[arg(long, value_name = "TEXT", num_args = 1..)]
    context: Vec<PathBuf>,
    #[command(flatten)]
    model: OptionalModelFolder,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backend: Backend,
}

pub fn run(args: Args) -> Result<ExitCode, Error> {
    let file = MemoryFile::open(&args.file)?;
    let reconstructions = match (args.context.is_empty(), args.model.folder.clone()) {
        (true, _) => None,
        (false, None) => {
            return Err(Error::Input(
                "--context needs --model: the model reconstructs the contexts".into(),
            ));
        }
        (false, Some(model)) => {
            let job = ReconstructJob {
                file: file.clone(),
                contexts: args.context.clone(),
                model,
            };
            Some(dispatch(&args.backend, job)?)
        }
    };
    match args.json {
        true => say!("{}", to_json(&file, reconstructions.as_deref())),
        false => print_text(&args, &file, reconstructions.as_deref()),
    }
    Ok(ExitCode::SUCCESS)
}

/// How well a memory reconstructs a context.
struct Reconstruction {
    /// Whether it is the context that was written, if the file has its hash.
    same: Option<bool>,
    /// In nats per token.
    loss: f64,
    /// The share of tokens that are the most probable after those before them.
    accuracy: f64,
}

/// Reconstructs each memory's context, teacher-forced.
struct ReconstructJob {
    file: MemoryFile,
    contexts: Vec<PathBuf>,
    model: PathBuf,
}

impl Job for ReconstructJob {
    type Output = Vec<Reconstruction>;

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<Vec<Reconstruction>, Error> {
        let Self {
            file,
            contexts,
            model,
        } = self;
        if contexts.len() != file.len() {
            return Err(Error::Input(format!(
                "--context names {} texts for {} memories",
                contexts.len(),
                file.len()
            )));
        }
        let model = Model::<B>::open(&model, device)?.with_vectors_of(&file, device)?;
        file.check_tokenizer(&model.text.fingerprint())?;
        let AnyMethod::GradMem(gradmem) = &model.method else {
            return Err(Error::Input(
                "--context is for memories of GradMem: a model of another method does not reconstruct contexts"
                    .into(),
            ));
        };
        let memories = gradmem.unpack(&file)?;
        let each = contexts.iter().enumerate().map(|(at, path)| {
            let context = read_text(path)?;
            let ids = model.encode_context(&context);
            let tokens = Tokens::new(&[ids.map_err(|e| in_file(path, e))?], device)?;
            let found = gradmem.reconstruction(&memories.select(&[at])?, &tokens)?;
            Ok(Reconstruction {
                same: file.samples[at].is_of(&context),
                loss: scalar(found.loss),
                accuracy: scalar(found.accuracy),
            })
        });
        each.collect()
    }
}

fn scalar<B: KernelBackend>(value: Tensor<B, 1>) -> f64 {
    value.to_data().iter::<f64>().next().unwrap_or(f64::NAN)
}

fn to_json(file: &MemoryFile, reconstructions: Option<&[Reconstruction]>) -> serde_json::Value {
    let [memories, rows, d_model] = file.shape();
    let prefix = file.kind() == "prefix";
    let samples = file.samples.iter().enumerate().map(|(at, sample)| {
        let mut sample = json!(sample);
        if let (Some(found), Some(sample)) = (reconstructions, sample.as_object_mut()) {
            sample.insert("same_context".into(), json!(found[at].same));
            sample.insert("reconstruction_loss".into(), json!(found[at].loss));
            sample.insert("reconstruction_accuracy".into(), json!(found[at].accuracy));
        }
        sample
    });
    json!({
        "memories": memories,
        "kind": file.kind(),
        "chunks": file.chunks(),
        "memory_tokens": prefix.then_some(rows / file.chunks().max(1)),
        "d_model": prefix.then_some(d_model),
        "numbers_each": file.numbers_each(),
        "dtype": dtype(file),
        "bytes_each": file.bytes_each(),
        "origin": file.origin,
        "samples": samples.collect::<Vec<_>>(),
    })
}

fn print_text(args: &Args, file: &MemoryFile, reconstructions: Option<&[Reconstruction]>) {
    say!("{}", describe(&args.file, file, usize::MAX));
    let origin = &file.origin;
    let steps = match (origin.method.as_str(), origin.write_lr) {
        ("gradmem", None) => format!("at most {} steps of Adam", origin.write_steps),
        ("gradmem", Some(lr)) => format!("{} WRITE steps of size {lr}", origin.write_steps),
        ("armt", _) => "one pass over each segment".into(),
        _ => format!("{} passes", origin.write_steps),
    };
    say!("written by {} {} in {steps}", origin.method, origin.model);
    if let Some(tokenizer) = &origin.tokenizer {
        say!("tokenizer {tokenizer}");
    }
    let found = reconstructions.into_iter().flatten();
    for (at, (sample, found)) in file.samples.iter().zip(found).enumerate() {
        let context = match found.same {
            Some(true) => "the text that was written",
            Some(false) => "another text than was written",
            None => "the text",
        };
        say!(
            "{}: reconstructs {:.1} % of the tokens of {context}, loss {:.3} nats per token",
            name_of(sample, at),
            100.0 * found.accuracy,
            found.loss
        );
    }
}
