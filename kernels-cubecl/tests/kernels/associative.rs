//! The associative memory against loops on the host in f64, its first derivatives against central differences of these
//! loops and its second derivatives against central differences of the first, and Flex in f32 against f64.

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use gradmem_kernels::{
    Association, Bindings, Counting, LayerBackend, associative_read, associative_write, dpfp,
};

use super::numbers;

type F64 = burn_ndarray::NdArray<f64>;
type F32 = burn_flex::Flex;

const BATCH: usize = 2;
const HEADS: usize = 2;
const COUNT: usize = 3;
const QUERIES: usize = 4;
const WIDTH: usize = 3;
const ORDER: usize = 3;
const FEATURES: usize = 2 * WIDTH * ORDER;
const D_VALUE: usize = 5;
/// Bindings are written this many times, so that later ones meet what is there.
const SEGMENTS: usize = 3;

/// Whether gates are of each entry, and how the memory counts.
#[derive(Clone, Copy, Debug)]
struct Case {
    gating: bool,
    counting: Counting,
}

const CASES: [Case; 4] = [
    case(false, true, true),
    case(true, true, true),
    case(false, true, false),
    case(true, false, false),
];

const fn case(gating: bool, normalized: bool, corrected: bool) -> Case {
    let counting = Counting {
        normalized,
        corrected,
    };
    Case { gating, counting }
}

impl Case {
    fn gate_width(self) -> usize {
        if self.gating { D_VALUE } else { 1 }
    }

    /// Lengths of keys, values and gates of each segment, then of the queries.
    fn sizes(self) -> Vec<usize> {
        let rows = BATCH * HEADS * COUNT;
        let segment = [rows * WIDTH, rows * D_VALUE, rows * self.gate_width()];
        let mut sizes = segment.repeat(SEGMENTS);
        sizes.push(BATCH * HEADS * QUERIES * WIDTH);
        sizes
    }

    fn inputs(self) -> Vec<Vec<f64>> {
        let sizes = self.sizes().into_iter().enumerate();
        let inputs = sizes.map(|(at, size)| numbers(at as u64 + 1, size));
        let gate = |(at, x): (usize, Vec<f64>)| match at % 3 == 2 && at < 3 * SEGMENTS {
            true => x.into_iter().map(|x| 0.5 + 0.4 * x).collect(),
            false => x,
        };
        inputs.enumerate().map(gate).collect()
    }

    /// What all queries find, flat.
    fn ours<B: LayerBackend>(self, inputs: &[Tensor<B, 1>]) -> Tensor<B, 1> {
        let shaped = |at: usize, count: usize, width: usize| -> Tensor<B, 4> {
            inputs[at].clone().reshape([BATCH, HEADS, count, width])
        };
        let mut memory: Option<Association<B>> = None;
        for segment in 0..SEGMENTS {
            let at = 3 * segment;
            let bindings = Bindings {
                keys: dpfp(shaped(at, COUNT, WIDTH), ORDER),
                values: shaped(at + 1, COUNT, D_VALUE),
                gates: shaped(at + 2, COUNT, self.gate_width()),
            };
            memory = Some(associative_write(memory, bindings, self.counting));
        }
        let queries = dpfp(shaped(3 * SEGMENTS, QUERIES, WIDTH), ORDER);
        associative_read(&memory.unwrap(), queries).flatten(0, 3)
    }

