//! Which way to the outer gradient fits into memory.

use burn::tensor::backend::Backend;

use super::{Chunks, GradMem, MetaGradient, WriteObjective};
use crate::error::Error;
use crate::model::{CausalLm, rows_at_once, weights};
use crate::support::memory::{available_on, check_free};

/// A graph's floats for each number that the layers make of the tokens that are read
/// ([`CausalLm::numbers_per_token`]): 2.6 to 2.7 were measured on a Llama of width 128 (benches/README.md).
const GRAPH: f64 = 3.0;

/// The share of [`GRAPH`] that a graph takes at least, whatever the model.
const LEAST: f64 = 0.5;

/// Steps that are unrolled where nobody knows how much memory is free.
const UNROLLED_BLINDLY: usize = 2;

impl<B: Backend, M: CausalLm<B>, O: WriteObjective<B, M>> GradMem<B, M, O> {
    /// What [`MetaGradient::Auto`] is for contexts `[batch, seq]` at this moment; the others are what they
    /// are. With one step or none there is nothing to replay.
    pub fn choose(&self, how: MetaGradient, contexts: [usize; 2]) -> MetaGradient {
        let steps = self.config.steps_in_a_row(contexts[1]);
        match how {
            _ if steps <= 1 => MetaGradient::Unrolled,
            MetaGradient::Auto => match available_on::<B>(&self.memory.device()) {
                Some(free) if self.graph_bytes(contexts) * steps as f64 <= 0.5 * free => {
                    MetaGradient::Unrolled
                }
                None if steps <= UNROLLED_BLINDLY => MetaGradient::Unrolled,
                _ => MetaGradient::Replay,
            },
            how => how,
        }
    }

    /// Fails on a step of training that certainly does not fit into the memory that is free: its graphs, and each weight
    /// with its gradient and two moments. Elsewhere than on a CPU, where nobody knows, it is always fine.
    ///
    /// - `how`: not [`MetaGradient::Auto`]
    /// - `contexts`: `[batch, seq]`, computed at once
    ///
    /// # Errors
    ///
    /// Says how much is needed and what would help: [`Error::Input`].
    pub fn check_memory(&self, how: MetaGradient, contexts: [usize; 2]) -> Result<(), Error> {
        let graphs = match how {
            MetaGradient::Unrolled => {
                let mut most = self.config.clone();
                most.write_steps = most.most_steps();
                let steps = 0..most.write_steps;
                let of_chunk = steps.filter(|k| most.needs_graph(*k)).count();
                (of_chunk * self.config.chunks_in_a_row(contexts[1])).max(1)
            }
            _ => 1,
        };
        // A frozen model has neither gradients nor moments.
        let frozen = match self.config.freeze_backbone {
            true => weights::count(&self.model),
            false => 0,
        };
        let weights = weights::count(self).saturating_sub(frozen) as f64;
        let needed = LEAST * self.graph_bytes(contexts) * graphs as f64 + 4.0 * 3.0 * weights;
        let [batch, seq] = contexts;
        let what = format!("a step with {batch} contexts of {seq} tokens at once needs");
        let mut advice = match batch {
            0 | 1 => "a smaller model".to_string(),
            several => format!("--micro-batch {}", (several / 4).max(1)),
        };
        if graphs > 1 {
            advice += " or --meta-gradient replay";
        }
        check_free::<B>(&self.memory.device(), needed, &what, &advice)
    }

    /// About how many bytes one WRITE step's graph takes for contexts `[batch, seq]`.
    pub fn graph_bytes(&self, contexts: [usize; 2]) -> f64 {
        let (rows, vocab) = (self.rows_of_step(contexts), self.model.vocab_size());
        // The head's products are the logits, of which so many rows exist at once.
        let logits = vocab as f64 * rows.min(rows_at_once(vocab) as f64);
        self.layers_bytes(contexts) + 4.0 * GRAPH * logits
    }

    /// The same without logits.
    pub(crate) fn layers_bytes(&self, contexts: [usize; 2]) -> f64 {
        4.0 * GRAPH * self.model.numbers_per_token() * self.rows_of_step(contexts)
    }

    /// Positions of a WRITE step.
    fn rows_of_step(&self, [batch, seq]: [usize; 2]) -> f64 {
        // Parallel chunks are read at once, each behind the memory, others one after another.
        let (tokens, prefixes) = match self.config.chunks {
            Chunks::Parallel => (seq, self.config.chunks_of(seq)),
            _ => (self.config.longest_chunk(seq), 1),
        };
        batch as f64 * (tokens + prefixes * self.config.prefix_len()) as f64
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn_flex::Flex;
    use serde_json::{Value, json};

    use super::*;
    use crate::memory::GradMemConfig;
    use crate::model::{AnyLm, ModelConfig};

    fn estimated(model: Value, config: &GradMemConfig, contexts: [usize; 2]) -> f64 {
        let device = Default::default();
        let config_of_model: ModelConfig = serde_json::from_value(model).unwrap();
        let model: AnyLm<Flex> = config_of_model.init(0, &device).unwrap();
        let gradmem = config.clone().init(model, 0, &device).unwrap();
        gradmem.layers_bytes(contexts)
    }

    #[test]
    fn tables_are_not_multiplied_and_states_are_kept() {
        let config = GradMemConfig::default();
        let neox = json!({
            "model_type": "gpt_neox", "vocab_size": 5000, "hidden_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 64,
        });
        let mamba = json!({
            "model_type": "mamba", "vocab_size": 5000, "hidden_size": 16, "num_hidden_layers": 2,
        });
        // Of each layer 12 · 16² weights over a width of 16.
        let rows = (10 + config.prefix_len()) as f64;
        let expected = 4.0 * GRAPH * 2.0 * 192.0 * rows;
        assert_eq!(estimated(neox, &config, [1, 10]), expected);
        // A state of 32 channels and 16 numbers each.
        let states = 4.0 * GRAPH * 2.0 * 3.0 * 32.0 * 16.0 * rows;
        assert!(estimated(mamba, &config, [1, 10]) > states);
    }

    #[test]
    fn each_parallel_chunk_has_the_memory_in_front() {
        let model = json!({ "model_type": "llama" });
        let whole = GradMemConfig::default();
        let prefix = whole.prefix_len() as f64;
        let parallel = whole.clone().with_chunks(5, Chunks::Parallel);
        let [one, four] =
            [whole, parallel].map(|config| estimated(model.clone(), &config, [1, 20]));
        assert!((four / one - (20.0 + 4.0 * prefix) / (20.0 + prefix)).abs() < 1e-9);
    }
}
