//! `gradmem report`: figures and tables of training runs.

use std::path::PathBuf;
use std::process::ExitCode;

use gradmem::Error;
use gradmem::report::Report;

use crate::output::say;

/// Plot training runs: one HTML page of figures and tables, and the tables as Markdown.
///
/// Runs that differ only in train.seed form one group. Learning curves are read from the runs' logs, also
/// while a run is training. Results for other numbers of WRITE steps come from `gradmem eval`. The page is
/// self-contained and has no JavaScript. The same runs give the same page.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  gradmem report runs
  gradmem report runs/kv-quick runs/kv-quick-rmt -o comparison.html
  gradmem report runs -o report.html --figures figures
  gradmem report runs/kv-quick --csv -")]
pub struct Args {
    /// Folders of runs, or folders that contain several.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// HTML page to write; the Markdown file has the same name with .md [default: report.html].
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Save the runs' logs, a row for each line, as comma-separated values: `-` for the standard output, and no page.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Save each figure in this folder too, as SVG and PNG.
    #[arg(long, value_name = "FOLDER")]
    figures: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<ExitCode, Error> {
    let report = Report::open(&args.runs)?;
    match &args.csv {
        Some(file) if file.as_os_str() == "-" => {
            if args.output.is_some() || args.figures.is_some() {
                let problem = "--csv - makes no page and no figures: name a file for them beside -o or --figures";
                return Err(Error::Input(problem.into()));
            }
            let csv = report.csv()?;
            say!("{}", csv.trim_end());
            return Ok(ExitCode::SUCCESS);
        }
        Some(file) => {
            report.save_csv(file)?;
            say!("{}", file.display());
        }
        None => {}
    }
    let page = args.output.unwrap_or_else(|| "report.html".into());
    for file in report.save(&page, args.figures.as_deref())? {
        say!("{}", file.display());
    }
    Ok(ExitCode::SUCCESS)
}
