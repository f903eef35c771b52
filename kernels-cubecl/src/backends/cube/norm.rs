//! RMS and layer normalisation and their derivatives; the formulas are in [`reference::layers`](crate::reference::layers).

use cubecl::prelude::*;

use super::rows::*;

/// `x r ∘ w`. Here and below `x` is without its mean if that is taken away.
#[cube(launch_unchecked)]
pub fn norm<F: Float>(
    x: &Array<F>,
    weight: &Array<F>,
    out: &mut Array<F>,
    rows: &Rows,
    epsilon: f32,
    #[comptime] centered: bool,
    #[comptime] units: usize,
    #[define(F)] _dtype: StorageType,
) {
    let mut shared = SharedMemory::<f32>::new(units);
    let (row, width) = (block(), rows.width);
    if row >= rows.count {
        terminate!();
    }
    let base = row * width;
    let mean = mean_of(x, base, width, &mut shared, centered, units);
    let mut squares = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < width {
        let x = f32::cast_from(x[base + i]) - mean;
        squares += x * x;
        i += units;
    }
    let r = inverse_rms(sum_across(squares, &mut shared, units), width, epsilon);
    let mut i = UNIT_POS as usize;
    while i < width {
        let x = f32::cast_from(x[base + i]) - mean;
        out[base + i] = F::cast_from(x * r) * weight[i];
        i += units;
    }
}

/// `dx`, added to `onto` if `adds`, and for each cube the sum of its rows' parts of `dw`, if it is wanted. What is not used may be any
/// tensor.
#[cube(launch_unchecked)]
pub fn norm_backward<F: Float>(
    x: &Array<F>,
    weight: &Array<F>,
    grad: &Array<F>,
    onto: &Array<F>,
    dx: &mut Array<F>,
    dw: &mut Array<f32>,
    rows: &Rows,
    epsilon: f32,
    #[comptime] centered: bool,
    #[comptime] adds: bool,
    #[comptime] wants_weight: bool,
    #[comptime] units: usize,
    #[define(F)] _dtype: StorageType,
) {
    let mut shared = SharedMemory::<f32>::new(units);
    let (block, width) = (block(), rows.width);
    let first = block * rows.each;
    let end = min(first + rows.each, rows.count);
    let sums = block * width;
    let d = f32::cast_from(width);
    for row in first..end {
        let base = row * width;
        let mean = mean_of(x, base, width, &mut shared, centered, units);
        let mut squares = 0.0f32;
        let mut t = 0.0f32;
        let mut all_u = 0.0f32;
        let mut i = UNIT_POS as usize;
        while i < width {
            let x = f32::cast_from(x[base + i]) - mean;
            let u = f32::cast_from(grad[base + i]) * f32::cast_from(weight[i]);
            squares += x * x;
            t += x * u;
            all_u += u;
            i += units;
        }
        let mean_u = mean_across(all_u, width, &mut shared, centered, units);
        let r = inverse_rms(sum_across(squares, &mut shared, units), width, epsilon);
        let along = r * r * sum_across(t, &mut shared, units) / d;
        let mut i = UNIT_POS as usize;
        while i < width {
            let x = f32::cast_from(x[base + i]) - mean;
            let g = f32::cast_from(grad[base + i]);
            let u = g * f32::cast_from(weight[i]) - mean_u;
            let mut sum = (u - x * along) * r;
            if comptime!(adds) {
                sum += f32::cast_from(onto[base + i]);
            }
            dx[base + i] = F::cast_from(sum);
            if comptime!(wants_weight) {
                let part = g * x * r;
                dw[sums + i] = select(row == first, part, dw[sums + i] + part);
            }
            i += units;
        }
    }
}

