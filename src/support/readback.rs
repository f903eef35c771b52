//! Numbers of many tensors, read from their device in one transfer.

use std::cell::Cell;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::wide;

thread_local! {
    static TRANSFERS: Cell<usize> = const { Cell::new(0) };
}

/// How many transfers this thread has made to read tensors back.
pub fn transfers() -> usize {
    TRANSFERS.get()
}

/// Tensors that wait to be read. On a GPU each transfer is a full stop, so there is one for all of them.
#[derive(Clone, Debug)]
pub(crate) struct Readback<B: Backend> {
    tensors: Vec<Tensor<B, 1>>,
}

/// Where a [`Readback`]'s values will be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot(usize);

/// What was read.
#[derive(Clone, Debug)]
pub(crate) struct Values(Vec<Vec<f64>>);

impl<B: Backend> Readback<B> {
    /// Of nothing.
    pub fn new() -> Self {
        Self {
            tensors: Vec::new(),
        }
    }

    /// Adds a tensor of any size.
    pub fn push(&mut self, tensor: Tensor<B, 1>) -> Slot {
        self.tensors.push(wide(tensor.detach()));
        Slot(self.tensors.len() - 1)
    }

    /// Reads all of them.
    pub fn read(self) -> Values {
        if self.tensors.is_empty() {
            return Values(Vec::new());
        }
        let lengths: Vec<usize> = self.tensors.iter().map(|x| x.dims()[0]).collect();
        TRANSFERS.set(TRANSFERS.get() + 1);
        let data = Tensor::cat(self.tensors, 0).into_data();
        let mut values = data.iter::<f64>();
        let parts = lengths.iter().map(|n| values.by_ref().take(*n).collect());
        Values(parts.collect())
    }
}

impl Values {
    /// The values of a tensor, in order.
    pub fn of(&self, slot: Slot) -> &[f64] {
        &self.0[slot.0]
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    #[test]
    fn many_tensors_are_one_transfer() {
        type B = burn_flex::Flex;
        let device = Default::default();
        let mut readback = Readback::<B>::new();
        let one = readback.push(Tensor::from_data([1.5], &device));
        let three = readback.push(Tensor::from_data([2.0, f32::NAN, 4.0], &device));
        let before = transfers();
        let values = readback.read();
        assert_eq!(transfers(), before + 1);
        assert_eq!(values.of(one), [1.5]);
        assert!(values.of(three)[1].is_nan() && values.of(three)[2] == 4.0);
        assert_eq!(Readback::<B>::new().read().0.len(), 0);
        assert_eq!(transfers(), before + 1);
    }
}
