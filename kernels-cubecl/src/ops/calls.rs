//! The layers around attention as functions on tensors, which check shapes first.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{Int, Tensor};

use super::layers::LayerBackend;
use crate::reference::layers::{Nonlinearity, Norm};
use crate::{lift, lower};

/// The matrix product `lhs · rhs`: Burn's own, except on backends where this crate has a faster one.
///
/// # Shapes
///
/// - `lhs`: `[m, k]`, `rhs`: `[k, n]`; output: `[m, n]`
/// - or `lhs`: `[batch, m, k]`, `rhs`: `[batch, k, n]`; output: `[batch, m, n]`
///
/// # Panics
///
/// If the inner dimensions or the batches differ, or there are more dimensions.
pub fn product<B: LayerBackend, const D: usize>(
    lhs: Tensor<B, D>,
    rhs: Tensor<B, D>,
) -> Tensor<B, D> {
    let (left, right) = (lhs.dims(), rhs.dims());
    assert!(
        (2..=3).contains(&D) && left[D - 1] == right[D - 2] && left[..D - 2] == right[..D - 2],
        "product: the shapes {left:?} and {right:?} do not fit"
    );
    lift(B::product(lower(lhs), lower(rhs)))
}

/// A linear map: `x · wᵀ`.
///
/// # Shapes
///
/// - `x`: `[rows, d_input]`, `weight`: `[d_output, d_input]`; output: `[rows, d_output]`
///
/// # Panics
///
/// If the widths of the inputs differ.
pub fn linear<B: LayerBackend>(x: Tensor<B, 2>, weight: Tensor<B, 2>) -> Tensor<B, 2> {
    let (rows, columns) = (x.dims(), weight.dims());
    assert_eq!(
        rows[1], columns[1],
        "linear: the shapes {rows:?} and {columns:?} do not fit"
    );
    lift(B::product_transposed(lower(x), lower(weight)))
}

/// What a linear map is added to, and the map: `to + x · wᵀ`. The sum is taken where the product is computed.
///
/// # Shapes
///
/// - `x`: `[rows, d_input]`, `weight`: `[d_output, d_input]`; `to` and output: `[rows, d_output]`
///
/// # Panics
///
/// If the shapes do not fit.
pub fn add_linear<B: LayerBackend>(
    to: Tensor<B, 2>,
    x: Tensor<B, 2>,
    weight: Tensor<B, 2>,
) -> Tensor<B, 2> {
    let (sums, rows, columns) = (to.dims(), x.dims(), weight.dims());
    assert!(
        rows[1] == columns[1] && sums == [rows[0], columns[0]],
        "add_linear: the shapes {sums:?}, {rows:?} and {columns:?} do not fit"
    );
    lift(B::add_product_transposed(
        lower(to),
        lower(x),
        lower(weight),
    ))
}

/// The cross-entropy `−log p` of each target, with `p` the softmax of its logits.
///
/// # Shapes
///
/// - `logits`: `[batch, seq, vocab_size]`
/// - `targets` and output: `[batch, seq]`; targets are below `vocab_size`, which is not checked
///
/// # Panics
///
/// If the shapes differ in `batch` or `seq`.
pub fn token_losses<B: LayerBackend>(
    logits: Tensor<B, 3>,
    targets: Tensor<B, 2, Int>,
) -> Tensor<B, 2> {
    let [batch, seq, vocab] = logits.dims();
    assert_eq!(
        targets.dims(),
        [batch, seq],
        "token_losses: the targets must have the shape [batch, seq] of the logits"
    );
    let logits = lower(logits.reshape([batch * seq, vocab]));
    let targets = targets.reshape([batch * seq]).into_primitive();
    let losses: Tensor<B, 1> = lift(B::token_losses(logits, targets));
    losses.reshape([batch, seq])
}

/// `x` `[batch, seq, heads, head_dim]` with the same values, in contiguous memory where a backend's kernels want that: for a part of
/// a product that attention and its derivatives read several times.
pub fn contiguous<B: LayerBackend>(x: Tensor<B, 4>) -> Tensor<B, 4> {
    lift(B::ordered(lower(x), None))
}

/// Root mean square normalisation, `x / √(mean(x²) + ε) ∘ w` (arXiv 1910.07467). 16-bit inputs are
/// normalised in f32.
///
/// # Shapes
///
/// - `x` and output: `[batch, seq, d]`
/// - `weight`: `[d]`
///
/// # Panics
///
/// If the last dimensions differ.
pub fn rms_norm<B: LayerBackend>(
    x: Tensor<B, 3>,
    weight: Tensor<B, 1>,
    epsilon: f64,
) -> Tensor<B, 3> {
    normalised(
        x,
        weight,
        Norm {
            epsilon,
            centered: false,
        },
    )
}

/// Layer normalisation without a bias, `(x − mean(x)) / √(var(x) + ε) ∘ w` (arXiv 1607.06450). 16-bit inputs are normalised in
/// f32.
///
/// # Shapes
///
/// - `x` and output: `[batch, seq, d]`
/// - `weight`: `[d]`
///
/// # Panics
///
/// If the last dimensions differ.
pub fn layer_norm<B: LayerBackend>(
    x: Tensor<B, 3>,
    weight: Tensor<B, 1>,
    epsilon: f64,
) -> Tensor<B, 3> {
    normalised(
        x,
        weight,
        Norm {
            epsilon,
            centered: true,
        },
    )
}

fn normalised<B: LayerBackend>(x: Tensor<B, 3>, weight: Tensor<B, 1>, by: Norm) -> Tensor<B, 3> {
    let ([_, _, width], [d]) = (x.dims(), weight.dims());
    assert_eq!(
        width, d,
        "the last dimensions of what is normalised and of the weight differ"
    );
    lift(B::norm(lower(x), lower(weight), by))
}

