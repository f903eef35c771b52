//! Plots and tables of training runs: a self-contained HTML page, Markdown tables, and figures as files.
//!
//! A run is read from its folder: its settings, its training log, and the results of `gradmem eval`. Runs that
//! differ only in their seed are one group. The output is deterministic: the same runs give the same bytes.
//!
//! ```no_run
//! # fn main() -> Result<(), gradmem::Error> {
//! let report = gradmem::report::Report::open(&["runs/kv-small", "runs/babi-small"])?;
//! report.save("report.html", None)?;
//! println!("{}", report.markdown());
//! # Ok(()) }
//! ```
//!
//! | file | contents |
//! |---|---|
//! | `run` | a run folder, read |
//! | `group`, `settings` | groups of runs that differ only in their seed, and the settings that distinguish groups |
//! | `context_size` | the number of floats that a method keeps of a context |
//! | `figures` | all figures, by file: `curves`, `parts`, `comparison`, `write_steps`, `forgetting` |
//! | `figure` | the type of a figure, and what several figures share |
//! | `plot`, `heatmap`, `axis`, `canvas`, `style` | drawing |
//! | `table`, `page`, `csv` | the tables, the HTML page, and the logs as one file |
//! | `image` | figures as SVG and PNG files |
//! | `format` | formatting of numbers and text |

mod axis;
mod canvas;
mod comparison;
mod context_size;
mod csv;
mod curves;
mod figure;
mod figures;
mod forgetting;
mod format;
mod group;
mod heatmap;
mod image;
mod page;
mod parts;
mod plot;
mod run;
mod settings;
mod style;
mod table;
mod write_steps;

use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::support::fs::{read_if_exists, write_atomically};
use crate::train::metrics::Measure;
pub use canvas::Svg;
pub use figure::Figure;
/// For the program, which prints numbers too; no part of the library's interface.
#[doc(hidden)]
pub use format::{format_measure, with_separators};
use group::Group;
/// For the program; no part of the library's interface.
#[doc(hidden)]
pub use run::is_run;
pub use run::{Point, Run, Values, unfinished_stage};
pub use table::Table;

/// Runs in groups.
#[derive(Clone, Debug)]
pub struct Report {
    /// In the order in which they are shown.
    groups: Vec<Group>,
    /// See [`Report::measure`].
    measure: Measure,
}

impl Report {
    /// Reads run folders; of a folder that contains run folders, all of them.
    ///
    /// # Errors
    ///
    /// A folder without a run; a damaged configuration, log or evaluation.
    pub fn open(folders: &[impl AsRef<Path>]) -> Result<Self, Error> {
        let folders = run::find_folders(folders)?;
        let mut runs = folders
            .iter()
            .map(Run::open)
            .collect::<Result<Vec<_>, _>>()?;
        let names: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
        for (run, folder) in runs.iter_mut().zip(&folders) {
            if names.iter().filter(|name| **name == run.name).count() > 1 {
                run.name = folder.display().to_string();
            }
        }
        Ok(Self::of(runs))
    }

    /// Puts runs into groups.
    pub fn of(runs: Vec<Run>) -> Self {
        let mut measures = runs.iter().map(|run| run.config.train.stop_metric);
        let first = measures.next().unwrap_or(Measure::ExactMatch);
        let measure = match measures.all(|measure| measure == first) {
            true => first,
            false => Measure::ExactMatch,
        };
        Self {
            groups: group::group_runs(runs),
            measure,
        }
    }

    /// The measure by which runs are compared: their `train.stop_metric` if it is the same for all, otherwise
    /// exact match.
    pub fn measure(&self) -> Measure {
        self.measure
    }

    /// All runs, group by group; runs of a group differ only in their seed.
    pub fn runs(&self) -> impl Iterator<Item = &Run> + Clone {
        self.groups.iter().flat_map(|group| &group.runs)
    }

