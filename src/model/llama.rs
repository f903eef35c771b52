//! Llama (arXiv 2302.13971): RMSNorm before each block, rotary positions, grouped-query attention,
//! SwiGLU, a head of its own or tied to the embedding.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use gradmem_kernels::{KernelBackend, last_rows};
use serde::{Deserialize, Serialize};

use super::cache::{Cache, LayerCache, Slots, forward_layers};
use super::decoder::{Decoder, DecoderConfig, Dimensions};
use super::layers::{
    Activation, Affine, AffineConfig, Embedding, GatedMlp, GatedMlpConfig, Init, RmsNorm,
    RopeScaling, Rotary, RotaryConfig, SelfAttention, SelfAttentionConfig,
};
use super::{settings, unless};
use crate::error::{Error, positive, require, sizes};

/// Sizes of a [`Llama`], under the names of Hugging Face's `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[must_use]
pub struct LlamaConfig {
    /// Number of tokens.
    pub vocab_size: usize,
    /// `d_model`: width of the residual stream and of a memory vector.
    pub hidden_size: usize,
    /// `d_ff`: width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// `n_heads`: query heads.
    pub num_attention_heads: usize,
    /// Key/value heads; `num_attention_heads` unless given.
    pub num_key_value_heads: Option<usize>,
    /// Width of one head; `hidden_size / num_attention_heads` unless given.
    pub head_dim: Option<usize>,
    /// Longest sequence, memory vectors included.
    pub max_position_embeddings: usize,
    /// ε of the norms.
    pub rms_norm_eps: f64,
    /// Base θ of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies are scaled for longer sequences; not at all unless given.
    pub rope_scaling: Option<RopeScaling>,
    /// The feed-forward layer's nonlinearity.
    pub hidden_act: Activation,
    /// Whether the head is the embedding, transposed.
    pub tie_word_embeddings: bool,
    /// Whether the attention projections have biases.
    pub attention_bias: bool,
    /// Whether the feed-forward projections have biases.
    pub mlp_bias: bool,
    /// Standard deviation of the initial weights.
    pub initializer_range: f64,
}

impl Default for LlamaConfig {
    fn default() -> Self {
        Self {
            vocab_size: 70,
            hidden_size: 128,
            intermediate_size: 512,
            num_hidden_layers: 4,
            num_attention_heads: 4,
            num_key_value_heads: None,
            head_dim: None,
            max_position_embeddings: 1024,
            rms_norm_eps: 1e-5,
            rope_theta: 500_000.0,
            rope_scaling: None,
            hidden_act: Activation::Silu,
            tie_word_embeddings: true,
            attention_bias: false,
            mlp_bias: false,
            initializer_range: 0.02,
        }
    }
}

impl LlamaConfig {
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

    /// Sets the number of key/value heads (grouped-query attention).
    pub fn with_kv_heads(mut self, n_kv_heads: usize) -> Self {
        self.num_key_value_heads = Some(n_kv_heads);
        self
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

    /// Sets how the rotary frequencies are scaled for longer sequences.
    pub fn with_rope_scaling(mut self, scaling: Option<RopeScaling>) -> Self {
        self.rope_scaling = scaling;
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
            ("num_key_value_heads", self.n_kv_heads()),
            ("max_position_embeddings", self.max_position_embeddings),
            ("head_dim", self.head_dim.unwrap_or(1)),
        ])?;
        let heads = self.num_attention_heads;
        if self.head_dim.is_none() {
            let divides = self.hidden_size.is_multiple_of(heads);
            let problem = format!("must be a multiple of num_attention_heads = {heads}");
            require(divides, "hidden_size", self.hidden_size, problem)?;
        }
        let problem = "rotary positions turn pairs of dimensions: must be even and at least 2";
        let head_dim = self.head_dim();
        let even = head_dim > 0 && head_dim.is_multiple_of(2);
        require(even, "head_dim", head_dim, problem)?;
        let kv_heads = self.n_kv_heads();
        let problem = format!("must divide num_attention_heads = {heads}");
        let divides = heads.is_multiple_of(kv_heads);
        require(divides, "num_key_value_heads", kv_heads, problem)?;
        positive([
            ("rms_norm_eps", self.rms_norm_eps),
            ("rope_theta", self.rope_theta),
            ("initializer_range", self.initializer_range),
        ])?;
        self.rope_scaling.as_ref().map_or(Ok(()), |s| s.validate())
    }

    /// A model with weights drawn from N(0, `initializer_range`²) by `seed`, the same on every backend.
    ///
    /// # Errors
    ///
    /// See [`LlamaConfig::validate`].
    pub fn init<B: Backend>(&self, seed: u64, device: &B::Device) -> Result<Llama<B>, Error> {
        self.build(Init::new(seed), device)
    }

    pub(crate) fn build<B: Backend>(
        &self,
        mut init: Init,
        device: &B::Device,
    ) -> Result<Llama<B>, Error> {
        self.validate()?;
        let std = self.initializer_range;
        let (d_model, vocab) = (self.hidden_size, self.vocab_size);
        let attention = SelfAttentionConfig {
            d_model,
            n_heads: self.num_attention_heads,
            n_kv_heads: self.n_kv_heads(),
            head_dim: self.head_dim(),
            bias: self.attention_bias,
        };
        let mlp = GatedMlpConfig {
            d_model,
            d_ff: self.intermediate_size,
            bias: self.mlp_bias,
            activation: self.hidden_act,
        };
        let norm = |init: &Init| RmsNorm::new(d_model, self.rms_norm_eps, init, device);
        let embed_tokens = Embedding::new([vocab, d_model], std, &mut init, device);
        let layers = (0..self.num_hidden_layers)
            .map(|_| LlamaBlock {
                input_layernorm: norm(&init),
                self_attn: attention.init(std, &mut init, device),
                post_attention_layernorm: norm(&init),
                mlp: mlp.init(std, &mut init, device),
            })
            .collect();
        let head = AffineConfig::new(d_model, vocab).with_bias(false);
        Ok(Llama {
            model: LlamaTrunk {
                embed_tokens,
                layers,
                norm: norm(&init),
            },
            lm_head: (!self.tie_word_embeddings).then(|| head.init(std, &mut init, device)),
            config: self.clone(),
        })
    }

    fn n_kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.even_head_dim())
    }

    /// The width of a head where none is given.
    fn even_head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads.max(1)
    }

    fn rotary(&self) -> RotaryConfig {
        RotaryConfig {
            head_dim: self.head_dim(),
            rotary_dim: self.head_dim(),
            theta: self.rope_theta,
            scaling: self.rope_scaling.clone(),
        }
    }
}

