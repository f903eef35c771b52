//! GPT-2 (Radford et al., 2019): learned positions, LayerNorm before each block, a head tied to the
//! embedding.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use gradmem_kernels::{KernelBackend, last_rows, split_heads};
use serde::{Deserialize, Serialize};

use super::cache::{Cache, LayerCache, Slots, adapted, forward_layers};
use super::decoder::{Decoder, DecoderConfig, Dimensions};
use super::layers::{Activation, Affine, AffineConfig, Conv1D, Embedding, Init, LayerNorm, attend};
use super::{settings, unless};
use crate::error::{Error, positive, require, sizes};

/// Sizes of a [`Gpt2`], under the names of Hugging Face's `config.json`. There is no dropout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[must_use]
pub struct Gpt2Config {
    /// Number of tokens.
    pub vocab_size: usize,
    /// Longest sequence, memory vectors included.
    pub n_positions: usize,
    /// `d_model`: width of the residual stream and of a memory vector.
    pub n_embd: usize,
    /// Number of blocks.
    pub n_layer: usize,
    /// `n_heads`
    pub n_head: usize,
    /// `d_ff`: width of the feed-forward layer; `4 · n_embd` unless given.
    pub n_inner: Option<usize>,
    /// The feed-forward layer's nonlinearity.
    pub activation_function: Activation,
    /// ε of the norms.
    pub layer_norm_epsilon: f64,
    /// Whether attention scores are divided by `√head_dim`.
    pub scale_attn_weights: bool,
    /// Whether attention scores of layer `i` are also divided by `i + 1`.
    pub scale_attn_by_inverse_layer_idx: bool,
    /// Whether the head is the embedding, transposed.
    pub tie_word_embeddings: bool,
    /// Standard deviation of the initial weights.
    pub initializer_range: f64,
}

impl Default for Gpt2Config {
    fn default() -> Self {
        Self {
            vocab_size: 50257,
            n_positions: 1024,
            n_embd: 768,
            n_layer: 12,
            n_head: 12,
            n_inner: None,
            activation_function: Activation::GeluNew,
            layer_norm_epsilon: 1e-5,
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            tie_word_embeddings: true,
            initializer_range: 0.02,
        }
    }
}

impl Gpt2Config {
    /// A model of this vocabulary, width, depth and number of heads.
    pub fn new(vocab_size: usize, d_model: usize, layers: usize, n_heads: usize) -> Self {
        Self {
            vocab_size,
            n_embd: d_model,
            n_layer: layers,
            n_head: n_heads,
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
        self.n_positions = max_positions;
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
            ("n_positions", self.n_positions),
            ("n_embd", self.n_embd),
            ("n_layer", self.n_layer),
            ("n_head", self.n_head),
            ("n_inner", self.d_ff()),
        ])?;
        let heads = self.n_head;
        let problem = format!("must be a multiple of n_head = {heads}");
        require(
            self.n_embd.is_multiple_of(heads),
            "n_embd",
            self.n_embd,
            problem,
        )?;
        positive([
            ("layer_norm_epsilon", self.layer_norm_epsilon),
            ("initializer_range", self.initializer_range),
        ])
    }

    /// A model with weights drawn from N(0, `initializer_range`²) by `seed`, those of each block's
    /// output projections with a standard deviation smaller by `√(2 · n_layer)`.
    ///
    /// # Errors
    ///
    /// See [`Gpt2Config::validate`].
    pub fn init<B: Backend>(&self, seed: u64, device: &B::Device) -> Result<Gpt2<B>, Error> {
        self.build(Init::new(seed), device)
    }

    pub(crate) fn build<B: Backend>(
        &self,
        mut init: Init,
        device: &B::Device,
    ) -> Result<Gpt2<B>, Error> {
        self.validate()?;
        let (d, d_ff, vocab) = (self.n_embd, self.d_ff(), self.vocab_size);
        let std = self.initializer_range;
        let last = std / (2.0 * self.n_layer as f64).sqrt();
        let init = &mut init;
        let norm = |init: &Init| LayerNorm::new(d, self.layer_norm_epsilon, init, device);
        let wte = Embedding::new([vocab, d], std, init, device);
        let wpe = Embedding::new([self.n_positions, d], std, init, device);
        let h = (0..self.n_layer)
            .map(|layer| Gpt2Block {
                ln_1: norm(init),
                attn: Gpt2Attention {
                    c_attn: Conv1D::new([d, 3 * d], std, init, device),
                    c_proj: Conv1D::new([d, d], last, init, device),
                    n_heads: self.n_head,
                    scale: self.scale(layer),
                },
                ln_2: norm(init),
                mlp: Gpt2Mlp {
                    c_fc: Conv1D::new([d, d_ff], std, init, device),
                    c_proj: Conv1D::new([d_ff, d], last, init, device),
                    activation: self.activation_function,
                },
            })
            .collect();
        let ln_f = norm(init);
        let head = AffineConfig::new(d, vocab).with_bias(false);
        Ok(Gpt2 {
            transformer: Gpt2Trunk { wte, wpe, h, ln_f },
            lm_head: (!self.tie_word_embeddings).then(|| head.init(std, init, device)),
            config: self.clone(),
        })
    }

    fn d_ff(&self) -> usize {
        self.n_inner.unwrap_or(self.usual_inner())
    }

    /// The width of the inner layer where none is given.
    fn usual_inner(&self) -> usize {
        self.n_embd.saturating_mul(4)
    }

    fn scale(&self, layer: usize) -> f64 {
        let head_dim = (self.n_embd / self.n_head) as f64;
        let scale = if self.scale_attn_weights {
            1.0 / head_dim.sqrt()
        } else {
            1.0
        };
        match self.scale_attn_by_inverse_layer_idx {
            true => scale / (layer + 1) as f64,
            false => scale,
        }
    }
}

