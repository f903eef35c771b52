//! GradMem (arXiv 2603.13875): a context is written into memory by gradient descent at test time, and queries
//! are answered from the memory alone.
//!
//! | the paper (section 3) | here |
//! |---|---|
//! | M0, the meta-learned start | [`GradMem::memory`], `start.rs` |
//! | WRITE: `M_{k+1} = M_k − α ∇_M L_write(M_k; C)` | [`GradMem::write`], `write.rs`, `step.rs` |
//! | READ: the target from `[M_K; Q]` | [`GradMem::read`], `read.rs` |
//! | the outer loss, differentiated through WRITE | [`GradMem::outer`], [`GradMem::outer_gradient`], `outer.rs` |
//! | `L_write`, or another objective | [`WriteObjective`], `objective.rs` |
//! | reconstruction of C from M_K | [`GradMem::reconstruct`], `reconstruct.rs` |
//! | K chosen at test time (section 4.2) | [`GradMem::trajectory`], [`GradMem::write_until`], `stop.rs` |
//!
//! Everything is written once for a backend `B`. On a plain backend it is inference: nothing is kept for an
//! outer gradient. On `Autodiff<B>` the same code is training: the updates stay on the outer tape, and
//! `loss.backward()` is the second-order meta-gradient.
//!
//! `kinds` has what any memory shares, GradMem's and a baseline's: its value, how it is attached to a model,
//! its files.

mod auxiliary;
mod budget;
mod choices;
mod config;
mod cram;
mod gate;
mod gradmem;
mod inner;
pub(crate) mod kinds;
mod lora;
mod noise;
mod objective;
mod outer;
mod places;
mod read;
mod reconstruct;
mod save;
mod segments;
mod start;
mod step;
mod step_size;
mod stop;
mod write;

pub use auxiliary::Auxiliary;
pub use choices::{Chunks, GradMode, LoraPlace, MemProj, MemoryKind, MemoryStart};
pub use config::{GradMemConfig, MOST_STEPS};
pub use cram::{CramConfig, Crammed};
pub use gate::{Gate, GateKind};
pub use gradmem::GradMem;
#[cfg(feature = "train")]
pub(crate) use gradmem::RequireGrad;
pub use inner::{InnerOptimizer, LearnedLr};
pub use kinds::{Memory, MemoryFile, MemoryFiles, MemoryFloat, Origin, Written};
pub use lora::Lora;
pub use objective::{Energy, EnergyConfig, LiftedObjective, Reconstruct, WriteObjective};
pub use outer::{MetaGradient, Outer};
pub use reconstruct::Reconstruction;
pub use start::{KvStart, LoraStart, PrefixStart, Start};
pub use step_size::{STEP_SIZES, StepSize, best_step_size};
pub use stop::StopRule;

pub use crate::support::graph_lock::GraphLock;