impl DecoderConfig for LlamaConfig {
    fn dimensions(&self) -> Dimensions {
        Dimensions {
            vocab_size: self.vocab_size,
            d_model: self.hidden_size,
            layers: self.num_hidden_layers,
            max_positions: Some(("max_position_embeddings", self.max_position_embeddings)),
        }
    }

    fn settings(&self) -> String {
        settings(&Self {
            num_key_value_heads: unless(self.num_key_value_heads, self.num_attention_heads),
            head_dim: unless(self.head_dim, self.even_head_dim()),
            ..self.clone()
        })
        .to_string()
    }

    fn slots(&self) -> Slots {
        let (d, d_ff, head_dim) = (self.hidden_size, self.intermediate_size, self.head_dim());
        let (d_q, d_kv) = (
            self.num_attention_heads * head_dim,
            self.n_kv_heads() * head_dim,
        );
        Slots::of_layers(self.num_hidden_layers)
            .with_keys_values(self.n_kv_heads(), head_dim)
            .with_modules([
                ("self_attn.q_proj", d, d_q),
                ("self_attn.k_proj", d, d_kv),
                ("self_attn.v_proj", d, d_kv),
                ("self_attn.o_proj", d_q, d),
                ("mlp.gate_proj", d, d_ff),
                ("mlp.up_proj", d, d_ff),
                ("mlp.down_proj", d_ff, d),
            ])
    }
}

/// The model; see [`LlamaConfig`]. Parameter paths are Hugging Face's tensor names.
#[derive(Module, Debug)]
pub struct Llama<B: Backend> {
    model: LlamaTrunk<B>,
    lm_head: Option<Affine<B>>,
    #[module(skip)]
    config: LlamaConfig,
}

#[derive(Module, Debug)]
struct LlamaTrunk<B: Backend> {
    embed_tokens: Embedding<B>,
    layers: Vec<LlamaBlock<B>>,
    norm: RmsNorm<B>,
}

#[derive(Module, Debug)]
struct LlamaBlock<B: Backend> {
    input_layernorm: RmsNorm<B>,
    self_attn: SelfAttention<B>,
    post_attention_layernorm: RmsNorm<B>,
    mlp: GatedMlp<B>,
}

impl<B: KernelBackend> LlamaBlock<B> {
    fn joined(mut self) -> Self {
        self.self_attn = self.self_attn.joined();
        self.mlp = self.mlp.joined();
        self
    }

    fn forward(
        &self,
        x: Tensor<B, 3>,
        rotary: &Rotary<B>,
        rows: usize,
        mut cache: Option<&mut LayerCache<B>>,
    ) -> Tensor<B, 3> {
        let y = self.input_layernorm.forward(x.clone());
        let x = last_rows(x, rows);
        let x = self.self_attn.add_to(x, y, rotary, cache.as_deref_mut());
        let y = self.post_attention_layernorm.forward(x.clone());
        self.mlp.add_to(x, y, cache.as_deref())
    }
}

impl<B: Backend> Llama<B> {
    /// The sizes this model was made with.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }
}

impl<B: KernelBackend> Decoder for Llama<B> {
    type Backend = B;

    fn config(&self) -> &dyn DecoderConfig {
        &self.config
    }

    fn embedding(&self) -> &Embedding<B> {
        &self.model.embed_tokens
    }

    fn own_head(&self) -> Option<&Affine<B>> {
        self.lm_head.as_ref()
    }

    fn joined(&self) -> Self {
        let mut joined = self.clone();
        let layers = joined.model.layers.into_iter();
        joined.model.layers = layers.map(LlamaBlock::joined).collect();
        joined
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
        let forward = |block: &LlamaBlock<B>, x, rows, cache: Option<&mut _>| {
            block.forward(x, &rotary, rows, cache)
        };
        let x = forward_layers(&self.model.layers, embeds, rows, cache, forward);
        self.model.norm.forward(x)
    }
}
