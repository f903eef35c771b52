use serde::{Deserialize, Serialize};

use crate::error::{Error, at_least_one, not_negative, require, sizes};
use crate::memory::MOST_STEPS;
use crate::support::setters::setters;

/// Linear maps between the memory and the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RmtProj {
    /// None.
    #[default]
    None,
    /// One before each WRITE pass, with random weights at the start.
    Proj,
    /// That, and another before READ, the identity at the start.
    ProjRw,
}

/// Settings of an [`Rmt`](super::Rmt).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[must_use]
pub struct RmtConfig {
    /// `m`: memory vectors.
    pub memory_tokens: usize,
    /// `K`: WRITE passes over the context.
    pub write_steps: usize,
    /// Linear maps between the memory and the model.
    pub mem_proj: RmtProj,
    /// Learned vectors on either side of the memory, this many each, others in WRITE than in READ.
    pub ctrl_tokens: usize,
    /// Whether passes after the first add to the memory, `mem + LayerNorm(new)`, instead of replacing it.
    pub mem_residual: bool,
    /// Weight of the reconstruction loss in the outer loss: that of the passes after the first, and of
    /// one more for this purpose, in the mean; 0 for none.
    pub reconstruction_loss_weight: f64,
    /// Whether the context is reconstructed with a head of its own, which starts as a copy of the model's.
    pub write_head: bool,
    /// Standard deviation of the initial memory and control tokens.
    pub memory_std: f64,
}

impl Default for RmtConfig {
    fn default() -> Self {
        Self {
            memory_tokens: 8,
            write_steps: 1,
            mem_proj: RmtProj::None,
            ctrl_tokens: 0,
            mem_residual: false,
            reconstruction_loss_weight: 0.0,
            write_head: false,
            memory_std: 0.02,
        }
    }
}

impl RmtConfig {
    /// The defaults: m = 8, K = 1.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        /// Sets `m`.
        with_memory_tokens(memory_tokens: usize);
        /// Sets `K`.
        with_write_steps(write_steps: usize);
        /// Sets the weight of the reconstruction loss.
        with_reconstruction_loss_weight(reconstruction_loss_weight: f64);
        /// Sets the maps between the memory and the model.
        with_mem_proj(mem_proj: RmtProj);
        /// Sets the number of control tokens on either side of the memory.
        with_ctrl_tokens(ctrl_tokens: usize);
        /// Lets passes after the first add to the memory.
        with_mem_residual(mem_residual: bool);
        /// Reconstructs with a head of its own.
        with_write_head(write_head: bool);
        /// Sets the standard deviation of the initial memory and control tokens.
        with_memory_std(memory_std: f64);
    }

    /// Checks every value.
    ///
    /// # Errors
    ///
    /// The first value that cannot work, by its key and with the reason: [`Error::Config`].
    pub fn validate(&self) -> Result<(), Error> {
        sizes([
            ("memory_tokens", self.memory_tokens),
            ("ctrl_tokens", self.ctrl_tokens.max(1)),
        ])?;
        at_least_one([("write_steps", self.write_steps)])?;
        let (steps, problem) = (self.write_steps, format!("must be at most {MOST_STEPS}"));
        require(steps <= MOST_STEPS, "write_steps", steps, problem)?;
        not_negative([
            (
                "reconstruction_loss_weight",
                self.reconstruction_loss_weight,
            ),
            ("memory_std", self.memory_std),
        ])
    }

    /// Vectors before the query in READ.
    pub fn prefix_len(&self) -> usize {
        self.memory_tokens
            .saturating_add(self.ctrl_tokens.saturating_mul(2))
    }

    /// Vectors beside the context in WRITE.
    pub(crate) fn written_with(&self) -> usize {
        let behind = self.memory_tokens.saturating_add(self.ctrl_tokens);
        self.prefix_len().saturating_add(behind)
    }
}
