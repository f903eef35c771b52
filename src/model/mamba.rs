//! Mamba (arXiv 2312.00752): a selective state-space model, without attention and without positions.
//!
//! Each of `d_inner` channels has a state of `N` numbers, whose decay and input depend on the token
//! (section 3.2, algorithm 2):
//!
//! ```text
//! h_t = exp(Δ_t A) ∘ h_{t−1} + Δ_t B_t x_t        y_t = C_t h_t + D x_t
//! ```
//!
//! The recurrence over the sequence is one [`linear_scan`](gradmem_kernels::linear_scan), which is parallel and differentiable twice.

// Fields are named as the checkpoints name their tensors.
#![allow(non_snake_case)]

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use gradmem_kernels::{KernelBackend, last_rows};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::cache::{Cache, LayerCache, Slots, adapted, forward_layers};
use super::decoder::{Decoder, DecoderConfig, Dimensions};
use super::layers::{
    Activation, Affine, AffineConfig, CausalConv, Embedding, Init, RmsNorm, StepBias, ramp,
    selective_scan, softplus,
};
use super::{settings, unless};
use crate::error::{Error, positive, require, sizes};

/// Sizes of a [`Mamba`], under the names of Hugging Face's `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[must_use]
pub struct MambaConfig {
    /// Number of tokens.
    pub vocab_size: usize,
    /// `d_model`: width of the residual stream and of a memory vector.
    pub hidden_size: usize,
    /// `N`: size of each channel's state.
    pub state_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// `d_inner = expand · hidden_size` channels, unless `intermediate_size` is given.
    pub expand: usize,
    /// `d_inner`
    pub intermediate_size: Option<usize>,
    /// Width of the causal convolution.
    pub conv_kernel: usize,
    /// Rank of the projection to the step sizes Δ.
    pub time_step_rank: TimeStepRank,
    /// Whether the projections have biases.
    pub use_bias: bool,
    /// Whether the convolution has a bias.
    pub use_conv_bias: bool,
    /// The nonlinearity.
    pub hidden_act: Activation,
    /// ε of the norms.
    pub layer_norm_epsilon: f64,
    /// Whether the head is the embedding, transposed.
    pub tie_word_embeddings: bool,
    /// Standard deviation of the initial embedding.
    pub initializer_range: f64,
    /// Smallest initial step size Δ.
    pub time_step_min: f64,
    /// Largest initial step size Δ.
    pub time_step_max: f64,
}

/// The rank of Δ's projection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a number or \"auto\"")]
#[non_exhaustive]
pub enum TimeStepRank {
    /// A given rank.
    Rank(usize),
    /// `⌈hidden_size / 16⌉`
    #[default]
    #[serde(with = "auto")]
    Auto,
}

/// The string `auto`.
mod auto {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("auto")
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "auto" => Ok(()),
            _ => Err(D::Error::custom("must be a number or \"auto\"")),
        }
    }
}

impl Default for MambaConfig {
    fn default() -> Self {
        Self {
            vocab_size: 50280,
            hidden_size: 768,
            state_size: 16,
            num_hidden_layers: 24,
            expand: 2,
            intermediate_size: None,
            conv_kernel: 4,
            time_step_rank: TimeStepRank::Auto,
            use_bias: false,
            use_conv_bias: true,
            hidden_act: Activation::Silu,
            layer_norm_epsilon: 1e-5,
            tie_word_embeddings: true,
            initializer_range: 0.1,
            time_step_min: 0.001,
            time_step_max: 0.1,
        }
    }
}

impl MambaConfig {
    /// A model of this vocabulary, width and depth.
    pub fn new(vocab_size: usize, d_model: usize, layers: usize) -> Self {
        Self {
            vocab_size,
            hidden_size: d_model,
            num_hidden_layers: layers,
            ..Self::default()
        }
    }

