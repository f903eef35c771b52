use std::sync::Arc;

use burn::tensor::activation::log_softmax;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData};
use gradmem_kernels::Tape;

use crate::error::Error;
use crate::model::rows::select;
use crate::model::{CausalLm, most_probable, rows_at_once, token_losses};

/// The token to predict at each place of a batch of queries; negative where there is none.
///
/// Labels are not shifted: label `i` is token `i` of its row, predicted from what stands before it.
#[derive(Clone, Debug)]
pub struct Labels<B: Backend> {
    /// `[rows, width]`
    ids: Tensor<B, 2, Int>,
    rows: Arc<[Arc<[i64]>]>,
    largest: i64,
    /// ε of label smoothing.
    pub(super) smoothing: f64,
}

/// One label.
struct Label {
    row: usize,
    column: usize,
    id: i64,
}

/// The most probable tokens at the labelled places.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Predicted<B: Backend> {
    /// Row by row, one to each label in columns `first` and later: `[labels]`; none if there are no such labels.
    pub tokens: Option<Tensor<B, 1, Int>>,
    /// The first column whose tokens are predicted. Labels before it, which there are only in the first column where nothing stands before a
    /// row's first token, do not count.
    pub first: usize,
}

impl<B: AutodiffBackend> Predicted<B> {
    /// The same on the inner backend.
    pub fn inner(self) -> Predicted<B::InnerBackend> {
        Predicted {
            tokens: self.tokens.map(Tensor::inner),
            first: self.first,
        }
    }
}

/// Logits, what each of their rows is to predict, and one where that counts.
type LinedUp<B> = (Tensor<B, 3>, Tensor<B, 2, Int>, Tensor<B, 2>);

