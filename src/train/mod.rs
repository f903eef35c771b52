//! Meta-training on burn-train: settings, steps, metrics, and runs that can be stopped and go on.
//!
//! ```no_run
//! # #[cfg(feature = "flex")] {
//! use gradmem::train::{self, TrainOptions, Trained, config::RunConfig};
//! # fn main() -> Result<(), gradmem::Error> {
//! type B = burn_flex::Flex;
//!
//! let device = Default::default();
//! let config = RunConfig::resolve("kv-quick", &["train.seed=2".into()])?;
//! train::train::<B>(&config, "runs/two", TrainOptions::default(), &device)?; // goes on if it was stopped
//! let gradmem = Trained::<B>::open("runs/two", &device)?.into_gradmem()?; // its best weights
//! # Ok(()) }
//! # }
//! ```

pub mod checkpoint;
pub mod config;
pub mod evaluation;
pub mod learner;
pub mod metrics;
mod render;
mod run;
mod scoring;
mod strategy;

pub use render::{duration, leave_dashboard};
pub use run::{TrainOptions, Trained, open_method, train};
pub use strategy::{Ending, Outcome};