    /// Sets whether the head is the embedding, transposed (`true`), or has weights of its own (`false`).
    pub fn with_tied_head(mut self, tied: bool) -> Self {
        self.tie_word_embeddings = tied;
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
            ("state_size", self.state_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("expand", self.expand),
            ("intermediate_size", self.d_inner()),
            ("conv_kernel", self.conv_kernel),
            ("time_step_rank", self.rank()),
        ])?;
        let problem =
            "must be \"silu\": transformers 4 uses it for the gate too, transformers 5 does not";
        let is_silu = self.hidden_act == Activation::Silu;
        require(is_silu, "hidden_act", json!(self.hidden_act), problem)?;
        let inner = self.d_inner();
        let expected = self.expand * self.hidden_size;
        let problem = format!("must be expand · hidden_size = {expected}");
        require(inner == expected, "intermediate_size", inner, problem)?;
        positive([
            ("layer_norm_epsilon", self.layer_norm_epsilon),
            ("initializer_range", self.initializer_range),
            ("time_step_min", self.time_step_min),
            ("time_step_max", self.time_step_max),
        ])?;
        let (min, max) = (self.time_step_min, self.time_step_max);
        let problem = format!("must be at least time_step_min = {min}");
        require(max >= min, "time_step_max", max, problem)
    }

    /// A model with weights drawn by `seed`: state matrices A = −1 … −N, step sizes Δ uniform in
    /// logarithm over their range (arXiv 2312.00752, section 3.6), linear weights uniform in
    /// ± 1/√d_input.
    ///
    /// # Errors
    ///
    /// See [`MambaConfig::validate`].
    pub fn init<B: Backend>(&self, seed: u64, device: &B::Device) -> Result<Mamba<B>, Error> {
        self.build(Init::new(seed), device)
    }

    pub(crate) fn build<B: Backend>(
        &self,
        mut init: Init,
        device: &B::Device,
    ) -> Result<Mamba<B>, Error> {
        self.validate()?;
        let (d, vocab) = (self.hidden_size, self.vocab_size);
        let std = self.initializer_range;
        let init = &mut init;
        let norm = |init: &Init| RmsNorm::new(d, self.layer_norm_epsilon, init, device);
        let embeddings = Embedding::new([vocab, d], std, init, device);
        let layers = (0..self.num_hidden_layers)
            .map(|_| MambaBlock {
                norm: norm(init),
                mixer: self.mixer(init, device),
            })
            .collect();
        let norm_f = norm(init);
        let head = AffineConfig::new(d, vocab).with_bias(false);
        Ok(Mamba {
            backbone: MambaTrunk {
                embeddings,
                layers,
                norm_f,
            },
            lm_head: (!self.tie_word_embeddings).then(|| head.init(std, init, device)),
            config: self.clone(),
        })
    }

    fn mixer<B: Backend>(&self, init: &mut Init, device: &B::Device) -> MambaMixer<B> {
        let [d, inner, n, rank] = self.widths();
        let linear = |[d_output, d_input]: [usize; 2], bias: bool, init: &mut Init| {
            let bound = 1.0 / (d_input as f64).sqrt();
            Affine::new(
                init.uniform([d_output, d_input], bound, device),
                bias.then(|| init.constant([d_output], 0.0, device)),
            )
        };
        let kernel = self.conv_kernel;
        let steps = StepBias {
            low: self.time_step_min.ln(),
            high: self.time_step_max.ln(),
        };
        MambaMixer {
            in_proj: linear([2 * inner, d], self.use_bias, init),
            conv1d: CausalConv::new([inner, kernel], self.use_conv_bias, init, device),
            x_proj: linear([rank + 2 * n, inner], false, init),
            dt_proj: Affine::new(
                init.uniform([inner, rank], 1.0 / (rank as f64).sqrt(), device),
                Some(init.draw([inner], steps, device)),
            ),
            A_log: init.given([inner, n], device, || ramp([inner, n], device)),
            D: init.constant([inner], 1.0, device),
            out_proj: linear([d, inner], self.use_bias, init),
            activation: self.hidden_act,
        }
    }

    /// `d_model`, `d_inner`, N and the rank of Δ.
    fn widths(&self) -> [usize; 4] {
        [
            self.hidden_size,
            self.d_inner(),
            self.state_size,
            self.rank(),
        ]
    }

    fn d_inner(&self) -> usize {
        self.intermediate_size.unwrap_or(self.expanded())
    }

    /// The channels where none are given.
    fn expanded(&self) -> usize {
        self.expand.saturating_mul(self.hidden_size)
    }

    fn rank(&self) -> usize {
        match self.time_step_rank {
            TimeStepRank::Rank(rank) => rank,
            TimeStepRank::Auto => self.auto_rank(),
        }
    }

    /// The rank where none is given.
    fn auto_rank(&self) -> usize {
        self.hidden_size.div_ceil(16)
    }
}

impl DecoderConfig for MambaConfig {
    fn dimensions(&self) -> Dimensions {
        Dimensions {
            vocab_size: self.vocab_size,
            d_model: self.hidden_size,
            layers: self.num_hidden_layers,
            max_positions: None,
        }
    }

    fn settings(&self) -> String {
        settings(&Self {
            intermediate_size: unless(self.intermediate_size, self.expanded()),
            time_step_rank: match self.rank() == self.auto_rank() {
                true => TimeStepRank::Auto,
                false => self.time_step_rank,
            },
            ..self.clone()
        })
        .to_string()
    }

