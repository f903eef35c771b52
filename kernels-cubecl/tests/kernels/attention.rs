//! Attention against independent computations: loops over floats for the values, Burn's autodiff of plain
//! tensor operations for the derivatives.

use burn::backend::Autodiff;
use burn::tensor::activation::softmax;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Bool, DType, Tensor, TensorData};
use burn_autodiff::checkpoint::strategy::BalancedCheckpointing;
use gradmem_kernels::{AttentionBackend, causal_attention, try_causal_attention};

type F64 = burn_ndarray::NdArray<f64>;
type F32 = burn_flex::Flex;
/// batch, heads, kv_heads, query_len, key_len, head_dim
type Sizes = [usize; 6];

const SIZES: [Sizes; 7] = [
    [1, 1, 1, 1, 1, 1],
    [2, 2, 2, 5, 5, 4],
    [1, 4, 2, 7, 7, 3],
    [2, 6, 1, 4, 4, 2],
    [1, 2, 2, 1, 6, 4],
    [2, 4, 2, 3, 8, 5],
    [1, 3, 3, 33, 33, 8],
];

/// Pseudo-random values in [-1, 1], the same for equal seeds.
fn numbers<B: Backend>(seed: u64, shape: [usize; 4], device: &B::Device) -> Tensor<B, 4> {
    let values = crate::numbers(seed, shape.iter().product());
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn inputs<B: Backend>([b, h, hk, s, t, d]: Sizes) -> [Tensor<B, 4>; 3] {
    let device = Default::default();
    [
        numbers(1, [b, h, s, d], &device).mul_scalar(2),
        numbers(2, [b, hk, t, d], &device).mul_scalar(2),
        numbers(3, [b, hk, t, d], &device),
    ]
}

/// The definition of attention in plain tensor operations.
fn plain<B: Backend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    scale: f64,
) -> Tensor<B, 4> {
    let ([b, h, s, d], [_, hk, t, _]) = (q.dims(), k.dims());
    let shared = |x: Tensor<B, 4>| -> Tensor<B, 4> {
        x.unsqueeze_dim::<5>(2)
            .repeat_dim(2, h / hk)
            .reshape([b, h, t, d])
    };
    let scores = q.matmul(shared(k).transpose()).mul_scalar(scale);
    let hidden = Tensor::<B, 2, Bool>::tril_mask([s, t], (t - s) as i64, &scores.device());
    let scores = scores.mask_fill(hidden.unsqueeze(), -1e9);
    softmax(scores, 3).matmul(shared(v))
}

fn assert_close<B: Backend, const D: usize>(
    a: &Tensor<B, D>,
    b: &Tensor<B, D>,
    tolerance: f64,
    what: &str,
) {
    let (a, b) = (a.to_data(), b.to_data());
    assert_eq!(a.shape, b.shape, "{what}");
    let largest = b.iter::<f64>().fold(1e-3, |m, x| f64::max(m, x.abs()));
    for (x, y) in a.iter::<f64>().zip(b.iter::<f64>()) {
        assert!(
            (x - y).abs() <= tolerance * largest,
            "{what}: found {x}, expected {y}"
        );
    }
}

#[test]
fn values_match_loops_over_floats() {
    for sizes in SIZES {
        let [b, h, hk, s, t, d] = sizes;
        let scale = 0.7;
        let [q, k, v] = inputs::<F64>(sizes);
        let out = causal_attention(q.clone(), k.clone(), v.clone(), scale);
        let [q, k, v, out] = [q, k, v, out].map(|x| x.to_data().to_vec::<f64>().unwrap());
        for (b, h, i) in (0..b * h * s).map(|n| (n / (h * s), n / s % h, n % s)) {
            let row = |x: &[f64], heads: usize, len: usize, head: usize, at: usize| {
                let start = ((b * heads + head) * len + at) * d;
                x[start..start + d].to_vec()
            };
            let kv = h / (sizes[1] / hk);
            let query = row(&q, sizes[1], s, h, i);
            let weights: Vec<f64> = (0..=i + t - s)
                .map(|j| {
                    let key = row(&k, hk, t, kv, j);
                    let dot: f64 = query.iter().zip(key).map(|(a, b)| a * b).sum();
                    (scale * dot).exp()
                })
                .collect();
            let total: f64 = weights.iter().sum();
            for (c, found) in row(&out, sizes[1], s, h, i).into_iter().enumerate() {
                let expected: f64 = weights
                    .iter()
                    .enumerate()
                    .map(|(j, w)| w * row(&v, hk, t, kv, j)[c])
                    .sum();
                assert!((found - expected / total).abs() < 1e-12, "{sizes:?}");
            }
        }
    }
}

