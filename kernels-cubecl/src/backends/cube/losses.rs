//! Cross-entropies and their derivatives; the formulas are in [`reference::layers`](crate::reference::layers). A cube computes
//! the row of one token.

use cubecl::prelude::*;

use super::rows::*;

/// `−log p` of the target.
#[cube(launch_unchecked)]
pub fn token_losses<F: Float, I: Int>(
    logits: &Array<F>,
    targets: &Array<I>,
    losses: &mut Array<F>,
    rows: &Rows,
    #[comptime] units: usize,
    #[define(F)] _dtype: StorageType,
    #[define(I)] _ids: StorageType,
) {
    let mut shared = SharedMemory::<f32>::new(units);
    let row = block();
    if row >= rows.count {
        terminate!();
    }
    let base = row * rows.width;
    let lse = log_sum_exp::<F>(logits, base, rows.width, &mut shared, units);
    if UNIT_POS == 0 {
        let target = f32::cast_from(logits[base + usize::cast_from(targets[row])]);
        losses[row] = F::cast_from(lse - target);
    }
}

/// `g (p − e)`
#[cube(launch_unchecked)]
pub fn token_losses_backward<F: Float, I: Int>(
    logits: &Array<F>,
    targets: &Array<I>,
    grad: &Array<F>,
    to_logits: &mut Array<F>,
    rows: &Rows,
    #[comptime] units: usize,
    #[define(F)] _dtype: StorageType,
    #[define(I)] _ids: StorageType,
) {
    let mut shared = SharedMemory::<f32>::new(units);
    let row = block();
    if row >= rows.count {
        terminate!();
    }
    let base = row * rows.width;
    let lse = log_sum_exp::<F>(logits, base, rows.width, &mut shared, units);
    let target = usize::cast_from(targets[row]);
    let g = f32::cast_from(grad[row]);
    let mut i = UNIT_POS as usize;
    while i < rows.width {
        let p = f32::exp(f32::cast_from(logits[base + i]) - lse);
        to_logits[base + i] = F::cast_from(g * select(i == target, p - 1.0, p));
        i += units;
    }
}

/// `⟨a, p − e⟩` and `g p ∘ (a − ⟨a, p⟩)`
#[cube(launch_unchecked)]
pub fn token_losses_double_backward<F: Float, I: Int>(
    logits: &Array<F>,
    targets: &Array<I>,
    grad: &Array<F>,
    a: &Array<F>,
    to_grad: &mut Array<F>,
    to_logits: &mut Array<F>,
    rows: &Rows,
    #[comptime] units: usize,
    #[define(F)] _dtype: StorageType,
    #[define(I)] _ids: StorageType,
) {
    let mut shared = SharedMemory::<f32>::new(units);
    let row = block();
    if row >= rows.count {
        terminate!();
    }
    let base = row * rows.width;
    let lse = log_sum_exp::<F>(logits, base, rows.width, &mut shared, units);
    let mut mean = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < rows.width {
        let p = f32::exp(f32::cast_from(logits[base + i]) - lse);
        mean += p * f32::cast_from(a[base + i]);
        i += units;
    }
    let mean = sum_across(mean, &mut shared, units);
    let g = f32::cast_from(grad[row]);
    let mut i = UNIT_POS as usize;
    while i < rows.width {
        let p = f32::exp(f32::cast_from(logits[base + i]) - lse);
        let a = f32::cast_from(a[base + i]);
        to_logits[base + i] = F::cast_from(g * p * (a - mean));
        i += units;
    }
    if UNIT_POS == 0 {
        let target = f32::cast_from(a[base + usize::cast_from(targets[row])]);
        to_grad[row] = F::cast_from(mean - target);
    }
}

/// The logarithm of the softmax's denominator.
#[cube]
fn log_sum_exp<F: Float>(
    logits: &Array<F>,
    base: usize,
    width: usize,
    shared: &mut SharedMemory<f32>,
    #[comptime] units: usize,
) -> f32 {
    let mut top = f32::cast_from(logits[base]);
    let mut i = UNIT_POS as usize;
    while i < width {
        top = max(top, f32::cast_from(logits[base + i]));
        i += units;
    }
    let top = max_across(top, shared, units);
    let mut total = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < width {
        total += f32::exp(f32::cast_from(logits[base + i]) - top);
        i += units;
    }
    top + f32::ln(sum_across(total, shared, units))
}
