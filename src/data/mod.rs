//! Datasets of contexts, queries and targets, tokenization and batching.
//!
//! A source gives [`Example`]s as text: key-value pairs ([`KvConfig`]), MQAR ([`MqarConfig`]), multi-hop association
//! ([`MultihopConfig`]), bAbI ([`BabiConfig`]), SQuAD
//! ([`SquadConfig`]), a phone book ([`PhonebookConfig`]), or JSON Lines ([`JsonlConfig`]). A [`TextTokenizer`]
//! encodes them as [`Sample`]s of token ids; samples of running text ([`TextConfig`]) are cut from the tokens of
//! a corpus. [`DataConfig::open`] does all of this and returns a [`Task`]. [`ExampleBatcher`] collates samples
//! into a [`Batch`].
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
//! assert_eq!(batch.episode.len(), 8);
//! # Ok(()) }
//! # main().unwrap();
//! # }
//! ```

pub mod answers;
mod babi;
mod batcher;
mod config;
mod corpus;
mod example;
mod generated;
mod json;
mod jsonl;
mod kv;
mod mqar;
mod multihop;
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

pub use babi::BabiConfig;
pub use batcher::{Batch, ExampleBatcher};
pub use config::DataConfig;
use corpus::Corpus;
pub use example::{Asked, Direction, Example, Question, Sample};
pub use generated::{Generated, Generates};
pub use jsonl::JsonlConfig;
pub use kv::{KvConfig, PairOrder};
pub use mqar::MqarConfig;
pub use multihop::MultihopConfig;
pub use order::{Cycle, Spaced};
pub use phonebook::PhonebookConfig;
pub use source::{Examples, Sources};
pub use split::Split;
pub use squad::{SquadConfig, SquadVariant};
pub use task::{Lengths, Samples, Task};
pub use text::{Objective, TextConfig};
pub use tokenizer::{TextTokenizer, tokenizer_fingerprint};
pub use tokens::TokensConfig;
