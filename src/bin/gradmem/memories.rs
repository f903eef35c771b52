//! `gradmem write`, `read` and `inspect`: texts to memory files, and questions to these.

use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use burn::tensor::Tensor;
use gradmem::Error;
use gradmem::episode::Tokens;
use gradmem::kernels::KernelBackend;
use gradmem::memory::{Memory, MemoryFile, MemoryFloat, Written};
use gradmem::method::AnyMethod;
use gradmem::model::generate::GenerateConfig;
use gradmem::model::{CausalLm as _, cache_bytes};
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use serde_json::json;

use crate::args;
use crate::backend::{Job, dispatch};
use crate::model::{Model, Text};
use crate::output::say;

/// Memories that `write` tells of; `inspect` tells of all.
const SHOWN: usize = 8;

/// Questions that are answered at once.
const AT_ONCE: usize = 64;

pub fn write(args: args::Write) -> Result<ExitCode, Error> {
    if args.batch == 0 {
        return Err(Error::Input("--batch must be at least 1".into()));
    }
    if args.called.is_some() && args.contexts.len() > 1 {
        return Err(Error::Input(
            "--name is for one text: several are called as their files are".into(),
        ));
    }
    check_output(&args.output)?;
    let backend = args.backend.clone();
    dispatch(&backend, WriteJob(args))?;
    Ok(ExitCode::SUCCESS)
}

struct WriteJob(args::Write);

impl Job for WriteJob {
    type Output = ();

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<(), Error> {
        let args = self.0;
        let texts = args.contexts.iter().map(|path| read_text(path));
        let texts = texts.collect::<Result<Vec<_>, _>>()?;
        let Model { mut method, text } = Model::<B>::open(&args.model.folder, device)?;
        if let Some(steps) = args.write_steps {
            method = method.with_write_steps(steps)?;
        }
        let contexts = args.contexts.iter().zip(&texts).map(|(path, context)| {
            tokens_of(&method, &text, context).map_err(|e| of_file(path, e))
        });
        let contexts = contexts.collect::<Result<Vec<_>, _>>()?;

        let begun = Instant::now();
        let mut file = write_all(&method, &contexts, &args.contexts, args.batch, device)?;
        let seconds = begun.elapsed().as_secs_f64();
        file.origin.tokenizer = Some(text.fingerprint());
        let cache = cache_bytes(method.model());
        let about = args.contexts.iter().zip(&texts).zip(&contexts);
        for (sample, ((path, context), ids)) in file.samples.iter_mut().zip(about) {
            let file_name = path.file_name().filter(|name| *name != "-");
            let file_name = file_name.map(|name| name.to_string_lossy().into_owned());
            sample.name = args.called.clone().or(file_name);
            sample.tokens = Some(ids.len());
            sample.cache_bytes = Some(cache(ids.len()));
            sample.context = args.keep_context.then(|| context.clone());
            *sample = std::mem::take(sample).with_hash_of(context);
        }
        if args.bf16 {
            file = file.with_float(MemoryFloat::Bf16);
        }
        file.save(&args.output)?;

        let total: usize = contexts.iter().map(Vec::len).sum();
        say!("{}", describe(&args.output, &file, SHOWN));
        say!(
            "{total} tokens in {seconds:.2} s: {:.0} a second",
            total as f64 / seconds
        );
        Ok(())
    }
}

/// Tokens of a context that the model can write.
fn tokens_of<B: KernelBackend>(
    method: &AnyMethod<B>,
    text: &Text,
    context: &str,
) -> Result<Vec<u32>, Error> {
    let ids = text.encode_as_trained(context)?;
    if ids.is_empty() {
        return Err(Error::Input("is empty: there is nothing to write".into()));
    }
    match method.longest_context()? {
        Some(longest) if ids.len() > longest => Err(Error::Input(format!(
            "has {} tokens, but this model writes {longest} at most: split it into several texts",
            ids.len()
        ))),
        _ => Ok(ids),
    }
}

