//! GPT-NeoX (arXiv 2204.06745), the architecture of Pythia: rotary positions on part of each head,
//! attention and feed-forward layer side by side, a head of its own.

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use gradmem_kernels::KernelBackend;
use serde::{Deserialize, Serialize};

use super::CausalLm;
use super::cache::{Cache, LayerCache, through};
use super::layers::{
    Activation, Embedding, Init, LayerNorm, Linear, RopeScaling, Rotary, RotaryConfig, attend,
};
use crate::error::{Error, positive, require, sizes};

/// Sizes of a [`GptNeoX`], under the names of Hugging Face's `config.json`. There is no dropout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[must_use]
pub struct GptNeoXConfig {
    /// Number of tokens.
    pub vocab_size: usize,
    /// `d_model`: width of the residual stream and of a memory vector.
    pub hidden_size: usize,
    /// `d_ff`: width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// `n_heads`
    pub num_attention_heads: usize,
    /// Longest sequence, memory vectors included.
    pub max_position_embeddings: usize,
    /// The feed-forward layer's nonlinearity.
    pub hidden_act: Activation,
    /// Share of each head's dimensions that turn with the position.
    #[serde(alias = "partial_rotary_factor")]
    pub rotary_pct: f64,
    /// Base θ of the rotary frequencies.
    #[serde(alias = "rope_theta")]
    pub rotary_emb_base: f64,
    /// How the rotary frequencies were stretched for longer sequences, if they were.
    pub rope_scaling: Option<RopeScaling>,
    /// ε of the norms.
    pub layer_norm_eps: f64,
    /// Whether attention and feed-forward layer read the same stream, or one after the other.
    pub use_parallel_residual: bool,
    /// Whether the attention projections have biases.
    pub attention_bias: bool,
    /// Whether the head is the embedding, transposed.
    pub tie_word_embeddings: bool,
    /// Standard deviation of the initial weights.
    pub initializer_range: f64,
}

impl Default for GptNeoXConfig {
    fn default() -> Self {
        Self {
            vocab_size: 50432,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            max_position_embeddings: 2048,
            hidden_act: Activation::Gelu,
            rotary_pct: 0.25,
            rotary_emb_base: 10_000.0,
            rope_scaling: None,
            layer_norm_eps: 1e-5,
            use_parallel_residual: true,
            attention_bias: true,
            tie_word_embeddings: false,
            initializer_range: 0.02,
        }
    }
}

impl GptNeoXConfig {
    /// A model of this vocabulary, width, depth and number of heads, with `d_ff = 4 · d_model`.
    pub fn new(vocab_size: usize, d_model: usize, layers: usize, n_heads: usize) -> Self {
        Self {
            vocab_size,
            hidden_size: d_model,
            intermediate_size: d_model.saturating_mul(4),
            num_hidden_layers: layers,
            num_attention_heads: n_heads,
            ..Self::default()
        }
    }

    /// Gives the model a head of its own (`false`) or ties it to the embedding (`true`).
    pub fn with_tied_head(mut self, tied: bool) -> Self {
        self.tie_word_embeddings = tied;
        self
    }

    /// Sets the longest sequence.
    pub fn with_max_positions(mut self, max_positions: usize) -> Self {
        self.max_position_embeddings = max_positions;
        self
    }

    /// Checks every value.
    ///
    /// # Errors
    ///
    /// The first value that cannot work, by its key and with the reason: [`Error::Config`].
    pub fn validate(&self) -> Result<(), Error> {
        sizes([
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("max_position_embeddings", self.max_position_embeddings),
        ])?;
        let (d, heads) = (self.hidden_size, self.num_attention_heads);
        let problem = format!("must be a multiple of num_attention_heads = {heads}");
        require(d.is_multiple_of(heads), "hidden_size", d, problem)?;
        positive([
            ("rotary_emb_base", self.rotary_emb_base),
            ("layer_norm_eps", self.layer_norm_eps),
            ("initializer_range", self.initializer_range),
        ])?;
        let share = self.rotary_pct;
        let problem = "must be between 0 and 1";
        require((0.0..=1.0).contains(&share), "rotary_pct", share, problem)?;
        let RotaryConfig {
            head_dim,
            rotary_dim,
            ..
        } = self.rotary();
        let problem = format!(
            "rotary positions turn pairs of dimensions: {rotary_dim} of a head's {head_dim} cannot turn"
        );
        let fits = rotary_dim.next_multiple_of(2) <= head_dim;
        require(fits, "rotary_pct", share, problem)?;
        self.rope_scaling.as_ref().map_or(Ok(()), |s| s.validate())
    }