    fn slots(&self) -> Slots {
        let [d, inner, n, rank] = self.widths();
        let modules = [
            ("mixer.in_proj", d, 2 * inner),
            ("mixer.x_proj", inner, rank + 2 * n),
            ("mixer.dt_proj", rank, inner),
            ("mixer.out_proj", inner, d),
        ];
        Slots::of_layers(self.num_hidden_layers)
            .with_modules(modules)
            .with_state(inner * n)
    }
}

/// The model; see [`MambaConfig`]. Parameter paths are Hugging Face's tensor names.
#[derive(Module, Debug)]
pub struct Mamba<B: Backend> {
    backbone: MambaTrunk<B>,
    lm_head: Option<Affine<B>>,
    #[module(skip)]
    config: MambaConfig,
}

#[derive(Module, Debug)]
struct MambaTrunk<B: Backend> {
    embeddings: Embedding<B>,
    layers: Vec<MambaBlock<B>>,
    norm_f: RmsNorm<B>,
}

#[derive(Module, Debug)]
struct MambaBlock<B: Backend> {
    norm: RmsNorm<B>,
    mixer: MambaMixer<B>,
}

#[derive(Module, Debug)]
struct MambaMixer<B: Backend> {
    /// To the scan's input and its gate, concatenated: `[2 · d_inner, d_model]`
    in_proj: Affine<B>,
    conv1d: CausalConv<B>,
    /// To the low-rank Δ, B and C, concatenated: `[rank + 2 N, d_inner]`
    x_proj: Affine<B>,
    /// `[d_inner, rank]`
    dt_proj: Affine<B>,
    /// `ln(−A)`: `[d_inner, N]`
    A_log: Param<Tensor<B, 2>>,
    /// `[d_inner]`
    D: Param<Tensor<B, 1>>,
    /// `[d_model, d_inner]`
    out_proj: Affine<B>,
    #[module(skip)]
    activation: Activation,
}

impl<B: KernelBackend> MambaMixer<B> {
    /// # Shapes
    ///
    /// - `x`: `[batch, seq, d_model]`
    /// - output: of the last `rows` alone, `[batch, rows, d_model]`
    fn forward(
        &self,
        x: Tensor<B, 3>,
        rows: usize,
        mut cache: Option<&mut LayerCache<B>>,
    ) -> Tensor<B, 3> {
        let [inner, n] = self.A_log.val().dims();
        let rank = self.dt_proj.weight.val().dims()[1];
        let kept = cache.as_deref_mut().and_then(|cache| cache.kept.take());
        let past = cache.as_deref();
        let project = |name, linear: &Affine<B>, x| adapted(past, name, x, |x| linear.forward(x));
        let (past_inputs, past_state) = match kept {
            Some([inputs, state]) => (Some(inputs.squeeze_dim::<3>(1)), Some(state)),
            None => (None, None),
        };

        let projected = project("mixer.in_proj", &self.in_proj, x);
        let gate = projected.clone().narrow(2, inner, inner);
        let (x, inputs) = self
            .conv1d
            .forward(projected.narrow(2, 0, inner), past_inputs);
        let x = self.activation.forward(x);

        let selected = project("mixer.x_proj", &self.x_proj, x.clone());
        let step = selected.clone().narrow(2, 0, rank);
        let step = softplus(project("mixer.dt_proj", &self.dt_proj, step));
        let [b, c] = [rank, rank + n].map(|at| selected.clone().narrow(2, at, n));
        let (y, state) = selective_scan(x.clone(), step, b, c, self.A_log.val(), past_state);
        let [y, x, gate] = [y, x, gate].map(|of_all| last_rows(of_all, rows));
        let y = y + x * self.D.val().unsqueeze();
        let y = y * self.activation.forward(gate);
        let y = project("mixer.out_proj", &self.out_proj, y);
        if let Some(cache) = cache {
            cache.kept = Some([inputs.unsqueeze_dim(1), state]);
        }
        y
    }
}

impl<B: Backend> Mamba<B> {
    /// The sizes this model was made with.
    pub fn config(&self) -> &MambaConfig {
        &self.config
    }
}

impl<B: KernelBackend> Decoder for Mamba<B> {
    type Backend = B;

    fn config(&self) -> &dyn DecoderConfig {
        &self.config
    }

    fn embedding(&self) -> &Embedding<B> {
        &self.backbone.embeddings
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
        let trunk = &self.backbone;
        let forward = |block: &MambaBlock<B>, x: Tensor<B, 3>, rows, cache: Option<&mut _>| {
            let y = block
                .mixer
                .forward(block.norm.forward(x.clone()), rows, cache);
            last_rows(x, rows) + y
        };
        let x = forward_layers(&trunk.layers, embeds, rows, cache, forward);
        trunk.norm_f.forward(x)
    }
}