    /// All figures that the runs have the numbers for.
    ///
    /// # Errors
    ///
    /// If a figure cannot be drawn, which is a bug in this crate.
    pub fn figures(&self) -> Result<Vec<Figure>, Error> {
        figures::all(self)
    }

    /// The tables: results, and the steps each seed took.
    pub fn tables(&self) -> Vec<Table> {
        let results = std::iter::once(table::results(self));
        results.chain(table::steps(self)).collect()
    }

    /// The tables in Markdown.
    pub fn markdown(&self) -> String {
        let tables = self.tables();
        let tables: Vec<_> = tables.iter().map(Table::markdown).collect();
        tables.join("\n")
    }

    /// Whether a file is a page or a Markdown file of reports.
    fn is_report(&self, bytes: &[u8]) -> bool {
        let text = String::from_utf8_lossy(bytes);
        let table = self.tables().first().map(Table::markdown_begin);
        text.contains(page::TITLE) || table.is_some_and(|begin| text.starts_with(&begin))
    }

    /// The logs of all runs as comma-separated values: a row for each line, with the run's name and seed in front.
    ///
    /// # Errors
    ///
    /// If the table cannot be written, which is a bug in this crate.
    pub fn csv(&self) -> Result<String, Error> {
        let bytes = csv::csv(self.runs())?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Writes [`csv`](Self::csv) to a file.
    ///
    /// # Errors
    ///
    /// If it cannot be written, or there is a file that is no such table.
    pub fn save_csv(&self, file: impl AsRef<Path>) -> Result<(), Error> {
        let file = file.as_ref();
        self.check_csv(file)?;
        write_atomically(file, self.csv()?.as_bytes())
    }

    /// Fails if [`save_csv`](Self::save_csv) would replace what is no such table.
    ///
    /// # Errors
    ///
    /// Such a file, or one that cannot be read.
    pub fn check_csv(&self, file: impl AsRef<Path>) -> Result<(), Error> {
        let file = file.as_ref();
        let there = read_if_exists(file)?.unwrap_or_default();
        if !there.is_empty() && !there.starts_with(csv::FIRST.join(",").as_bytes()) {
            let problem = "is there already and is no table of this program's, so it is not replaced: name another file";
            return Err(Error::file(file, problem));
        }
        Ok(())
    }

    /// Writes the page to `html`, the Markdown beside it, and the figures into `folder` if there is one.
    /// Returns the paths of the files.
    ///
    /// # Errors
    ///
    /// If a figure cannot be drawn or a file cannot be written, or if there is a file of that name that no report made.
    pub fn save(
        &self,
        html: impl AsRef<Path>,
        folder: Option<&Path>,
    ) -> Result<Vec<PathBuf>, Error> {
        let html = html.as_ref();
        let markdown = html.with_extension("md");
        let extension = html.extension().unwrap_or_default();
        if extension != "html" && extension != "htm" {
            let problem = "must be named as an HTML page, such as report.html";
            return Err(Error::file(html, problem));
        }
        if let Some(folder) = [html, &markdown].into_iter().find(|path| path.is_dir()) {
            return Err(Error::file(folder, "is a folder, not a file to write to"));
        }
        for path in [html, &markdown] {
            let earlier = read_if_exists(path)?.unwrap_or_default();
            if !earlier.is_empty() && !self.is_report(&earlier) {
                let problem = "is no report, and is not replaced: name another page with -o";
                return Err(Error::file(path, problem));
            }
        }
        let figures = self.figures()?;
        let mut files = vec![
            (html.to_path_buf(), page::html(self, &figures)?.into_bytes()),
            (markdown, self.markdown().into_bytes()),
        ];
        if let Some(folder) = folder {
            let images = image::files(&figures, folder)?;
            image::check_ours(&images)?;
            files.extend(images);
            std::fs::create_dir_all(folder).map_err(Error::io(folder, "cannot make the folder"))?;
        }
        for (path, bytes) in &files {
            write_atomically(path, bytes)?;
        }
        Ok(files.into_iter().map(|(path, _)| path).collect())
    }
}
