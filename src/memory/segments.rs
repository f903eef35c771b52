//! A context in chunks: what WRITE is given one after another, or all at once.

use std::sync::Arc;

use burn::tensor::backend::Backend;
use burn::tensor::{Bool, Tensor, TensorData};
use gradmem_kernels::Tape;

use super::{Chunks, GradMemConfig};
use crate::episode::Tokens;
use crate::error::Error;

/// The pieces of a batch of contexts. Each takes K steps of its own.
pub(super) struct Segments<B: Backend> {
    pub contexts: Tokens<B>,
    pub pieces: Vec<Segment<B>>,
    /// What the inner gradient is multiplied with.
    pub gradient_scale: Option<f64>,
    /// How many chunks each sample's memory is made of. In the reference's they are as many as the batch's longest has.
    pub counts: Arc<[usize]>,
    /// How many chunks each sample has tokens for.
    pub own: Vec<usize>,
    /// The outer loop's steps before, on which noise depends.
    pub outer_step: usize,
}

/// What a step of WRITE reads.
pub(super) struct Segment<B: Backend> {
    /// The chunks: `times` of each sample in a row.
    pub tokens: Tokens<B>,
    pub times: usize,
    /// What each token's loss counts in its sample's: `[batch · times, width − first]`.
    weights: Tensor<B, 2>,
}

/// What a step reads, and what its gradient is multiplied with.
pub(super) struct Reading<'a, B: Backend> {
    pub segment: &'a Segment<B>,
    pub scale: Option<f64>,
    /// Where the gradient is taken, as the distance from the memory.
    pub beside: Option<Vec<Tensor<B, 3>>>,
}

impl<B: Backend> Segments<B> {
    /// `first`: the first token of a chunk that is predicted.
    pub fn new(config: &GradMemConfig, contexts: &Tokens<B>, first: usize) -> Result<Self, Error> {
        let whole = |tokens: Tokens<B>| Segment {
            weights: tokens.mean_weights(first),
            tokens,
            times: 1,
        };
        let Some(size) = config.chunk_size else {
            return Ok(Self {
                contexts: contexts.clone(),
                pieces: vec![whole(contexts.clone())],
                gradient_scale: None,
                counts: vec![1; contexts.len()].into(),
                own: vec![1; contexts.len()],
                outer_step: 0,
            });
        };
        let own: Vec<usize> = contexts.lengths().map(|l| config.chunks_of(l)).collect();
        let counts: Arc<[usize]> = match config.reference_chunks {
            true => vec![config.chunks_of(contexts.width()); contexts.len()].into(),
            false => own.clone().into(),
        };
        let most = counts.iter().copied().max().unwrap_or(1);
        let (pieces, scale) = match config.chunks {
            Chunks::Sequential | Chunks::Concatenated => {
                let pieces = (0..most).map(|chunk| {
                    let end = contexts.width().min((chunk + 1) * size);
                    whole(contexts.columns(chunk * size..end))
                });
                (pieces.collect(), None)
            }
            Chunks::Parallel => {
                let scale = config.reference_chunks.then(|| 1.0 / most as f64);
                (
                    vec![Segment::all(contexts, [most, size], first, &counts)?],
                    scale,
                )
            }
        };
        Ok(Self {
            contexts: contexts.clone(),
            pieces,
            gradient_scale: scale,
            counts,
            own,
            outer_step: 0,
        })
    }

    /// What each sample's step on this piece counts of its steps on all of them: one over how many it has, zero if it does not have
    /// this one. Chunks that are written at once are one piece.
    pub fn shares(&self, piece: usize) -> Vec<f64> {
        let counts = self.own.iter();
        let share = |count: &usize| match (self.pieces.len(), piece < *count) {
            (1, _) => 1.0,
            (_, true) => 1.0 / *count as f64,
            (_, false) => 0.0,
        };
        counts.map(share).collect()
    }

    /// How many tokens of each sample are predicted, in all its chunks.
    pub fn predicted(&self, first: usize) -> Vec<usize> {
        let of_piece = |piece: &Segment<B>, sample: usize| -> usize {
            let rows = sample * piece.times..(sample + 1) * piece.times;
            rows.map(|row| piece.tokens.row(row).len().saturating_sub(first))
                .sum()
        };
        (0..self.contexts.len())
            .map(|sample| self.pieces.iter().map(|p| of_piece(p, sample)).sum())
            .collect()
    }

    /// Each sample's mean over the tokens of all pieces, of its means over the tokens of each: `[batch]`.
    pub fn over_chunks(&self, mut means: Vec<Tensor<B, 1>>, first: usize) -> Tensor<B, 1> {
        if means.len() == 1 {
            return means.remove(0);
        }
        let device = self.contexts.device();
        let total = self.predicted(first);
        let weighted = means.into_iter().zip(&self.pieces).map(|(mean, piece)| {
            let lengths = piece.tokens.lengths().zip(&total);
            let shares = lengths.map(|(length, total)| {
                length.saturating_sub(first) as f64 / (*total).max(1) as f64
            });
            let shares = TensorData::new(shares.collect::<Vec<f64>>(), [total.len()]);
            mean * Tensor::from_data(shares, &device)
        });
        let sum = weighted.reduce(|sum, mean| sum + mean);
        sum.unwrap_or_else(|| unreachable!("a context has a piece"))
    }

