//! Kernels in which each unit computes a value, or those of one place: last rows, SwiGLU, rotary positions, queries, keys and values
//! from one product, AdamW.
//! The formulas are in [`reference::layers`](crate::reference::layers).

use cubecl::prelude::*;

/// Of samples of `size + skipped` values the last `size`.
#[cube(launch_unchecked)]
pub fn last_rows<F: Float>(
    x: &Array<F>,
    out: &mut Array<F>,
    count: usize,
    size: usize,
    skipped: usize,
    #[define(F)] _dtype: StorageType,
) {
    let i = place();
    if i < count {
        out[i] = x[i + (i / size + 1) * skipped];
    }
}

/// Samples of `size` values, of which the first `zeros` are zero.
#[cube(launch_unchecked)]
pub fn behind_zeros<F: Float>(
    x: &Array<F>,
    out: &mut Array<F>,
    count: usize,
    size: usize,
    zeros: usize,
    #[define(F)] _dtype: StorageType,
) {
    let i = place();
    if i < count {
        let mut value = F::new(0.0);
        if i % size >= zeros {
            value = x[i - (i / size + 1) * zeros];
        }
        out[i] = value;
    }
}

/// `silu(gate) ∘ up`; each row of `x` has `width` values of the gate and behind them as many of up.
#[cube(launch_unchecked)]
pub fn swiglu<F: Float>(
    x: &Array<F>,
    out: &mut Array<F>,
    count: usize,
    width: usize,
    #[define(F)] _dtype: StorageType,
) {
    let i = place();
    if i < count {
        let at = gate_at(i, width);
        let gate = f32::cast_from(x[at]);
        out[i] = F::cast_from(gate * sigma(gate) * f32::cast_from(x[at + width]));
    }
}

/// The gradient to `x`, added to `onto` if `adds`; else that may be any tensor.
#[cube(launch_unchecked)]
pub fn swiglu_backward<F: Float>(
    x: &Array<F>,
    grad: &Array<F>,
    onto: &Array<F>,
    to_x: &mut Array<F>,
    count: usize,
    width: usize,
    #[comptime] adds: bool,
    #[define(F)] _dtype: StorageType,
) {
    let i = place();
    if i < count {
        let at = gate_at(i, width);
        let gate = f32::cast_from(x[at]);
        let g = f32::cast_from(grad[i]);
        let sigma = sigma(gate);
        let mut to_gate = g * f32::cast_from(x[at + width]) * slope(gate, sigma);
        let mut to_up = g * gate * sigma;
        if comptime!(adds) {
            to_gate += f32::cast_from(onto[at]);
            to_up += f32::cast_from(onto[at + width]);
        }
        to_x[at] = F::cast_from(to_gate);
        to_x[at + width] = F::cast_from(to_up);
    }
}

/// The gradients to grad and to `x`.
#[cube(launch_unchecked)]
pub fn swiglu_double_backward<F: Float>(
    x: &Array<F>,
    grad: &Array<F>,
    cotangent: &Array<F>,
    to_grad: &mut Array<F>,
    to_x: &mut Array<F>,
    count: usize,
    width: usize,
    #[define(F)] _dtype: StorageType,
) {
    let i = place();
    if i < count {
        let at = gate_at(i, width);
        let gate = f32::cast_from(x[at]);
        let up = f32::cast_from(x[at + width]);
        let a = f32::cast_from(cotangent[at]);
        let b = f32::cast_from(cotangent[at + width]);
        let g = f32::cast_from(grad[i]);
        let sigma = sigma(gate);
        let first = slope(gate, sigma);
        let second = curvature(gate, sigma);
        to_grad[i] = F::cast_from(a * up * first + b * gate * sigma);
        to_x[at] = F::cast_from(g * (a * up * second + b * first));
        to_x[at + width] = F::cast_from(a * g * first);
    }
}

/// Where the gate of output `i` is.
#[cube]
fn gate_at(i: usize, width: usize) -> usize {
    i / width * 2 * width + i % width
}

#[cube]
pub fn sigma(x: f32) -> f32 {
    1.0 / (1.0 + f32::exp(-x))
}

/// The derivative of silu.
#[cube]
pub fn slope(x: f32, sigma: f32) -> f32 {
    sigma * (1.0 + x * (1.0 - sigma))
}

/// The second derivative of silu.
#[cube]
pub fn curvature(x: f32, sigma: f32) -> f32 {
    sigma * (1.0 - sigma) * (2.0 + x * (1.0 - 2.0 * sigma))
}

