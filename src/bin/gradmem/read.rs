//! `gradmem read`: answers from a memory file.

use std::path::PathBuf;
use std::process::ExitCode;

use gradmem::Error;
use gradmem::kernels::KernelBackend;
use gradmem::memory::MemoryFile;
use gradmem::model::CausalLm as _;
use gradmem::model::generate::GenerateConfig;
use serde_json::json;

use crate::args::{Backend, ModelFolder, Sampling};
use crate::backend::{Job, dispatch};
use crate::input::{in_file, read_questions};
use crate::model::{Model, Part, Text};
use crate::output::say;

/// Answers that are generated at once.
const BATCH: usize = 64;

/// Answer questions from a memory file, greedily unless a temperature is given.
///
/// For one question and one memory the answer alone is printed. With --questions, several memories or --json,
/// one JSON object per line is printed, with the memory's name, the question and the answer. A memory is read
/// once for all questions.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  gradmem read notes.mem.safetensors '?!b:' --model runs/kv-quick
  gradmem read stories.mem.safetensors 'Where is Mary?' --model runs/babi-small --memory mary.txt
  gradmem read notes.mem.safetensors --questions questions.txt --model runs/mine > answers.jsonl")]
pub struct Args {
    /// Memory file.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Question, in the form of the model's task: 'Where is Mary?' for bAbI, '?!b:' for key-value pairs.
    #[arg(required_unless_present = "questions")]
    question: Option<String>,
    /// File of questions, one per line, without blank lines; - for standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "question")]
    questions: Option<PathBuf>,
    /// Read only the memory with this name, or with this index, from 0 [default: all].
    #[arg(long, value_name = "NAME")]
    memory: Option<String>,
    #[command(flatten)]
    model: ModelFolder,
    /// Print JSON for a single answer too.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    backend: Backend,
}

pub fn run(args: Args) -> Result<ExitCode, Error> {
    let backend = args.backend.clone();
    dispatch(&backend, args)?;
    Ok(ExitCode::SUCCESS)
}

impl Job for Args {
    type Output = ();

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<(), Error> {
        let file = self.open_file()?;
        let model = Model::<B>::open(&self.model.folder, device)?;
        let Model { method, text } = model.with_vectors_of(&file, device)?;
        file.check_tokenizer(&text.fingerprint())?;
        let config = text.generate_config(&self.sampling)?;
        let memory = method.files()?.unpack(&file)?;
        let reader = method.reader(&memory)?;
        let positions = method.model().max_positions();
        let left = positions.map(|positions| positions.saturating_sub(reader.positions()));
        let questions = self.questions()?;
        let prompts = self.encode(&text, &questions, left)?;

        let memories = file.len();
        let plain = self.questions.is_none() && memories == 1 && !self.json;
        let batch = (BATCH / memories).max(1);
        let chunks = questions.chunks(batch).zip(prompts.chunks(batch));
        for (chunk, (questions, prompts)) in chunks.enumerate() {
            // Each chunk has other random numbers.
            let config = GenerateConfig {
                first: chunk * batch * memories,
                ..config.clone()
            };
            // All questions of a memory in a row.
            let prompts: Vec<_> = (0..memories).flat_map(|_| prompts.to_vec()).collect();
            let answers = reader.generate(&prompts, &config)?;
            for (at, (_, question)) in questions.iter().enumerate() {
                for (memory, sample) in file.samples.iter().enumerate() {
                    let answer = text.decode(&answers[memory * questions.len() + at])?;
                    if plain {
                        say!("{answer}");
                        continue;
                    }
                    let memory = sample.name_at(memory);
                    say!(
                        "{}",
                        json!({ "memory": memory, "question": question, "answer": answer })
                    );
                }
            }
        }
        Ok(())
    }
}

impl Args {
    /// The memories to read.
    fn open_file(&self) -> Result<MemoryFile, Error> {
        let file = MemoryFile::open(&self.file)?;
        match &self.memory {
            Some(name) => file.select(&[file.index_of(name)?]),
            None => Ok(file),
        }
    }

    /// The questions, each with its line in their file.
    fn questions(&self) -> Result<Vec<(usize, String)>, Error> {
        match (&self.question, &self.questions) {
            (Some(question), _) => Ok(vec![(1, question.clone())]),
            (None, Some(path)) => read_questions(path),
            (None, None) => Ok(Vec::new()),
        }
    }

    /// The token ids of the questions, each at most as long as the positions that are left after the memory.
    fn encode(
        &self,
        text: &Text,
        questions: &[(usize, String)],
        left: Option<usize>,
    ) -> Result<Vec<Vec<u32>>, Error> {
        let fits = |ids: Vec<u32>| match left {
            Some(left) if ids.len() > left => Err(Error::Input(format!(
                "has {} tokens, but after the memory this model has {left} positions left",
                ids.len()
            ))),
            _ => Ok(ids),
        };
        let encode = |(line, question): &(usize, String)| {
            let ids = text.encode_part(question, Part::Question).and_then(fits);
            ids.map_err(|e| match &self.questions {
                Some(path) => in_file(path, Error::Input(format!("line {line}: {e}"))),
                None => Error::Input(format!("the question: {e}")),
            })
        };
        questions.iter().map(encode).collect()
    }
}