/// A nonlinearity of each value of `x` `[batch, seq, d]`.
pub fn activate<B: LayerBackend>(x: Tensor<B, 3>, by: Nonlinearity) -> Tensor<B, 3> {
    lift(B::activate(lower(x), by))
}

/// SwiGLU: `silu(gate) ∘ up`, with `silu(x) = x σ(x)` (arXiv 2002.05202).
///
/// # Shapes
///
/// - `x`: `[batch, seq, 2 d_ff]`: the gate, and behind it up
/// - output: `[batch, seq, d_ff]`
///
/// # Panics
///
/// If the last dimension is odd or zero.
pub fn swiglu<B: LayerBackend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    let [.., width] = x.dims();
    assert!(
        width > 0 && width.is_multiple_of(2),
        "swiglu: gate and up have as many columns, at least one, but x has {width}"
    );
    lift(B::swiglu(lower(x)))
}

/// Two tensors side by side, as [`swiglu`] takes gate and up.
///
/// # Shapes
///
/// - `left` and `right`: `[batch, seq, d]`; output: `[batch, seq, 2 d]`
///
/// # Panics
///
/// If the shapes differ or have no columns.
pub fn side_by_side<B: LayerBackend>(left: Tensor<B, 3>, right: Tensor<B, 3>) -> Tensor<B, 3> {
    let shapes = (left.dims(), right.dims());
    assert!(
        shapes.0 == shapes.1 && shapes.0[2] > 0,
        "side_by_side: the shapes {:?} and {:?} differ or have no columns",
        shapes.0,
        shapes.1
    );
    lift(B::side_by_side([left, right].map(lower)))
}

/// The last `count` rows of each sample, or all where there are fewer.
///
/// # Shapes
///
/// - `x`: `[batch, rows, …]`; output: `[batch, min(count, rows), …]`
///
/// # Panics
///
/// If `x` has less than two dimensions, or `count` is 0.
pub fn last_rows<B: LayerBackend, const D: usize>(x: Tensor<B, D>, count: usize) -> Tensor<B, D> {
    assert!(
        D > 1 && count > 0,
        "last_rows: {count} rows of a tensor of {D} dimensions"
    );
    match count < x.dims()[1] {
        true => lift(B::last_rows(lower(x), count)),
        false => x,
    }
}

/// Rotary positions (arXiv 2104.09864): `x ∘ cos + (x T) ∘ sin`.
///
/// # Shapes
///
/// - `x` and output: `[batch, seq, heads, head_dim]`
/// - `cos`, `sin`: `[1, seq, head_dim]`, of each position's angles; the two dimensions of a rotated pair
///   have the same angle
/// - `turn`: T, `[head_dim, head_dim]`, swaps the dimensions of each pair and negates the first
///
/// The tables are constants: no gradient passes to them.
///
/// # Panics
///
/// If the shapes of `cos`, `sin` or `turn` do not match `x`.
pub fn rotary<B: LayerBackend>(
    x: Tensor<B, 4>,
    cos: Tensor<B, 3>,
    sin: Tensor<B, 3>,
    turn: Tensor<B, 2>,
) -> Tensor<B, 4> {
    let [_, seq, _, head_dim] = x.dims();
    let rotation = tables("rotary", (cos, sin, turn), [seq, head_dim]);
    lift(B::ordered(lower(x), Some(rotation)))
}

/// The tables of rotary positions: cos and sin `[1, seq, head_dim]` and `turn` `[head_dim, head_dim]`, as in [`rotary`].
pub type Rotation<B> = (Tensor<B, 3>, Tensor<B, 3>, Tensor<B, 2>);

/// The tables for `seq` positions of heads of `head_dim`, which are checked.
fn tables<B: LayerBackend>(
    operation: &str,
    (cos, sin, turn): Rotation<B>,
    [seq, head_dim]: [usize; 2],
) -> [FloatTensor<B>; 3] {
    let fits = [cos.dims(), sin.dims()] == [[1, seq, head_dim]; 2];
    assert!(
        fits && turn.dims() == [head_dim; 2],
        "{operation}: the shapes do not match: {seq} positions of heads of {head_dim}, cos {:?}, sin {:?}, turn {:?}",
        cos.dims(),
        sin.dims(),
        turn.dims()
    );
    [lower(cos), lower(sin), lower(turn)]
}

/// Queries, keys and values from the columns of one product, ready for attention: queries and keys rotated by their positions, if
/// there is a rotation.
///
/// # Shapes
///
/// - `x`: `[batch, seq, (n_heads + 2 n_kv_heads) · head_dim]`: queries, keys, values, each head's columns together
/// - outputs: `[batch, seq, heads, head_dim]`
///
/// # Panics
///
/// If there are no heads of a kind, the columns cannot be divided so, or the rotation's shapes do not match.
pub fn split_heads<B: LayerBackend>(
    x: Tensor<B, 3>,
    rotation: Option<Rotation<B>>,
    [n_heads, n_kv_heads]: [usize; 2],
) -> [Tensor<B, 4>; 3] {
    let ([_, seq, width], heads) = (x.dims(), n_heads + 2 * n_kv_heads);
    assert!(
        n_heads.min(n_kv_heads).min(width) > 0 && width.is_multiple_of(heads),
        "split_heads: {width} columns are not those of {n_heads} heads and {n_kv_heads} of keys and values"
    );
    let head_dim = width / heads;
    let rotation = rotation.map(|rotation| tables("split_heads", rotation, [seq, head_dim]));
    B::split_heads(lower(x), rotation, [n_heads, n_kv_heads]).map(lift)
}
