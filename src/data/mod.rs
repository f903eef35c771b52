//! Contexts, queries and targets: where they come from, and how they become batches.
//!
//! A data set gives [`Example`]s as text ([`KvDataset`] makes them up), a [`CharTokenizer`] turns them
//! into token ids, and [`ExampleBatcher`] lays them side by side as a [`Batch`].

mod batcher;
mod example;
mod kv;
mod tokenizer;

pub use batcher::{Batch, ExampleBatcher};
pub use example::{Cycle, Example, Question};
pub use kv::{KvConfig, KvDataset, Split};
pub use tokenizer::CharTokenizer;