/// Writes contexts into memories, those of similar lengths together.
fn write_all<B: KernelBackend>(
    method: &AnyMethod<B>,
    contexts: &[Vec<u32>],
    paths: &[PathBuf],
    batch: usize,
    device: &B::Device,
) -> Result<MemoryFile, Error> {
    let mut order: Vec<usize> = (0..contexts.len()).collect();
    order.sort_by_key(|at| contexts[*at].len());
    let bar = ProgressBar::new(contexts.iter().map(|ids| ids.len() as u64).sum());
    if let Ok(style) =
        ProgressStyle::with_template("{bar:30} {pos}/{len} tokens, {rate} a second, {eta} left")
    {
        let rate = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            write!(out, "{:.0}", state.per_sec()).ok();
        };
        bar.set_style(style.with_key("rate", rate).progress_chars("=> "));
    }
    let (mut memories, mut losses) = (Vec::new(), Vec::new());
    for batch in order.chunks(batch) {
        let rows: Vec<&[u32]> = batch.iter().map(|at| &contexts[*at][..]).collect();
        let tokens = Tokens::new(&rows, device)?;
        let memory = method.write(&tokens)?;
        if let AnyMethod::GradMem(gradmem) = method {
            let after = gradmem.write_loss(&memory, &tokens)?.to_data();
            for (at, after) in batch.iter().zip(after.iter::<f64>()) {
                if !after.is_finite() {
                    return Err(Error::Failed(format!(
                        "{}: WRITE became non-finite (loss {after} after its last step): try fewer \
                         --write-steps",
                        paths[*at].display()
                    )));
                }
                losses.push(after);
            }
        }
        memories.push(memory);
        bar.inc(rows.iter().map(|ids| ids.len() as u64).sum());
    }
    bar.finish_and_clear();
    let mut file = method.pack(&Memory::cat(memories)?)?;
    for (sample, after) in file.samples.iter_mut().zip(losses) {
        sample.loss_after = Some(after);
    }
    // Back into the order in which they were given.
    let mut places: Vec<usize> = (0..order.len()).collect();
    places.sort_by_key(|place| order[*place]);
    file.select(&places)
}

pub fn read(args: args::Read) -> Result<ExitCode, Error> {
    let backend = args.backend.clone();
    dispatch(&backend, ReadJob(args))?;
    Ok(ExitCode::SUCCESS)
}

struct ReadJob(args::Read);

