//! GPT-NeoX (arXiv 2204.06745), the architecture of Pythia: rotary positions on part of each head,
//! attention and feed-forward layer in parallel, a head of its own.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use gradmem_kernels::{KernelBackend, contiguous, last_rows};
use serde::{Deserialize, Serialize};

use super::cache::{Cache, LayerCache, Slots, adapted, forward_layers};
use super::decoder::{Decoder, DecoderConfig, Dimensions};
use super::layers::{
    Activation, Affine, AffineConfig, Embedding, Init, LayerNorm, RopeScaling, Rotary,
    RotaryConfig, attend,
};
use super::settings;
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
    /// Fraction of each head's dimensions that are rotated by the position.
    #[serde(alias = "partial_rotary_factor")]
    pub rotary_pct: f64,
    /// Base θ of the rotary frequencies.
    #[serde(alias = "rope_theta")]
    pub rotary_emb_base: f64,
    /// How the rotary frequencies are scaled for longer sequences; not at all unless given.
    pub rope_scaling: Option<RopeScaling>,
    /// ε of the norms.
    pub layer_norm_eps: f64,
    /// Whether attention and feed-forward layer both read the block's input (`true`), or the second reads the
    /// first's output.
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

    /// Sets whether the head is the embedding, transposed (`true`), or has weights of its own (`false`).
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
        let linear = |d_input, d_output, bias, init: &mut Init| {
            let config = AffineConfig::new(d_input, d_output).with_bias(bias);
            config.init(std, init, device)
        };
        let embed_in = Embedding::new([vocab, d], std, init, device);
        let layers = (0..self.num_hidden_layers)
            .map(|_| NeoXBlock {
                input_layernorm: norm(init),
                post_attention_layernorm: norm(init),
                attention: NeoXAttention {
                    query_key_value: linear(d, 3 * d, bias, init),
                    dense: linear(d, d, bias, init),
                    n_heads: self.num_attention_heads,
                },
                mlp: NeoXMlp {
                    dense_h_to_4h: linear(d, d_ff, true, init),
                    dense_4h_to_h: linear(d_ff, d, true, init),
                    activation: self.hidden_act,
                },
                parallel: self.use_parallel_residual,
            })
            .collect();
        let final_layer_norm = norm(init);
        let head = AffineConfig::new(d, vocab).with_bias(false);
        Ok(GptNeoX {
            gpt_neox: NeoXTrunk {
                embed_in,
                layers,
                final_layer_norm,
            },
            embed_out: (!self.tie_word_embeddings).then(|| head.init(std, init, device)),
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

impl DecoderConfig for GptNeoXConfig {
    fn dimensions(&self) -> Dimensions {
        Dimensions {
            vocab_size: self.vocab_size,
            d_model: self.hidden_size,
            layers: self.num_hidden_layers,
            max_positions: Some(("max_position_embeddings", self.max_position_embeddings)),
        }
    }

    fn settings(&self) -> String {
        settings(self).to_string()
    }

    fn slots(&self) -> Slots {
        let (d, d_ff, heads) = (
            self.hidden_size,
            self.intermediate_size,
            self.num_attention_heads,
        );
        Slots::of_layers(self.num_hidden_layers)
            .with_keys_values(heads, d / heads)
            .with_modules([
                ("attention.query_key_value", d, 3 * d),
                ("attention.dense", d, d),
                ("mlp.dense_h_to_4h", d, d_ff),
                ("mlp.dense_4h_to_h", d_ff, d),
            ])
    }
}

/// The model; see [`GptNeoXConfig`]. Parameter paths are Hugging Face's tensor names.
#[derive(Module, Debug)]
pub struct GptNeoX<B: Backend> {
    gpt_neox: NeoXTrunk<B>,
    embed_out: Option<Affine<B>>,
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
        rows: usize,
        mut cache: Option<&mut LayerCache<B>>,
    ) -> Tensor<B, 3> {
        let y = self.input_layernorm.forward(x.clone());
        let x = last_rows(x, rows);
        let attended = self
            .attention
            .forward(y, rotary, rows, cache.as_deref_mut());
        let attended = x.clone() + attended;
        let source = if self.parallel { x } else { attended.clone() };
        let y = self.post_attention_layernorm.forward(source);
        attended + self.mlp.forward(y, cache.as_deref())
    }
}

#[derive(Module, Debug)]
struct NeoXAttention<B: Backend> {
    /// For each head its query, key and value.
    query_key_value: Affine<B>,
    dense: Affine<B>,
    #[module(skip)]
    n_heads: usize,
}

impl<B: KernelBackend> NeoXAttention<B> {
    /// Of the last `rows` alone.
    fn forward(
        &self,
        x: Tensor<B, 3>,
        rotary: &Rotary<B>,
        rows: usize,
        mut cache: Option<&mut LayerCache<B>>,
    ) -> Tensor<B, 3> {
        let [batch, seq, d] = x.dims();
        let head_dim = d / self.n_heads;
        let qkv = adapted(cache.as_deref(), "attention.query_key_value", x, |x| {
            self.query_key_value.forward(x)
        });
        let qkv = qkv.reshape([batch, seq, self.n_heads, 3 * head_dim]);
        let [q, k, v] = [0, 1, 2].map(|i| qkv.clone().narrow(3, i * head_dim, head_dim));
        let scale = 1.0 / (head_dim as f64).sqrt();
        let (q, k, v) = (rotary.apply(q), rotary.apply(k), contiguous(v));
        let q = last_rows(q, rows);
        let out = attend(q, k, v, scale, cache.as_deref_mut());
        adapted(cache.as_deref(), "attention.dense", out, |out| {
            self.dense.forward(out)
        })
    }
}

#[derive(Module, Debug)]
struct NeoXMlp<B: Backend> {
    dense_h_to_4h: Affine<B>,
    dense_4h_to_h: Affine<B>,
    #[module(skip)]
    activation: Activation,
}

impl<B: KernelBackend> NeoXMlp<B> {
    fn forward(&self, x: Tensor<B, 3>, past: Option<&LayerCache<B>>) -> Tensor<B, 3> {
        let project = |name, linear: &Affine<B>, x| adapted(past, name, x, |x| linear.forward(x));
        let y = project("mlp.dense_h_to_4h", &self.dense_h_to_4h, x);
        project(
            "mlp.dense_4h_to_h",
            &self.dense_4h_to_h,
            self.activation.forward(y),
        )
    }
}

impl<B: Backend> GptNeoX<B> {
    /// The sizes this model was made with.
    pub fn config(&self) -> &GptNeoXConfig {
        &self.config
    }
}

impl<B: KernelBackend> Decoder for GptNeoX<B> {
    type Backend = B;

    fn config(&self) -> &dyn DecoderConfig {
        &self.config
    }

    fn embedding(&self) -> &Embedding<B> {
        &self.gpt_neox.embed_in
    }

    fn own_head(&self) -> Option<&Affine<B>> {
        self.embed_out.as_ref()
    }

    fn forward(
        &self,
        embeds: Tensor<B, 3>,
        rows: usize,
        cache: Option<&mut Cache<B>>,
    ) -> Tensor<B, 3> {
        let (seq, device) = (embeds.dims()[1], embeds.device());
        let start = cache.as_ref().map_or(0, |cache| cache.len());
        let rotary = self.config.rotary().table(start, seq, &device);
        let trunk = &self.gpt_neox;
        let forward = |block: &NeoXBlock<B>, x, rows, cache: Option<&mut _>| {
            block.forward(x, &rotary, rows, cache)
        };
        let x = forward_layers(&trunk.layers, embeds, rows, cache, forward);
        trunk.final_layer_norm.forward(x)
    }
}
