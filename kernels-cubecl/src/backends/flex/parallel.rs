//! Loops over f32 tensors, split over the threads in parts whose bounds and order depend on the sizes
//! alone, so that results do not depend on the number of threads.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::threads::stay_awake;
use super::vector::dispatch;

/// Values of each tensor in a part: inputs and outputs of a part fit a core's private cache.
pub const PART: usize = 16 * 1024;

/// Values that are not written yet.
pub type Blank<'a> = &'a mut [MaybeUninit<f32>];

/// Writes `y` from `x`, of the same length.
#[inline(always)]
pub fn copy(x: &[f32], y: Blank<'_>) {
    for (y, x) in y.iter_mut().zip(x) {
        y.write(*x);
    }
}

/// Allocates outputs of `count` rows, each of its own width, and calls `f` on parts of them: with the part's rows and its
/// slices of the outputs, which `f` must write completely. Returns the outputs and the results of `f` in the order of the
/// parts.
///
/// `f` must be `#[inline(always)]` to be compiled for the instruction set that [`dispatch`] selects.
pub fn rows<const O: usize, R: Send>(
    count: usize,
    widths: [usize; O],
    f: impl Fn(Range<usize>, [Blank<'_>; O]) -> R + Sync,
) -> ([Vec<f32>; O], Vec<R>) {
    let part = part_of(widths);
    let mut outputs = widths.map(|width| Vec::with_capacity(count * width));
    let mut at = widths.iter();
    let mut blank = outputs.each_mut().map(|x: &mut Vec<f32>| {
        let width = at.next().copied().unwrap_or_default();
        x.spare_capacity_mut()[..count * width].chunks_mut((part * width).max(1))
    });
    let slices = || blank.each_mut().map(|x| x.next().unwrap_or_default());
    let results = each_part(count, part, slices, f);
    for (output, width) in outputs.iter_mut().zip(widths) {
        // SAFETY: the parts cover the output, and `f` has written every part completely.
        unsafe { output.set_len(count * width) };
    }
    (outputs, results)
}

/// The rows of a part, by the widest of the tensors.
fn part_of<const O: usize>(widths: [usize; O]) -> usize {
    let widest = widths.into_iter().max().unwrap_or(1).max(1);
    PART.div_ceil(widest)
}

/// Calls `f` with the rows and the `slices` of each part of `count` rows; returns its results in the order of the parts.
#[inline(always)]
fn each_part<T: Send, R: Send>(
    count: usize,
    part: usize,
    mut slices: impl FnMut() -> T,
    f: impl Fn(Range<usize>, T) -> R + Sync,
) -> Vec<R> {
    let parts = 0..count.div_ceil(part);
    let work = parts.map(|index| (index * part..count.min((index + 1) * part), slices()));
    let work: Vec<_> = work.collect();
    let run = |(range, slices)| {
        dispatch(
            #[inline(always)]
            || f(range, slices),
        )
    };
    match work.len() {
        0 | 1 => work.into_iter().map(run).collect(),
        _ => {
            stay_awake();
            work.into_par_iter().with_max_len(1).map(run).collect()
        }
    }
}

/// Calls `f` on parts of tensors that have as many rows, each of its own width: with the part's rows and its slices of the tensors.
/// Returns the results of `f` in the order of the parts; `f` as for [`rows`].
pub fn update_rows<const O: usize, R: Send>(
    tensors: [&mut [f32]; O],
    widths: [usize; O],
    f: impl Fn(Range<usize>, [&mut [f32]; O]) -> R + Sync,
) -> Vec<R> {
    let count = tensors[0].len() / widths[0].max(1);
    let mut sizes = tensors.iter().zip(widths);
    assert!(sizes.all(|(x, width)| x.len() == count * width));
    let part = part_of(widths);
    let mut at = widths.iter();
    let mut values = tensors.map(|x| {
        let width = at.next().copied().unwrap_or_default();
        x.chunks_mut((part * width).max(1))
    });
    let slices = || values.each_mut().map(|x| x.next().unwrap_or_default());
    each_part(count, part, slices, f)
}

/// Where a loop puts a value: new memory takes it, a number adds it.
pub trait Slot {
    fn put(&mut self, value: f32);
}

impl Slot for MaybeUninit<f32> {
    #[inline(always)]
    fn put(&mut self, value: f32) {
        self.write(value);
    }
}

impl Slot for f32 {
    #[inline(always)]
    fn put(&mut self, value: f32) {
        *self += value;
    }
}

/// [`rows`] where all outputs have rows of `width` values, `len` values in all; ranges are those of values.
pub fn fill<const O: usize, R: Send>(
    len: usize,
    width: usize,
    f: impl Fn(Range<usize>, [Blank<'_>; O]) -> R + Sync,
) -> ([Vec<f32>; O], Vec<R>) {
    rows(
        len / width,
        [width; O],
        #[inline(always)]
        |range, outputs| f(range.start * width..range.end * width, outputs),
    )
}

/// [`fill`] where each part of the outputs is computed from the same part of the inputs, all of equal length.
pub fn parts<const I: usize, const O: usize, R: Send>(
    inputs: [&[f32]; I],
    width: usize,
    f: impl Fn([&[f32]; I], [Blank<'_>; O]) -> R + Sync,
) -> ([Vec<f32>; O], Vec<R>) {
    fill(
        inputs[0].len(),
        width,
        #[inline(always)]
        |range, outputs| f(inputs.map(|x| &x[range.clone()]), outputs),
    )
}

/// Computes each value of the outputs from the values of the inputs at the same index; `f` as for [`fill`].
pub fn map<const I: usize, const O: usize>(
    inputs: [&[f32]; I],
    f: impl Fn([f32; I]) -> [f32; O] + Sync,
) -> [Vec<f32>; O] {
    let (outputs, _) = parts(
        inputs,
        1,
        #[inline(always)]
        |inputs: [&[f32]; I], mut outputs: [Blank<'_>; O]| {
            let len = inputs[0].len();
            let inputs = inputs.map(|x| &x[..len]);
            let outputs = outputs.each_mut().map(|x| &mut x[..len]);
            for i in 0..len {
                let y = f(std::array::from_fn(|k| inputs[k][i]));
                for k in 0..O {
                    outputs[k][i].write(y[k]);
                }
            }
        },
    );
    outputs
}
