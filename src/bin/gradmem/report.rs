//! `gradmem report`: figures and tables of training runs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use gradmem::Error;
use gradmem::report::Report;

use crate::files::{check_folder, check_writable};
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
    if args
        .csv
        .as_ref()
        .is_some_and(|file| file.as_os_str() == "-")
    {
        if args.output.is_some() || args.figures.is_some() {
            let problem =
                "--csv - makes no page and no figures: name a file for them beside -o or --figures";
            return Err(Error::Input(problem.into()));
        }
        let csv = report.csv()?;
        say!("{}", csv.trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    let page = args.output.unwrap_or_else(|| "report.html".into());
    let pages = [&page, &page.with_extension("md")];
    // All is checked before anything is written: what can be made here, the rest by `save`, which makes the folder of the figures.
    let folder = args.figures.as_deref();
    if let Some(folder) = folder {
        check_folder(folder, "--figures")?;
    }
    let is_made = |file: &Path| folder.is_some_and(|x| file.parent() == Some(x) && !x.exists());
    for file in pages.iter().filter(|file| !is_made(file)) {
        check_writable(file)?;
    }
    if let Some(file) = &args.csv {
        if pages.iter().any(|path| is_same(file, path)) {
            return Err(Error::Input(format!(
                "{}: --csv and -o name the same file (the Markdown has the page's name with .md): name another",
                file.display()
            )));
        }
        check_writable(file)?;
        report.check_csv(file)?;
    }
    for file in report.save(&page, args.figures.as_deref())? {
        say!("{}", file.display());
    }
    if let Some(file) = &args.csv {
        report.save_csv(file)?;
        say!("{}", file.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether two paths lead to one file, which need not be there yet.
fn is_same(a: &Path, b: &Path) -> bool {
    let place = |path: &Path| {
        let folder = path.parent()?;
        let folder = match folder.as_os_str().is_empty() {
            true => Path::new("."),
            false => folder,
        };
        Some(folder.canonicalize().ok()?.join(path.file_name()?))
    };
    let is_one_place = place(a).is_some_and(|a| place(b) == Some(a));
    is_one_place || same_file::is_same_file(a, b).unwrap_or(false)
}
