//! Flex's attention in f32 against the reference in f64: values, first and second derivatives.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorData, TensorPrimitive};
use gradmem_kernels::{AttentionBackend, LayerBackend};

type F64 = burn_ndarray::NdArray<f64>;
type F32 = burn_flex::Flex;
/// batch, heads, kv_heads, query_len, key_len, head_dim
type Sizes = [usize; 6];

const SIZES: [Sizes; 12] = [
    [1, 1, 1, 1, 1, 1],
    [2, 2, 2, 5, 5, 7],
    [1, 4, 2, 17, 17, 1],
    [2, 2, 1, 16, 16, 32],
    [1, 2, 2, 36, 36, 32],
    [2, 4, 2, 71, 71, 32],
    [1, 3, 1, 1, 40, 7],
    [1, 4, 2, 49, 70, 64],
    [2, 2, 2, 48, 96, 33],
    [1, 6, 3, 97, 130, 20],
    [1, 2, 1, 239, 239, 32],
    [1, 1, 1, 260, 260, 64],
];

#[derive(Clone, Copy)]
enum Memory {
    /// `[batch, heads, len, dim]`
    Contiguous,
    /// `[batch, len, heads, dim]`, the order of a model's projections.
    ByTokens,
    /// `[batch, heads, dim, len]`
    Transposed,
}

/// Pseudo-random values in [-1, 1] that f32 represents exactly, the same for equal seeds.
fn numbers(seed: u64, shape: [usize; 4]) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..shape.iter().product()).map(|_| next()).collect()
}

fn tensor<B: Backend>(values: &[f32], shape: [usize; 4], memory: Memory) -> Tensor<B, 4> {
    let data = TensorData::new(values.to_vec(), shape).convert::<B::FloatElem>();
    let x = Tensor::from_data(data, &Default::default());
    match memory {
        Memory::Contiguous => x,
        Memory::ByTokens => contiguous(x.swap_dims(1, 2)).swap_dims(1, 2),
        Memory::Transposed => contiguous(x.transpose()).transpose(),
    }
}

/// A contiguous copy.
fn contiguous<B: Backend>(x: Tensor<B, 4>) -> Tensor<B, 4> {
    Tensor::from_data(x.to_data(), &x.device())
}

fn lower<B: Backend>(x: Tensor<B, 4>) -> FloatTensor<B> {
    x.into_primitive().tensor()
}

fn lift<B: Backend>(x: FloatTensor<B>) -> Tensor<B, 4> {
    Tensor::from_primitive(TensorPrimitive::Float(x))
}

/// `out`, `lse`, the three gradients and the four second-order gradients.
fn all<B: AttentionBackend>(
    [b, h, hk, s, t, d]: Sizes,
    memory: Memory,
    logits: f32,
    used: [bool; 3],
) -> Vec<Tensor<B, 4>> {
    let (of_queries, of_keys) = ([b, h, s, d], [b, hk, t, d]);
    let make = |seed, shape| tensor::<B>(&numbers(seed, shape), shape, memory);
    let q = make(1, of_queries).mul_scalar(logits);
    let inputs = || [q.clone(), make(2, of_keys), make(3, of_keys)].map(lower);
    let scale = 1.0 / (d as f64).sqrt();
    let [q, k, v] = inputs();
    let (out, lse) = B::causal_attention(q, k, v, scale);
    let grad_out = lower(make(4, of_queries));
    let [q, k, v] = inputs();
    let (o, l, g) = (out.clone(), lse.clone(), grad_out.clone());
    let mut used = used.into_iter();
    let cotangents = [(5, of_queries), (6, of_keys), (7, of_keys)].map(|(seed, shape)| {
        let used = used.next().unwrap();
        used.then(|| lower(make(seed, shape)))
    });
    // What the gradients are added to has the shapes of their cotangents.
    let onto = cotangents.clone();
    let first = B::causal_attention_backward(q, k, v, o, l, g, scale, onto);
    let [q, k, v] = inputs();
    let (o, l) = (out.clone(), lse.clone());
    let second = B::causal_attention_double_backward(q, k, v, o, l, grad_out, cotangents, scale);
    [out, lse]
        .into_iter()
        .chain(first)
        .chain(second)
        .map(lift)
        .collect()
}

const NAMES: [&str; 9] = [
    "out",
    "lse",
    "dq",
    "dk",
    "dv",
    "to grad_out",
    "to q",
    "to k",
    "to v",
];

/// The largest error of each of [`NAMES`], relative to its largest value.
fn errors(sizes: Sizes, memory: Memory, logits: f32, used: [bool; 3]) -> Vec<f64> {
    let found = all::<F32>(sizes, memory, logits, used);
    let exact = all::<F64>(sizes, Memory::Contiguous, logits, used);
    let error = |(found, exact): (&Tensor<F32, 4>, &Tensor<F64, 4>)| {
        assert_eq!(found.dims(), exact.dims());
        let (found, exact) = (found.to_data(), exact.to_data());
        let largest = exact.iter::<f64>().fold(1e-2, |m, x| f64::max(m, x.abs()));
        let differences = found.iter::<f64>().zip(exact.iter::<f64>());
        differences.fold(0.0, |m: f64, (x, y)| {
            assert!(x.is_finite());
            m.max((x - y).abs() / largest)
        })
    };
    found.iter().zip(&exact).map(error).collect()
}