/// The gradients to `grad` and `x`, and for each cube the sum of its rows' parts of that to `weight`. `a` and `c` are the
/// cotangents of `dx` and `dw`; an absent one may be any tensor, which is not read.
#[cube(launch_unchecked)]
pub fn norm_double_backward<F: Float>(
    x: &Array<F>,
    weight: &Array<F>,
    grad: &Array<F>,
    a: &Array<F>,
    c: &Array<F>,
    to_grad: &mut Array<F>,
    to_x: &mut Array<F>,
    to_weight: &mut Array<f32>,
    rows: &Rows,
    epsilon: f32,
    #[comptime] centered: bool,
    #[comptime] present: (bool, bool),
    #[comptime] units: usize,
    #[define(F)] _dtype: StorageType,
) {
    let (has_a, has_c) = comptime!(present);
    let mut shared = SharedMemory::<f32>::new(units);
    let (block, width) = (block(), rows.width);
    let first = block * rows.each;
    let end = min(first + rows.each, rows.count);
    let sums = block * width;
    let d = f32::cast_from(width);
    for row in first..end {
        let base = row * width;
        let mean = mean_of(x, base, width, &mut shared, centered, units);
        let mut mean_a = 0.0f32;
        if comptime!(has_a) {
            mean_a = mean_of(a, base, width, &mut shared, centered, units);
        }
        let mut all_u = 0.0f32;
        let mut all_cg = 0.0f32;
        let mut squares = 0.0f32;
        let mut p = 0.0f32;
        let mut q = 0.0f32;
        let mut t = 0.0f32;
        let mut z = 0.0f32;
        let mut i = UNIT_POS as usize;
        while i < width {
            let x = f32::cast_from(x[base + i]) - mean;
            let g = f32::cast_from(grad[base + i]);
            squares += x * x;
            if comptime!(has_a) {
                let u = g * f32::cast_from(weight[i]);
                let a = f32::cast_from(a[base + i]) - mean_a;
                p += a * u;
                q += a * x;
                t += x * u;
                all_u += u;
            }
            if comptime!(has_c) {
                let cg = f32::cast_from(c[i]) * g;
                z += cg * x;
                all_cg += cg;
            }
            i += units;
        }
        let r = inverse_rms(sum_across(squares, &mut shared, units), width, epsilon);
        let cube = r * r * r / d;
        if comptime!(has_a) {
            p = sum_across(p, &mut shared, units);
            q = sum_across(q, &mut shared, units);
            t = sum_across(t, &mut shared, units);
        }
        if comptime!(has_c) {
            z = sum_across(z, &mut shared, units);
        }
        let mean_u = mean_across(all_u, width, &mut shared, centered, units);
        let mean_cg = mean_across(all_cg, width, &mut shared, centered, units);
        let along_a = r * r * q / d;
        let along_x = 3.0 * along_a * t - p;
        let mut i = UNIT_POS as usize;
        while i < width {
            let x = f32::cast_from(x[base + i]) - mean;
            let g = f32::cast_from(grad[base + i]);
            let w = f32::cast_from(weight[i]);
            let mut for_grad = 0.0f32;
            let mut for_x = 0.0f32;
            let mut for_weight = 0.0f32;
            if comptime!(has_a) {
                let a = f32::cast_from(a[base + i]) - mean_a;
                let ja = (a - x * along_a) * r;
                for_grad += w * ja;
                for_weight += g * ja;
                for_x += cube * (x * along_x - a * t - (g * w - mean_u) * q);
            }
            if comptime!(has_c) {
                let c = f32::cast_from(c[i]);
                for_grad += r * c * x;
                for_x += r * (c * g - mean_cg) - x * cube * z;
            }
            to_grad[base + i] = F::cast_from(for_grad);
            to_x[base + i] = F::cast_from(for_x);
            to_weight[sums + i] =
                select(row == first, for_weight, to_weight[sums + i] + for_weight);
            i += units;
        }
    }
}

/// Columns of sums that a cube of [`sum_of_rows`] adds up.
pub const COLUMNS: usize = 32;

/// The sum of all rows of `sums`, added to `onto` if `adds`. Units of one column add every so many rows each, and then their sums.
#[cube(launch_unchecked)]
pub fn sum_of_rows<F: Float>(
    sums: &Array<f32>,
    onto: &Array<F>,
    out: &mut Array<F>,
    count: usize,
    width: usize,
    #[comptime] adds: bool,
    #[comptime] units: usize,
    #[define(F)] _dtype: StorageType,
) {
    let mut shared = SharedMemory::<f32>::new(units);
    let each = comptime!(units / COLUMNS);
    let unit = UNIT_POS as usize;
    let column = block() * COLUMNS + unit % COLUMNS;
    let mut sum = 0.0f32;
    if column < width {
        let mut row = unit / COLUMNS;
        while row < count {
            sum += sums[row * width + column];
            row += each;
        }
    }
    shared[unit] = sum;
    sync_cube();
    if unit < COLUMNS && column < width {
        #[unroll]
        for part in 1..each {
            sum += shared[part * COLUMNS + unit];
        }
        if comptime!(adds) {
            sum += f32::cast_from(onto[column]);
        }
        out[column] = F::cast_from(sum);
    }
}

/// `1 / √(mean(x²) + ε)`
#[cube]
fn inverse_rms(squares: f32, width: usize, epsilon: f32) -> f32 {
    1.0 / f32::sqrt(squares / f32::cast_from(width) + epsilon)
}

/// The mean of a row, if it is taken away; else 0.
#[cube]
fn mean_of<F: Float>(
    x: &Array<F>,
    base: usize,
    width: usize,
    shared: &mut SharedMemory<f32>,
    #[comptime] centered: bool,
    #[comptime] units: usize,
) -> f32 {
    let mut sum = 0.0f32;
    if comptime!(centered) {
        let mut i = UNIT_POS as usize;
        while i < width {
            sum += f32::cast_from(x[base + i]);
            i += units;
        }
    }
    mean_across(sum, width, shared, centered, units)
}

/// The mean by all units' sums, if it is taken away; else 0.
#[cube]
fn mean_across(
    sum: f32,
    width: usize,
    shared: &mut SharedMemory<f32>,
    #[comptime] centered: bool,
    #[comptime] units: usize,
) -> f32 {
    let mut mean = 0.0f32;
    if comptime!(centered) {
        mean = sum_across(sum, shared, units) / f32::cast_from(width);
    }
    mean
}
