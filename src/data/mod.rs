//! Contexts, queries and targets: where they come from, and how they become batches.
//!
//! A source gives [`Example`]s as text: key-value pairs ([`KvConfig`]), bAbI ([`BabiConfig`]), SQuAD
//! ([`SquadConfig`]), a phonebook ([`PhonebookConfig`]), or lines of JSON ([`JsonlConfig`]). A
//! [`TextTokenizer`] makes [`Sample`]s of token ids of them; running text ([`TextConfig`]) is cut by tokens
//! to begin with. [`DataConfig::open`] is all of this: a [`Task`]. [`ExampleBatcher`] lays samples side by
//! side as a [`Batch`].
//!
//! ```
//! # #[cfg(feature = "flex")] {
//! use burn::data::dataset::Dataset as _;
//! use gradmem::data::{DataConfig, ExampleBatcher, TokensConfig};
//! # fn main() -> Result<(), gradmem::Error> {
//! type B = burn_flex::Flex;
//!
//! let task = DataConfig::default().open(&TokensConfig::default(), 0, None)?; // key-value pairs
//! let samples = (0..8).filter_map(|index| task.train.get(index)).collect();
//! let batch = ExampleBatcher::new(task.tokenizer).try_batch::<B>(samples, &Default::default())?;
//! assert_eq!(batch.contexts.dims()[0], 8);
//! # Ok(()) }
//! # main().unwrap();
//! # }
//! ```

pub mod answers;
mod babi;
mod batcher;
mod corpus;
mod example;
mod json;
mod jsonl;
mod kv;
mod order;
mod phonebook;
mod positioned;
mod sentences;
mod source;
mod split;
mod squad;
mod task;
mod text;
mod tokenizer;
mod tokens;

pub use babi::{BabiConfig, BabiDataset};
pub use batcher::{Batch, ExampleBatcher};
use corpus::Corpus;
pub use example::{Asked, Example, Question, Sample};
pub use jsonl::{JsonlConfig, JsonlDataset};
pub use kv::{KvConfig, KvDataset};
pub use order::Cycle;
pub use phonebook::{PhonebookConfig, PhonebookDataset};
pub use source::{Examples, Sources};
pub use split::Split;
pub use squad::{SquadConfig, SquadDataset, SquadVariant};
pub use task::{DataConfig, Lengths, Samples, Task};
pub use text::{Objective, TextConfig};
pub use tokenizer::{TextTokenizer, tokenizer_fingerprint};
pub use tokens::TokensConfig;
