//! What GradMem is compared with: the same questions about the same contexts, answered otherwise.
//!
//! | baseline | what is kept of the context |
//! |---|---|
//! | [`Rmt`] | memory vectors, written by forward passes |
//! | [`InContext`] | all of it, in the prompt |

mod in_context;
mod rmt;

pub use in_context::{InContext, InContextConfig};
pub use rmt::{Rmt, RmtConfig, RmtOuter, RmtProj};
