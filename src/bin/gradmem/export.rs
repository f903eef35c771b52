//! `gradmem export`: a run as a checkpoint of the reference implementation.

use std::path::PathBuf;
use std::process::ExitCode;

use gradmem::Error;
use gradmem::interop::checkpoint::{self, SpecialTokens};
use gradmem::kernels::KernelBackend;
use gradmem::train::Trained;

use crate::args::Backend;
use crate::backend::{Job, dispatch};
use crate::files::check_folder;
use crate::output::{say, shown_path};

/// Save a trained run's best weights as a checkpoint of the reference implementation.
///
/// The folder gets config.json and model.safetensors, as the reference's PyTorch code reads them, and the
/// run's tokenizer.json with a tokenizer_config.json. An in-context run is saved as a Hugging Face model.
#[derive(clap::Args)]
pub struct Args {
    /// Folder of the run.
    run: PathBuf,
    /// Folder to create; it may be there, but empty.
    #[arg(long, short, value_name = "FOLDER")]
    output: PathBuf,
    #[command(flatten)]
    backend: Backend,
}

pub fn run(args: Args) -> Result<ExitCode, Error> {
    args.backend.check_computes_nothing()?;
    check_folder(&args.output, "-o")?;
    let mut files = std::fs::read_dir(&args.output).into_iter().flatten();
    if files.next().is_some() {
        return Err(Error::file(
            &args.output,
            "is not empty, and is not replaced: name a new folder",
        ));
    }
    let backend = args.backend.clone();
    dispatch(&backend, args)?;
    Ok(ExitCode::SUCCESS)
}

impl Job for Args {
    type Output = ();

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<(), Error> {
        let trained = Trained::<B>::open(&self.run, device)?;
        let tokenizer = &trained.tokenizer;
        let special = SpecialTokens {
            pad: tokenizer.pad(),
            ends: vec![tokenizer.end()],
            begin: None,
        };
        let tokenizer = Some(tokenizer.as_tokenizer());
        checkpoint::save(&self.output, &trained.method, tokenizer, &special)?;
        say!(
            "{}: {} on {}, as config.json, model.safetensors and tokenizer.json",
            shown_path(&self.output),
            trained.config.method.as_str(),
            trained.config.model.model_type()
        );
        Ok(())
    }
}