impl Job for ReadJob {
    type Output = ();

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<(), Error> {
        let args = self.0;
        let file = MemoryFile::open(&args.file)?;
        let file = match &args.memory {
            Some(name) => file.select(&[find(&file, &args.file, name)?])?,
            None => file,
        };
        let Model { method, text } = Model::<B>::open(&args.model.folder, device)?;
        file.check_tokenizer(&text.fingerprint())?;
        let config = text.config(&args.sampling)?;
        let memory = method.unpack(&file)?;
        let reader = method.reader(&memory)?;
        let positions = method.model().max_positions();
        let left = positions.map(|positions| positions.saturating_sub(reader.cache().len()));

        let questions = match (&args.question, &args.questions) {
            (Some(question), _) => vec![question.clone()],
            (None, Some(path)) => read_lines(path)?,
            (None, None) => Vec::new(),
        };
        let encode = |(at, question): (usize, &String)| {
            let fits = |ids: Vec<u32>| match left {
                Some(left) if ids.len() > left => Err(Error::Input(format!(
                    "has {} tokens, but behind the memory this model has {left} positions left",
                    ids.len()
                ))),
                _ => Ok(ids),
            };
            let ids = text.encode_as_trained(question).and_then(fits);
            ids.map_err(|e| match &args.questions {
                Some(path) => Error::Input(format!("{}: line {}: {e}", path.display(), at + 1)),
                None => Error::Input(format!("the question {e}")),
            })
        };
        let prompts = questions.iter().enumerate().map(encode);
        let prompts = prompts.collect::<Result<Vec<_>, _>>()?;

        let memories = file.len();
        let plain = args.questions.is_none() && memories == 1 && !args.json;
        let at_once = (AT_ONCE / memories).max(1);
        let chunks = questions.chunks(at_once).zip(prompts.chunks(at_once));
        for (chunk, (questions, prompts)) in chunks.enumerate() {
            // What is sampled differs from one chunk to the next.
            let config = GenerateConfig {
                seed: config.seed.wrapping_add(chunk as u64),
                ..config.clone()
            };
            // Each memory answers all of them, in a row.
            let asked: Vec<_> = (0..memories).flat_map(|_| prompts.to_vec()).collect();
            let answers = reader.generate(&asked, &config)?;
            for (at, question) in questions.iter().enumerate() {
                for (memory, sample) in file.samples.iter().enumerate() {
                    let answer = text.decode(&answers[memory * questions.len() + at])?;
                    if plain {
                        say!("{answer}");
                        continue;
                    }
                    let memory = called(sample, memory);
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

pub fn inspect(args: args::Inspect) -> Result<ExitCode, Error> {
    let file = MemoryFile::open(&args.file)?;
    let told = match (args.context.is_empty(), args.model.folder.clone()) {
        (true, _) => None,
        (false, None) => {
            return Err(Error::Input(
                "--context needs --model: how well a memory tells its context is the model's to say"
                    .into(),
            ));
        }
        (false, Some(model)) => {
            let job = InspectJob {
                file: file.clone(),
                contexts: args.context.clone(),
                model,
            };
            Some(dispatch(&args.backend, job)?)
        }
    };
    if args.json {
        say!("{}", inspected(&file, told.as_deref()));
        return Ok(ExitCode::SUCCESS);
    }
    say!("{}", describe(&args.file, &file, usize::MAX));
    let origin = &file.origin;
    let steps = match (origin.method.as_str(), origin.write_lr) {
        ("gradmem", Some(lr)) => format!("{} WRITE steps of size {lr}", origin.write_steps),
        _ => format!("{} passes", origin.write_steps),
    };
    say!("written by {} {} in {steps}", origin.method, origin.model);
    if let Some(tokenizer) = &origin.tokenizer {
        say!("tokens of tokenizer {tokenizer}");
    }
    for (at, (sample, told)) in file.samples.iter().zip(told.iter().flatten()).enumerate() {
        let same = match told.same {
            Some(true) => "the text that was written",
            Some(false) => "another text than was written",
            None => "a text",
        };
        say!(
            "{}: tells {same} to {:.1} % of its tokens, {:.3} nats a token",
            called(sample, at),
            100.0 * told.accuracy,
            told.loss
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// How well a memory tells a context.
struct Told {
    /// Whether it is the one that was written, if that is known.
    same: Option<bool>,
    loss: f64,
    /// The share of tokens that are the likeliest behind those before them.
    accuracy: f64,
}

struct InspectJob {
    file: MemoryFile,
    contexts: Vec<PathBuf>,
    model: PathBuf,
}

impl Job for InspectJob {
    type Output = Vec<Told>;

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<Vec<Told>, Error> {
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
        let Model { method, text } = Model::<B>::open(&model, device)?;
        file.check_tokenizer(&text.fingerprint())?;
        let AnyMethod::GradMem(gradmem) = &method else {
            return Err(Error::Input(
                "only memories of GradMem tell their contexts: RMT's are not made to".into(),
            ));
        };
        let memories = gradmem.unpack(&file)?;
        let each = contexts.iter().enumerate().map(|(at, path)| {
            let context = read_text(path)?;
            let ids = tokens_of(&method, &text, &context).map_err(|e| of_file(path, e))?;
            let tokens = Tokens::new(&[ids], device)?;
            let found = gradmem.reconstruction(&memories.select(&[at])?, &tokens)?;
            Ok(Told {
                same: file.samples[at].is_of(&context),
                loss: first(found.loss),
                accuracy: first(found.accuracy),
            })
        });
        each.collect()
    }
}

fn first<B: KernelBackend>(values: Tensor<B, 1>) -> f64 {
    values.to_data().iter::<f64>().next().unwrap_or(f64::NAN)
}

/// A file as one JSON object.
fn inspected(file: &MemoryFile, told: Option<&[Told]>) -> serde_json::Value {
    let [memories, memory_tokens, d_model] = file.shape();
    let samples = file.samples.iter().enumerate().map(|(at, sample)| {
        let mut sample = json!(sample);
        if let (Some(told), Some(sample)) = (told.map(|told| &told[at]), sample.as_object_mut()) {
            sample.insert("same_context".into(), json!(told.same));
            sample.insert("reconstruction_loss".into(), json!(told.loss));
            sample.insert("reconstruction_accuracy".into(), json!(told.accuracy));
        }
        sample
    });
    json!({
        "memories": memories,
        "memory_tokens": memory_tokens,
        "d_model": d_model,
        "dtype": format!("{:?}", file.dtype()).to_lowercase(),
        "bytes_each": file.bytes_each(),
        "origin": file.origin,
        "samples": samples.collect::<Vec<_>>(),
    })
}

/// A file and each of its memories in a line, of the first few.
fn describe(path: &Path, file: &MemoryFile, shown: usize) -> String {
    let [n, m, d] = file.shape();
    let bytes = file.bytes_each();
    let dtype = format!("{:?}", file.dtype()).to_lowercase();
    let memories = if n == 1 { "memory" } else { "memories" };
    let mut lines = vec![format!(
        "{}: {n} {memories} of {m} vectors of width {d} in {dtype}, {} bytes each",
        path.display(),
        grouped(bytes)
    )];
    for (at, sample) in file.samples.iter().enumerate().take(shown) {
        let mut parts = Vec::new();
        if let Some(tokens) = sample.tokens {
            parts.push(format!("{} tokens", grouped(tokens)));
        }
        if let (Some(before), Some(after)) = (sample.loss_before, sample.loss_after) {
            parts.push(format!(
                "WRITE loss {before:.3} → {after:.3} nats a token in {} steps",
                file.origin.write_steps
            ));
        }
        if let Some(cache) = sample.cache_bytes {
            let times = cache as f64 / bytes.max(1) as f64;
            parts.push(format!(
                "instead of {} bytes of key-value cache ({times:.1} times as many)",
                grouped(cache)
            ));
        }
        if sample.context.is_some() {
            parts.push("its text is kept".into());
        }
        if !parts.is_empty() {
            lines.push(format!("{}: {}", called(sample, at), parts.join("; ")));
        }
    }
    if n > shown {
        lines.push(format!("… and {} more", n - shown));
    }
    lines.join("\n")
}

/// A number with its thousands apart.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A memory's name, or its place in the file.
fn called(sample: &Written, at: usize) -> String {
    sample.name.clone().unwrap_or_else(|| at.to_string())
}

/// The index of the memory that is called so.
fn find(file: &MemoryFile, path: &Path, name: &str) -> Result<usize, Error> {
    let names: Vec<String> = file
        .samples
        .iter()
        .enumerate()
        .map(|(at, x)| called(x, at))
        .collect();
    let mut with_name = names.iter().enumerate().filter(|(_, x)| *x == name);
    let index = || name.parse().ok().filter(|at| *at < file.len());
    match (with_name.next(), with_name.next()) {
        (Some((at, _)), None) => Ok(at),
        (Some(_), Some(_)) => Err(Error::Input(format!(
            "{}: several memories are called {name:?}: give the index of one, from 0",
            path.display()
        ))),
        (None, _) => index().ok_or_else(|| {
            let known: Vec<_> = names
                .iter()
                .take(8)
                .map(|name| format!("{name:?}"))
                .collect();
            let more = if names.len() > 8 { ", …" } else { "" };
            Error::Input(format!(
                "{}: no memory is called {name:?}: there are {}{more}",
                path.display(),
                known.join(", ")
            ))
        }),
    }
}

/// Fails where no file could be made in the end, before the work is done.
fn check_output(path: &Path) -> Result<(), Error> {
    let problem = |problem: &str| {
        Err(Error::File {
            path: path.into(),
            problem: problem.into(),
        })
    };
    if path.is_dir() {
        return problem("is a folder: name the file to make in it");
    }
    if path
        .metadata()
        .is_ok_and(|about| about.permissions().readonly())
    {
        return problem("is read-only: it is not replaced");
    }
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    match tempfile::tempfile_in(folder) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == ErrorKind::NotFound => problem("its folder does not exist"),
        Err(e) => problem(&format!("no file can be made in its folder: {e}")),
    }
}

fn of_file(path: &Path, e: Error) -> Error {
    Error::Input(format!("{}: {e}", path.display()))
}

/// A file's text, or standard input's, without a line break at its end.
fn read_text(path: &Path) -> Result<String, Error> {
    let mut bytes = Vec::new();
    let read = match path.as_os_str() == "-" {
        true => std::io::stdin().read_to_end(&mut bytes),
        false => std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)),
    };
    read.map_err(|e| Error::Input(format!("{}: cannot read: {e}", path.display())))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        Error::Input(format!(
            "{}: is not UTF-8 text (byte {})",
            path.display(),
            e.utf8_error().valid_up_to()
        ))
    })?;
    if let Some(at) = text.find('\0') {
        return Err(Error::Input(format!(
            "{}: is no text: it has a zero at byte {at}",
            path.display()
        )));
    }
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text.strip_suffix('\r').unwrap_or(text).into())
}

/// A text's lines.
fn read_lines(path: &Path) -> Result<Vec<String>, Error> {
    let text = read_text(path)?;
    match text.is_empty() {
        true => Err(Error::Input(format!("{}: has no question", path.display()))),
        false => Ok(text.lines().map(String::from).collect()),
    }
}
