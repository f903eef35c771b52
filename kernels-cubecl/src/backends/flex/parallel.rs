//! Loops over tensors of f32, shared by all cores in parts whose bounds and order depend on the sizes
//! alone: one input gives one output, whatever the number of cores.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::vector::dispatch;

/// Numbers of each tensor in a part: it and what is computed from it stay in a core's own cache.
pub const PART: usize = 16 * 1024;

/// Numbers yet to be written.
pub type Blank<'a> = &'a mut [MaybeUninit<f32>];

/// Calls `f` on parts of whole rows of outputs of `len` numbers each: on the part's place in them and on
/// its numbers, all of which it writes. What it returns comes back in order.
///
/// `len` is a multiple of `width`. To be compiled for [`dispatch`], `f` must be `#[inline(always)]`.
pub fn fill<const O: usize, R: Send>(
    len: usize,
    width: usize,
    f: impl Fn(Range<usize>, [Blank<'_>; O]) -> R + Sync,
) -> ([Vec<f32>; O], Vec<R>) {
    let part = PART.div_ceil(width) * width;
    let mut outputs: [Vec<f32>; O] = std::array::from_fn(|_| Vec::with_capacity(len));
    let mut blank = outputs
        .each_mut()
        .map(|x| x.spare_capacity_mut()[..len].chunks_mut(part));
    let work: Vec<_> = (0..len.div_ceil(part))
        .map(|index| {
            let outputs = blank.each_mut().map(|x| x.next().unwrap_or_default());
            (index * part..len.min((index + 1) * part), outputs)
        })
        .collect();
    let run = |(range, outputs)| {
        dispatch(
            #[inline(always)]
            || f(range, outputs),
        )
    };
    let results = match work.len() {
        1 => work.into_iter().map(run).collect(),
        _ => work.into_par_iter().with_max_len(1).map(run).collect(),
    };
    for output in &mut outputs {
        // SAFETY: every part was given to `f`, which writes all of it.
        unsafe { output.set_len(len) };
    }
    (outputs, results)
}

/// The same where each part of the outputs comes from that part of the inputs, all of one length.
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

/// Each number of each output from the inputs' numbers at the same place; `f` as for [`parts`].
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
