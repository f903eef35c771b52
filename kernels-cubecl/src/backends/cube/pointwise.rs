//! Kernels in which each unit computes a value, or those of one place: SwiGLU, rotary positions, the order of heads in memory,
//! AdamW.
//! The formulas are in [`reference::layers`](crate::reference::layers).

use cubecl::prelude::*;

/// `silu(gate) ∘ up`
#[cube(launch_unchecked)]
pub fn swiglu<F: Float>(
    gate: &Array<F>,
    up: &Array<F>,
    out: &mut Array<F>,
    count: usize,
    #[define(F)] _dtype: StorageType,
) {
    let i = place();
    if i < count {
        let x = f32::cast_from(gate[i]);
        out[i] = F::cast_from(x * sigma(x) * f32::cast_from(up[i]));
    }
}

#[cube(launch_unchecked)]
pub fn swiglu_backward<F: Float>(
    gate: &Array<F>,
    up: &Array<F>,
    grad: &Array<F>,
    to_gate: &mut Array<F>,
    to_up: &mut Array<F>,
    count: usize,
    #[define(F)] _dtype: StorageType,
) {
    let i = place();
    if i < count {
        let x = f32::cast_from(gate[i]);
        let g = f32::cast_from(grad[i]);
        let sigma = sigma(x);
        to_gate[i] = F::cast_from(g * f32::cast_from(up[i]) * slope(x, sigma));
        to_up[i] = F::cast_from(g * x * sigma);
    }
}

/// The gradients to `[grad, gate, up]`; `a` and `b` are the cotangents of the gradients to gate and up. An absent one may be any
/// tensor, which is not read.
#[cube(launch_unchecked)]
pub fn swiglu_double_backward<F: Float>(
    gate: &Array<F>,
    up: &Array<F>,
    grad: &Array<F>,
    a: &Array<F>,
    b: &Array<F>,
    to_grad: &mut Array<F>,
    to_gate: &mut Array<F>,
    to_up: &mut Array<F>,
    count: usize,
    #[comptime] present: (bool, bool),
    #[define(F)] _dtype: StorageType,
) {
    let (has_a, has_b) = comptime!(present);
    let i = place();
    if i < count {
        let x = f32::cast_from(gate[i]);
        let up = f32::cast_from(up[i]);
        let g = f32::cast_from(grad[i]);
        let mut av = 0.0f32;
        let mut bv = 0.0f32;
        if comptime!(has_a) {
            av = f32::cast_from(a[i]);
        }
        if comptime!(has_b) {
            bv = f32::cast_from(b[i]);
        }
        let sigma = sigma(x);
        let first = slope(x, sigma);
        let second = sigma * (1.0 - sigma) * (2.0 + x * (1.0 - 2.0 * sigma));
        to_grad[i] = F::cast_from(av * up * first + bv * x * sigma);
        to_gate[i] = F::cast_from(g * (av * up * second + bv * first));
        to_up[i] = F::cast_from(av * g * first);
    }
}

#[cube]
fn sigma(x: f32) -> f32 {
    1.0 / (1.0 + f32::exp(-x))
}

/// The derivative of silu.
#[cube]
fn slope(x: f32, sigma: f32) -> f32 {
    sigma * (1.0 + x * (1.0 - sigma))
}

/// The numbers of a step of AdamW: see [`AdamWStep`](crate::AdamWStep).
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub struct Moving {
    pub beta1: f32,
    pub beta2: f32,
    pub epsilon: f32,
    pub first: f32,
    pub second: f32,
    pub kept: f32,
    pub lr: f32,
}

/// A step of AdamW: the outputs are `x`, `m` and `v` after it.
#[cube(launch_unchecked)]
pub fn adamw<F: Float>(
    x: &Array<F>,
    m: &Array<F>,
    v: &Array<F>,
    grad: &Array<F>,
    to_x: &mut Array<F>,
    to_m: &mut Array<F>,
    to_v: &mut Array<F>,
    by: &Moving,
    count: usize,
    #[define(F)] _dtype: StorageType,
) {
    let i = place();
    if i < count {
        let g = f32::cast_from(grad[i]);
        let m = f32::cast_from(m[i]) * by.beta1 + g * (1.0 - by.beta1);
        let v = f32::cast_from(v[i]) * by.beta2 + g * g * (1.0 - by.beta2);
        let delta = m / by.first / (f32::sqrt(v / by.second) + by.epsilon);
        to_x[i] = F::cast_from(f32::cast_from(x[i]) * by.kept - delta * by.lr);
        to_m[i] = F::cast_from(m);
        to_v[i] = F::cast_from(v);
    }
}

/// The sizes of a tensor `[batch, seq, heads, head_dim]`, and where it has its values.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub struct Heads {
    pub batch: usize,
    pub seq: usize,
    pub heads: usize,
    pub dim: usize,
    pub batch_stride: usize,
    pub seq_stride: usize,
    pub head_stride: usize,
    pub dim_stride: usize,
}

/// A head's position in the output, of which the values are in one of two orders, and where the input has its first value.
#[derive(CubeType, Clone, Copy)]
struct At {
    position: usize,
    column: usize,
    base: usize,
}

#[cube]
fn at(i: usize, sizes: &Heads, #[comptime] heads_first: bool) -> At {
    let column = i % sizes.dim;
    let row = i / sizes.dim;
    let (inner, outer) = if comptime!(heads_first) {
        (sizes.seq, sizes.heads)
    } else {
        (sizes.heads, sizes.seq)
    };
    let (low, rest) = (row % inner, row / inner);
    let (high, sample) = (rest % outer, rest / outer);
    let (position, head) = if comptime!(heads_first) {
        (low, high)
    } else {
        (high, low)
    };
    let base = sample * sizes.batch_stride + position * sizes.seq_stride + head * sizes.head_stride;
    At {
        position,
        column,
        base,
    }
}

/// `x ∘ cos + (x T) ∘ sin`, written with the heads of a sample one after another, or with those of a position.
#[cube(launch_unchecked)]
pub fn rotary<F: Float>(
    x: &Array<F>,
    cos: &Array<F>,
    sin: &Array<F>,
    turn: &Array<F>,
    out: &mut Array<F>,
    sizes: &Heads,
    #[comptime] heads_first: bool,
    #[define(F)] _dtype: StorageType,
) {
    let i = place();
    if i < sizes.batch * sizes.seq * sizes.heads * sizes.dim {
        let at = at(i, sizes, heads_first);
        let mut turned = 0.0f32;
        for k in 0..sizes.dim {
            let x = f32::cast_from(x[at.base + k * sizes.dim_stride]);
            turned += x * f32::cast_from(turn[k * sizes.dim + at.column]);
        }
        let table = at.position * sizes.dim + at.column;
        let own = f32::cast_from(x[at.base + at.column * sizes.dim_stride]);
        let value = own * f32::cast_from(cos[table]) + turned * f32::cast_from(sin[table]);
        out[i] = F::cast_from(value);
    }
}

/// The same values in one of the two orders.
#[cube(launch_unchecked)]
pub fn reorder<F: Float>(
    x: &Array<F>,
    out: &mut Array<F>,
    sizes: &Heads,
    #[comptime] heads_first: bool,
    #[define(F)] _dtype: StorageType,
) {
    let i = place();
    if i < sizes.batch * sizes.seq * sizes.heads * sizes.dim {
        let at = at(i, sizes, heads_first);
        out[i] = x[at.base + at.column * sizes.dim_stride];
    }
}

/// The number of this unit among all.
#[cube]
fn place() -> usize {
    ABSOLUTE_POS
}
