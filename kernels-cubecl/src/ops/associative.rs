//! The associative memory of ARMT (arXiv 2407.04841): a matrix for each head, which stores values under keys.
//!
//! These are compositions of products and elementwise operations. Each `Autodiff` around the backend gives one more
//! derivative.

use burn::tensor::Tensor;
use burn::tensor::activation::relu;
use burn::tensor::backend::Backend;

use super::calls::product;
use super::layers::LayerBackend;

/// Keeps denominators from zero where nothing like a key was written.
const EPSILON: f64 = 1e-5;

/// The smallest squared norm that [`dpfp`] divides by.
const SMALLEST: f64 = 1e-24;

/// What was written into an associative memory. Features have no negative entries, as [`dpfp`]'s.
#[derive(Clone, Debug)]
pub struct Association<B: Backend> {
    /// `W`, the sum of keys times values: `[batch, heads, features, d_value]`.
    pub matrix: Tensor<B, 4>,
    /// `z`, the sum of keys, if what is read is divided by it: `[batch, heads, features]`.
    pub normalizer: Option<Tensor<B, 3>>,
}

/// What is written into an associative memory at once.
#[derive(Clone, Debug)]
pub struct Bindings<B: Backend> {
    /// `k`, features of norm one: `[batch, heads, count, features]`.
    pub keys: Tensor<B, 4>,
    /// `v`: `[batch, heads, count, d_value]`.
    pub values: Tensor<B, 4>,
    /// `β`, between 0 and 1, for each value or for each of its entries: `[batch, heads, count, 1]` or
    /// `[batch, heads, count, d_value]`.
    pub gates: Tensor<B, 4>,
}

/// How an associative memory counts what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counting {
    /// Whether there is a sum of keys that what is read is divided by.
    pub normalized: bool,
    /// Whether a key adds only as much to that sum as is new in it.
    pub corrected: bool,
}

/// Deterministic parameter-free projection (arXiv 2102.11174), normalised: with `u = [relu(x); relu(−x)]`, the products
/// of each entry of `u` with that `j` places before it, for `j = 1 … order`, divided by their norm.
///
/// # Shapes
///
/// - `x`: `[…, d]`
/// - output: `[…, 2 · d · order]`, no entry negative; zeros where all products are
///
/// # Panics
///
/// If `order` or `d` is zero.
pub fn dpfp<B: Backend, const D: usize>(x: Tensor<B, D>, order: usize) -> Tensor<B, D> {
    let last = D - 1;
    let u = Tensor::cat(vec![relu(x.clone()), relu(x.neg())], last);
    let width = u.dims()[last];
    assert!(
        order > 0 && width > 0,
        "dpfp: there are no features of order {order} of {width} entries"
    );
    let turned = |places: usize| {
        let (end, start) = (places % width, width - places % width);
        if end == 0 {
            return u.clone();
        }
        let parts = [(start, end), (0, start)];
        let parts = parts.map(|(at, count)| u.clone().narrow(last, at, count));
        Tensor::cat(parts.to_vec(), last)
    };
    let products = (1..=order).map(|places| u.clone() * turned(places));
    let products = Tensor::cat(products.collect(), last);
    let norm = products.clone().square().sum_dim(last);
    products / norm.clamp_min(SMALLEST).sqrt()
}

/// What a memory answers to queries: `Wᵀq / (zᵀq + 10⁻⁵)`, or `Wᵀq` if it has no `z`.
///
/// # Shapes
///
/// - `queries`: `[batch, heads, count, features]`
/// - output: `[batch, heads, count, d_value]`
///
/// # Panics
///
/// If the shapes do not fit.
pub fn associative_read<B: LayerBackend>(
    memory: &Association<B>,
    queries: Tensor<B, 4>,
) -> Tensor<B, 4> {
    let [batch, heads, features, d_value] = memory.matrix.dims();
    let count = queries.dims()[2];
    let rows = batch * heads;
    let queries = queries.reshape([rows, count, features]);
    let matrix = memory.matrix.clone().reshape([rows, features, d_value]);
    let found = product(queries.clone(), matrix);
    let found = match &memory.normalizer {
        None => found,
        Some(normalizer) => {
            let normalizer = normalizer.clone().reshape([rows, features, 1]);
            found / product(queries, normalizer).add_scalar(EPSILON)
        }
    };
    found.reshape([batch, heads, count, d_value])
}

/// A memory with further bindings. With `v̄ᵢ` what the memory answers to the key `kᵢ`, or zero if nothing was written,
///
/// ```text
/// W ← W + Σ kᵢ (βᵢ ∘ (vᵢ − v̄ᵢ))ᵀ        z ← z + Σ γᵢ kᵢ        γᵢ = 1 − (zᵀkᵢ + 10⁻⁵) / ‖kᵢ‖²
/// ```
///
/// where `γᵢ` is cut to between 0 and 1, counts as a constant in derivatives, and is 1 if nothing was written or keys are
/// not corrected. All bindings of one call meet the same memory.
///
/// # Panics
///
/// If the shapes do not fit.
pub fn associative_write<B: LayerBackend>(
    memory: Option<Association<B>>,
    bindings: Bindings<B>,
    counting: Counting,
) -> Association<B> {
    let Bindings {
        keys,
        values,
        gates,
    } = bindings;
    let [batch, heads, count, features] = keys.dims();
    let d_value = values.dims()[3];
    let rows = batch * heads;
    let new = match &memory {
        None => values,
        Some(memory) => values - associative_read(memory, keys.clone()),
    };
    let new = (new * gates).reshape([rows, count, d_value]);
    let flat = keys.clone().reshape([rows, count, features]);
    let added = product(flat.clone().swap_dims(1, 2), new);
    let added = added.reshape([batch, heads, features, d_value]);
    let normalizer = counting.normalized.then(|| {
        let old = memory.as_ref().and_then(|memory| memory.normalizer.clone());
        let counted = match &old {
            Some(old) if counting.corrected => keys * newness(old.clone(), flat),
            _ => keys,
        };
        let sum = counted.sum_dim(2).reshape([batch, heads, features]);
        match old {
            None => sum,
            Some(old) => old + sum,
        }
    });
    Association {
        matrix: match memory {
            None => added,
            Some(memory) => memory.matrix + added,
        },
        normalizer,
    }
}

/// `γ` of each key, a constant: `[batch, heads, count, 1]`.
///
/// # Shapes
///
/// - `normalizer`: `[batch, heads, features]`
/// - `keys`: `[batch · heads, count, features]`
fn newness<B: LayerBackend>(normalizer: Tensor<B, 3>, keys: Tensor<B, 3>) -> Tensor<B, 4> {
    let [batch, heads, features] = normalizer.dims();
    let count = keys.dims()[1];
    let (normalizer, keys) = (normalizer.detach(), keys.detach());
    let normalizer = normalizer.reshape([batch * heads, features, 1]);
    let known = product(keys.clone(), normalizer).add_scalar(EPSILON);
    let norm = keys.square().sum_dim(2).clamp_min(SMALLEST);
    let newness = (known / norm).neg().add_scalar(1.0).clamp(0.0, 1.0);
    newness.reshape([batch, heads, count, 1])
}