    /// The same in loops. `gammas` are taken from it if it holds any and else written to it: they count as constants.
    fn looped(self, inputs: &[Vec<f64>], gammas: &mut Vec<f64>) -> Vec<f64> {
        let known = (!gammas.is_empty()).then(|| gammas.clone());
        let mut known = known.iter().flatten();
        let mut found = Vec::new();
        for head in 0..BATCH * HEADS {
            let mut matrix = vec![[0.0; D_VALUE]; FEATURES];
            let mut sum = vec![0.0; FEATURES];
            let answer = |matrix: &[[f64; D_VALUE]], sum: &[f64], key: &[f64]| {
                let divisor = match self.counting.normalized {
                    true => dot(sum, key) + 1e-5,
                    false => 1.0,
                };
                std::array::from_fn::<f64, D_VALUE, _>(|j| {
                    let column = key.iter().zip(matrix).map(|(k, row)| k * row[j]);
                    column.sum::<f64>() / divisor
                })
            };
            for segment in 0..SEGMENTS {
                let (mut added, mut counted) = (matrix.clone(), sum.clone());
                for binding in 0..COUNT {
                    let row = head * COUNT + binding;
                    let part = |at: usize, width: usize| {
                        &inputs[3 * segment + at][row * width..(row + 1) * width]
                    };
                    let key = features(part(0, WIDTH));
                    let old = match segment {
                        0 => [0.0; D_VALUE],
                        _ => answer(&matrix, &sum, &key),
                    };
                    let gates = part(2, self.gate_width());
                    for (row, k) in added.iter_mut().zip(&key) {
                        for j in 0..D_VALUE {
                            let gate = gates[j % gates.len()];
                            row[j] += k * gate * (part(1, D_VALUE)[j] - old[j]);
                        }
                    }
                    let gamma = match segment > 0 && self.counting.corrected {
                        true => 1.0 - (dot(&sum, &key) + 1e-5) / dot(&key, &key),
                        false => 1.0,
                    };
                    let gamma = known.next().copied().unwrap_or(gamma.clamp(0.0, 1.0));
                    gammas.push(gamma);
                    for (sum, k) in counted.iter_mut().zip(&key) {
                        *sum += gamma * k;
                    }
                }
                (matrix, sum) = (added, counted);
            }
            for query in 0..QUERIES {
                let row = head * QUERIES + query;
                let query = &inputs[3 * SEGMENTS][row * WIDTH..(row + 1) * WIDTH];
                found.extend(answer(&matrix, &sum, &features(query)));
            }
        }
        found
    }
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

fn features(x: &[f64]) -> Vec<f64> {
    let negative = x.iter().map(|x| (-x).max(0.0));
    let u: Vec<f64> = x.iter().map(|x| x.max(0.0)).chain(negative).collect();
    let n = u.len();
    let products = (1..=ORDER).flat_map(|j| {
        let u = &u;
        (0..n).map(move |i| u[i] * u[(i + n - j % n) % n])
    });
    let products: Vec<f64> = products.collect();
    let norm = dot(&products, &products).sqrt();
    products.into_iter().map(|x| x / norm).collect()
}

fn tensor<B: Backend>(x: &[f64]) -> Tensor<B, 1> {
    Tensor::from_data(TensorData::new(x.to_vec(), [x.len()]), &Default::default())
}

fn values<B: Backend, const D: usize>(x: Tensor<B, D>) -> Vec<f64> {
    x.to_data().iter::<f64>().collect()
}

fn assert_close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-3, |m: f64, x| m.max(x.abs()));
    for (a, b) in found.iter().zip(expected) {
        assert!(
            (a - b).abs() <= tolerance * largest,
            "{what}: {a} is not {b}"
        );
    }
}

/// What is found with `w` as its cotangent, and the gradient to each input.
fn gradients<B: LayerBackend>(case: Case, inputs: &[Vec<f64>], w: &[f64]) -> Vec<Vec<f64>>
where
    Autodiff<B>: LayerBackend,
{
    let leaves = inputs
        .iter()
        .map(|x| tensor::<Autodiff<B>>(x).require_grad());
    let leaves: Vec<_> = leaves.collect();
    let loss = (case.ours(&leaves) * tensor(w)).sum();
    let grads = loss.backward();
    leaves
        .iter()
        .map(|x| values(x.grad(&grads).unwrap()))
        .collect()
}

