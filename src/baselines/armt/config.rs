use gradmem_kernels::Counting;
use serde::{Deserialize, Serialize};

use crate::error::{Error, not_negative, require, sizes};
use crate::model::Slots;
use crate::model::layers::AssociativeConfig;
use crate::support::setters::setters;

/// Which of the authors' two implementations an [`Armt`](super::Armt) computes as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ArmtImplementation {
    /// Memory vectors look at their whole segment and at one another both ways. It needs a model with attention.
    #[default]
    Thinking,
    /// Memory vectors stand behind their segment and look back only, as all tokens do.
    Old,
}

/// Settings of an [`Armt`](super::Armt). The defaults are those of the authors' scripts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[must_use]
pub struct ArmtConfig {
    /// Which of the authors' implementations.
    pub implementation: ArmtImplementation,
    /// `m`: memory vectors behind each segment, whose hidden states are written.
    pub memory_tokens: usize,
    /// Width of queries and keys, all heads together.
    pub d_mem: usize,
    /// Heads of each layer's associative memory; a divisor of `d_mem` and of the model's width.
    pub n_heads: usize,
    /// Longest segment of a context, in tokens; all of it is one segment unless given. A query is always one segment of
    /// its own.
    pub segment_size: Option<usize>,
    /// Whether a key adds only as much to the sum of keys as is new in it. Without that sum it means nothing.
    pub correction: bool,
    /// Whether what is read is divided by the sum of keys.
    pub use_denom: bool,
    /// Whether each entry of a value has a gate of its own, or a head one for all.
    pub gating: bool,
    /// Order of the keys' features: each has `2 · d_mem / n_heads · dpfp_nu` entries. It is below `2 · d_mem / n_heads`.
    pub dpfp_nu: usize,
    /// Standard deviation of the initial memory vectors; 0.02, or with `old` that of the model's embeddings, unless given.
    pub memory_std: Option<f64>,
}

impl Default for ArmtConfig {
    fn default() -> Self {
        Self {
            implementation: ArmtImplementation::Thinking,
            memory_tokens: 8,
            d_mem: 64,
            n_heads: 1,
            segment_size: None,
            correction: true,
            use_denom: true,
            gating: false,
            dpfp_nu: 3,
            memory_std: None,
        }
    }
}

impl ArmtConfig {
    /// The defaults: m = 8, keys of width 64 in one head, a context in one segment.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        /// Sets which of the authors' implementations it computes as.
        with_implementation(implementation: ArmtImplementation);
        /// Sets `m`.
        with_memory_tokens(memory_tokens: usize);
        /// Sets the longest segment of a context.
        with_segment_size(segment_size: Option<usize>);
        /// Sets whether a key adds only what is new in it to the sum of keys.
        with_correction(correction: bool);
        /// Sets whether what is read is divided by the sum of keys.
        with_denom(use_denom: bool);
        /// Sets whether each entry of a value has a gate of its own.
        with_gating(gating: bool);
        /// Sets the standard deviation of the initial memory vectors.
        with_memory_std(memory_std: Option<f64>);
    }

    /// Sets the width of queries and keys and the heads that share it.
    pub fn with_keys(mut self, d_mem: usize, n_heads: usize) -> Self {
        self.d_mem = d_mem;
        self.n_heads = n_heads;
        self
    }

    /// Checks every value.
    ///
    /// # Errors
    ///
    /// The first value that cannot work, by its key and with the reason: [`Error::Config`].
    pub fn validate(&self) -> Result<(), Error> {
        sizes([
            ("memory_tokens", self.memory_tokens),
            ("d_mem", self.d_mem),
            ("n_heads", self.n_heads),
            ("segment_size", self.segment_size.unwrap_or(1)),
            ("dpfp_nu", self.dpfp_nu),
        ])?;
        let divides = self.d_mem.is_multiple_of(self.n_heads);
        let problem = format!("must be a multiple of n_heads = {}", self.n_heads);
        require(divides, "d_mem", self.d_mem, problem)?;
        // Each entry of u with each other one.
        let most = 2 * (self.d_mem / self.n_heads) - 1;
        let problem =
            format!("must be at most {most}: there are no more products of keys of this width");
        require(self.dpfp_nu <= most, "dpfp_nu", self.dpfp_nu, problem)?;
        not_negative(self.memory_std.map(|std| ("memory_std", std)))
    }

    /// Positions that a segment of the context takes beside its tokens.
    pub(crate) fn written_with(&self) -> usize {
        self.memory_tokens
    }

    /// The longest sequence that a context of so many tokens is read in, memory vectors included.
    #[cfg(feature = "train")]
    pub(crate) fn positions(&self, context: usize) -> usize {
        let segment = self.segment_size.unwrap_or(context).min(context);
        segment.saturating_add(self.memory_tokens)
    }

    /// Numbers in one sample's memory, for a model of this width and depth; `None` if there are too many to count.
    #[cfg(feature = "report")]
    pub(crate) fn floats(&self, d_model: usize, layers: usize) -> Option<usize> {
        let features = 2usize.checked_mul(self.d_mem)?.checked_mul(self.dpfp_nu)?;
        let matrix = features.checked_mul(d_model.checked_div(self.n_heads)?)?;
        let sum = if self.use_denom { features } else { 0 };
        matrix.checked_add(sum)?.checked_mul(layers)
    }

    /// The maps of each layer of a model of this width with these places in its layers.
    pub(crate) fn maps(&self, d_model: usize, slots: &Slots) -> Result<AssociativeConfig, Error> {
        if slots.layers == 0 {
            return Err(Error::Input(
                "ARMT has a memory in each of a model's layers, but this model does not say by CausalLm::slots that it \
                 has any"
                    .into(),
            ));
        }
        if self.implementation == ArmtImplementation::Thinking {
            let problem = "its memory vectors look at one another both ways, which this model cannot do without \
                           attention: use \"old\"";
            let attends = slots.keys_values.is_some();
            require(attends, "implementation", "thinking", problem)?;
        }
        let problem = format!("must divide the model's width of {d_model}");
        let divides = d_model.is_multiple_of(self.n_heads);
        require(divides, "n_heads", self.n_heads, problem)?;
        Ok(AssociativeConfig {
            d_model,
            d_mem: self.d_mem,
            n_heads: self.n_heads,
            order: self.dpfp_nu,
            gating: self.gating,
            counting: Counting {
                normalized: self.use_denom,
                corrected: self.correction,
            },
        })
    }
}
