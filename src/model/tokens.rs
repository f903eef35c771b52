use std::sync::{Arc, OnceLock};

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData};
use gradmem_kernels::Tape;
use sha2::{Digest, Sha256};

use super::{CausalLm, check_positions};
use crate::error::Error;

/// Token ids in rows of different lengths: as they are on the host, and padded on the right to one width
/// on the device.
///
/// What fills a shorter row on the device is token 0, which nothing reads: this type knows each row's length.
#[derive(Clone, Debug)]
pub struct Tokens<B: Backend> {
    /// `[rows, width]`
    ids: Tensor<B, 2, Int>,
    rows: Arc<[Arc<[u32]>]>,
    largest: Option<u32>,
    /// See [`Tokens::mean_weights`].
    weights: [OnceLock<Tensor<B, 2>>; 2],
}

impl<B: Backend> Tokens<B> {
    /// Rows of token ids, one upload to `device`. Rows may be empty.
    ///
    /// # Errors
    ///
    /// An id that a device's signed 32-bit integers cannot hold.
    pub fn new<R: AsRef<[u32]>>(rows: &[R], device: &B::Device) -> Result<Self, Error> {
        let width = rows.iter().map(|row| row.as_ref().len()).max().unwrap_or(0);
        let rows: Arc<[Arc<[u32]>]> = rows.iter().map(|row| row.as_ref().into()).collect();
        Ok(Self {
            largest: largest(&rows)?,
            ids: padded(&rows, width, device),
            rows,
            weights: Default::default(),
        })
    }

    /// Rows `[rows, width]` that are on a device already, all of them full: one read-back.
    ///
    /// # Errors
    ///
    /// A negative id, or one beyond signed 32 bits.
    pub fn from_tensor(ids: Tensor<B, 2, Int>) -> Result<Self, Error> {
        Self::on_device(ids, |row, _| Ok(row.len()))
    }

    /// Rows `[rows, width]` that are on a device already, shorter ones filled with `pad` on the right, as wide as the longest of
    /// them is without it: one read-back.
    ///
    /// # Errors
    ///
    /// As [`Tokens::from_tensor`]; also a padding token before a row's last token.
    pub fn from_padded(ids: Tensor<B, 2, Int>, pad: u32) -> Result<Self, Error> {
        let padded = Self::on_device(ids, |row, at| Ok(unpadded(row, at, pad)?.len()))?;
        Ok(padded.trimmed())
    }

    fn on_device(
        ids: Tensor<B, 2, Int>,
        length: impl Fn(&[u32], usize) -> Result<usize, Error>,
    ) -> Result<Self, Error> {
        let [count, width] = ids.dims();
        let host = ids.to_data();
        let host = host.iter::<i64>().enumerate().map(|(at, id)| {
            u32::try_from(id).map_err(|_| {
                let (row, column) = (at / width, at % width);
                Error::Input(format!(
                    "row {row} has {id} at {column}, which is no token id"
                ))
            })
        });
        let host = host.collect::<Result<Vec<u32>, _>>()?;
        let rows = (0..count).map(|row| {
            let ids = &host[row * width..(row + 1) * width];
            Ok(ids[..length(ids, row)?].into())
        });
        let rows: Arc<[Arc<[u32]>]> = rows.collect::<Result<Vec<_>, Error>>()?.into();
        let largest = largest(&rows)?;
        // A filling that is no token of the model would be looked up.
        let ids = match host.iter().max() > largest.as_ref() {
            true => padded(&rows, width, &ids.device()),
            false => ids,
        };
        Ok(Self {
            ids,
            largest,
            rows,
            weights: Default::default(),
        })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Columns of the device's tensor: at least the longest row.
    pub fn width(&self) -> usize {
        self.ids.dims()[1]
    }

    /// A hash of a row's ids: the same wherever the row stands.
    pub(crate) fn hash(&self, row: usize) -> [u8; 32] {
        let mut hash = Sha256::new();
        for id in self.row(row) {
            hash.update(id.to_le_bytes());
        }
        hash.finalize().into()
    }

    /// The ids of a row, without what fills it.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    pub fn row(&self, row: usize) -> &[u32] {
        &self.rows[row]
    }

