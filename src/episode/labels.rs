use std::sync::Arc;

use burn::backend::Autodiff;
use burn::tensor::activation::log_softmax;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData};

use crate::error::Error;
use crate::model::{CausalLm, token_losses};

/// The token to predict at each place of a batch of queries; negative where there is none.
///
/// Labels are not shifted: label `i` is token `i` of its row, predicted from what stands before it.
#[derive(Clone, Debug)]
pub struct Labels<B: Backend> {
    /// `[rows, width]`
    ids: Tensor<B, 2, Int>,
    rows: Arc<[Arc<[i64]>]>,
    largest: i64,
}

/// Logits, what each of their rows is to predict, and one where that counts.
type LinedUp<B> = (Tensor<B, 3>, Tensor<B, 2, Int>, Tensor<B, 2>);

impl<B: Backend> Labels<B> {
    /// Rows of labels, at most `width` each, filled with −1 on the right.
    pub(crate) fn new<R: AsRef<[i64]>>(
        rows: &[R],
        width: usize,
        device: &B::Device,
    ) -> Result<Self, Error> {
        let rows = rows.iter().map(|row| {
            let fill = std::iter::repeat_n(-1, width.saturating_sub(row.as_ref().len()));
            row.as_ref().iter().copied().chain(fill).collect()
        });
        let rows: Arc<[Arc<[i64]>]> = rows.collect();
        let largest = largest(&rows);
        if largest > i64::from(i32::MAX) {
            return Err(Error::Input(format!(
                "there is a label {largest}, but token ids are at most {}",
                i32::MAX
            )));
        }
        // All that is negative says the same, and −1 fits any integer type.
        let ids = rows
            .iter()
            .flat_map(|row| row.iter().map(|id| (*id).max(-1)));
        let data = TensorData::new(ids.collect::<Vec<i64>>(), [rows.len(), width]);
        Ok(Self {
            ids: Tensor::from_data(data, device),
            rows,
            largest,
        })
    }

    /// All rows in order, each of the queries' width.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[i64]> {
        self.rows.iter().map(|row| &**row)
    }

    /// Labels in columns `first` and later.
    pub fn count_from(&self, first: usize) -> usize {
        let rows = self
            .rows
            .iter()
            .map(|row| row.get(first..).unwrap_or_default());
        rows.map(|row| row.iter().filter(|id| **id >= 0).count())
            .sum()
    }

    /// The mean of `−log p` over the labels in columns `first` and later; zero if there are none.
    ///
    /// # Shapes
    ///
    /// - `logits`: `[rows, width + 1, vocab_size]`, row `i` of a sample predicts its token `i`; the last one
    ///   predicts beyond the labels and is left out. Without the first of these rows, `[rows, width, vocab_size]`, a label
    ///   in the first column is not counted.
    /// - output: `[1]`
    pub(crate) fn mean_loss(&self, logits: Tensor<B, 3>, first: usize) -> Tensor<B, 1> {
        let Some((logits, targets, counted)) = self.lined_up(logits, first) else {
            return Tensor::zeros([1], &self.ids.device());
        };
        // By the plain formula. `CausalLm::token_losses`, which WRITE uses, is the same to rounding; but a run is
        // reproduced bit for bit, and all published ones were trained with this.
        let losses = token_losses(logits, targets);
        (losses * counted.clone()).sum() / counted.sum().clamp_min(1.0)
    }

    /// The mean of `Σ p (log p − log q)` over the labelled places, of logits as in [`Labels::mean_loss`], each place times
    /// the share of its context: `[1]`.
    pub(crate) fn mean_divergence(
        &self,
        p: Tensor<B, 3>,
        q: Tensor<B, 3>,
        shares: &[f64],
    ) -> Tensor<B, 1> {
        let (Some((p, _, counted)), Some((q, ..))) = (self.lined_up(p, 0), self.lined_up(q, 0))
        else {
            return Tensor::zeros([1], &self.ids.device());
        };
        let [p, q] = [p, q].map(|logits| log_softmax(logits, 2));
        let each = (p.clone().exp() * (p - q)).sum_dim(2);
        let each = each.reshape(counted.shape());
        let rows = self.rows.len();
        let times = rows / shares.len().max(1);
        let shares = shares
            .iter()
            .flat_map(|share| std::iter::repeat_n(*share, times));
        let shares = TensorData::new(shares.collect::<Vec<f64>>(), [rows, 1]);
        let each = each * Tensor::from_data(shares, &self.ids.device());
        (each * counted.clone()).sum() / counted.sum().clamp_min(1.0)
    }

    /// The logits that predict labelled columns, what they are to predict, and one where that counts.
    fn lined_up(&self, logits: Tensor<B, 3>, first: usize) -> Option<LinedUp<B>> {
        let [rows, width] = self.ids.dims();
        let missing = (width + 1).saturating_sub(logits.dims()[1]);
        if width <= missing {
            return None;
        }
        let first = first.min(width);
        let labels = match first {
            0 => self.ids.clone(),
            _ => self.ids.clone().slice_fill([0..rows, 0..first], -1),
        };
        let labels = match missing {
            0 => labels,
            _ => labels.narrow(1, missing, width - missing),
        };
        let ignored = labels.clone().lower_elem(0);
        let targets = labels.mask_fill(ignored.clone(), 0);
        let counted = ignored.bool_not().float();
        Some((logits.narrow(1, 0, width - missing), targets, counted))
    }

    pub(super) fn slice(&self, rows: std::ops::Range<usize>) -> Self {
        let part: Arc<[Arc<[i64]>]> = self.rows[rows.clone()].into();
        Self {
            ids: self.ids.clone().narrow(0, rows.start, rows.len()),
            largest: largest(&part),
            rows: part,
        }
    }

    /// The same on one more tape.
    pub(super) fn lift(&self) -> Labels<Autodiff<B>> {
        Labels {
            ids: Tensor::from_inner(self.ids.clone()),
            rows: self.rows.clone(),
            largest: self.largest,
        }
    }

    /// Fails on labels that `model` does not have. Host arithmetic only.
    pub(crate) fn check<M: CausalLm<B>>(&self, model: &M) -> Result<(), Error> {
        let vocab = model.vocab_size();
        match usize::try_from(self.largest).is_ok_and(|largest| largest >= vocab) {
            false => Ok(()),
            true => Err(Error::Input(format!(
                "there is a label {}, but the model's tokens are 0 … {}",
                self.largest,
                vocab.saturating_sub(1)
            ))),
        }
    }
}

impl<B: AutodiffBackend> Labels<B> {
    pub(super) fn inner(&self) -> Labels<B::InnerBackend> {
        Labels {
            ids: self.ids.clone().inner(),
            rows: self.rows.clone(),
            largest: self.largest,
        }
    }
}

fn largest(rows: &[Arc<[i64]>]) -> i64 {
    let ids = rows.iter().flat_map(|row| row.iter().copied());
    ids.max().unwrap_or(-1)
}