/// `to + Σ parts`, each of `size` values; without `to` if it is not to be added.
#[cube(launch_unchecked)]
pub fn sum_of_parts<F: Float>(
    parts: &Array<F>,
    to: &Array<F>,
    out: &mut Array<F>,
    count: usize,
    size: usize,
    #[comptime] adds: bool,
    #[define(F)] _dtype: StorageType,
) {
    let i = place();
    if i < size {
        let mut sum = f32::cast_from(parts[i]);
        for part in 1..count {
            sum += f32::cast_from(parts[part * size + i]);
        }
        if comptime!(adds) {
            sum += f32::cast_from(to[i]);
        }
        out[i] = F::cast_from(sum);
    }
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

/// A value of a head `[head_dim]`: the head's position, the value's column, and where the head has its first value.
#[derive(CubeType, Clone, Copy)]
struct At {
    position: usize,
    column: usize,
    base: usize,
}

/// `x ∘ cos + (x T) ∘ sin` of `x` `[batch, seq, heads, head_dim]`.
#[cube(launch_unchecked)]
pub fn rotary<F: Float>(
    x: &Array<F>,
    cos: &Array<F>,
    sin: &Array<F>,
    turn: &Array<F>,
    out: &mut Array<F>,
    count: usize,
    seq: usize,
    heads: usize,
    dim: usize,
    #[define(F)] _dtype: StorageType,
) {
    let i = place();
    if i < count {
        let column = i % dim;
        let at = At {
            position: i / (dim * heads) % seq,
            column,
            base: i - column,
        };
        let (cosine, sine) = turned::<F>(x, at, dim, cos, sin, turn);
        out[i] = F::cast_from(f32::cast_from(x[i]) * cosine + sine);
    }
}

/// The cosine by which a value of a head is multiplied, and what is added to that: a value of `(x T) ∘ sin`.
#[cube]
fn turned<F: Float>(
    x: &Array<F>,
    at: At,
    dim: usize,
    cos: &Array<F>,
    sin: &Array<F>,
    turn: &Array<F>,
) -> (f32, f32) {
    let mut sum = 0.0f32;
    for k in 0..dim {
        sum += f32::cast_from(x[at.base + k]) * f32::cast_from(turn[k * dim + at.column]);
    }
    let table = at.position * dim + at.column;
    (f32::cast_from(cos[table]), sum * f32::cast_from(sin[table]))
}

/// What queries, keys and values have in common: all their values, positions, heads of each, and a head's width.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub struct Shared {
    pub count: usize,
    pub seq: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
}

/// A column of queries, keys and values side by side: its row among those of all samples, its head among all of them, and its place
/// in the head.
#[derive(CubeType, Clone, Copy)]
struct Column {
    row: usize,
    head: usize,
    column: usize,
}

#[cube]
impl Column {
    fn new(i: usize, sizes: &Shared) -> Column {
        let all = sizes.heads + 2 * sizes.kv_heads;
        let head = i / sizes.dim;
        Column {
            row: head / all,
            head: head % all,
            column: i % sizes.dim,
        }
    }

    /// The same in a tensor of `heads` heads of which it is `head`; that has it at `base + column`.
    fn in_head(self, head: usize, heads: usize, sizes: &Shared) -> At {
        At {
            position: self.row % sizes.seq,
            column: self.column,
            base: (self.row * heads + head) * sizes.dim,
        }
    }
}

/// Queries and keys, rotated, and values from the columns of a product.
#[cube(launch_unchecked)]
pub fn split_heads<F: Float>(
    x: &Array<F>,
    cos: &Array<F>,
    sin: &Array<F>,
    turn: &Array<F>,
    q: &mut Array<F>,
    k: &mut Array<F>,
    v: &mut Array<F>,
    sizes: &Shared,
    #[comptime] rotates: bool,
    #[define(F)] _dtype: StorageType,
) {
    let i = place();
    if i < sizes.count {
        let (heads, kv_heads) = (sizes.heads, sizes.kv_heads);
        let from = Column::new(i, sizes);
        let mut value = f32::cast_from(x[i]);
        if comptime!(rotates) && from.head < heads + kv_heads {
            let at = from.in_head(from.head, heads + 2 * kv_heads, sizes);
            let (cosine, sine) = turned::<F>(x, at, sizes.dim, cos, sin, turn);
            value = value * cosine + sine;
        }
        let value = F::cast_from(value);
        if from.head < heads {
            let to = from.in_head(from.head, heads, sizes);
            q[to.base + to.column] = value;
        } else if from.head < heads + kv_heads {
            let to = from.in_head(from.head - heads, kv_heads, sizes);
            k[to.base + to.column] = value;
        } else {
            let to = from.in_head(from.head - heads - kv_heads, kv_heads, sizes);
            v[to.base + to.column] = value;
        }
    }
}

/// The columns of queries and keys, rotated back, and values.
#[cube(launch_unchecked)]
pub fn join_heads<F: Float>(
    q: &Array<F>,
    k: &Array<F>,
    v: &Array<F>,
    cos: &Array<F>,
    sin: &Array<F>,
    turn: &Array<F>,
    out: &mut Array<F>,
    sizes: &Shared,
    #[comptime] rotates: bool,
    #[define(F)] _dtype: StorageType,
) {
    let i = place();
    if i < sizes.count {
        let (heads, kv_heads) = (sizes.heads, sizes.kv_heads);
        let to = Column::new(i, sizes);
        let value = if to.head < heads {
            let at = to.in_head(to.head, heads, sizes);
            rotated_back::<F>(q, at, sizes.dim, cos, sin, turn, rotates)
        } else if to.head < heads + kv_heads {
            let at = to.in_head(to.head - heads, kv_heads, sizes);
            rotated_back::<F>(k, at, sizes.dim, cos, sin, turn, rotates)
        } else {
            let at = to.in_head(to.head - heads - kv_heads, kv_heads, sizes);
            f32::cast_from(v[at.base + at.column])
        };
        out[i] = F::cast_from(value);
    }
}

/// A value of `x ∘ cos − (x T) ∘ sin`, or of `x`.
#[cube]
fn rotated_back<F: Float>(
    x: &Array<F>,
    at: At,
    dim: usize,
    cos: &Array<F>,
    sin: &Array<F>,
    turn: &Array<F>,
    #[comptime] rotates: bool,
) -> f32 {
    let mut value = f32::cast_from(x[at.base + at.column]);
    if comptime!(rotates) {
        let (cosine, sine) = turned::<F>(x, at, dim, cos, sin, turn);
        value = value * cosine - sine;
    }
    value
}

/// The number of this unit among all.
#[cube]
pub fn place() -> usize {
    ABSOLUTE_POS
}
