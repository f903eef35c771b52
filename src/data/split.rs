use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use sha2::{Digest, Sha256};

/// The training or the validation part of a task's data. Their random streams are disjoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Split {
    /// Training data.
    Train,
    /// Validation data.
    Valid,
}

impl Split {
    /// The one of two values that belongs to this part.
    pub(crate) fn of<T>(self, train: T, valid: T) -> T {
        match self {
            Self::Train => train,
            Self::Valid => valid,
        }
    }

    /// Whether a text is of this part, for tasks that have so few texts that both parts would draw the same: an eighth of all texts is
    /// validation data.
    pub(crate) fn owns(self, text: &str) -> bool {
        let valid = Sha256::digest(text)[0] < 32;
        valid == self.of(false, true)
    }

    /// The random generator of one sample. Its 32 seed bytes encode the task, the seed, the split and the index,
    /// so that every sample has its own.
    pub(crate) fn rng(self, task: &[u8; 8], seed: u64, index: usize) -> ChaCha8Rng {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes[8..16].copy_from_slice(&(index as u64).to_le_bytes());
        bytes[16] = self as u8;
        bytes[24..].copy_from_slice(task);
        ChaCha8Rng::from_seed(bytes)
    }
}
