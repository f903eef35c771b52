//! What each command does.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use burn::data::dataset::Dataset;
use burn::tensor::{Tensor, TensorData};
use burn::train::Interrupter;
use clap::ValueEnum;
use gradmem::Error;
use gradmem::data::{KvConfig, KvDataset, Split};
use gradmem::kernels::KernelBackend;
use gradmem::memory::MetaGradient;
use gradmem::method::{AnyMethod, MethodName};
use gradmem::model::generate;
use gradmem::reference;
use gradmem::train::config::{DataConfig, RunConfig, presets};
use gradmem::train::metrics::{Measure, Scores};
use gradmem::train::render::duration;
use gradmem::train::strategy::{Ending, Outcome};
use gradmem::train::{TrainOptions, Trained};

use crate::args;
use crate::backend::{Job, dispatch};
use crate::model::{Begin, Model, end_of_answer};

/// What a shell reports of a program stopped by Ctrl-C.
const INTERRUPTED: u8 = 130;

pub fn train(args: args::Train) -> Result<ExitCode, Error> {
    let mut overrides = args.overrides;
    let micro_batch = args.micro_batch.map(|n| format!("train.micro_batch={n}"));
    let how = args.meta_gradient.map(|how| {
        let name = how
            .to_possible_value()
            .map(|value| value.get_name().to_string());
        format!("train.meta_gradient={}", name.unwrap_or_default())
    });
    overrides.extend(micro_batch.into_iter().chain(how));
    let config = RunConfig::resolve(&args.preset, &overrides)?;
    let name = Path::new(&args.preset).file_stem().unwrap_or_default();
    let folder = match args.run {
        Some(folder) => folder,
        None => {
            // The same preset by another method is another run.
            let own = RunConfig::resolve(&args.preset, &[])?.method;
            let mut name = name.to_os_string();
            if config.method != own {
                name.push("-");
                name.push(config.method.as_str());
            }
            Path::new("runs").join(name)
        }
    };
    let interrupter = Interrupter::new();
    stop_on_ctrl_c(&interrupter)?;
    println!("{}", overview(&config, &folder));
    let start = Instant::now();
    let outcome = dispatch(
        &args.backend,
        TrainJob {
            config: config.clone(),
            folder: folder.clone(),
            options: TrainOptions {
                init_from: args.init_from,
                plain: args.plain,
                interrupter,
            },
        },
    )?;
    print!("{}", summary(&config, &folder, &outcome, start.elapsed())?);
    Ok(match outcome.ending {
        Ending::Interrupted(_) => ExitCode::from(INTERRUPTED),
        Ending::Steps | Ending::Reached => ExitCode::SUCCESS,
    })
}

struct TrainJob {
    config: RunConfig,
    folder: PathBuf,
    options: TrainOptions,
}

impl Job for TrainJob {
    type Output = Outcome;

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<Outcome, Error> {
        gradmem::train::train::<B>(&self.config, &self.folder, self.options, device)
    }
}

fn overview(config: &RunConfig, folder: &Path) -> String {
    let DataConfig::Kv(data) = &config.data;
    let (memory, rmt) = (&config.memory, &config.rmt);
    let how = match config.method {
        MethodName::GradMem => format!(
            "into {} memory vectors by K = {} gradient steps of α = {}",
            memory.memory_tokens, memory.write_steps, memory.write_lr
        ),
        MethodName::Rmt => format!(
            "into {} memory vectors by {} forward passes (RMT)",
            rmt.memory_tokens, rmt.write_steps
        ),
        MethodName::InContext => "in the prompt".into(),
    };
    format!(
        "key-value retrieval, {} pairs ({} tokens) {how}, {}, \
         up to {} steps of {} contexts × {} questions; run in {}",
        data.pairs,
        data.context_len(),
        config.model.model_type(),
        config.train.steps,
        config.train.batch_size,
        data.queries_per_context,
        folder.display()
    )
}