impl DecoderConfig for Gpt2Config {
    fn dimensions(&self) -> Dimensions {
        Dimensions {
            vocab_size: self.vocab_size,
            d_model: self.n_embd,
            layers: self.n_layer,
            max_positions: Some(("n_positions", self.n_positions)),
        }
    }

    fn settings(&self) -> String {
        settings(&Self {
            n_inner: unless(self.n_inner, self.usual_inner()),
            ..self.clone()
        })
        .to_string()
    }

    fn slots(&self) -> Slots {
        let (d, d_ff, heads) = (self.n_embd, self.d_ff(), self.n_head);
        Slots::of_layers(self.n_layer)
            .with_keys_values(heads, d / heads)
            .with_modules([
                ("attn.c_attn", d, 3 * d),
                ("attn.c_proj", d, d),
                ("mlp.c_fc", d, d_ff),
                ("mlp.c_proj", d_ff, d),
            ])
    }
}

/// The model; see [`Gpt2Config`]. Parameter paths are Hugging Face's tensor names.
#[derive(Module, Debug)]
pub struct Gpt2<B: Backend> {
    transformer: Gpt2Trunk<B>,
    lm_head: Option<Affine<B>>,
    #[module(skip)]
    config: Gpt2Config,
}

#[derive(Module, Debug)]
struct Gpt2Trunk<B: Backend> {
    wte: Embedding<B>,
    wpe: Embedding<B>,
    h: Vec<Gpt2Block<B>>,
    ln_f: LayerNorm<B>,
}

#[derive(Module, Debug)]
struct Gpt2Block<B: Backend> {
    ln_1: LayerNorm<B>,
    attn: Gpt2Attention<B>,
    ln_2: LayerNorm<B>,
    mlp: Gpt2Mlp<B>,
}

impl<B: KernelBackend> Gpt2Block<B> {
    fn forward(
        &self,
        x: Tensor<B, 3>,
        rows: usize,
        mut cache: Option<&mut LayerCache<B>>,
    ) -> Tensor<B, 3> {
        let y = self.ln_1.forward(x.clone());
        let x = last_rows(x, rows) + self.attn.forward(y, rows, cache.as_deref_mut());
        let y = self.ln_2.forward(x.clone());
        x + self.mlp.forward(y, cache.as_deref())
    }
}

#[derive(Module, Debug)]
struct Gpt2Attention<B: Backend> {
    /// Queries, keys and values, concatenated.
    c_attn: Conv1D<B>,
    c_proj: Conv1D<B>,
    #[module(skip)]
    n_heads: usize,
    #[module(skip)]
    scale: f64,
}

impl<B: KernelBackend> Gpt2Attention<B> {
    /// Of the last `rows` alone.
    fn forward(
        &self,
        x: Tensor<B, 3>,
        rows: usize,
        mut cache: Option<&mut LayerCache<B>>,
    ) -> Tensor<B, 3> {
        let qkv = adapted(cache.as_deref(), "attn.c_attn", x, |x| {
            self.c_attn.forward(x)
        });
        let [q, k, v] = split_heads(qkv, None, [self.n_heads; 2]);
        let q = last_rows(q, rows);
        let out = attend(q, k, v, self.scale, cache.as_deref_mut());
        adapted(cache.as_deref(), "attn.c_proj", out, |out| {
            self.c_proj.forward(out)
        })
    }
}

#[derive(Module, Debug)]
struct Gpt2Mlp<B: Backend> {
    c_fc: Conv1D<B>,
    c_proj: Conv1D<B>,
    #[module(skip)]
    activation: Activation,
}

impl<B: KernelBackend> Gpt2Mlp<B> {
    fn forward(&self, x: Tensor<B, 3>, past: Option<&LayerCache<B>>) -> Tensor<B, 3> {
        let y = adapted(past, "mlp.c_fc", x, |x| self.c_fc.forward(x));
        let y = self.activation.forward(y);
        adapted(past, "mlp.c_proj", y, |y| self.c_proj.forward(y))
    }
}

impl<B: Backend> Gpt2<B> {
    /// The sizes this model was made with.
    pub fn config(&self) -> &Gpt2Config {
        &self.config
    }
}

impl<B: KernelBackend> Decoder for Gpt2<B> {
    type Backend = B;

    fn config(&self) -> &dyn DecoderConfig {
        &self.config
    }

    fn embedding(&self) -> &Embedding<B> {
        &self.transformer.wte
    }

    fn own_head(&self) -> Option<&Affine<B>> {
        self.lm_head.as_ref()
    }

    fn forward(
        &self,
        embeds: Tensor<B, 3>,
        rows: usize,
        cache: Option<&mut Cache<B>>,
    ) -> Tensor<B, 3> {
        let seq = embeds.dims()[1];
        let start = cache.as_ref().map_or(0, |cache| cache.len());
        let trunk = &self.transformer;
        let positions = trunk.wpe.weight.val().narrow(0, start, seq);
        let x = embeds + positions.unsqueeze();
        let x = forward_layers(&trunk.h, x, rows, cache, Gpt2Block::forward);
        trunk.ln_f.forward(x)
    }
}
