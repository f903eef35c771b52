//! The order of samples.

use burn::data::dataset::Dataset;

use crate::support::mix;

/// A dataset repeated up to `len` items: each round in the same order, or, with a seed, each in another.
#[derive(Clone, Debug)]
pub struct Cycle<D> {
    dataset: D,
    len: usize,
    shuffle: Option<u64>,
}

impl<D> Cycle<D> {
    /// `len` items: those of `dataset`, repeated.
    pub fn new(dataset: D, len: usize) -> Self {
        Self {
            dataset,
            len,
            shuffle: None,
        }
    }

    /// As [`Cycle::new`], with a random order for each round that depends on `seed` and the round only.
    pub fn shuffled(dataset: D, len: usize, seed: u64) -> Self {
        Self {
            shuffle: Some(seed),
            ..Self::new(dataset, len)
        }
    }
}

impl<I, D: Dataset<I>> Dataset<I> for Cycle<D> {
    fn get(&self, index: usize) -> Option<I> {
        let items = self.dataset.len();
        if index >= self.len || items == 0 {
            return None;
        }
        let (round, at) = (index / items, index % items);
        self.dataset.get(match self.shuffle {
            Some(seed) => permuted(at, items, mix(seed ^ mix(round as u64 + 1))),
            None => at,
        })
    }

    fn len(&self) -> usize {
        self.len
    }
}

/// Evenly spaced items of a dataset, from the first on.
#[derive(Clone, Debug)]
pub struct Spaced<D> {
    dataset: D,
    len: usize,
}

impl<D> Spaced<D> {
    /// `len` items; all if there are fewer.
    pub fn new(dataset: D, len: usize) -> Self {
        Self { dataset, len }
    }
}

impl<I, D: Dataset<I>> Dataset<I> for Spaced<D> {
    fn get(&self, index: usize) -> Option<I> {
        let len = self.len();
        (index < len).then(|| self.dataset.get(index * self.dataset.len() / len))?
    }

    fn len(&self) -> usize {
        self.len.min(self.dataset.len())
    }
}

/// The image of `at` under a permutation of `0..len` that `key` selects, in constant memory: a Feistel network
/// over the next power of four, applied until the result is below `len` (cycle walking).
fn permuted(at: usize, len: usize, key: u64) -> usize {
    let bits = usize::BITS - (len - 1).leading_zeros();
    let half = bits.div_ceil(2).max(1);
    let mask = (1u64 << half) - 1;
    let mut at = at as u64;
    loop {
        let (mut left, mut right) = (at >> half, at & mask);
        for round in 0..4 {
            let turned = mix(right ^ key.rotate_left(16 * round)) & mask;
            (left, right) = (right, left ^ turned);
        }
        at = left << half | right;
        if at < len as u64 {
            return at as usize;
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::data::dataset::InMemDataset;

    use super::*;

    #[test]
    fn items_are_spaced_over_the_whole() {
        let spaced = |all: usize, len| {
            let spaced = Spaced::new(InMemDataset::new((0..all).collect::<Vec<_>>()), len);
            spaced.iter().collect::<Vec<_>>()
        };
        assert_eq!(spaced(10, 4), [0, 2, 5, 7]);
        assert_eq!(spaced(3, 3), [0, 1, 2]);
        assert_eq!(spaced(3, 9), [0, 1, 2]);
        assert!(spaced(0, 9).is_empty());
    }

    #[test]
    fn every_round_has_every_item_once_in_another_order() {
        for len in [1, 2, 3, 7, 64, 1000] {
            let items = InMemDataset::new((0..len).collect::<Vec<usize>>());
            let cycle = Cycle::shuffled(items, 3 * len, 5);
            let round = |r: usize| -> Vec<usize> {
                (r * len..(r + 1) * len)
                    .map(|i| cycle.get(i).unwrap())
                    .collect()
            };
            for r in 0..3 {
                let mut sorted = round(r);
                sorted.sort_unstable();
                assert_eq!(sorted, (0..len).collect::<Vec<_>>());
            }
            if len > 7 {
                assert_ne!(round(0), round(1));
                assert_ne!(round(0), (0..len).collect::<Vec<_>>());
            }
            assert_eq!(cycle.get(3 * len), None);
        }
    }
}
