//! Meta-training on burn-train: settings, the outer loop, metrics, checkpoints and evaluation.
//!
//! ```no_run
//! # #[cfg(feature = "flex")] {
//! use gradmem::train::{self, TrainOptions, Trained, config::RunConfig};
//! # fn main() -> Result<(), gradmem::Error> {
//! type B = burn_flex::Flex;
//!
//! let device = Default::default();
//! let config = RunConfig::resolve("kv-quick", &["train.seed=2".into()])?;
//! // Begins a run, or resumes the one in the folder.
//! train::train::<B>(&config, "runs/two", TrainOptions::default(), &device)?;
//! // Opens the best weights.
//! let gradmem = Trained::<B>::open("runs/two", &device)?.into_gradmem()?;
//! # Ok(()) }
//! # }
//! ```
//!
//! [`Training`] does the same for a model and data of your own.

mod average;
pub mod base;
pub mod checkpoint;
pub mod config;
#[cfg(feature = "dashboard")]
mod dashboard;
pub mod evaluation;
mod fault;
mod folder;
mod forgetting;
mod ineffective;
mod launch;
pub mod learner;
pub mod metrics;
mod metrics_log;
mod names;
mod optimizer;
mod options;
mod outer_loop;
mod overrides;
mod own;
mod own_settings;
mod presets;
mod render;
mod results;
mod run;
mod schedule;
mod scoring;
mod strategy;
mod trained;
pub mod tune;
pub mod world;

/// What the `log` crate's target is called for what the user of the command is told at level info.
const NOTICE: &str = "gradmem::notice";

pub use optimizer::AdamW;
pub use options::TrainOptions;
pub use own::Training;
pub use render::{duration, has_dashboard, leave_dashboard};
pub use run::train;
pub use strategy::{Ending, Outcome};
pub use trained::{Trained, open_method};
