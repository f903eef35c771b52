//! Tensors as the loops read and write them: contiguous, or as heads, each a matrix stored by rows.

use std::cell::RefCell;
use std::cmp::Reverse;

use burn::tensor::{Bytes, DType, Shape};
use burn_flex::{FlexTensor, Layout};

use super::triangular::Rows;
use super::vector::LANES;

/// The tensors, each contiguous, if all have type f32.
pub fn single<const N: usize>(tensors: [&FlexTensor; N]) -> Option<[FlexTensor; N]> {
    let single = tensors.iter().all(|x| x.dtype() == DType::F32);
    single.then(|| tensors.map(FlexTensor::to_contiguous))
}

/// A tensor of these values in the shape of `x`.
pub fn like(x: &FlexTensor, numbers: Vec<f32>) -> FlexTensor {
    in_shape(x.layout().shape(), numbers)
}

/// A tensor of these values in this shape.
pub fn in_shape(shape: &Shape, numbers: Vec<f32>) -> FlexTensor {
    let layout = Layout::contiguous(shape.clone());
    FlexTensor::new(Bytes::from_elems(numbers), layout, DType::F32)
}

/// The dimensions in the order of memory: the one whose steps are the longest first, and of equal ones that with more of them.
pub fn order(x: &FlexTensor) -> Vec<usize> {
    let (strides, shape) = (x.layout().strides(), x.layout().shape());
    let mut order: Vec<_> = (0..strides.len()).collect();
    order.sort_by_key(|&axis| Reverse((strides[axis], shape[axis])));
    order
}

/// The tensor itself if [`Heads`] can read it, otherwise a contiguous copy.
pub fn readable(x: FlexTensor) -> FlexTensor {
    let (strides, dims) = (x.layout().strides(), x.layout().shape());
    match strides.iter().all(|&s| s >= 0) && (strides[3] == 1 || dims[3] == 1) {
        true => x,
        false => x.to_contiguous(),
    }
}

/// The matrices `[len, dim]` of a tensor `[batch, heads, len, dim]`.
pub struct Heads<'a> {
    data: &'a [f32],
    strides: [usize; 3],
}

impl<'a> Heads<'a> {
    /// `x` must be [`readable`].
    pub fn of(x: &'a FlexTensor) -> Self {
        let strides = x.layout().strides();
        Self {
            data: &x.storage()[x.layout().start_offset()..],
            strides: [strides[0], strides[1], strides[2]].map(|s| s as usize),
        }
    }

    /// The matrix of one head.
    pub fn get(&self, batch: usize, head: usize) -> Rows<'a> {
        let [per_batch, per_head, per_row] = self.strides;
        let start = batch * per_batch + head * per_head;
        Rows::new(&self.data[start..], per_row)
    }
}

/// A tensor `[batch, heads, len, dim]` whose heads are written by several threads. In memory it is `[batch, len, heads, dim]`, the order
/// of the tokens: merging the heads needs no copy.
pub struct Output {
    memory: *mut f32,
    shape: [usize; 4],
    data: Vec<f32>,
}

// SAFETY: threads share an output only to call `write`, whose callers write different heads.
unsafe impl Sync for Output {}

impl Output {
    pub fn new(shape: [usize; 4]) -> Self {
        let mut data = Vec::with_capacity(shape.iter().product());
        Self {
            memory: data.as_mut_ptr(),
            shape,
            data,
        }
    }

    /// Copies a head's contiguous matrix to its place.
    ///
    /// # Safety
    ///
    /// No other thread writes this head at the same time.
    pub unsafe fn write(&self, batch: usize, head: usize, rows: &[f32]) {
        let [batches, heads, len, dim] = self.shape;
        assert!(batch < batches && head < heads && rows.len() == len * dim);
        for (i, row) in rows.chunks_exact(dim).enumerate() {
            let start = ((batch * len + i) * heads + head) * dim;
            // SAFETY: the range is within the vector's capacity, as asserted, and no other thread
            // writes it.
            unsafe {
                let to = self.memory.add(start);
                to.copy_from_nonoverlapping(row.as_ptr(), dim);
            }
        }
    }

    /// The finished tensor.
    ///
    /// # Safety
    ///
    /// Every head has been written.
    pub unsafe fn finish(mut self) -> FlexTensor {
        let [batch, heads, len, dim] = self.shape;
        // SAFETY: the heads cover this length, which is within the capacity.
        unsafe { self.data.set_len(self.shape.iter().product()) };
        let layout = Layout::contiguous(Shape::from([batch, len, heads, dim]));
        FlexTensor::new(
            Bytes::from_elems(self.data),
            layout.transpose(1, 2),
            DType::F32,
        )
    }
}

/// Calls `f` with scratch memory of this thread: slices of at least these lengths, aligned to cache lines,
/// with arbitrary contents.
pub fn with_scratch<const N: usize>(lens: [usize; N], f: impl FnOnce([&mut [f32]; N])) {
    thread_local! {
        static MEMORY: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    }
    MEMORY.with_borrow_mut(|memory| {
        let lens = lens.map(|len| len.next_multiple_of(LANES));
        let total = LANES + lens.iter().sum::<usize>();
        if memory.len() < total {
            *memory = vec![0.0; total];
        }
        let skipped = memory.as_ptr().align_offset(4 * LANES).min(LANES);
        let mut rest = &mut memory[skipped..];
        f(lens.map(|len| {
            rest.split_off_mut(..len)
                .expect("the scratch memory has the total length")
        }));
    });
}
