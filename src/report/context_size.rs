//! How many floats a method keeps of one context to answer queries from.

use crate::data::DataConfig;
use crate::memory::Chunks;
use crate::method::MethodName;
use crate::model::ModelConfig;
use crate::train::config::RunConfig;

/// Floats kept of one context: the memory vectors (and the projection, with one per sample), or ARMT's matrices, or, in-context,
/// the model's cache of the whole context. None if the context's length is not known.
pub fn floats_kept(config: &RunConfig) -> Option<usize> {
    let d = config.model.d_model();
    match config.method {
        MethodName::GradMem => {
            let slots = config.model.slots();
            let chunks = match (config.memory.chunks, context_tokens(config)) {
                (Chunks::Concatenated, Some(tokens)) => config.memory.chunks_in_a_row(tokens),
                (Chunks::Concatenated, None) => return None,
                _ => 1,
            };
            config.memory.numbers(&slots, d).ok()?.checked_mul(chunks)
        }
        MethodName::Rmt => config.rmt.memory_tokens.checked_mul(d),
        MethodName::Armt => config.armt.floats(d, config.model.layers()),
        MethodName::InContext => in_context(config),
    }
}

/// Attention caches a key and a value per token and layer; Mamba caches its state and the last inputs of its
/// convolution, whatever the length of the context.
fn in_context(config: &RunConfig) -> Option<usize> {
    let layers = config.model.layers();
    if let ModelConfig::Mamba(model) = &config.model {
        let inner = model.expand.saturating_mul(model.hidden_size);
        let inner = model.intermediate_size.unwrap_or(inner);
        let each = model.state_size + model.conv_kernel.saturating_sub(1);
        return layers.checked_mul(inner)?.checked_mul(each);
    }
    let [heads, head_dim] = config.model.slots().keys_values?;
    [layers, heads, head_dim, context_tokens(config)?]
        .into_iter()
        .try_fold(2, usize::checked_mul)
}

/// Tokens of a context, if the settings fix them.
pub fn context_tokens(config: &RunConfig) -> Option<usize> {
    match &config.data {
        DataConfig::Text(data) => Some(data.context_tokens),
        data => data.lengths().map(|lengths| lengths.context),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_kept_follow_from_the_settings() {
        // N = 4 pairs of 1 + 1 characters are 21 tokens; 2 layers of 64 in 2 heads; m = 8.
        let floats = |overrides: &[&str]| {
            let overrides = [&["model.num_attention_heads=2"], overrides].concat();
            let overrides: Vec<String> = overrides.iter().map(|o| o.to_string()).collect();
            floats_kept(&RunConfig::resolve("kv-quick", &overrides).unwrap()).unwrap()
        };
        assert_eq!(floats(&[]), 8 * 64);
        assert_eq!(
            floats(&["memory.mem_proj=per_sample"]),
            8 * 64 + 64 * 64 + 64
        );
        assert_eq!(floats(&["method=rmt", "rmt.memory_tokens=4"]), 4 * 64);
        let keys = ["method=armt", "armt.d_mem=8", "armt.n_heads=2"];
        assert_eq!(floats(&keys), 2 * (2 * 24 * 32 + 2 * 24));
        assert_eq!(floats(&["method=in-context"]), 2 * 2 * 64 * 21);
        let grouped = "model.num_key_value_heads=1";
        assert_eq!(floats(&["method=in-context", grouped]), 2 * 2 * 32 * 21);
    }
}
