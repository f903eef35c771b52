//! What GradMem is compared with: the same questions about the same contexts, answered otherwise.
//!
//! | baseline | what is kept of the context |
//! |---|---|
//! | [`Rmt`] | memory vectors, written by forward passes |
//! | [`Armt`] | a matrix in each layer, written by forward passes |
//! | [`InContext`] | all of it, in the prompt |
//!
//! ```
//! # #[cfg(feature = "flex")] {
//! use gradmem::{baselines::RmtConfig, episode::Tokens, model::LlamaConfig};
//! # fn main() -> Result<(), gradmem::Error> {
//! type B = burn_flex::Flex;
//!
//! let device = Default::default();
//! let lm = LlamaConfig::new(70, 16, 1, 2).init::<B>(0, &device)?;
//! let rmt = RmtConfig::new().with_memory_tokens(4).init(lm, 1, &device)?;
//! let memory = rmt.write(&Tokens::new(&[[9, 4, 7, 5]], &device)?)?; // one forward pass
//! let logits = rmt.read(&memory, &Tokens::new(&[[9, 4]], &device)?)?;
//! assert_eq!(logits.dims(), [1, 3, 70]);
//! # Ok(()) }
//! # main().unwrap();
//! # }
//! ```

mod answers;
pub(crate) mod armt;
mod in_context;
mod rmt;

pub use answers::Answers;
pub use armt::{Armt, ArmtConfig, ArmtImplementation};
pub use in_context::{InContext, InContextConfig, Questions};
pub use rmt::{Rmt, RmtConfig, RmtProj};
