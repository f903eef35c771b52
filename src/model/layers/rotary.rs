use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use gradmem_kernels::{LayerBackend, Rotation, rotary};
use serde::{Deserialize, Serialize};

use crate::error::{Error, require};

/// Rotary positions (arXiv 2104.09864), in the half-split form of Hugging Face's Llama:
/// dimension `i` is rotated together with dimension `i + ⌈rotary_dim / 2⌉` by the angle
/// `position · θ^(−2i / rotary_dim)`; the remaining dimensions are not rotated.
///
/// This is the table for a range of positions, made once per forward pass for all layers.
#[derive(Clone, Debug)]
pub struct Rotary<B: Backend> {
    /// `[1, seq, head_dim]`
    cos: Tensor<B, 3>,
    /// `[1, seq, head_dim]`
    sin: Tensor<B, 3>,
    /// `[head_dim, head_dim]`: swaps a head's halves and negates the new first half.
    turn: Tensor<B, 2>,
}

/// The rotated dimensions and their frequencies.
#[derive(Clone, Debug)]
pub struct RotaryConfig {
    /// Width of one head.
    pub head_dim: usize,
    /// Number of a head's dimensions that are rotated, at most `head_dim`; an odd number is rounded up.
    pub rotary_dim: usize,
    /// Base θ of the frequencies.
    pub theta: f64,
    /// How the frequencies are scaled for longer sequences.
    pub scaling: Option<RopeScaling>,
}

/// How rotary frequencies are scaled for longer sequences: `rope_scaling` of a `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Written")]
pub struct RopeScaling {
    /// The rule. A rule's values must be given when it is read from a file; other rules' values do nothing.
    pub rope_type: RopeType,
    /// How many times longer the sequences are.
    pub factor: f64,
    /// `llama3`: wavelengths longer than `original_max_position_embeddings / low_freq_factor` are
    /// multiplied by `factor`.
    pub low_freq_factor: f64,
    /// `llama3`: wavelengths shorter than `original_max_position_embeddings / high_freq_factor` are
    /// unchanged.
    pub high_freq_factor: f64,
    /// `llama3`: the sequence length of the model's pretraining.
    pub original_max_position_embeddings: usize,
}

/// A [`RopeScaling`] as it is written in a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(alias = "type", default)]
    rope_type: RopeType,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
}

impl TryFrom<Written> for RopeScaling {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let kind = written.rope_type;
        let given = [
            ("factor", written.factor.is_some()),
            ("low_freq_factor", written.low_freq_factor.is_some()),
            ("high_freq_factor", written.high_freq_factor.is_some()),
            (
                "original_max_position_embeddings",
                written.original_max_position_embeddings.is_some(),
            ),
        ];
        let needed = match kind {
            RopeType::Default => 0,
            RopeType::Linear => 1,
            RopeType::Llama3 => given.len(),
        };
        if let Some((key, _)) = given[..needed].iter().find(|(_, given)| !given) {
            return Err(format!("rope_type {kind:?} needs `{key}`").to_lowercase());
        }
        let scales = written.factor.is_some_and(|factor| factor != 1.0);
        if kind == RopeType::Default && scales {
            return Err(
                "`factor` is of rope_type \"linear\" or \"llama3\": set `rope_type` too".into(),
            );
        }
        Ok(Self {
            rope_type: kind,
            factor: written.factor.unwrap_or(1.0),
            low_freq_factor: written.low_freq_factor.unwrap_or(1.0),
            high_freq_factor: written.high_freq_factor.unwrap_or(4.0),
            original_max_position_embeddings: written
                .original_max_position_embeddings
                .unwrap_or(8192),
        })
    }
}

/// A rule of [`RopeScaling`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum RopeType {
    /// No scaling.
    #[default]
    Default,
    /// Every frequency is divided by `factor`.
    Linear,
    /// Low frequencies are divided by `factor`, high ones are unchanged, and those between are interpolated
    /// (Llama 3.1).
    Llama3,
}

impl RopeScaling {
    /// Checks every value.
    ///
    /// # Errors
    ///
    /// The first value that cannot work, by its key and with the reason: [`Error::Config`].
    pub fn validate(&self) -> Result<(), Error> {
        for (key, value) in [
            ("rope_scaling.factor", self.factor),
            ("rope_scaling.low_freq_factor", self.low_freq_factor),
            ("rope_scaling.high_freq_factor", self.high_freq_factor),
        ] {
            let positive = value > 0.0 && value.is_finite();
            require(positive, key, value, "must be a positive number")?;
        }
        let (low, high) = (self.low_freq_factor, self.high_freq_factor);
        let key = "rope_scaling.high_freq_factor";
        let problem = format!("must be above low_freq_factor = {low}");
        require(
            self.rope_type != RopeType::Llama3 || high > low,
            key,
            high,
            problem,
        )?;
        let length = self.original_max_position_embeddings;
        let key = "rope_scaling.original_max_position_embeddings";
        require(length > 0, key, length, "must be at least 1")
    }

    fn scale(&self, frequency: f64) -> f64 {
        let slow = frequency / self.factor;
        match self.rope_type {
            RopeType::Default => frequency,
            RopeType::Linear => slow,
            RopeType::Llama3 => {
                let turns = self.original_max_position_embeddings as f64 * frequency
                    / (2.0 * std::f64::consts::PI);
                let (low, high) = (self.low_freq_factor, self.high_freq_factor);
                let share = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                slow + share * (frequency - slow)
            }
        }
    }
}

impl RotaryConfig {
    /// The table for positions `start … start + seq − 1`.
    ///
    /// # Panics
    ///
    /// If `rotary_dim` is larger than `head_dim`.
    pub fn table<B: Backend>(&self, start: usize, seq: usize, device: &B::Device) -> Rotary<B> {
        let (head_dim, rotary_dim) = (self.head_dim, self.rotary_dim);
        let half = rotary_dim.div_ceil(2);
        let frequency = |i: usize| {
            if i >= 2 * half {
                return 0.0;
            }
            let frequency = self
                .theta
                .powf(-2.0 * (i % half) as f64 / rotary_dim as f64);
            let scaling = self.scaling.as_ref();
            scaling.map_or(frequency, |scaling| scaling.scale(frequency))
        };
        let frequencies: Vec<f64> = (0..head_dim).map(frequency).collect();
        // Angles are computed on the host in f64: f32 is too coarse for high frequencies at large positions.
        let table = |value: fn(f64) -> f64| {
            let positions = start..start + seq;
            let values: Vec<f64> = positions
                .flat_map(|position| frequencies.iter().map(move |f| value(position as f64 * f)))
                .collect();
            Tensor::from_data(TensorData::new(values, [1, seq, head_dim]), device)
        };
        let mut turn = vec![0.0; head_dim * head_dim];
        for i in 0..half {
            turn[(i + half) * head_dim + i] = -1.0;
            turn[i * head_dim + i + half] = 1.0;
        }
        Rotary {
            cos: table(f64::cos),
            sin: table(f64::sin),
            turn: Tensor::from_data(TensorData::new(turn, [head_dim, head_dim]), device),
        }
    }
}

impl<B: LayerBackend> Rotary<B> {
    /// cos, sin and the matrix that swaps the dimensions of each pair.
    pub fn tables(&self) -> Rotation<B> {
        (self.cos.clone(), self.sin.clone(), self.turn.clone())
    }

    /// Rotates every head of `x` by its position.
    ///
    /// # Shapes
    ///
    /// - `x` and output: `[batch, seq, heads, head_dim]`
    pub fn apply(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let (cos, sin, turn) = self.tables();
        rotary(x, cos, sin, turn)
    }
}
