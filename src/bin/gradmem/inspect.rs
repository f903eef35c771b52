//! `gradmem inspect`: the contents of a memory file, and what its memories tell of their contexts.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use burn::tensor::Tensor;
use gradmem::Error;
use gradmem::episode::Tokens;
use gradmem::kernels::KernelBackend;
use gradmem::memory::MemoryFile;
use gradmem::method::AnyMethod;
use gradmem::support::counted;
use serde_json::json;

use crate::args::{Backend, OptionalModelFolder};
use crate::backend::{Job, dispatch};
use crate::input::read_texts;
use crate::memories::{describe, dtype, shown_name};
use crate::model::Model;
use crate::output::{say, shown};

/// Show what a memory file contains and what its memories tell of their contexts.
///
/// Without --context and --reconstruct no model is needed.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  gradmem inspect notes.mem.safetensors
  gradmem inspect notes.mem.safetensors --reconstruct --model runs/kv-quick
  gradmem inspect notes.mem.safetensors --context notes.txt --model runs/kv-quick")]
pub struct Args {
    /// Memory file.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Contexts of the memories, one text for each, in the file's order. Shows how well each memory
    /// reconstructs its context; needs --model.
    #[arg(long, value_name = "TEXT", num_args = 1..)]
    context: Vec<PathBuf>,
    /// Generate each context greedily from its memory alone, as many tokens as were written; needs --model.
    #[arg(long)]
    reconstruct: bool,
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
    let told = match (&args.model.folder, &args.context[..], args.reconstruct) {
        (_, [], false) => {
            args.backend.check_computes_nothing()?;
            None
        }
        (None, ..) => {
            return Err(Error::Input(
                "--context and --reconstruct need --model: the model that the memories were written by"
                    .into(),
            ));
        }
        (Some(model), contexts, reconstruct) => {
            let job = InspectJob {
                file: file.clone(),
                contexts: contexts.to_vec(),
                lengths: reconstruct
                    .then(|| written_tokens(&args.file, &file))
                    .transpose()?,
                model: model.clone(),
            };
            Some(dispatch(&args.backend, job)?)
        }
    };
    match args.json {
        true => say!("{}", to_json(&file, told.as_deref())),
        false => print_text(&args, &file, told.as_deref()),
    }
    Ok(ExitCode::SUCCESS)
}

/// What was asked of a memory.
struct Findings {
    /// How well, with each token after the true ones; with --context.
    against: Option<Comparison>,
    /// The text, generated from the memory alone; with --reconstruct.
    text: Option<String>,
}

/// A memory against a text.
struct Comparison {
    /// Whether it is the context that was written, if the file has its hash.
    same: Option<bool>,
    /// In nats per token.
    loss: f64,
    /// The share of tokens that are the most probable after those before them.
    accuracy: f64,
}

/// Asks each memory for its context.
struct InspectJob {
    file: MemoryFile,
    contexts: Vec<PathBuf>,
    /// The tokens to generate from each memory, if any.
    lengths: Option<Vec<usize>>,
    model: PathBuf,
}

/// The numbers of tokens that a file's memories were written from.
fn written_tokens(path: &Path, file: &MemoryFile) -> Result<Vec<usize>, Error> {
    let each = file.samples.iter().enumerate().map(|(at, sample)| {
        let problem = match (sample.appended, sample.tokens) {
            (None, Some(tokens)) => return Ok(tokens),
            (Some(_), _) => "holds texts that were written one after the other, and reconstructs none of them by itself",
            (None, None) => "does not say how many tokens it was written from",
        };
        Err(Error::Input(format!(
            "--reconstruct: {} in {} {problem}",
            sample.name_at(at),
            path.display()
        )))
    });
    each.collect()
}