    /// All rows in order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[u32]> {
        self.rows.iter().map(|row| &**row)
    }

    /// Each row's number of tokens.
    pub fn lengths(&self) -> impl ExactSizeIterator<Item = usize> {
        self.rows.iter().map(|row| row.len())
    }

    /// Tokens of all rows together.
    pub fn count(&self) -> usize {
        self.lengths().sum()
    }

    /// The ids on the device: `[rows, width]`.
    pub fn ids(&self) -> Tensor<B, 2, Int> {
        self.ids.clone()
    }

    /// The device they are on.
    pub fn device(&self) -> B::Device {
        self.ids.device()
    }

    /// The rows of this range, at the same width.
    ///
    /// # Panics
    ///
    /// If the range is empty or beyond the rows.
    pub fn slice(&self, rows: std::ops::Range<usize>) -> Self {
        let part: Arc<[Arc<[u32]>]> = self.rows[rows.clone()].into();
        Self {
            ids: self.ids.clone().narrow(0, rows.start, rows.len()),
            largest: part.iter().flat_map(|row| row.iter().copied()).max(),
            rows: part,
            weights: Default::default(),
        }
    }

    /// The same, only as wide as the longest row.
    #[must_use]
    pub fn trimmed(self) -> Self {
        let longest = self.lengths().max().unwrap_or(0);
        match longest < self.width() {
            true => Self {
                ids: self.ids.narrow(1, 0, longest),
                weights: Default::default(),
                ..self
            },
            false => self,
        }
    }

    /// These columns of all rows; a row that ends before them is empty.
    pub(crate) fn columns(&self, columns: std::ops::Range<usize>) -> Self {
        let part = self.rows().map(|row| {
            let end = row.len().min(columns.end);
            row[end.min(columns.start)..end].into()
        });
        let part: Arc<[Arc<[u32]>]> = part.collect();
        Self {
            ids: self.ids.clone().narrow(1, columns.start, columns.len()),
            largest: part.iter().flat_map(|row| row.iter().copied()).max(),
            rows: part,
            weights: Default::default(),
        }
    }

    /// The ids from column `first` on: `[rows, width − first]`.
    pub(crate) fn targets(&self, first: usize) -> Tensor<B, 2, Int> {
        match first {
            0 => self.ids(),
            _ => self.ids().narrow(1, first, self.width() - first),
        }
    }

    /// For each of the [targets](Tokens::targets), one over how many its row has; zero behind the row:
    /// `[rows, width − first]` with `first` 0 or 1. The sum of losses times these is each row's mean.
    pub(crate) fn mean_weights(&self, first: usize) -> Tensor<B, 2> {
        let make = || {
            let width = self.width() - first;
            let weights = self.lengths().flat_map(|length| {
                let count = length.saturating_sub(first);
                let weight = 1.0 / count as f64;
                (0..width).map(move |at| if at < count { weight } else { 0.0 })
            });
            let data = TensorData::new(weights.collect::<Vec<f64>>(), [self.len(), width]);
            Tensor::from_data(data, &self.device())
        };
        self.weights[first].get_or_init(make).clone()
    }

    /// One on each token, zero behind its row: `[rows, width]`.
    pub(crate) fn mask(&self) -> Tensor<B, 2> {
        let width = self.width();
        let mask = self
            .lengths()
            .flat_map(|length| (0..width).map(move |at| if at < length { 1.0 } else { 0.0 }));
        let data = TensorData::new(mask.collect::<Vec<f64>>(), [self.len(), width]);
        Tensor::from_data(data, &self.device())
    }

    /// Fails on tokens that `model` does not have, or has no positions for behind `before` vectors. `what`
    /// names a row in messages. Host arithmetic only.
    pub(crate) fn check<M: CausalLm<B>>(
        &self,
        model: &M,
        before: usize,
        what: &str,
    ) -> Result<(), Error> {
        check_positions(model, self.width(), before, what)?;
        self.check_ids(model, what)
    }

    /// Fails on tokens that `model` does not have.
    pub(crate) fn check_ids<M: CausalLm<B>>(&self, model: &M, what: &str) -> Result<(), Error> {
        let vocab = model.vocab_size();
        match self.largest.is_none_or(|id| (id as usize) < vocab) {
            true => Ok(()),
            false => check_ids(self.rows(), vocab, what),
        }
    }

    /// The same on one more tape.
    pub(crate) fn lift(&self) -> Tokens<Tape<B>> {
        self.map(Tensor::from_inner)
    }

    fn map<C: Backend>(
        &self,
        ids: impl FnOnce(Tensor<B, 2, Int>) -> Tensor<C, 2, Int>,
    ) -> Tokens<C> {
        Tokens {
            ids: ids(self.ids.clone()),
            rows: self.rows.clone(),
            largest: self.largest,
            weights: Default::default(),
        }
    }
}

impl<B: AutodiffBackend> Tokens<B> {
    /// The same without the tape.
    pub fn inner(&self) -> Tokens<B::InnerBackend> {
        self.map(Tensor::inner)
    }
}

/// A row without the padding at its end; `at` is its number, for messages.
pub(crate) fn unpadded(row: &[u32], at: usize, pad: u32) -> Result<&[u32], Error> {
    let length = row.iter().rposition(|id| *id != pad).map_or(0, |at| at + 1);
    match row[..length].iter().position(|id| *id == pad) {
        None => Ok(&row[..length]),
        Some(column) => Err(Error::Input(format!(
            "row {at} has the padding token {pad} at {column}, before its last token: \
             rows are padded on the right only"
        ))),
    }
}

