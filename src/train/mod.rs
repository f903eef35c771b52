//! Meta-training on burn-train: settings, steps, metrics, and runs that can be stopped and go on.

pub mod checkpoint;
pub mod config;
pub mod evaluation;
pub mod learner;
pub mod metrics;
mod render;
mod run;
mod strategy;

pub use render::{duration, leave_dashboard};
pub use run::{TrainOptions, Trained, open_method, train};
pub use strategy::{Ending, Outcome};