/// The gradients of a function of attention, and the gradients of a function of those gradients.
fn derivatives<I: Backend, B>(
    sizes: Sizes,
    used: [bool; 3],
    attention: impl Fn(
        Tensor<Autodiff<B>, 4>,
        Tensor<Autodiff<B>, 4>,
        Tensor<Autodiff<B>, 4>,
    ) -> Tensor<Autodiff<B>, 4>,
) -> Vec<Tensor<I, 4>>
where
    B: AutodiffBackend<InnerBackend = I>,
{
    let outer = inputs::<B>(sizes).map(|x| x.require_grad());
    let inner = outer
        .clone()
        .map(|x| Tensor::<Autodiff<B>, 4>::from_inner(x).require_grad());
    let [q, k, v] = inner.clone();
    let out = attention(q, k, v);
    let weight = numbers::<B>(7, out.dims(), &out.device()).require_grad();
    let grads = (out.clone() * Tensor::from_inner(weight.clone()))
        .sum()
        .backward();
    let first: Vec<Tensor<B, 4>> = inner.iter().map(|x| x.grad(&grads).unwrap()).collect();
    // A sum of squares of the `used` gradients, so that the second derivative depends on the first.
    let total = first
        .iter()
        .zip(used)
        .filter(|(_, used)| *used)
        .map(|(x, _)| (x.clone() * x.clone()).sum())
        .reduce(|a, b| a + b)
        .unwrap();
    let grads = total.backward();
    let second = outer.iter().chain([&weight]).map(|x| match x.grad(&grads) {
        Some(grad) => grad,
        None => x.clone().inner().zeros_like(),
    });
    first
        .iter()
        .map(|x| x.clone().inner())
        .chain(second)
        .collect()
}

fn check_derivatives<I: AttentionBackend>(tolerance: f64) {
    for sizes in SIZES {
        for used in [
            [true; 3],
            [true, false, false],
            [false, true, false],
            [false, false, true],
            [true, false, true],
        ] {
            let expected =
                derivatives::<I, Autodiff<I>>(sizes, used, |q, k, v| plain(q, k, v, 0.7));
            let found = derivatives::<I, Autodiff<I>>(sizes, used, |q, k, v| {
                causal_attention(q, k, v, 0.7)
            });
            let names = ["dq", "dk", "dv", "ddq", "ddk", "ddv", "dd grad_out"];
            for ((found, expected), name) in found.iter().zip(&expected).zip(names) {
                assert_close(
                    found,
                    expected,
                    tolerance,
                    &format!("{name} of {sizes:?}, {used:?}"),
                );
            }
        }
    }
}

#[test]
fn both_derivatives_match_plain_operations_in_f64() {
    check_derivatives::<F64>(1e-11);
}

#[test]
fn both_derivatives_match_plain_operations_in_f32() {
    check_derivatives::<F32>(2e-4);
}

#[test]
fn balanced_checkpointing_gives_the_same_derivatives() {
    type Balanced = Autodiff<F64, BalancedCheckpointing>;
    let sizes = [2, 4, 2, 3, 8, 5];
    let plain = derivatives::<F64, Autodiff<F64>>(sizes, [true; 3], |q, k, v| {
        causal_attention(q, k, v, 0.7)
    });
    let balanced =
        derivatives::<F64, Balanced>(sizes, [true; 3], |q, k, v| causal_attention(q, k, v, 0.7));
    for (a, b) in plain.iter().zip(&balanced) {
        assert_close(a, b, 1e-13, "balanced checkpointing");
    }
}

/// An untracked input gets no gradient and does not change the gradients of the others.
#[test]
fn an_untracked_input_does_not_change_other_gradients() {
    type B = Autodiff<F64>;
    let sizes = [1, 2, 1, 4, 4, 3];
    let gradients = |tracked: [bool; 3]| {
        let mut tracked = tracked.into_iter();
        let inputs = inputs::<B>(sizes).map(|x| x.set_require_grad(tracked.next().unwrap()));
        let [q, k, v] = inputs.clone();
        let grads = causal_attention(q, k, v, 0.7)
            .powi_scalar(2)
            .sum()
            .backward();
        inputs.map(|x| x.grad(&grads))
    };
    let all = gradients([true; 3]).map(Option::unwrap);
    for one in 0..3 {
        let some = gradients([0, 1, 2].map(|i| i == one));
        for (i, found) in some.iter().enumerate() {
            assert_eq!(found.is_some(), i == one);
        }
        assert_close(
            some[one].as_ref().unwrap(),
            &all[one],
            1e-14,
            "one tracked input",
        );
    }
}

