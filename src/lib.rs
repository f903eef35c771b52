//! GradMem for Burn: a context is written into a few memory vectors by gradient descent at test time,
//! and queries are answered from the memory alone (arXiv 2603.13875).
//!
//! The model and the memory's start are trained *through* the WRITE steps, by gradients of gradients;
//! that works on any Burn backend wrapped in `Autodiff`.
//!
//! ```
//! # #[cfg(feature = "flex")] {
//! use gradmem::{episode::Tokens, memory::GradMemConfig, model::LlamaConfig};
//! # fn main() -> Result<(), gradmem::Error> {
//! type B = burn_flex::Flex;
//!
//! let device = Default::default();
//! let lm = LlamaConfig::new(70, 64, 2, 2).init::<B>(0, &device)?; // vocab, d_model, layers, heads
//! let gradmem = GradMemConfig::new()
//!     .with_memory_tokens(8)
//!     .with_write_steps(2)
//!     .with_write_lr(0.04)
//!     .init(lm, 1, &device)?;
//!
//! let contexts = Tokens::<B>::new(&[vec![9, 4, 7, 5], vec![8, 6]], &device)?; // rows of token ids
//! let memory = gradmem.write(&contexts)?; // [batch, memory_tokens, d_model]; the contexts are gone
//! let queries = Tokens::<B>::new(&[[9, 4], [8, 6]], &device)?;
//! let logits = gradmem.read(&memory, &queries)?; // [batch, query_len + 1, vocab]
//! assert_eq!(logits.dims(), [2, 3, 70]);
//! # Ok(()) }
//! # main().unwrap();
//! # }
//! ```
//!
//! To train, put the same code on an autodiff backend:
//!
//! ```
//! # #[cfg(feature = "flex")] {
//! # use burn::{backend::Autodiff, optim::GradientsParams};
//! # use gradmem::{episode::{Episode, Tokens}, memory::GradMemConfig, model::LlamaConfig};
//! # fn main() -> Result<(), gradmem::Error> {
//! type B = Autodiff<burn_flex::Flex>;
//! # let device = Default::default();
//! # let lm = LlamaConfig::new(70, 16, 1, 2).init::<B>(0, &device)?;
//! # let gradmem = GradMemConfig::new().init(lm, 1, &device)?;
//! let contexts = Tokens::<B>::new(&[[9, 4, 7, 5]], &device)?;
//! let episode = Episode::from_answers(contexts, &[([9, 4], [7])])?; // a query and its target
//! let outer = gradmem.outer(&episode)?;
//! let gradients = outer.loss().backward(); // through the WRITE steps: second order
//! let gradients = GradientsParams::from_grads(gradients, &gradmem); // for any Burn optimizer
//! # assert_eq!(gradients.len(), 12);
//! # Ok(()) }
//! # main().unwrap();
//! # }
//! ```
//!
//! | where | what |
//! |---|---|
//! | [`episode`] | contexts, queries and labels, checked once |
//! | [`memory`] | the method: WRITE, READ, the outer loss; memories as files |
//! | [`model`] | what a language model must be to be written through; Llama, GPT-2, GPT-NeoX and Mamba, pretrained ones too; generation |
//! | [`baselines`], [`method`] | RMT, ARMT, and the whole context in the prompt; all of these as one |
//! | `data` | contexts and questions as batches |
//! | `tokenizer` | text to token ids and back |
//! | `train` | meta-training on burn-train, in runs that can be stopped and resumed |
//! | `report` | plots and tables of runs, on a page of their own |
//! | [`interop`] | the reference implementation's numbers and checkpoints |
//! | [`kernels`] | attention, layers and the linear scan, differentiable twice |
//!
//! [`guide`] teaches: the method and its shapes, what each strategy for the outer gradient costs, how to choose α
//! and K and to read the metrics, what a memory file holds; CUDA from nothing; the authors' PyTorch options
//! one by one; troubleshooting.
//!
//! # What stays as it is
//!
//! Settings are made by `new` or `Default` and `with_…`, or as `Settings { …, ..Default::default() }`: they may
//! gain fields. Results and choices are `#[non_exhaustive]`. What takes tokens, files or settings returns an
//! [`Error`]; layers, which take what others have checked, panic on shapes that do not fit, as Burn's do. Messages
//! are for people and may change.
//!
//! # Features
//!
//! [A table](guide::features#cargo-features) lists the Cargo features. Without any there is the library and no backend.
#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![recursion_limit = "256"]

pub mod baselines;
#[cfg(feature = "data")]
pub mod data;
pub mod episode;
mod error;
pub mod guide;
pub mod interop;
pub mod memory;
pub mod method;
pub mod model;
#[cfg(feature = "report")]
pub mod report;
#[doc(hidden)]
pub mod support;
#[cfg(feature = "data")]
pub mod tokenizer;
/// Tokenizers. Without the feature `data` there are none.
#[cfg(not(feature = "data"))]
#[path = "tokenizer/absent.rs"]
pub mod tokenizer;
#[cfg(feature = "train")]
pub mod train;

/// Burn, at the version that this crate is built with.
pub use burn;
/// The backend of CUDA.
#[cfg(feature = "cuda")]
pub use burn_cuda;
/// The CPU backend.
#[cfg(feature = "flex")]
pub use burn_flex;
/// Burn's older CPU backend.
#[cfg(feature = "ndarray")]
pub use burn_ndarray;
/// The backend of AMD's GPUs.
#[cfg(feature = "rocm")]
pub use burn_rocm;
/// The backend of Vulkan, Metal and WebGPU.
#[cfg(feature = "wgpu")]
pub use burn_wgpu;
pub use error::Error;
/// Attention and the linear scan, differentiable twice.
pub use gradmem_kernels as kernels;

#[cfg(all(test, feature = "flex"))]
mod tests {
    use crate::kernels::KernelBackend;

    fn crosses_threads<T: Send + Sync + 'static>() {}

    /// It compiles, for any backend.
    #[test]
    fn what_is_public_crosses_threads() {
        all_cross_threads::<burn_flex::Flex>();
    }

    fn all_cross_threads<B: KernelBackend>() {
        crosses_threads::<crate::Error>();
        #[cfg(feature = "data")]
        crosses_threads::<crate::data::Task>();
        crosses_threads::<crate::episode::Episode<B>>();
        crosses_threads::<crate::memory::Memory<B>>();
        crosses_threads::<crate::memory::MemoryFile>();
        crosses_threads::<crate::method::AnyMethod<B>>();
        crosses_threads::<crate::model::Cache<B>>();
        crosses_threads::<crate::model::Tokens<B>>();
        crosses_threads::<crate::model::generate::Reader<'static, B, crate::model::AnyLm<B>>>();
        crosses_threads::<crate::model::weights::Tensors>();
        #[cfg(feature = "train")]
        crosses_threads::<crate::train::Trained<B>>();
        #[cfg(feature = "train")]
        crosses_threads::<crate::train::TrainOptions>();
        #[cfg(feature = "train")]
        crosses_threads::<crate::train::Outcome>();
    }
}