    /// What a step on a piece reads.
    pub fn reading(&self, piece: usize) -> Reading<'_, B> {
        Reading {
            segment: &self.pieces[piece],
            scale: self.gradient_scale,
            beside: None,
        }
    }
}

impl<B: Backend> Segment<B> {
    /// `times` chunks of each sample; a sample's loss is the mean of its `counts` chunks'.
    fn all(
        contexts: &Tokens<B>,
        [times, size]: [usize; 2],
        first: usize,
        counts: &[usize],
    ) -> Result<Self, Error> {
        let chunk = |row: &[u32], chunk: usize| {
            let range = row.len().min(chunk * size)..row.len().min((chunk + 1) * size);
            row[range].to_vec()
        };
        let rows = contexts
            .rows()
            .flat_map(|row| (0..times).map(move |at| chunk(row, at)));
        let rows: Vec<Vec<u32>> = rows.collect();
        let device = contexts.device();
        let tokens = Tokens::new(&rows, &device)?;
        let shares = counts.iter().flat_map(|count| {
            let share = 1.0 / (*count).max(1) as f64;
            std::iter::repeat_n(share, times)
        });
        let shares = TensorData::new(shares.collect::<Vec<f64>>(), [rows.len(), 1]);
        let weights = tokens.mean_weights(first) * Tensor::from_data(shares, &device);
        Ok(Self {
            tokens,
            times,
            weights,
        })
    }

    /// Each sample's loss `[batch]` from those of the tokens `[batch · times, width − first]`.
    pub fn mean(&self, losses: Tensor<B, 2>) -> Tensor<B, 1> {
        let batch = self.tokens.len() / self.times;
        let of_chunks = (losses * self.weights.clone()).sum_dim(1);
        match self.times {
            1 => of_chunks.reshape([batch]),
            times => of_chunks
                .reshape([batch, times])
                .sum_dim(1)
                .reshape([batch]),
        }
    }

    /// The share of each sample's predicted tokens `[batch]` that are right, given for each of them `[batch · times, width − first]`
    /// whether it is, whatever the chunks count in the loss.
    pub fn share_of_tokens(&self, shares: Tensor<B, 2>, first: usize) -> Tensor<B, 1> {
        let device = self.tokens.device();
        let lengths: Vec<usize> = self.tokens.lengths().collect();
        let predicted = |length: usize| length.saturating_sub(first);
        let weights = lengths.chunks(self.times).flat_map(|chunks| {
            let total: usize = chunks.iter().copied().map(predicted).sum();
            chunks.iter().map(move |_| 1.0 / total.max(1) as f64)
        });
        let weights = TensorData::new(weights.collect::<Vec<f64>>(), [lengths.len(), 1]);
        let weights: Tensor<B, 2> = Tensor::from_data(weights, &device);
        let inside = self.tokens.mask();
        let width = shares.dims()[1];
        let inside = inside.narrow(1, first, width);
        let batch = lengths.len() / self.times;
        (shares * inside * weights)
            .sum_dim(1)
            .reshape([batch, self.times])
            .sum_dim(1)
            .reshape([batch])
    }

    /// The samples that have nothing here to be predicted, if there are any: `[batch, 1, 1]`.
    pub fn idle(&self, first: usize) -> Option<Tensor<B, 3, Bool>> {
        let lengths: Vec<usize> = self.tokens.lengths().collect();
        let idle = lengths.chunks(self.times);
        let idle: Vec<bool> = idle
            .map(|chunks| chunks.iter().all(|length| *length <= first))
            .collect();
        let shape = [idle.len(), 1, 1];
        idle.contains(&true)
            .then(|| Tensor::from_data(TensorData::new(idle, shape), &self.tokens.device()))
    }

    /// The same on one more tape.
    pub fn lift(&self) -> Segment<Tape<B>> {
        Segment {
            tokens: self.tokens.lift(),
            times: self.times,
            weights: Tensor::from_inner(self.weights.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type B = burn_flex::Flex;

    #[test]
    fn the_shares_of_a_sample_s_steps_add_up_to_one() {
        let contexts = [vec![1; 3], vec![1; 9], vec![1; 5]];
        let contexts = Tokens::<B>::new(&contexts, &Default::default()).unwrap();
        for chunks in [Chunks::Sequential, Chunks::Concatenated, Chunks::Parallel] {
            let config = GradMemConfig::new().with_chunks(3, chunks);
            let segments = Segments::new(&config, &contexts, 0).unwrap();
            let mut sums = [0.0; 3];
            for piece in 0..segments.pieces.len() {
                let shares = segments.shares(piece);
                sums.iter_mut().zip(shares).for_each(|(sum, x)| *sum += x);
            }
            assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-12), "{sums:?}");
        }
    }
}
