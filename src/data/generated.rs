//! Samples that settings and a seed determine.

use burn::data::dataset::Dataset;
use rand_chacha::ChaCha8Rng;

use super::source::{Sources, boxed};
use super::{Example, Split};
use crate::error::Error;

/// Settings of a task whose samples are generated.
pub trait Generates: Clone + Send + Sync + 'static {
    /// What the task's random numbers begin with, so that no two tasks draw the same.
    const STREAM: &'static [u8; 8];

    /// Checks every value.
    ///
    /// # Errors
    ///
    /// The first value that cannot work, by its key and with the reason: [`Error::Config`].
    fn validate(&self) -> Result<(), Error>;

    /// Number of samples.
    fn samples(&self, split: Split) -> usize;

    /// A sample, from its random numbers.
    fn example(&self, split: Split, index: usize, rng: &mut ChaCha8Rng) -> Example;
}

/// Samples that are generated on demand; each depends only on the seed, the split and its index.
#[derive(Clone, Debug)]
pub struct Generated<C> {
    config: C,
    split: Split,
    seed: u64,
}

impl<C: Generates> Generated<C> {
    /// # Errors
    ///
    /// As [`Generates::validate`].
    pub fn new(config: C, split: Split, seed: u64) -> Result<Self, Error> {
        config.validate()?;
        Ok(Self {
            config,
            split,
            seed,
        })
    }

    /// The sample of an index, which may exceed the number of samples.
    pub fn example(&self, index: usize) -> Example {
        let mut rng = self.split.rng(C::STREAM, self.seed, index);
        self.config.example(self.split, index, &mut rng)
    }
}

impl<C: Generates> Dataset<Example> for Generated<C> {
    fn get(&self, index: usize) -> Option<Example> {
        (index < self.len()).then(|| self.example(index))
    }

    fn len(&self) -> usize {
        self.config.samples(self.split)
    }
}

/// The training and the validation data.
pub(super) fn open<C: Generates>(config: &C, seed: u64) -> Result<Sources, Error> {
    let samples = |split| Generated::new(config.clone(), split, seed).map(boxed);
    Ok((samples(Split::Train)?, samples(Split::Valid)?))
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use super::*;
    use crate::data::{BabiConfig, KvConfig, MqarConfig, MultihopConfig, PhonebookConfig};

    fn check<C: Generates + Debug>(config: C) {
        let of = |split, seed| Generated::new(config.clone(), split, seed).unwrap();
        let (train, valid) = (of(Split::Train, 1), of(Split::Valid, 1));
        assert_eq!(train.get(7), of(Split::Train, 1).get(7), "{config:?}");
        for other in [&train.get(8), &valid.get(7), &of(Split::Train, 2).get(7)] {
            assert_ne!(train.get(7), *other, "{config:?}");
        }
        let len = config.samples(Split::Valid);
        assert_eq!((valid.get(len - 1).is_some(), valid.get(len)), (true, None));
    }

    #[test]
    fn samples_depend_on_seed_split_and_index_only() {
        check(KvConfig::default());
        check(MqarConfig::default());
        check(MultihopConfig::default());
        check(PhonebookConfig::default());
        check(BabiConfig::default());
    }
}
