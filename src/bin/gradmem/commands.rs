//! What the commands do that need no file of their own.

use std::path::PathBuf;
use std::process::ExitCode;

use gradmem::Error;
use gradmem::interop::checkpoint::{self, SpecialTokens};
use gradmem::kernels::KernelBackend;
use gradmem::memory::MetaGradient;
use gradmem::model::generate;
use gradmem::report::Report;
use gradmem::train::Trained;
use gradmem::train::config::presets;

use crate::args;
use crate::backend::{Job, dispatch};
use crate::model::{Begin, Model};
use crate::output::{put, say};

pub fn report(args: args::Report) -> Result<ExitCode, Error> {
    let report = Report::open(&args.runs)?;
    let files = report.save(&args.output, args.figures.as_deref())?;
    for file in files {
        say!("{}", file.display());
    }
    Ok(ExitCode::SUCCESS)
}

pub fn generate(args: args::Generate) -> Result<ExitCode, Error> {
    let backend = args.backend.clone();
    let text = dispatch(&backend, GenerateJob(args))?;
    say!("{text}");
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
        let tokenizer = &trained.tokenizer;
        let special = SpecialTokens {
            pad: tokenizer.pad(),
            end: Some(tokenizer.end()),
        };
        let tokenizer = Some(tokenizer.as_tokenizer());
        checkpoint::save(&args.output, &trained.method, tokenizer, special)?;
        say!(
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
    say!("{:width$}  max relative error", "tensor");
    for row in &report.rows {
        let mark = if row.error <= args.tolerance {
            ""
        } else {
            "  ✗"
        };
        say!("{:width$}  {:.1e}{mark}", row.tensor, row.error);
    }
    let worst = report.worst();
    let within = worst <= args.tolerance;
    say!(
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
    type Output = gradmem::interop::parity::Report;

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<Self::Output, Error> {
        gradmem::interop::parity::compare::<B>(self.0, self.1, device)
    }
}

pub fn preset(args: args::Preset) -> Result<ExitCode, Error> {
    match args.name {
        None => presets().for_each(|(name, _)| say!("{name}")),
        Some(name) => match presets().find(|(known, _)| *known == name) {
            Some((_, text)) => put(format_args!("{text}")),
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
pub fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "gradmem".into())
}
