use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// The halves of a task's data. What is made up for one never draws from the other's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// What is learned from.
    Train,
    /// What is held out.
    Valid,
}

impl Split {
    /// What there is of this half: `train` or `valid`.
    pub(crate) fn of<T>(self, train: T, valid: T) -> T {
        match self {
            Self::Train => train,
            Self::Valid => valid,
        }
    }

    /// The generator of one sample: its 32 seed bytes name the task, the seed, the split and the index,
    /// so no two samples share them.
    pub(crate) fn rng(self, task: &[u8; 8], seed: u64, index: usize) -> ChaCha8Rng {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes[8..16].copy_from_slice(&(index as u64).to_le_bytes());
        bytes[16] = self as u8;
        bytes[24..].copy_from_slice(task);
        ChaCha8Rng::from_seed(bytes)
    }
}