fn summary(
    config: &RunConfig,
    folder: &Path,
    outcome: &Outcome,
    time: Duration,
) -> Result<String, Error> {
    let program = program();
    let run = folder.display();
    let state = &outcome.state;
    let took = duration(time);
    if let Ending::Interrupted(why) = &outcome.ending {
        return Ok(format!(
            "\n{why} Saved at step {} after {took}; the same command goes on from there.\n",
            state.step
        ));
    }
    let measure = config.train.stop_metric;
    let mut text = match (outcome.valid, state.best) {
        (Some(valid), _) => {
            let DataConfig::Kv(data) = &config.data;
            let write = |measure| valid.mean(measure).unwrap_or(f64::NAN);
            let written = match config.method {
                MethodName::GradMem => format!(
                    "; WRITE loss {:.3} → {:.3}",
                    write(Measure::WriteLossBefore),
                    write(Measure::WriteLossAfter)
                ),
                MethodName::Rmt | MethodName::InContext => String::new(),
            };
            format!(
                "\nstep {} after {took}: {} {} on {} held-out contexts{written}\n",
                state.step,
                measure.name().to_lowercase(),
                show(measure, &valid),
                data.valid_samples,
            )
        }
        (None, Some((value, step))) => format!(
            "\nnothing left to do: the run is at step {}; its best {} is {} (step {step})\n",
            state.step,
            measure.name().to_lowercase(),
            show_value(measure, value),
        ),
        (None, None) => format!("\nnothing left to do: the run is at step {}\n", state.step),
    };
    let DataConfig::Kv(data) = &config.data;
    let example = KvDataset::new(data.clone(), Split::Valid, config.train.seed)?.get(0);
    if config.method != MethodName::InContext
        && let Some(example) = example
        && let Some(question) = example.questions.first()
    {
        text += &format!(
            "
Write a context of your own to a file, and ask it:

  printf '%s' '{}' > context.txt
  {program} write --model {run} context.txt -o context.mem.safetensors
  {program} read --model {run} context.mem.safetensors '{}'
",
            example.context, question.query
        );
    }
    Ok(text)
}

/// Asks the training to stop at the next step; a second Ctrl-C does not wait.
fn stop_on_ctrl_c(interrupter: &Interrupter) -> Result<(), Error> {
    static ASKED: AtomicBool = AtomicBool::new(false);
    let interrupter = interrupter.clone();
    ctrlc::set_handler(move || {
        if ASKED.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED.into());
        }
        interrupter.stop(Some("Interrupted."));
    })
    .map_err(|e| Error::Failed(format!("Ctrl-C cannot be caught: {e}")))
}

pub fn eval(args: args::Eval) -> Result<ExitCode, Error> {
    let steps = args.write_steps.as_deref().map(steps_list).transpose()?;
    if args.samples == Some(0) {
        return Err(Error::Input("--samples must be at least 1".into()));
    }
    dispatch(
        &args.backend,
        EvalJob {
            run: args.run,
            steps,
            samples: args.samples,
            json: args.json,
        },
    )?;
    Ok(ExitCode::SUCCESS)
}

struct EvalJob {
    run: PathBuf,
    steps: Option<Vec<usize>>,
    samples: Option<usize>,
    json: bool,
}

impl Job for EvalJob {
    type Output = ();

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<(), Error> {
        let trained = Trained::<B>::open(&self.run, device)?;
        let DataConfig::Kv(data) = &trained.config.data;
        let samples = self.samples.unwrap_or(data.valid_samples);
        let steps = match self.steps {
            Some(steps) => steps.into_iter().map(Some).collect(),
            None => vec![trained.method.write_steps()],
        };
        let measures = Measure::of(trained.config.method);
        if !self.json {
            let method = trained.config.method.as_str();
            println!(
                "{samples} held-out contexts of {} ({method})",
                self.run.display()
            );
            let names = measures.iter().map(|m| format!("{:>21}", m.name()));
            println!("{:>4}{}", "K", names.collect::<String>());
        }
        for k in steps {
            let scores = trained.evaluate(k, samples)?;
            if self.json {
                let mut line = scores.to_json();
                line.insert("method".into(), trained.config.method.as_str().into());
                line.insert("write_steps".into(), k.into());
                line.insert("samples".into(), samples.into());
                println!("{}", serde_json::Value::Object(line));
            } else {
                let values = measures
                    .iter()
                    .map(|m| format!("{:>21}", show(*m, &scores)));
                let k = k.map_or("–".into(), |k| k.to_string());
                println!("{k:>4}{}", values.collect::<String>());
            }
        }
        Ok(())
    }
}