fn check(sizes: Sizes, memory: Memory, logits: f32, used: [bool; 3], tolerance: f64) {
    for (error, name) in errors(sizes, memory, logits, used).iter().zip(NAMES) {
        assert!(
            *error < tolerance,
            "{name} of {sizes:?} with {used:?} has error {error:.1e}"
        );
    }
}

#[test]
fn results_match_the_reference_for_all_sizes_and_layouts() {
    for sizes in SIZES {
        for memory in [Memory::Contiguous, Memory::ByTokens, Memory::Transposed] {
            check(sizes, memory, 2.0, [true; 3], 2e-6);
        }
    }
}

#[test]
fn results_match_the_reference_for_all_patterns_of_cotangents() {
    for pattern in 0..8 {
        let used = [1, 2, 4].map(|bit| pattern & bit != 0);
        for sizes in [SIZES[5], SIZES[7]] {
            check(sizes, Memory::ByTokens, 2.0, used, 2e-6);
        }
    }
}

/// Softmaxes that are almost one-hot. The rounding error of logits grows with their size.
#[test]
fn results_match_the_reference_for_large_logits() {
    for sizes in [SIZES[5], SIZES[7], SIZES[10]] {
        check(sizes, Memory::ByTokens, 50.0, [true; 3], 2e-5);
    }
}

/// Merging the heads of the output and of the gradients needs no copy, and neither does the sum of two gradients.
#[test]
fn outputs_and_gradients_have_the_expected_strides() {
    for sizes in [SIZES[0], SIZES[3], SIZES[5], SIZES[11]] {
        let results = all::<F32>(sizes, Memory::ByTokens, 1.0, [true; 3]);
        for (x, name) in results.iter().zip(NAMES) {
            let sum = lift::<F32>(F32::add(lower(x.clone()), lower(x.clone())));
            for x in [x.clone(), sum] {
                let by_tokens = lower(x.swap_dims(1, 2));
                assert!(by_tokens.is_contiguous(), "{name} of {sizes:?}");
            }
        }
    }
}

/// The last rows, zeros before rows, and sums, whatever the order in memory.
#[test]
fn rows_and_sums_of_heads_in_any_order() {
    let shape = [2, 5, 3, 4];
    let orders = [Memory::Contiguous, Memory::ByTokens, Memory::Transposed];
    let [plain, other] =
        [1, 2].map(|seed| move |memory| tensor::<F32>(&numbers(seed, shape), shape, memory));
    let same = |found: FloatTensor<F32>, expected: Tensor<F32, 4>, what: &str| {
        let [found, expected] = [lift::<F32>(found), expected].map(|x| x.into_data());
        assert_eq!(
            found.as_slice::<f32>().unwrap(),
            expected.as_slice::<f32>().unwrap(),
            "{what}"
        );
        assert_eq!(found.shape, expected.shape, "{what}");
    };
    let x = plain(Memory::Contiguous);
    for memory in orders {
        same(
            F32::last_rows(lower(plain(memory)), 2),
            x.clone().narrow(1, 3, 2),
            "last rows",
        );
        let zeros = x.zeros_like().narrow(1, 0, 4);
        let behind = Tensor::cat(vec![zeros, x.clone()], 1);
        same(
            F32::behind_zeros(lower(plain(memory)), 9),
            behind,
            "behind zeros",
        );
        for second in orders {
            let sum = x.clone() + other(Memory::Contiguous);
            same(
                F32::add(lower(plain(memory)), lower(other(second))),
                sum.clone(),
                "sum",
            );
            // A tensor that has another user is not written over.
            let kept = plain(memory);
            same(
                F32::add(lower(kept.clone()), lower(other(second))),
                sum,
                "sum beside another user",
            );
            same(lower(kept), x.clone(), "the other user's");
        }
    }
}

#[test]
fn nan_inputs_give_nan_results() {
    let shape = [1, 2, 20, 8];
    for poisoned in 0..4 {
        let [q, k, v, grad_out] = [0, 1, 2, 3].map(|i| {
            let mut values = numbers(i, shape);
            if i == poisoned {
                values[2 * 8 + 3] = f32::NAN;
            }
            lower(tensor::<F32>(&values, shape, Memory::Contiguous))
        });
        let (out, lse) = F32::causal_attention(q.clone(), k.clone(), v.clone(), 0.3);
        let nans = |x| {
            let data = lift::<F32>(x).to_data();
            data.iter::<f32>().filter(|x| x.is_nan()).count()
        };
        assert_eq!(nans(out.clone()) > 0, poisoned < 3);
        let gradients =
            F32::causal_attention_backward(q, k, v, out, lse, grad_out, 0.3, [None, None, None]);
        let [dq, dk, dv] = gradients.map(nans);
        assert!(dq > 0 && dk > 0 && (dv > 0 || poisoned == 2));
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let results = || all::<F32>([3, 4, 2, 71, 71, 32], Memory::ByTokens, 2.0, [true; 3]);
        pool.build().unwrap().install(results)
    };
    for (one, three) in run(1).iter().zip(run(3)) {
        assert_eq!(one.to_data(), three.to_data());
    }
}
