//! Plots and tables of training runs: one HTML page that needs nothing else, a Markdown table, and each
//! figure as a file.
//!
//! A run is a run folder: its settings, the log of its training, and what `gradmem eval` found. Runs that
//! differ only in their seed are one group. The same runs make the same bytes.
//!
//! ```no_run
//! # fn main() -> Result<(), gradmem::Error> {
//! let report = gradmem::report::Report::open(&["runs/kv-small", "runs/babi-small"])?;
//! report.save("report.html", None)?;
//! println!("{}", report.markdown());
//! # Ok(()) }
//! ```
//!
//! | file | what it does |
//! |---|---|
//! | `run` | reads a run folder |
//! | `group`, `settings` | which runs are seeds of one another, and what tells groups apart |
//! | `floats` | how many numbers a method keeps of a context |
//! | `figures`, `against`, `evaluated` | which plots there are |
//! | `plot`, `heat`, `axis`, `pen`, `look` | how they are drawn |
//! | `table`, `page` | the tables, and the page around everything |
//! | `image` | figures as SVG and PNG files |

mod against;
mod axis;
mod evaluated;
mod figures;
mod floats;
mod group;
mod heat;
mod image;
mod look;
mod page;
mod pen;
mod plot;
mod run;
mod settings;
mod table;
mod text;

use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::support::fs::write_atomically;
use crate::train::metrics::Measure;
pub use figures::Figure;
use group::Group;
pub use pen::Svg;
pub use run::{Point, Run, Values};
pub use table::Table;

/// Runs, read and put in groups.
#[derive(Clone, Debug)]
pub struct Report {
    /// Groups in the order they are shown in.
    groups: Vec<Group>,
    /// See [`Report::measure`].
    measure: Measure,
}

impl Report {
    /// Reads runs; a folder of run folders stands for all of them.
    ///
    /// # Errors
    ///
    /// A folder that holds no run; a configuration, log or evaluation that is damaged.
    pub fn open(folders: &[impl AsRef<Path>]) -> Result<Self, Error> {
        let runs = run::find(folders)?
            .iter()
            .map(Run::open)
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self::of(runs))
    }

    /// Puts runs in groups.
    pub fn of(runs: Vec<Run>) -> Self {
        let mut measures = runs.iter().map(|run| run.config.train.stop_metric);
        let first = measures.next().unwrap_or(Measure::ExactMatch);
        let measure = match measures.all(|measure| measure == first) {
            true => first,
            false => Measure::ExactMatch,
        };
        Self {
            groups: group::group(runs),
            measure,
        }
    }

    /// What the runs are compared by: their `train.stop_metric` if they agree on one, or else exact match.
    pub fn measure(&self) -> Measure {
        self.measure
    }

    /// All runs, group by group; a group differs in its seeds alone.
    pub fn runs(&self) -> impl Iterator<Item = &Run> {
        self.groups.iter().flat_map(|group| &group.runs)
    }

    /// The figures these runs have the numbers for.
    ///
    /// # Errors
    ///
    /// If one cannot be drawn, which is a fault of this crate.
    pub fn figures(&self) -> Result<Vec<Figure>, Error> {
        figures::all(self)
    }

    /// The tables there are: results, and how long each seed took.
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

    /// Writes the page to `html`, the Markdown beside it, and the figures into a folder if one is given.
    /// Returns the files written.
    ///
    /// # Errors
    ///
    /// If a figure cannot be drawn or a file cannot be written.
    pub fn save(
        &self,
        html: impl AsRef<Path>,
        folder: Option<&Path>,
    ) -> Result<Vec<PathBuf>, Error> {
        let html = html.as_ref();
        let markdown = html.with_extension("md");
        let extension = html.extension().unwrap_or_default();
        if extension != "html" && extension != "htm" {
            let problem = "is no name for a page: call it report.html or the like";
            return Err(Error::file(html, problem));
        }
        if let Some(folder) = [html, &markdown].into_iter().find(|path| path.is_dir()) {
            return Err(Error::file(folder, "is a folder, not a file to write to"));
        }
        let figures = self.figures()?;
        let mut files = vec![
            (html.to_path_buf(), page::html(self, &figures)?.into_bytes()),
            (markdown, self.markdown().into_bytes()),
        ];
        if let Some(folder) = folder {
            files.extend(image::files(&figures, folder)?);
            std::fs::create_dir_all(folder).map_err(Error::io(folder, "cannot make the folder"))?;
        }
        for (path, bytes) in &files {
            write_atomically(path, bytes)?;
        }
        Ok(files.into_iter().map(|(path, _)| path).collect())
    }
}