    /// A model with weights drawn from N(0, `initializer_range`²) by `seed`.
    ///
    /// # Errors
    ///
    /// See [`GptNeoXConfig::validate`].
    pub fn init<B: Backend>(&self, seed: u64, device: &B::Device) -> Result<GptNeoX<B>, Error> {
        self.build(Init::new(seed), device)
    }

    pub(crate) fn build<B: Backend>(
        &self,
        mut init: Init,
        device: &B::Device,
    ) -> Result<GptNeoX<B>, Error> {
        self.validate()?;
        let (d, d_ff, vocab) = (self.hidden_size, self.intermediate_size, self.vocab_size);
        let std = self.initializer_range;
        let bias = self.attention_bias;
        let init = &mut init;
        let norm = |init: &Init| LayerNorm::new(d, self.layer_norm_eps, init, device);
        let embed_in = Embedding::new([vocab, d], std, init, device);
        let layers = (0..self.num_hidden_layers)
            .map(|_| NeoXBlock {
                input_layernorm: norm(init),
                post_attention_layernorm: norm(init),
                attention: NeoXAttention {
                    query_key_value: Linear::new([3 * d, d], bias, std, init, device),
                    dense: Linear::new([d, d], bias, std, init, device),
                    n_heads: self.num_attention_heads,
                },
                mlp: NeoXMlp {
                    dense_h_to_4h: Linear::new([d_ff, d], true, std, init, device),
                    dense_4h_to_h: Linear::new([d, d_ff], true, std, init, device),
                    activation: self.hidden_act,
                },
                parallel: self.use_parallel_residual,
            })
            .collect();
        let final_layer_norm = norm(init);
        let head = !self.tie_word_embeddings;
        Ok(GptNeoX {
            gpt_neox: NeoXTrunk {
                embed_in,
                layers,
                final_layer_norm,
            },
            embed_out: head.then(|| Linear::new([vocab, d], false, std, init, device)),
            config: self.clone(),
        })
    }

    fn rotary(&self) -> RotaryConfig {
        let head_dim = self.hidden_size / self.num_attention_heads;
        RotaryConfig {
            head_dim,
            rotary_dim: (head_dim as f64 * self.rotary_pct) as usize,
            theta: self.rotary_emb_base,
            scaling: self.rope_scaling.clone(),
        }
    }
}

/// The model; see [`GptNeoXConfig`]. Parameter paths are Hugging Face's tensor names.
#[derive(Module, Debug)]
pub struct GptNeoX<B: Backend> {
    gpt_neox: NeoXTrunk<B>,
    embed_out: Option<Linear<B>>,
    #[module(skip)]
    config: GptNeoXConfig,
}

#[derive(Module, Debug)]
struct NeoXTrunk<B: Backend> {
    embed_in: Embedding<B>,
    layers: Vec<NeoXBlock<B>>,
    final_layer_norm: LayerNorm<B>,
}

#[derive(Module, Debug)]
struct NeoXBlock<B: Backend> {
    input_layernorm: LayerNorm<B>,
    post_attention_layernorm: LayerNorm<B>,
    attention: NeoXAttention<B>,
    mlp: NeoXMlp<B>,
    #[module(skip)]
    parallel: bool,
}