impl Job for InspectJob {
    type Output = Vec<Findings>;

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<Vec<Findings>, Error> {
        let file = &self.file;
        if !self.contexts.is_empty() && self.contexts.len() != file.len() {
            return Err(Error::Input(format!(
                "--context names {} texts for {} memories",
                self.contexts.len(),
                file.len()
            )));
        }
        let model = Model::<B>::open(&self.model, device)?.with_vectors_of(file, device)?;
        file.check_tokenizer(&model.text.fingerprint())?;
        let AnyMethod::GradMem(gradmem) = &model.method else {
            return Err(Error::Input(
                "--context and --reconstruct are for memories of GradMem: a model of another method does not \
                 reconstruct contexts"
                    .into(),
            ));
        };
        let memories = gradmem.files().unpack(file)?;
        let contexts = read_texts(&self.contexts)?;
        let against = |at: usize, context: &str| {
            let ids = model.encode_file(&self.contexts[at], context)?;
            let tokens = Tokens::new(&[ids], device)?;
            let found = gradmem.reconstruction(&memories.select(&[at])?, &tokens)?;
            Ok::<_, Error>(Comparison {
                same: file.samples[at].is_of(context),
                loss: scalar(found.loss),
                accuracy: scalar(found.accuracy),
            })
        };
        let text = |at: usize, length: usize| {
            let told = gradmem.reconstruct(&memories.select(&[at])?, &[length])?;
            model.text.decode_continued(&[], &told[0])
        };
        let lengths = self.lengths.as_ref();
        let each = (0..file.len()).map(|at| {
            let context = contexts.get(at);
            Ok(Findings {
                against: context.map(|text| against(at, text)).transpose()?,
                text: lengths.map(|lengths| text(at, lengths[at])).transpose()?,
            })
        });
        each.collect()
    }
}

fn scalar<B: KernelBackend>(value: Tensor<B, 1>) -> f64 {
    value.to_data().iter::<f64>().next().unwrap_or(f64::NAN)
}

fn to_json(file: &MemoryFile, told: Option<&[Findings]>) -> serde_json::Value {
    let [memories, rows, d_model] = file.shape();
    let prefix = file.kind() == "prefix";
    let samples = file.samples.iter().enumerate().map(|(at, sample)| {
        let mut sample = json!(sample);
        if let (Some(told), Some(sample)) = (told, sample.as_object_mut()) {
            if let Some(against) = &told[at].against {
                sample.insert("same_context".into(), json!(against.same));
                sample.insert("reconstruction_loss".into(), json!(against.loss));
                sample.insert("reconstruction_accuracy".into(), json!(against.accuracy));
            }
            if let Some(text) = &told[at].text {
                sample.insert("reconstructed".into(), json!(text));
            }
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

fn print_text(args: &Args, file: &MemoryFile, told: Option<&[Findings]>) {
    say!("{}", describe(&args.file, file, usize::MAX));
    let origin = &file.origin;
    let steps = match (origin.method.as_str(), origin.write_lr) {
        ("gradmem", None) => format!("at most {} of Adam", counted(origin.write_steps, "step")),
        ("gradmem", Some(lr)) => {
            format!("{} of size {lr}", counted(origin.write_steps, "WRITE step"))
        }
        ("armt", _) => "one pass over each segment".into(),
        _ => counted(origin.write_steps, "pass"),
    };
    let (method, model) = (shown(&origin.method), shown(&origin.model));
    let last = match file.samples.iter().any(|sample| sample.appended.is_some()) {
        true => ", what was written on last",
        false => "",
    };
    say!("written by {method} {model} in {steps}{last}");
    if let Some(tokenizer) = &origin.tokenizer {
        say!("tokenizer {}", shown(tokenizer));
    }
    for (at, (sample, told)) in file
        .samples
        .iter()
        .zip(told.into_iter().flatten())
        .enumerate()
    {
        if let Some(against) = &told.against {
            let context = match against.same {
                Some(true) => "the text that was written",
                Some(false) => "another text than was written",
                None => "the text",
            };
            say!(
                "{}: reconstructs {:.1} % of the tokens of {context}, loss {:.3} nats per token",
                shown_name(sample, at),
                100.0 * against.accuracy,
                against.loss
            );
        }
        if let Some(text) = &told.text {
            say!("{} as reconstructed:\n{text}", shown_name(sample, at));
        }
    }
}
