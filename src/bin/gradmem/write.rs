//! `gradmem write`: texts to a memory file.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use gradmem::Error;
use gradmem::episode::Tokens;
use gradmem::kernels::KernelBackend;
use gradmem::memory::{CramConfig, Memory, MemoryFile, MemoryFiles, MemoryFloat};
use gradmem::method::AnyMethod;
use gradmem::model::cache_bytes;
use gradmem::support::counted;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use crate::args::{Backend, ModelFolder, at_least_one, by_options};
use crate::backend::{Job, dispatch};
use crate::files::check_writable;
use crate::input::read_texts;
use crate::memories::describe;
use crate::model::{Model, with_write_steps};
use crate::output::say;

/// The most memories that are described after WRITE; `gradmem inspect` describes all.
const SHOWN: usize = 8;

/// Write texts into a memory file: each becomes a few vectors, which answer questions later.
///
/// Several texts become several memories in one file, each named after its text's file. A line break at the
/// end of a text is dropped. The memory file records the model, the tokenizer and the WRITE losses, but not
/// the texts unless --keep-context is given.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  gradmem write --model runs/kv-quick notes.txt -o notes.mem.safetensors
  gradmem write --model runs/babi-small stories/*.txt -o stories.mem.safetensors --bf16
  sort notes.txt | gradmem write --model runs/mine - -o sorted.mem.safetensors --name sorted
  gradmem write --model smollm2 --optimizer adam --memory-tokens 1 page.txt -o page.mem.safetensors
  gradmem write --append more.txt -o notes.mem.safetensors --model runs/in-chunks")]
pub struct Args {
    /// Text files to write, in UTF-8; - for standard input.
    #[arg(required = true, value_name = "TEXT")]
    contexts: Vec<PathBuf>,
    /// Memory file to create or replace; with --append, the one to write on.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    model: ModelFolder,
    /// Write the texts on into the memories of the file, one to each in their order: WRITE goes on where it ended, or
    /// adds a chunk where the model reads the memories of all chunks. For models that were trained in chunks
    /// (memory.chunk_size): others forget what a memory held.
    #[arg(long)]
    append: bool,
    /// Number of WRITE steps [default: as in training].
    #[arg(long, value_name = "K")]
    write_steps: Option<usize>,
    /// What lowers the WRITE loss: WRITE's K steps, or Adam until the text is reconstructed, which needs no trained memory and takes
    /// hundreds of steps.
    #[arg(long, value_enum, default_value_t = Optimizer::Descent)]
    optimizer: Optimizer,
    /// With --optimizer adam: stop when this share of a text's tokens is reconstructed, each after those before it
    /// [default: 0.99].
    #[arg(long, value_name = "SHARE")]
    until: Option<f64>,
    /// With --optimizer adam: stop after N steps [default: 1000].
    #[arg(long, value_name = "N")]
    max_steps: Option<usize>,
    /// With --optimizer adam: its step size [default: 0.01].
    #[arg(long, value_name = "LR")]
    step_size: Option<f64>,
    /// With --optimizer adam and a model that was trained without a memory: number of vectors [default: 8].
    #[arg(long, value_name = "M")]
    memory_tokens: Option<usize>,
    /// Name of the memory, if there is one text [default: the name of its file].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Store the texts in the memory file too.
    #[arg(long)]
    keep_context: bool,
    /// Store the vectors as bf16 instead of f32: half the bytes, 8 bits of precision.
    #[arg(long)]
    bf16: bool,
    /// Store the vectors as whole numbers from −127 to 127 with a scale for each row: a quarter of the bytes. Says how much
    /// that changes.
    #[arg(long, conflicts_with = "bf16")]
    int8: bool,
    /// Number of texts to write at once.
    #[arg(long, value_name = "N", default_value_t = 16)]
    batch: usize,
    #[command(flatten)]
    backend: Backend,
}

/// What lowers the WRITE loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Optimizer {
    /// WRITE's own steps.
    Descent,
    /// Steps of Adam until the text is reconstructed.
    Adam,
}

pub fn run(args: Args) -> Result<ExitCode, Error> {
    at_least_one(&[("--batch", args.batch)])?;
    args.check_optimizer()?;
    if args
        .name
        .as_ref()
        .is_some_and(|name| name.trim().is_empty())
    {
        return Err(Error::Input(
            "--name is empty: give the memory a name, or leave it out for that of its file".into(),
        ));
    }
    if args.append && args.name.is_some() {
        return Err(Error::Input(
            "--name is for new memories: --append keeps their names".into(),
        ));
    }
    if args.append && args.keep_context {
        return Err(Error::Input(
            "--keep-context is for new memories: --append keeps the text where there is one".into(),
        ));
    }
    if args.name.is_some() && args.contexts.len() > 1 {
        return Err(Error::Input(
            "--name is for one text: several are named after their files".into(),
        ));
    }
    if args.append && args.write_steps == Some(0) {
        return Err(Error::Input(
            "--write-steps 0 with --append would write nothing".into(),
        ));
    }
    args.check_output()?;
    let backend = args.backend.clone();
    dispatch(&backend, args)?;
    Ok(ExitCode::SUCCESS)
}

impl Job for Args {
    type Output = ();

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<(), Error> {
        let texts = read_texts(&self.contexts)?;
        let mut model = Model::<B>::open(&self.model.folder, device)?;
        if let Some(steps) = self.write_steps {
            model.method = with_write_steps(model.method, steps)?;
        }
        if self.optimizer == Optimizer::Adam {
            let has_memory = !matches!(model.method, AnyMethod::InContext(_));
            if self.memory_tokens.is_some() && has_memory {
                let problem = "--memory-tokens is for a model that was trained without a memory: this one has its own";
                return Err(Error::Input(problem.into()));
            }
            let memory_tokens = self.memory_tokens.unwrap_or(8);
            let options = [("memory_tokens", "--memory-tokens")];
            let with_vectors = model.with_vectors(memory_tokens, device);
            model = with_vectors.map_err(|e| by_options(e, &options))?;
        }
        let contexts = self.contexts.iter().zip(&texts);
        let contexts = contexts.map(|(path, text)| model.encode_file(path, text));
        let contexts = contexts.collect::<Result<Vec<_>, _>>()?;

        // Until the file is saved: another program that writes on it waits.
        let lock = self.append.then(|| locked(&self.output)).transpose()?;
        if self.append
            && let AnyMethod::GradMem(gradmem) = &model.method
            && gradmem.config().chunk_size.is_none()
        {
            log::warn!(
                "the model was not trained in chunks (memory.chunk_size): what the memories held may be lost"
            );
        }
        let before = match self.append {
            true => Some(self.to_write_on(&model)?),
            false => None,
        };
        let files = model.method.files()?;
        let start = Instant::now();
        let mut file = self.write_all(&model.method, &files, before.as_ref(), &contexts, device)?;
        let seconds = start.elapsed().as_secs_f64();
        file.origin.tokenizer = Some(model.text.fingerprint());
        let cache_bytes = cache_bytes(model.method.model());
        let about = self.contexts.iter().zip(&texts).zip(&contexts);
        for (at, (sample, ((path, text), ids))) in file.samples.iter_mut().zip(about).enumerate() {
            match &before {
                Some(before) => {
                    let new = std::mem::replace(sample, before.samples[at].clone());
                    // Of the text that was appended.
                    (sample.loss_before, sample.loss_after) = (new.loss_before, new.loss_after);
                    sample.chunks = new.chunks;
                    (sample.rounding, sample.loss_stored) = (None, None);
                    (sample.adam_steps, sample.accuracy) = (None, None);
                    sample.append(text, ids.len());
                }
                None => {
                    let file_name = path.file_name().filter(|name| *name != "-");
                    let file_name = file_name.map(|name| name.to_string_lossy().into_owned());
                    sample.name = self.name.clone().or(file_name);
                    sample.tokens = Some(ids.len());
                    sample.context = self.keep_context.then(|| text.clone());
                    *sample = std::mem::take(sample).with_hash_of(text);
                }
            }
            sample.cache_bytes = sample.tokens.map(&cache_bytes);
        }
        let float = match (self.int8, self.bf16, &before) {
            (true, _, _) => MemoryFloat::Int8,
            (_, true, _) => MemoryFloat::Bf16,
            // What was written on stays as it was held.
            (_, _, Some(before)) => before.float(),
            _ => MemoryFloat::F32,
        };
        file = file.with_float(float);
        if float == MemoryFloat::Int8 {
            self.measure_rounding(&model.method, &files, &mut file, &contexts, device)?;
        }
        file.save(&self.output)?;
        drop(lock);

        let total: usize = contexts.iter().map(Vec::len).sum();
        say!("{}", describe(&self.output, &file, SHOWN));
        say!(
            "{} in {seconds:.2} s: {:.0} a second",
            counted(total, "token"),
            total as f64 / seconds
        );
        Ok(())
    }
}

impl Args {
    /// Fails on options that are the other optimizer's.
    fn check_optimizer(&self) -> Result<(), Error> {
        let adams = [
            ("--until", self.until.is_some()),
            ("--max-steps", self.max_steps.is_some()),
            ("--step-size", self.step_size.is_some()),
            ("--memory-tokens", self.memory_tokens.is_some()),
        ];
        let descents = [
            ("--write-steps", self.write_steps.is_some()),
            ("--append", self.append),
        ];
        let (others, needed) = match self.optimizer {
            Optimizer::Descent => (&adams[..], "--optimizer adam"),
            Optimizer::Adam => (&descents[..], "--optimizer descent"),
        };
        if let Some((option, _)) = others.iter().find(|(_, given)| *given) {
            return Err(Error::Input(format!("{option} is for {needed}")));
        }
        let options = [
            ("lr", "--step-size"),
            ("until", "--until"),
            ("max_steps", "--max-steps"),
        ];
        let valid = self.cram_config().validate();
        valid.map_err(|e| by_options(e, &options))
    }

    fn cram_config(&self) -> CramConfig {
        let mut config = CramConfig::new();
        config.until = self.until.unwrap_or(config.until);
        config.max_steps = self.max_steps.unwrap_or(config.max_steps);
        config.lr = self.step_size.unwrap_or(config.lr);
        config
    }

    /// Fails if the file cannot be made, or would replace something else than memories, before the work is done.
    fn check_output(&self) -> Result<(), Error> {
        let path = &self.output;
        check_writable(path)?;
        let same = |other: &Path| same_file::is_same_file(path, other).unwrap_or(false);
        if let Some(text) = self.contexts.iter().find(|text| same(text)) {
            let problem = format!("is the text {} that is to be written", text.display());
            return Err(Error::file(path, problem));
        }
        let is_new = path.metadata().map_or(true, |about| about.len() == 0);
        if !is_new && !self.append && MemoryFile::open(path).is_err() {
            return Err(Error::file(
                path,
                "is no memory file, and is not replaced: name another",
            ));
        }
        Ok(())
    }

    /// The memories to write on: one for each text.
    fn to_write_on<B: KernelBackend>(&self, model: &Model<B>) -> Result<MemoryFile, Error> {
        let file = MemoryFile::open(&self.output)?;
        file.check_tokenizer(&model.text.fingerprint())?;
        let (memories, texts) = (file.len(), self.contexts.len());
        match memories == texts {
            true => Ok(file),
            false => Err(Error::file(
                &self.output,
                format!(
                    "has {}, but {} to be written on: one to each",
                    match memories {
                        1 => "1 memory".into(),
                        _ => format!("{memories} memories"),
                    },
                    match texts {
                        1 => "1 text is".into(),
                        _ => format!("{texts} texts are"),
                    }
                ),
            )),
        }
    }

    /// Notes the WRITE loss of each memory as it is stored.
    fn measure_rounding<B: KernelBackend>(
        &self,
        method: &AnyMethod<B>,
        files: &MemoryFiles<B>,
        file: &mut MemoryFile,
        contexts: &[Vec<u32>],
        device: &B::Device,
    ) -> Result<(), Error> {
        let AnyMethod::GradMem(gradmem) = method else {
            return Ok(());
        };
        let memory = files.unpack(file)?;
        for (at, context) in contexts.iter().enumerate() {
            let tokens = Tokens::new(&[context], device)?;
            let loss = gradmem
                .write_loss(&memory.select(&[at])?, &tokens)?
                .to_data();
            file.samples[at].loss_stored = loss.iter::<f64>().next();
        }
        Ok(())
    }

    /// Writes the contexts, those of similar lengths together. The file has them in the order given.
    fn write_all<B: KernelBackend>(
        &self,
        method: &AnyMethod<B>,
        files: &MemoryFiles<B>,
        before: Option<&MemoryFile>,
        contexts: &[Vec<u32>],
        device: &B::Device,
    ) -> Result<MemoryFile, Error> {
        let before = before.map(|file| files.unpack(file)).transpose()?;
        let mut order: Vec<usize> = (0..contexts.len()).collect();
        order.sort_by_key(|at| contexts[*at].len());
        let bar = progress_bar(
            contexts.iter().map(|ids| ids.len() as u64).sum(),
            self.optimizer,
        );
        let (mut memories, mut losses, mut starts) = (Vec::new(), Vec::new(), Vec::new());
        let mut crammed = Vec::new();
        for batch in order.chunks(self.batch) {
            let rows: Vec<&[u32]> = batch.iter().map(|at| &contexts[*at][..]).collect();
            let tokens = Tokens::new(&rows, device)?;
            let memory = match &before {
                None if self.optimizer == Optimizer::Adam => {
                    let AnyMethod::GradMem(gradmem) = method else {
                        return Err(Error::Input(
                            "--optimizer adam is for a model of GradMem, or one without a memory"
                                .into(),
                        ));
                    };
                    let config = self.cram_config();
                    let told = bar.position();
                    let (memory, held) = gradmem.cram(&tokens, &config, |step, held| {
                        if step == 0 {
                            starts.extend(held.iter().map(|sample| sample.loss));
                        }
                        let now = held.iter().zip(&rows);
                        let now = now.map(|(sample, ids)| sample.accuracy * ids.len() as f64);
                        let now: f64 = now.sum();
                        bar.set_position(told + now as u64);
                    })?;
                    crammed.extend(held);
                    bar.set_position(told);
                    memory
                }
                Some(before) => method.write_on(before.select(batch)?, &tokens)?,
                None => method.write(&tokens)?,
            };
            if let (AnyMethod::GradMem(gradmem), Optimizer::Descent) = (method, self.optimizer) {
                // WRITE itself knows the first chunk's loss alone.
                if before.is_some() || gradmem.config().chunk_size.is_some() {
                    let before = before.as_ref().map(|before| before.select(batch));
                    let start = gradmem.start_loss(before.transpose()?.as_ref(), &tokens)?;
                    starts.extend(start.to_data().iter::<f64>());
                }
                let after = gradmem.write_loss(&memory, &tokens)?.to_data();
                for (at, after) in batch.iter().zip(after.iter::<f64>()) {
                    if !after.is_finite() {
                        return Err(Error::Failed(format!(
                            "{}: WRITE became non-finite (loss {after} after its last step): try fewer \
                             --write-steps",
                            self.contexts[*at].display()
                        )));
                    }
                    losses.push(after);
                }
            }
            memories.push(memory);
            bar.inc(rows.iter().map(|ids| ids.len() as u64).sum());
        }
        bar.finish_and_clear();
        let mut file = files.pack(&Memory::cat(memories)?)?;
        for (sample, after) in file.samples.iter_mut().zip(losses) {
            sample.loss_after = Some(after);
        }
        for (sample, start) in file.samples.iter_mut().zip(starts) {
            sample.loss_before = Some(start);
        }
        for (sample, held) in file.samples.iter_mut().zip(&crammed) {
            sample.loss_after = Some(held.loss);
            sample.accuracy = Some(held.accuracy);
            sample.adam_steps = Some(held.steps);
        }
        if let Some(most) = crammed.iter().map(|held| held.steps).max() {
            (file.origin.write_steps, file.origin.write_lr) = (most, None);
        }
        // Back to the order given.
        let mut places: Vec<usize> = (0..order.len()).collect();
        places.sort_by_key(|place| order[*place]);
        file.select(&places)
    }
}

fn progress_bar(tokens: u64, optimizer: Optimizer) -> ProgressBar {
    let bar = ProgressBar::new(tokens);
    let template = match optimizer {
        Optimizer::Descent => "{bar:30} {pos}/{len} tokens, {rate} a second, {eta} left",
        // How many steps that takes is not known.
        Optimizer::Adam => "{bar:30} {pos}/{len} tokens reconstructed, after {elapsed}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        let rate = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            write!(out, "{:.0}", state.per_sec()).ok();
        };
        bar.set_style(style.with_key("rate", rate).progress_chars("=> "));
    }
    bar
}

/// The file, locked: no other program that locks it reads or replaces it.
fn locked(path: &Path) -> Result<File, Error> {
    let failed = |e: std::io::Error| Error::file(path, format!("cannot be opened: {e}"));
    loop {
        let file = File::open(path).map_err(failed)?;
        // Where there are no locks, nothing is locked.
        file.lock().ok();
        // Whoever had it locked before may have put another file in its place.
        let held = same_file::Handle::from_file(file.try_clone().map_err(failed)?);
        if held.map_err(failed)? == same_file::Handle::from_path(path).map_err(failed)? {
            return Ok(file);
        }
    }
}