#[test]
fn values_match_loops() {
    for case in CASES {
        let inputs = case.inputs();
        let mut gammas = Vec::new();
        let expected = case.looped(&inputs, &mut gammas);
        if case.counting.corrected {
            let inside = gammas.iter().filter(|gamma| (0.01..0.99).contains(*gamma));
            assert!(inside.count() > 2, "no γ is between its bounds: {gammas:?}");
        }
        let ours = |inputs: &[Vec<f64>]| {
            let inputs: Vec<_> = inputs.iter().map(|x| tensor::<F64>(x)).collect();
            values(case.ours(&inputs))
        };
        assert_close(&format!("{case:?}"), &ours(&inputs), &expected, 1e-12);
        let single: Vec<_> = inputs.iter().map(|x| tensor::<F32>(x)).collect();
        let single = values(case.ours(&single));
        assert_close(&format!("{case:?} in f32"), &single, &expected, 1e-4);
    }
}

#[test]
fn first_derivatives_match_central_differences() {
    for case in CASES {
        let inputs = case.inputs();
        let w = numbers(99, BATCH * HEADS * QUERIES * D_VALUE);
        let found = gradients::<F64>(case, &inputs, &w);
        let mut gammas = Vec::new();
        case.looped(&inputs, &mut gammas);
        let (single, e) = (gradients::<F32>(case, &inputs, &w), 1e-6);
        for (at, input) in inputs.iter().enumerate() {
            let slope = (0..input.len()).map(|i| {
                let moved = |by: f64| {
                    let mut inputs = inputs.clone();
                    inputs[at][i] += by;
                    dot(&case.looped(&inputs, &mut gammas.clone()), &w)
                };
                (moved(e) - moved(-e)) / (2.0 * e)
            });
            let slope: Vec<f64> = slope.collect();
            assert_close(&format!("{case:?}, input {at}"), &found[at], &slope, 1e-7);
            let what = format!("{case:?}, input {at} in f32");
            assert_close(&what, &single[at], &found[at], 1e-3);
        }
    }
}

/// Without the constants γ, so that differences of gradients are the second derivative.
#[test]
fn second_derivatives_match_central_differences() {
    type D1 = Autodiff<F64>;
    for case in [case(false, true, false), case(true, false, false)] {
        let inputs = case.inputs();
        let w = numbers(99, BATCH * HEADS * QUERIES * D_VALUE);
        let along: Vec<_> = (0..inputs.len())
            .map(|at| numbers(200 + at as u64, inputs[at].len()))
            .collect();
        // The gradient of the slope along `along`.
        let inner: Vec<_> = inputs
            .iter()
            .map(|x| tensor::<D1>(x).require_grad())
            .collect();
        let outer = inner
            .iter()
            .map(|x| Tensor::<Autodiff<D1>, 1>::from_inner(x.clone()).require_grad());
        let outer: Vec<_> = outer.collect();
        let grads = (case.ours(&outer) * tensor(&w)).sum().backward();
        let slopes = outer
            .iter()
            .zip(&along)
            .map(|(x, u)| (x.grad(&grads).unwrap() * tensor(u)).sum());
        let grads = slopes.reduce(|a, b| a + b).unwrap().backward();
        let e = 1e-5;
        let moved = |by: f64| {
            let moved = inputs
                .iter()
                .zip(&along)
                .map(|(x, u)| x.iter().zip(u).map(|(x, u)| x + by * u).collect());
            gradients::<F64>(case, &moved.collect::<Vec<_>>(), &w)
        };
        let (above, below) = (moved(e), moved(-e));
        for (at, x) in inner.iter().enumerate() {
            let found = values(x.grad(&grads).unwrap());
            let expected = above[at]
                .iter()
                .zip(&below[at])
                .map(|(a, b)| (a - b) / (2.0 * e));
            let expected: Vec<f64> = expected.collect();
            assert_close(&format!("{case:?}, input {at}"), &found, &expected, 1e-6);
        }
    }
}

#[test]
fn features_of_nothing_are_zeros_with_a_finite_gradient() {
    let x = Tensor::<Autodiff<F64>, 2>::zeros([1, 4], &Default::default()).require_grad();
    let features = dpfp(x.clone(), ORDER);
    assert_eq!(values(features.clone()), [0.0; 24]);
    let grads = features.sum().backward();
    assert!(
        values(x.grad(&grads).unwrap())
            .iter()
            .all(|x| x.is_finite())
    );
}