/// Fails on the first token of a row that is none of a vocabulary of so many. `what` names a row in the message.
pub(crate) fn check_ids<'a>(
    rows: impl Iterator<Item = &'a [u32]>,
    vocab: usize,
    what: &str,
) -> Result<(), Error> {
    for (row, ids) in rows.enumerate() {
        if let Some(at) = ids.iter().position(|id| *id as usize >= vocab) {
            return Err(Error::Input(format!(
                "{what} {row} has token {} at {at}, but the model's tokens are 0 … {}",
                ids[at],
                vocab.saturating_sub(1)
            )));
        }
    }
    Ok(())
}

/// The largest id of all.
fn largest(rows: &[Arc<[u32]>]) -> Result<Option<u32>, Error> {
    let largest = rows.iter().flat_map(|row| row.iter().copied()).max();
    match largest {
        Some(id) if i32::try_from(id).is_err() => Err(Error::Input(format!(
            "there is a token id {id}, but ids are at most {}",
            i32::MAX
        ))),
        _ => Ok(largest),
    }
}

/// Rows on a device, filled with token 0 on the right.
fn padded<B: Backend>(rows: &[Arc<[u32]>], width: usize, device: &B::Device) -> Tensor<B, 2, Int> {
    let ids = rows.iter().flat_map(|row| {
        let ids = row.iter().map(|id| i64::from(*id));
        ids.chain(std::iter::repeat_n(0, width - row.len()))
    });
    let data = TensorData::new(ids.collect::<Vec<i64>>(), [rows.len(), width]);
    Tensor::from_data(data, device)
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    type B = burn_flex::Flex;

    fn tensor<const W: usize, const R: usize>(rows: [[i64; W]; R]) -> Tensor<B, 2, Int> {
        Tensor::from_data(rows, &Default::default())
    }

    #[test]
    fn rows_are_padded_on_the_device_only() {
        let tokens = Tokens::<B>::new(&[vec![4, 5, 6], vec![], vec![7]], &Default::default());
        let tokens = tokens.unwrap();
        assert_eq!(tokens.lengths().collect::<Vec<_>>(), [3, 0, 1]);
        assert_eq!((tokens.len(), tokens.width(), tokens.count()), (3, 3, 4));
        let ids: Vec<i64> = tokens.ids().to_data().iter::<i64>().collect();
        assert_eq!(ids, [4, 5, 6, 0, 0, 0, 7, 0, 0]);
        let part = tokens.slice(2..3);
        assert_eq!((part.row(0), part.width()), (&[7][..], 3));
        let weights: Vec<f64> = part.mean_weights(0).to_data().iter::<f64>().collect();
        assert_eq!(weights, [1.0, 0.0, 0.0]);
        let later = tokens.mean_weights(1).to_data();
        let later: Vec<f64> = later.iter::<f64>().collect();
        assert_eq!(later, [0.5, 0.5, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn padding_of_a_tensor_ends_rows_and_stands_nowhere_else() {
        let padded = tensor([[4, 5, 0], [6, 0, 0], [0, 0, 0]]);
        let tokens = Tokens::from_padded(padded.clone(), 0).unwrap();
        assert_eq!(tokens.lengths().collect::<Vec<_>>(), [2, 1, 0]);
        let full = Tokens::from_tensor(padded).unwrap();
        assert_eq!(full.count(), 9);
        // A filling that no model has as a token is not looked up.
        let beyond = Tokens::from_padded(tensor([[4, 70, 70], [5, 6, 70]]), 70).unwrap();
        let ids: Vec<i64> = beyond.ids().to_data().iter::<i64>().collect();
        assert_eq!((ids, beyond.width()), (vec![4, 0, 5, 6], 2));
        let beyond = Tokens::from_padded(tensor([[4, 70], [5, 6]]), 70).unwrap();
        let ids: Vec<i64> = beyond.ids().to_data().iter::<i64>().collect();
        assert_eq!(ids, [4, 0, 5, 6]);
        let gap = Tokens::from_padded(tensor([[4, 0, 5]]), 0).unwrap_err();
        assert!(
            gap.to_string()
                .contains("row 0 has the padding token 0 at 1")
        );
    }

    #[test]
    fn ids_that_no_device_holds_are_errors() {
        let large = Tokens::<B>::new(&[[u32::MAX]], &Default::default()).unwrap_err();
        assert!(large.to_string().contains("4294967295"), "{large}");
        let negative = Tokens::from_tensor(tensor([[3, -1]])).unwrap_err();
        assert!(negative.to_string().contains("row 0 has -1 at 1"));
    }
}