impl<B: Backend> Labels<B> {
    /// Rows of labels, cut to `width` or filled with −1 on the right.
    pub(crate) fn new<R: AsRef<[i64]>>(
        rows: &[R],
        width: usize,
        device: &B::Device,
    ) -> Result<Self, Error> {
        let rows = rows.iter().map(|row| {
            let fill = std::iter::repeat_n(-1, width.saturating_sub(row.as_ref().len()));
            let row = row.as_ref().iter().copied().chain(fill);
            row.take(width).collect()
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
            smoothing: 0.0,
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

    /// What `model` tells at the labelled places: the mean loss of the labels, `[1]`, zero if there are none, which is `−log p`
    /// unless they are smoothed; and the most probable tokens. Logits of labelled places alone are computed.
    ///
    /// # Shapes
    ///
    /// - `hidden`: `[rows, width + 1, d_model]`, row `i` of a sample predicts its token `i`; the last one predicts beyond the
    ///   labels and is left out. Without some of the first of these rows, labels in as many first columns are neither
    ///   predicted nor counted.
    pub(crate) fn answered<M: CausalLm<B>>(
        &self,
        model: &M,
        hidden: Tensor<B, 3>,
    ) -> (Tensor<B, 1>, Predicted<B>) {
        let device = self.ids.device();
        let [_, places, d_model] = hidden.dims();
        let first = (self.ids.dims()[1] + 1).saturating_sub(places);
        let labels: Vec<_> = self.labels_from(first).collect();
        let count = labels.len();
        if count == 0 {
            // On the tape, so that it can be differentiated.
            let none = Predicted {
                tokens: None,
                first,
            };
            return (hidden.sum().mul_scalar(0.0), none);
        }
        let at: Vec<usize> = labels
            .iter()
            .map(|label| label.row * places + label.column - first)
            .collect();
        let hidden = select(hidden.flatten::<2>(0, 1), &at).reshape([1, count, d_model]);
        let ids: Vec<i64> = labels.iter().map(|label| label.id).collect();
        let ids = Tensor::from_data(TensorData::new(ids, [1, count]), &device);
        let vocab_size = model.vocab_size();
        let (losses, tokens) = match count <= rows_at_once(vocab_size) {
            true => {
                let logits = model.logits(hidden);
                let tokens = logits.clone().detach().argmax(2).reshape([count]);
                let losses = model.token_losses(logits.clone(), ids.clone());
                (
                    self.smoothed(losses, || above_mean(logits, ids)),
                    Some(tokens),
                )
            }
            false => {
                let logits = |hidden| Some(model.logits(hidden).detach());
                let tokens = most_probable(hidden.clone().detach(), vocab_size, logits);
                let tokens = tokens.map(|tokens| tokens.reshape([count]));
                let losses = model.next_losses(hidden.clone(), ids.clone());
                let at_once = rows_at_once(vocab_size);
                let above = |start| {
                    let some = at_once.min(count - start);
                    let logits = model.logits(hidden.clone().narrow(1, start, some));
                    above_mean(logits, ids.clone().narrow(1, start, some))
                };
                let above = || Tensor::cat((0..count).step_by(at_once).map(above).collect(), 1);
                (self.smoothed(losses, above), tokens)
            }
        };
        let mean = losses.reshape([count]).sum().mul_scalar(1.0 / count as f64);
        (mean, Predicted { tokens, first })
    }

    /// `−log p_t` with smoothed labels: `(1 − ε)(−log p_t) + ε mean(−log p)` is `−log p_t + ε (z_t − mean z)`.
    fn smoothed(
        &self,
        losses: Tensor<B, 2>,
        above_mean: impl FnOnce() -> Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        match self.smoothing > 0.0 {
            true => losses + above_mean().mul_scalar(self.smoothing),
            false => losses,
        }
    }

    /// How many of the last hidden states of queries, the one that predicts beyond the labels among them, the labels need: at least one.
    pub(crate) fn rows_needed(&self) -> usize {
        let first = |ids: &Arc<[i64]>| ids.iter().position(|id| *id >= 0);
        let first = self.rows.iter().filter_map(first).min();
        let width = self.ids.dims()[1];
        width + 1 - first.unwrap_or(width)
    }

    /// The labels in columns `first` and later, row by row.
    fn labels_from(&self, first: usize) -> impl Iterator<Item = Label> {
        self.rows.iter().enumerate().flat_map(move |(row, ids)| {
            let ids = ids.iter().enumerate().skip(first);
            let labelled = ids.filter(|(_, id)| **id >= 0);
            labelled.map(move |(column, id)| Label {
                row,
                column,
                id: *id,
            })
        })
    }

    /// The mean loss of the labels, as in [`Labels::answered`]; zero if there are none.
    ///
    /// # Shapes
    ///
    /// - `logits`: `[rows, width + 1, vocab_size]`, or `[rows, width, vocab_size]`, as in [`Labels::answered`]
    /// - output: `[1]`
    pub(crate) fn mean_loss(&self, logits: Tensor<B, 3>) -> Tensor<B, 1> {
        let Some((logits, targets, counted)) = self.lined_up(logits.clone()) else {
            // On the tape, so that it can be differentiated.
            return logits.sum().mul_scalar(0.0);
        };
        let losses = token_losses(logits.clone(), targets.clone());
        let losses = self.smoothed(losses, || above_mean(logits, targets));
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
        let (Some((p, _, counted)), Some((q, ..))) = (self.lined_up(p), self.lined_up(q.clone()))
        else {
            // On the tape, so that it can be differentiated.
            return q.sum().mul_scalar(0.0);
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
    fn lined_up(&self, logits: Tensor<B, 3>) -> Option<LinedUp<B>> {
        let [_, width] = self.ids.dims();
        let missing = (width + 1).saturating_sub(logits.dims()[1]);
        if width <= missing {
            return None;
        }
        let labels = match missing {
            0 => self.ids.clone(),
            _ => self.ids.clone().narrow(1, missing, width - missing),
        };
        let ignored = labels.clone().lower_elem(0);
        let targets = labels.mask_fill(ignored.clone(), 0);
        let counted = ignored.bool_not().float();
        Some((logits.narrow(1, 0, width - missing), targets, counted))
    }

    /// The labels of these rows' first `width` places, beyond which they have none.
    pub(super) fn slice(&self, rows: std::ops::Range<usize>, width: usize) -> Self {
        let part = self.rows[rows.clone()].iter();
        let part: Arc<[Arc<[i64]>]> = part.map(|row| row[..width].into()).collect();
        let ids = self.ids.clone().narrow(0, rows.start, rows.len());
        Self {
            ids: ids.narrow(1, 0, width),
            largest: largest(&part),
            rows: part,
            smoothing: self.smoothing,
        }
    }

    /// The same on one more tape.
    pub(super) fn lift(&self) -> Labels<Tape<B>> {
        self.map(Tensor::from_inner)
    }

    fn map<C: Backend>(
        &self,
        ids: impl FnOnce(Tensor<B, 2, Int>) -> Tensor<C, 2, Int>,
    ) -> Labels<C> {
        Labels {
            ids: ids(self.ids.clone()),
            rows: self.rows.clone(),
            largest: self.largest,
            smoothing: self.smoothing,
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
        self.map(Tensor::inner)
    }
}

/// How far the logits of the targets are above the mean of their row, `[batch, seq]`.
fn above_mean<B: Backend>(logits: Tensor<B, 3>, targets: Tensor<B, 2, Int>) -> Tensor<B, 2> {
    let shape = targets.dims();
    let of_targets = logits.clone().gather(2, targets.unsqueeze_dim(2));
    (of_targets - logits.mean_dim(2)).reshape(shape)
}

fn largest(rows: &[Arc<[i64]>]) -> i64 {
    let ids = rows.iter().flat_map(|row| row.iter().copied());
    ids.max().unwrap_or(-1)
}