/// `0,1,2,5..8` → 0 1 2 5 6 7 8
fn steps_list(text: &str) -> Result<Vec<usize>, Error> {
    const MOST: usize = 10_000;
    let wrong = || {
        Error::Input(format!(
            "--write-steps `{text}` is not a list of numbers and ranges up to {MOST}, such as 0,1,2,5..10"
        ))
    };
    let number = |text: &str| -> Result<usize, Error> {
        let number = text.trim().parse().map_err(|_| wrong())?;
        if number <= MOST {
            Ok(number)
        } else {
            Err(wrong())
        }
    };
    let mut steps = Vec::new();
    for part in text.split(',') {
        match part.split_once("..") {
            None => steps.push(number(part)?),
            Some((from, to)) => {
                let (from, to) = (number(from)?, number(to)?);
                if from > to {
                    return Err(wrong());
                }
                steps.extend(from..=to);
            }
        }
    }
    Ok(steps)
}

fn show(measure: Measure, scores: &Scores) -> String {
    scores
        .mean(measure)
        .map_or("–".into(), |value| show_value(measure, value))
}

fn show_value(measure: Measure, value: f64) -> String {
    match measure {
        measure if measure.is_share() => format!("{:.1} %", 100.0 * value),
        _ => format!("{value:.3}"),
    }
}

pub fn write(args: args::Write) -> Result<ExitCode, Error> {
    let backend = args.backend.clone();
    dispatch(&backend, WriteJob(args))?;
    Ok(ExitCode::SUCCESS)
}

struct WriteJob(args::Write);

impl Job for WriteJob {
    type Output = ();

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<(), Error> {
        let args = self.0;
        let text = read_text(&args.context)?;
        let Model {
            mut method,
            text: tokenizer,
            ..
        } = Model::<B>::open(&args.model, device)?;
        if let Some(steps) = args.write_steps {
            method = method.with_write_steps(steps)?;
        }
        let ids = tokenizer
            .encode(&text, Begin::Bare)
            .map_err(|e| Error::Input(format!("{}: {e}", args.context.display())))?;
        if ids.is_empty() {
            return Err(Error::Input(format!(
                "{} is empty: there is nothing to write",
                args.context.display()
            )));
        }
        let shape = [1, ids.len()];
        let ids = TensorData::new(ids.into_iter().map(i64::from).collect(), shape);
        let contexts: Tensor<B, 2, _> = Tensor::from_data(ids, device);
        let memory = method.write(contexts.clone())?;
        let went = match &method {
            AnyMethod::GradMem(gradmem) => {
                let after = first(gradmem.write_loss(&memory, contexts)?);
                let before = memory.losses.first().cloned().map_or(after, first);
                if !after.is_finite() {
                    return Err(Error::NotFinite {
                        value: format!("{after} (loss after the last step)"),
                        step: 1,
                        batch: 0,
                        sample: 0,
                        hint: "try fewer --write-steps".into(),
                    });
                }
                let steps = gradmem.config().write_steps;
                format!("WRITE loss {before:.3} → {after:.3} nats a token in {steps} steps")
            }
            _ => format!("{} forward passes", method.write_steps().unwrap_or(0)),
        };
        method.save_memory(&memory, &args.output)?;
        let [_, m, d] = memory.vectors.dims();
        println!(
            "{}: {} tokens in {m} vectors of width {d}; {went}",
            args.output.display(),
            shape[1],
        );
        Ok(())
    }
}

fn first<B: KernelBackend>(values: Tensor<B, 1>) -> f64 {
    values.to_data().iter::<f64>().next().unwrap_or(f64::NAN)
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
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text.strip_suffix('\r').unwrap_or(text).into())
}

pub fn read(args: args::Read) -> Result<ExitCode, Error> {
    let backend = args.backend.clone();
    let answer = dispatch(&backend, ReadJob(args))?;
    println!("{answer}");
    Ok(ExitCode::SUCCESS)
}