impl<B: KernelBackend> NeoXBlock<B> {
    fn forward(
        &self,
        x: Tensor<B, 3>,
        rotary: &Rotary<B>,
        cache: Option<&mut LayerCache<B>>,
    ) -> Tensor<B, 3> {
        let y = self.input_layernorm.forward(x.clone());
        let attended = x.clone() + self.attention.forward(y, rotary, cache);
        let source = if self.parallel { x } else { attended.clone() };
        attended
            + self
                .mlp
                .forward(self.post_attention_layernorm.forward(source))
    }
}

#[derive(Module, Debug)]
struct NeoXAttention<B: Backend> {
    /// Head by head, its query, key and value.
    query_key_value: Linear<B>,
    dense: Linear<B>,
    #[module(skip)]
    n_heads: usize,
}

impl<B: KernelBackend> NeoXAttention<B> {
    fn forward(
        &self,
        x: Tensor<B, 3>,
        rotary: &Rotary<B>,
        cache: Option<&mut LayerCache<B>>,
    ) -> Tensor<B, 3> {
        let [batch, seq, d] = x.dims();
        let head_dim = d / self.n_heads;
        let qkv = self.query_key_value.forward_fused(x);
        let qkv = qkv.reshape([batch, seq, self.n_heads, 3 * head_dim]);
        let [q, k, v] = [0, 1, 2].map(|i| qkv.clone().narrow(3, i * head_dim, head_dim));
        let scale = 1.0 / (head_dim as f64).sqrt();
        let out = attend(rotary.apply(q), rotary.apply(k), v, scale, cache);
        self.dense.forward_fused(out)
    }
}

#[derive(Module, Debug)]
struct NeoXMlp<B: Backend> {
    dense_h_to_4h: Linear<B>,
    dense_4h_to_h: Linear<B>,
    #[module(skip)]
    activation: Activation,
}

impl<B: KernelBackend> NeoXMlp<B> {
    fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let y = self.activation.forward(self.dense_h_to_4h.forward_fused(x));
        self.dense_4h_to_h.forward_fused(y)
    }
}

impl<B: Backend> GptNeoX<B> {
    /// The sizes this model was made with.
    pub fn config(&self) -> &GptNeoXConfig {
        &self.config
    }
}

impl<B: KernelBackend> GptNeoX<B> {
    /// `[batch, seq, d_model]` → `[batch, seq, d_model]`, after what the cache has read if there is one.
    fn forward(&self, embeds: Tensor<B, 3>, cache: Option<&mut Cache<B>>) -> Tensor<B, 3> {
        let (seq, device) = (embeds.dims()[1], embeds.device());
        let start = cache.as_ref().map_or(0, |cache| cache.len());
        let rotary = self.config.rotary().table(start, seq, &device);
        let trunk = &self.gpt_neox;
        let x = through(&trunk.layers, embeds, cache, |block, x, cache| {
            block.forward(x, &rotary, cache)
        });
        trunk.final_layer_norm.forward(x)
    }
}

impl<B: KernelBackend> CausalLm<B> for GptNeoX<B> {
    fn d_model(&self) -> usize {
        self.config.hidden_size
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn max_positions(&self) -> Option<usize> {
        Some(self.config.max_position_embeddings)
    }

    fn settings(&self) -> String {
        super::settings(&self.config).to_string()
    }

    fn embed(&self, tokens: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.gpt_neox.embed_in.forward(tokens)
    }

    fn hidden(&self, embeds: Tensor<B, 3>) -> Tensor<B, 3> {
        self.forward(embeds, None)
    }

    fn hidden_after(&self, embeds: Tensor<B, 3>, past: &mut Cache<B>) -> Tensor<B, 3> {
        self.forward(embeds, Some(past))
    }

    fn token_losses(&self, logits: Tensor<B, 3>, targets: Tensor<B, 2, Int>) -> Tensor<B, 2> {
        gradmem_kernels::token_losses(logits, targets)
    }

    fn head(&self) -> Tensor<B, 2> {
        self.gpt_neox.embed_in.head(self.embed_out.as_ref())
    }
}