/// Inconsistent shapes or types give an error with the violated rule and the shapes.
#[test]
fn inconsistent_inputs_are_errors() {
    let device = Default::default();
    let zeros = |shape: [usize; 4]| Tensor::<F32, 4>::zeros(shape, &device);
    let error = |q, k, v| {
        let result = try_causal_attention(zeros(q), zeros(k), zeros(v), 1.0);
        result.expect_err("the shapes are inconsistent").to_string()
    };
    let good = [2, 4, 5, 8];
    for (q, k, v, rule) in [
        (
            [2, 3, 5, 8],
            [2, 2, 5, 8],
            [2, 2, 5, 8],
            "a multiple of k's heads",
        ),
        (
            good,
            [2, 4, 5, 4],
            [2, 4, 5, 4],
            "the same batch size and head dim",
        ),
        (
            good,
            [1, 4, 5, 8],
            [1, 4, 5, 8],
            "the same batch size and head dim",
        ),
        (good, good, [2, 4, 6, 8], "k and v must have the same shape"),
        (
            good,
            [2, 4, 4, 8],
            [2, 4, 4, 8],
            "q must not be longer than k",
        ),
        ([2, 4, 0, 8], good, good, "at least 1"),
        ([2, 4, 0, 8], [2, 4, 0, 8], [2, 4, 0, 8], "at least 1"),
        ([2, 0, 5, 8], good, good, "at least 1"),
        ([2, 4, 5, 0], [2, 4, 5, 0], [2, 4, 5, 0], "at least 1"),
        (good, [2, 0, 5, 8], [2, 0, 5, 8], "at least 1"),
    ] {
        let message = error(q, k, v);
        assert!(message.contains(rule), "{message}");
        assert!(message.contains(&format!("{q:?}")), "{message}");
    }
    let half = zeros(good).cast(DType::F16);
    let mixed = try_causal_attention(zeros(good), half, zeros(good), 1.0);
    assert!(
        mixed
            .unwrap_err()
            .to_string()
            .contains("the same type, but are F32, F16 and F32")
    );
}

/// 16-bit tensors are computed in f32: only inputs and outputs are rounded.
#[test]
fn f16_is_summed_in_f32() {
    let sizes = [2, 4, 2, 3, 8, 5];
    let rounded = inputs::<F32>(sizes).map(|x| x.cast(DType::F16));
    let [q, k, v] = rounded.clone().map(|x| x.cast(DType::F32));
    let exact = causal_attention(q, k, v, 0.7);
    let [q, k, v] = rounded;
    let found = causal_attention(q, k, v, 0.7);
    assert_eq!(found.dtype(), DType::F16);
    assert_close(&found.cast(DType::F32), &exact, 1e-3, "f16");
}

/// The log-sum-exp that the forward saves depends on the inputs, also for a derivative of the second one.
#[test]
fn the_third_derivative_is_that_of_the_formula() {
    type Thrice = Autodiff<Autodiff<Autodiff<F64>>>;
    let device = Default::default();
    let q = Tensor::<Thrice, 4>::from_data([[[[0.5f64]]]], &device);
    let k = Tensor::<Thrice, 4>::from_data([[[[1.0f64], [-1.0]]]], &device);
    let v = Tensor::<Thrice, 4>::from_data([[[[0.3f64], [0.2]]]], &device);
    // Each level's leaves are those of the level below, required there too.
    let [q, k, v]: [Tensor<Thrice, 4>; 3] = [q, k, v].map(|x| {
        let inner = x.inner();
        let innermost = inner.inner().require_grad();
        Tensor::from_inner(Tensor::from_inner(innermost).require_grad()).require_grad()
    });
    let out = causal_attention(q.clone(), k, v.clone(), 1.0);
    let first = q.grad(&out.backward()).unwrap();
    let second = q.clone().inner().grad(&first.backward()).unwrap();
    let third = second.backward();
    let to_v = v.inner().inner().grad(&third).unwrap().into_data();
    // out = sigma(2 q) v_0 + (1 - sigma(2 q)) v_1
    let sigma = 1.0 / (1.0 + (-1.0f64).exp());
    let expected = 4.0 * sigma * (1.0 - sigma) * (1.0 - 2.0 * sigma);
    let found = to_v.to_vec::<f64>().unwrap();
    assert!(
        (found[0] - expected).abs() < 1e-12,
        "{found:?}, not {expected}"
    );
    assert!((found[1] + expected).abs() < 1e-12, "{found:?}");
}

/// Two operations share keys and values; what is used of their gradients is one that only the queries have.
#[test]
fn a_gradient_that_is_not_used_is_zero() {
    type Twice = Autodiff<Autodiff<F64>>;
    let device = Default::default();
    let sizes = [1, 2, 1, 3, 4, 2];
    let [q, k, v] = inputs::<F64>(sizes).map(|x| {
        Tensor::<Twice, 4>::from_inner(Tensor::from_inner(x).require_grad()).require_grad()
    });
    let other = numbers::<F64>(9, [1, 2, 3, 2], &device);
    let other = Tensor::<Twice, 4>::from_inner(Tensor::from_inner(other)).require_grad();
    let attend = |q: &Tensor<Twice, 4>| causal_attention(q.clone(), k.clone(), v.clone(), 0.7);
    let to_k = |out: Tensor<Twice, 4>| {
        let to_q = q.grad(&out.backward()).unwrap();
        k.clone()
            .inner()
            .grad(&to_q.powi_scalar(2).backward())
            .unwrap()
    };
    let alone = to_k(attend(&q));
    // Whichever of them comes first in the graph, the other has no part in it.
    assert_close(&to_k(attend(&q) + attend(&other)), &alone, 1e-12, "first");
    assert_close(&to_k(attend(&other) + attend(&q)), &alone, 1e-12, "last");
}