struct ReadJob(args::Read);

impl Job for ReadJob {
    type Output = String;

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<String, Error> {
        let args = self.0;
        let Model { method, text } = Model::<B>::open(&args.model, device)?;
        let config = text.config(&args.sampling)?;
        let memory = method.load_memory(&args.memory)?;
        let query = text.encode(&args.question, Begin::Bare)?;
        let answers = method.reader(&memory)?.generate(&[query], &config)?;
        text.decode(&answers.concat())
    }
}

pub fn generate(args: args::Generate) -> Result<ExitCode, Error> {
    let backend = args.backend.clone();
    let text = dispatch(&backend, GenerateJob(args))?;
    println!("{text}");
    Ok(ExitCode::SUCCESS)
}

struct GenerateJob(args::Generate);

impl Job for GenerateJob {
    type Output = String;

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<String, Error> {
        let args = self.0;
        let Model { method, text } = Model::<B>::open(&args.model, device)?;
        let config = text.config(&args.sampling)?;
        let prompt = text.encode(&args.prompt, Begin::AsATextDoes)?;
        let prompts = [prompt];
        let answers = generate::continue_prompts(method.model(), &prompts, &config, device)?;
        text.continued(&prompts[0], &answers[0])
    }
}

pub fn export(args: args::Export) -> Result<ExitCode, Error> {
    let backend = args.backend.clone();
    dispatch(&backend, ExportJob(args))?;
    Ok(ExitCode::SUCCESS)
}

struct ExportJob(args::Export);

impl Job for ExportJob {
    type Output = ();

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<(), Error> {
        let args = self.0;
        let trained = Trained::<B>::open(&args.run, device)?;
        let tokenizer = KvConfig::tokenizer()?;
        let end = end_of_answer(&tokenizer)?;
        let tokens = Some(tokenizer.as_tokenizer());
        reference::save(&args.output, &trained.method, tokens, end)?;
        println!(
            "{}: {} on {}, as config.json, model.safetensors and tokenizer.json",
            args.output.display(),
            trained.config.method.as_str(),
            trained.config.model.model_type()
        );
        Ok(())
    }
}

pub fn parity(args: args::Parity) -> Result<ExitCode, Error> {
    if args.tolerance.is_nan() || args.tolerance < 0.0 {
        return Err(Error::Input(
            "--tolerance must be 0 or a positive number".into(),
        ));
    }
    let report = dispatch(
        &args.backend,
        ParityJob(args.folder, args.meta_gradient.into()),
    )?;
    let width = report
        .rows
        .iter()
        .map(|r| r.tensor.len())
        .max()
        .unwrap_or(0);
    println!("{:width$}  max relative error", "tensor");
    for row in &report.rows {
        let mark = if row.error <= args.tolerance {
            ""
        } else {
            "  ✗"
        };
        println!("{:width$}  {:.1e}{mark}", row.tensor, row.error);
    }
    let worst = report.worst();
    let within = worst <= args.tolerance;
    println!(
        "{} tensors, worst {worst:.1e}: {} the tolerance of {:.0e}",
        report.rows.len(),
        if within { "within" } else { "beyond" },
        args.tolerance
    );
    Ok(if within {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

struct ParityJob(PathBuf, MetaGradient);

impl Job for ParityJob {
    type Output = gradmem::parity::Report;

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<Self::Output, Error> {
        gradmem::parity::compare::<B>(self.0, self.1, device)
    }
}

pub fn preset(args: args::Preset) -> Result<ExitCode, Error> {
    match args.name {
        None => presets().for_each(|(name, _)| println!("{name}")),
        Some(name) => match presets().find(|(known, _)| *known == name) {
            Some((_, text)) => print!("{text}"),
            None => {
                let names: Vec<_> = presets().map(|(name, _)| name).collect();
                return Err(Error::Input(format!(
                    "unknown preset `{name}`: there are {}",
                    names.join(", ")
                )));
            }
        },
    }
    Ok(ExitCode::SUCCESS)
}

/// How this program was called.
fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "gradmem".into())
}
