//! How a training is run, apart from its settings.

use std::fmt;
use std::sync::Arc;

use burn::train::Interrupter;

use super::world::{Alone, World};

/// Options of a training that are not settings of the run.
#[derive(Clone)]
pub struct TrainOptions {
    /// Prints lines instead of the dashboard, even on a terminal.
    pub plain: bool,
    /// Stops the training on request.
    pub interrupter: Interrupter,
    /// The processes that train together [default: this one alone].
    pub world: Arc<dyn World>,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            plain: false,
            interrupter: Interrupter::default(),
            world: Arc::new(Alone),
        }
    }
}

impl fmt::Debug for TrainOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrainOptions")
            .field("plain", &self.plain)
            .field("world", &self.world)
            .finish_non_exhaustive()
    }
}
