//! The layers around attention against plain tensor operations differentiated by Burn, in f64, and the loops
//! of Flex in f32 against f64.

use burn::backend::Autodiff;
use burn::tensor::activation::sigmoid;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData, TensorPrimitive};
use gradmem_kernels::{
    KernelBackend, LayerBackend, Nonlinearity, Rotation, activate, add_linear, causal_attention,
    head_losses, last_rows, layer_norm, linear, product, rms_norm, rotary, side_by_side,
    split_heads, swiglu, token_losses,
};

type F64 = burn_ndarray::NdArray<f64>;
type F32 = burn_flex::Flex;

const NONLINEARITIES: [Nonlinearity; 3] = [
    Nonlinearity::Silu,
    Nonlinearity::Gelu,
    Nonlinearity::GeluTanh,
];

/// A function of flat tensors.
trait Layer {
    fn sizes(&self) -> Vec<usize>;
    /// What is allowed between both in f64, relative to the largest value.
    fn allowed(&self) -> f64 {
        1e-11
    }
    /// This crate's function.
    fn ours<B: KernelBackend>(&self, inputs: &[Tensor<B, 1>]) -> Tensor<B, 1>;
    /// The same in plain tensor operations.
    fn plain<B: Backend>(&self, inputs: &[Tensor<B, 1>]) -> Tensor<B, 1>;
}

/// `[batch, seq, d]`, and whether the mean is taken away.
struct Norm([usize; 3], bool);

impl Layer for Norm {
    fn sizes(&self) -> Vec<usize> {
        vec![self.0.iter().product(), self.0[2]]
    }

    fn ours<B: KernelBackend>(&self, x: &[Tensor<B, 1>]) -> Tensor<B, 1> {
        let norm = if self.1 { layer_norm } else { rms_norm };
        norm(x[0].clone().reshape(self.0), x[1].clone(), 1e-3).flatten(0, 2)
    }

    fn plain<B: Backend>(&self, inputs: &[Tensor<B, 1>]) -> Tensor<B, 1> {
        let mut x: Tensor<B, 3> = inputs[0].clone().reshape(self.0);
        if self.1 {
            x = x.clone() - x.mean_dim(2);
        }
        let rms = (x.clone() * x.clone()).mean_dim(2).add_scalar(1e-3).sqrt();
        (x / rms * inputs[1].clone().unsqueeze()).flatten(0, 2)
    }
}

struct Gate([usize; 3]);

impl Layer for Gate {
    fn sizes(&self) -> Vec<usize> {
        vec![self.0.iter().product(); 2]
    }

    fn ours<B: KernelBackend>(&self, x: &[Tensor<B, 1>]) -> Tensor<B, 1> {
        let [gate, up] = [0, 1].map(|i| x[i].clone().mul_scalar(4).reshape(self.0));
        swiglu(side_by_side(gate, up)).flatten(0, 2)
    }

    fn plain<B: Backend>(&self, x: &[Tensor<B, 1>]) -> Tensor<B, 1> {
        let [gate, up] = [0, 1].map(|i| x[i].clone().mul_scalar(4));
        let sigma = match gate.dtype() {
            DType::F64 => gate.clone().neg().exp().add_scalar(1).recip(),
            _ => sigmoid(gate.clone()),
        };
        gate * sigma * up
    }
}

/// The squares of the last rows: `[batch, rows, d]`, and how many.
struct Last([usize; 3], usize);

impl Layer for Last {
    fn sizes(&self) -> Vec<usize> {
        vec![self.0.iter().product()]
    }

    fn ours<B: KernelBackend>(&self, x: &[Tensor<B, 1>]) -> Tensor<B, 1> {
        let y = last_rows(x[0].clone().reshape(self.0), self.1);
        (y.clone() * y).flatten(0, 2)
    }

    fn plain<B: Backend>(&self, x: &[Tensor<B, 1>]) -> Tensor<B, 1> {
        let ([_, rows, _], count) = (self.0, self.1.min(self.0[1]));
        let y = x[0].clone().reshape(self.0).narrow(1, rows - count, count);
        (y.clone() * y).flatten(0, 2)
    }
}

struct Activate([usize; 3], Nonlinearity);

impl Layer for Activate {
    /// Burn's gradient of a division by a number, as in that of its erf, divides in f32.
    fn allowed(&self) -> f64 {
        match self.1 {
            Nonlinearity::Gelu => 1e-7,
            _ => 1e-11,
        }
    }

    fn sizes(&self) -> Vec<usize> {
        vec![self.0.iter().product()]
    }

    fn ours<B: KernelBackend>(&self, x: &[Tensor<B, 1>]) -> Tensor<B, 1> {
        let x = x[0].clone().mul_scalar(4).reshape(self.0);
        activate(x, self.1).flatten(0, 2)
    }

    fn plain<B: Backend>(&self, x: &[Tensor<B, 1>]) -> Tensor<B, 1> {
        let x = x[0].clone().mul_scalar(4);
        let share = match self.1 {
            Nonlinearity::Silu => x.clone().neg().exp().add_scalar(1).recip(),
            Nonlinearity::Gelu => x.clone().mul_scalar(0.5f64.sqrt()).erf().add_scalar(1) / 2,
            _ => {
                let inner = x.clone() + x.clone().powi_scalar(3) * 0.044715;
                let inner = inner * (2.0 / std::f64::consts::PI).sqrt();
                inner.tanh().add_scalar(1) / 2
            }
        };
        x * share
    }
}

/// `[batch, seq, vocab_size]`
struct Losses([usize; 3]);

impl Losses {
    fn targets<B: Backend>(&self) -> Tensor<B, 2, Int> {
        let [batch, seq, vocab] = self.0;
        let ids: Vec<i64> = (0..batch * seq).map(|i| (i * 7 % vocab) as i64).collect();
        Tensor::from_data(TensorData::new(ids, [batch, seq]), &Default::default())
    }
}

impl Layer for Losses {
    fn sizes(&self) -> Vec<usize> {
        vec![self.0.iter().product()]
    }

    fn ours<B: KernelBackend>(&self, x: &[Tensor<B, 1>]) -> Tensor<B, 1> {
        let logits = x[0].clone().mul_scalar(5).reshape(self.0);
        token_losses(logits, self.targets()).flatten(0, 1)
    }

    fn plain<B: Backend>(&self, x: &[Tensor<B, 1>]) -> Tensor<B, 1> {
        let logits: Tensor<B, 3> = x[0].clone().mul_scalar(5).reshape(self.0);
        let weights = logits.clone().exp();
        let p = weights.clone() / weights.sum_dim(2);
        let targets = self.targets().unsqueeze_dim::<3>(2);
        p.gather(2, targets).log().neg().flatten(0, 2)
    }
}

/// `[rows, d, vocab_size]`, and how many rows at once.
struct Head([usize; 3], usize);

impl Head {
    fn inputs<B: Backend>(&self, x: &[Tensor<B, 1>]) -> (Tensor<B, 3>, Tensor<B, 2>) {
        let [rows, d, vocab] = self.0;
        let hidden = x[0].clone().mul_scalar(3).reshape([1, rows, d]);
        (hidden, x[1].clone().reshape([vocab, d]))
    }

    fn losses(&self) -> Losses {
        let [rows, _, vocab] = self.0;
        Losses([1, rows, vocab])
    }
}

impl Layer for Head {
    fn sizes(&self) -> Vec<usize> {
        let [rows, d, vocab] = self.0;
        vec![rows * d, vocab * d]
    }

    fn ours<B: KernelBackend>(&self, x: &[Tensor<B, 1>]) -> Tensor<B, 1> {
        let (hidden, weight) = self.inputs(x);
        head_losses(hidden, weight, self.losses().targets(), self.1).flatten(0, 1)
    }

    fn plain<B: Backend>(&self, x: &[Tensor<B, 1>]) -> Tensor<B, 1> {
        let (hidden, weight) = self.inputs(x);
        let logits: Tensor<B, 2> = hidden.squeeze_dim::<2>(0).matmul(weight.transpose());
        self.losses().plain(&[logits.mul_scalar(0.2).flatten(0, 1)])
    }
}

struct Product([usize; 3]);

impl Layer for Product {
    fn sizes(&self) -> Vec<usize> {
        let [m, k, n] = self.0;
        vec![m * k, k * n]
    }

    fn ours<B: KernelBackend>(&self, x: &[Tensor<B, 1>]) -> Tensor<B, 1> {
        let [m, k, n] = self.0;
        let left: Tensor<B, 2> = x[0].clone().reshape([m, k]);
        // `right` is used twice, so that its gradients are added.
        let right: Tensor<B, 2> = x[1].clone().reshape([n, k]);
        let once = product(left.clone(), right.clone().transpose());
        let twice = product(left.mul_scalar(0.5), right.transpose().mul_scalar(3));
        (once + twice).flatten(0, 1)
    }

    fn plain<B: Backend>(&self, x: &[Tensor<B, 1>]) -> Tensor<B, 1> {
        let [m, k, n] = self.0;
        let left: Tensor<B, 2> = x[0].clone().reshape([m, k]);
        let right: Tensor<B, 2> = x[1].clone().reshape([n, k]);
        left.matmul(right.transpose()).mul_scalar(2.5).flatten(0, 1)
    }
}

/// `[rows, d_input, d_output]`
struct Map([usize; 3]);

impl Layer for Map {
    fn sizes(&self) -> Vec<usize> {
        let [rows, d_input, d_output] = self.0;
        vec![rows * d_input, d_output * d_input]
    }

    fn ours<B: KernelBackend>(&self, x: &[Tensor<B, 1>]) -> Tensor<B, 1> {
        let [rows, d_input, d_output] = self.0;
        let left: Tensor<B, 2> = x[0].clone().reshape([rows, d_input]);
        // The weight is used twice, so that its gradients are added.
        let weight: Tensor<B, 2> = x[1].clone().reshape([d_output, d_input]);
        let once = linear(left.clone(), weight.clone());
        let twice = linear(left.mul_scalar(0.5), weight).mul_scalar(3);
        (once + twice).flatten(0, 1)
    }

    fn plain<B: Backend>(&self, x: &[Tensor<B, 1>]) -> Tensor<B, 1> {
        Product([self.0[0], self.0[1], self.0[2]]).plain(x)
    }
}

/// `to + x wᵀ`, with `to` and `x` used once more: `[rows, d_input, d_output]`
struct Sum([usize; 3]);

impl Layer for Sum {
    fn sizes(&self) -> Vec<usize> {
        let [rows, d_input, d_output] = self.0;
        vec![rows * d_input, d_output * d_input, rows * d_output]
    }

    fn ours<B: KernelBackend>(&self, x: &[Tensor<B, 1>]) -> Tensor<B, 1> {
        let [rows, d_input, d_output] = self.0;
        let left: Tensor<B, 2> = x[0].clone().mul_scalar(0.1).reshape([rows, d_input]);
        let weight: Tensor<B, 2> = x[1].clone().reshape([d_output, d_input]);
        let to: Tensor<B, 2> = x[2].clone().reshape([rows, d_output]);
        let once = add_linear(to.clone(), left.clone(), weight.clone());
        let twice = add_linear(once.clone() * to, left, weight);
        (twice * once).flatten(0, 1)
    }

    fn plain<B: Backend>(&self, x: &[Tensor<B, 1>]) -> Tensor<B, 1> {
        let [rows, d_input, d_output] = self.0;
        let left: Tensor<B, 2> = x[0].clone().mul_scalar(0.1).reshape([rows, d_input]);
        let weight: Tensor<B, 2> = x[1].clone().reshape([d_output, d_input]);
        let to: Tensor<B, 2> = x[2].clone().reshape([rows, d_output]);
        let product = left.matmul(weight.transpose());
        let once = to.clone() + product.clone();
        let twice = once.clone() * to + product;
        (twice * once).flatten(0, 1)
    }
}

/// A layer whose inputs are used twice, and once beside it: each gradient is added to those before.
struct Twice([usize; 3], Used);

#[derive(Debug)]
enum Used {
    Norm { centered: bool },
    Gate,
    Activate(Nonlinearity),
    Attention,
}

impl Twice {
    /// The layer and what is added to its output, of the inputs in their shapes.
    fn sum<B: Backend>(
        &self,
        inputs: &[Tensor<B, 1>],
        layer: impl Fn(&[Tensor<B, 3>]) -> Tensor<B, 3>,
    ) -> Tensor<B, 1> {
        let [batch, seq, d] = self.0;
        let shapes = match self.1 {
            Used::Norm { .. } => vec![self.0, [1, 1, d]],
            Used::Gate => vec![[batch, seq, 2 * d]],
            Used::Activate(_) => vec![self.0],
            Used::Attention => vec![self.0; 3],
        };
        let inputs = inputs.iter().zip(shapes);
        let inputs: Vec<Tensor<B, 3>> = inputs.map(|(x, shape)| x.clone().reshape(shape)).collect();
        let beside = inputs[0].clone().narrow(2, 0, d);
        (layer(&inputs) * 0.5 + beside * layer(&inputs)).flatten(0, 2)
    }
}

impl Layer for Twice {
    fn allowed(&self) -> f64 {
        match self.1 {
            Used::Activate(by) => Activate(self.0, by).allowed(),
            _ => 1e-11,
        }
    }

    fn sizes(&self) -> Vec<usize> {
        let all = self.0.iter().product();
        match self.1 {
            Used::Norm { .. } => vec![all, self.0[2]],
            Used::Gate => vec![2 * all],
            Used::Activate(_) => vec![all],
            Used::Attention => vec![all; 3],
        }
    }

    fn ours<B: KernelBackend>(&self, inputs: &[Tensor<B, 1>]) -> Tensor<B, 1> {
        let heads = |x: &Tensor<B, 3>| x.clone().unsqueeze::<4>();
        // The reshaped inputs are made once, so that both uses add to one gradient.
        let weight = inputs[inputs.len() - 1].clone();
        let four = std::cell::OnceCell::new();
        self.sum(inputs, |x| match &self.1 {
            Used::Norm { centered: true } => layer_norm(x[0].clone(), weight.clone(), 1e-3),
            Used::Norm { centered: false } => rms_norm(x[0].clone(), weight.clone(), 1e-3),
            Used::Gate => swiglu(x[0].clone()),
            Used::Activate(by) => activate(x[0].clone(), *by),
            Used::Attention => {
                let [q, k, v] = four.get_or_init(|| [0, 1, 2].map(|i| heads(&x[i]))).clone();
                causal_attention(q, k, v, 0.4).squeeze_dim(0)
            }
        })
    }

    fn plain<B: Backend>(&self, inputs: &[Tensor<B, 1>]) -> Tensor<B, 1> {
        let [batch, seq, d] = self.0;
        let flat = |x: &Tensor<B, 3>| x.clone().flatten::<1>(0, 2);
        self.sum(inputs, |x| match &self.1 {
            Used::Norm { centered } => {
                let norm = Norm(self.0, *centered);
                norm.plain(&[flat(&x[0]), flat(&x[1])]).reshape(self.0)
            }
            Used::Gate => {
                let [gate, up] = [0, 1].map(|i| x[0].clone().narrow(2, i * d, d));
                let sigma = gate.clone().neg().exp().add_scalar(1).recip();
                gate * sigma * up
            }
            Used::Activate(by) => {
                let quarter = flat(&x[0]).mul_scalar(0.25);
                Activate(self.0, *by).plain(&[quarter]).reshape(self.0)
            }
            Used::Attention => {
                let [q, k, v] = [0, 1, 2].map(|i| x[i].clone());
                let hidden = Tensor::<B, 2>::ones([seq, seq], &q.device()).triu(1);
                let scores = q.matmul(k.swap_dims(1, 2)) * 0.4 - hidden.unsqueeze() * 1e4;
                let weights = scores.exp();
                let all = weights.clone().sum_dim(2);
                (weights / all).matmul(v).reshape([batch, seq, d])
            }
        })
    }
}

/// `[batch, seq, heads, head_dim]`; the last dimension of an odd head dim is not rotated.
struct Turn([usize; 4]);

impl Turn {
    fn angle(&self, position: usize, i: usize) -> f64 {
        let half = self.0[3] / 2;
        let turns = i < 2 * half;
        if turns {
            (position + 1) as f64 * 0.7 / (1 + i % half) as f64
        } else {
            0.0
        }
    }

    fn table<B: Backend>(&self, value: fn(f64) -> f64) -> Tensor<B, 3> {
        let [_, seq, _, d] = self.0;
        let values: Vec<f64> = (0..seq * d)
            .map(|at| value(self.angle(at / d, at % d)))
            .collect();
        Tensor::from_data(TensorData::new(values, [1, seq, d]), &Default::default())
    }
}

impl Turn {
    fn rotation<B: Backend>(&self) -> Rotation<B> {
        let d = self.0[3];
        let half = d / 2;
        let mut turn = vec![0.0; d * d];
        for i in 0..half {
            turn[(i + half) * d + i] = -1.0;
            turn[i * d + i + half] = 1.0;
        }
        let turn = Tensor::from_data(TensorData::new(turn, [d, d]), &Default::default());
        (self.table(f64::cos), self.table(f64::sin), turn)
    }
}

impl Layer for Turn {
    fn sizes(&self) -> Vec<usize> {
        vec![self.0.iter().product()]
    }

    fn ours<B: KernelBackend>(&self, x: &[Tensor<B, 1>]) -> Tensor<B, 1> {
        let (cos, sin, turn) = self.rotation();
        // A transposed view, which is not contiguous.
        let [batch, seq, heads, d] = self.0;
        let x = x[0].clone().reshape([batch, heads, seq, d]).swap_dims(1, 2);
        rotary(x, cos, sin, turn).swap_dims(1, 2).flatten(0, 3)
    }

    fn plain<B: Backend>(&self, x: &[Tensor<B, 1>]) -> Tensor<B, 1> {
        let [batch, seq, heads, d] = self.0;
        let half = d / 2;
        let x: Tensor<B, 4> = x[0].clone().reshape([batch, heads, seq, d]);
        let table = |value| self.table::<B>(value).unsqueeze_dim::<4>(1);
        let (cos, sin) = (table(f64::cos), table(f64::sin));
        let mut parts = Vec::new();
        if half > 0 {
            let (a, b) = (
                x.clone().narrow(3, 0, half),
                x.clone().narrow(3, half, half),
            );
            let (cos, sin) = (cos.narrow(3, 0, half), sin.narrow(3, 0, half));
            parts.push(a.clone() * cos.clone() - b.clone() * sin.clone());
            parts.push(b * cos + a * sin);
        }
        if d % 2 == 1 {
            parts.push(x.narrow(3, d - 1, 1));
        }
        Tensor::cat(parts, 3).flatten(0, 3)
    }
}

/// `[batch, seq, n_heads, head_dim]`, heads of keys and values, and whether queries and keys are rotated.
struct Split([usize; 4], usize, bool);

impl Split {
    fn width(&self) -> usize {
        (self.0[2] + 2 * self.1) * self.0[3]
    }

    fn turn(&self, heads: usize) -> Turn {
        let [batch, seq, _, d] = self.0;
        Turn([batch, seq, heads, d])
    }
}

impl Layer for Split {
    fn sizes(&self) -> Vec<usize> {
        vec![self.0[0] * self.0[1] * self.width()]
    }

    fn ours<B: KernelBackend>(&self, x: &[Tensor<B, 1>]) -> Tensor<B, 1> {
        let [batch, seq, heads, _] = self.0;
        let x = x[0].clone().reshape([batch, seq, self.width()]);
        let rotation = self.2.then(|| self.turn(heads).rotation());
        let [q, k, v] = split_heads(x, rotation, [heads, self.1]);
        // In the last of these there is no gradient to the values.
        let parts = match seq {
            7 => vec![q.flatten(0, 3), k.flatten(0, 3)],
            _ => vec![q.flatten(0, 3), k.flatten(0, 3), v.flatten(0, 3)],
        };
        Tensor::cat(parts, 0)
    }

    fn plain<B: Backend>(&self, x: &[Tensor<B, 1>]) -> Tensor<B, 1> {
        let ([batch, seq, heads, d], kv_heads) = (self.0, self.1);
        let x = x[0].clone().reshape([batch, seq, self.width() / d, d]);
        let part = |start, heads, rotates: bool| {
            let x = x.clone().narrow(2, start, heads);
            if !rotates {
                return x.flatten(0, 3);
            }
            let first = x.swap_dims(1, 2).flatten::<1>(0, 3);
            let y = self.turn(heads).plain(&[first]);
            let y = y.reshape([batch, heads, seq, d]).swap_dims(1, 2);
            y.flatten(0, 3)
        };
        let mut parts = vec![part(0, heads, self.2), part(heads, kv_heads, self.2)];
        if seq != 7 {
            parts.push(part(heads + kv_heads, kv_heads, false));
        }
        Tensor::cat(parts, 0)
    }
}

/// Pseudo-random values in [-1, 1], the same for equal seeds.
fn numbers<B: Backend>(seed: u64, len: usize) -> Tensor<B, 1> {
    let values = crate::numbers(seed, len);
    Tensor::from_data(TensorData::new(values, [len]), &Default::default())
}

/// The output; the gradients of `L = Σ w sin(output)` to the inputs tracked by the inner autodiff; and the
/// gradients of `Σ ⟨u, gradient⟩` to all inputs, which are second derivatives.
fn derivatives<B: KernelBackend>(
    layer: &impl Layer,
    f: impl Fn(&[Tensor<Autodiff<Autodiff<B>>, 1>]) -> Tensor<Autodiff<Autodiff<B>>, 1>,
    tracked: &[bool],
) -> Vec<Vec<f64>> {
    let sizes = layer.sizes();
    let outer: Vec<Tensor<Autodiff<B>, 1>> = sizes
        .iter()
        .enumerate()
        .map(|(i, size)| Tensor::from_inner(numbers::<B>(i as u64 + 1, *size)).require_grad())
        .collect();
    let inner: Vec<Tensor<Autodiff<Autodiff<B>>, 1>> = outer
        .iter()
        .zip(tracked)
        .map(|(x, tracked)| Tensor::from_inner(x.clone()).set_require_grad(*tracked))
        .collect();
    let values = |x: Tensor<B, 1>| x.into_data().iter::<f64>().collect::<Vec<f64>>();
    let output = f(&inner);
    let w = numbers(7, output.dims()[0]);
    let gradients = (output.clone().sin() * w).sum().backward();
    let first: Vec<Tensor<Autodiff<B>, 1>> =
        inner.iter().filter_map(|x| x.grad(&gradients)).collect();
    assert_eq!(first.len(), tracked.iter().filter(|t| **t).count());
    let along = first.iter().enumerate().map(|(i, gradient)| {
        let u = numbers(11 + i as u64, gradient.dims()[0]);
        (gradient.clone() * u).sum()
    });
    let along = along
        .reduce(|x, y| x + y)
        .expect("at least one input is tracked");
    let gradients = along.backward();
    let second = outer.iter().filter_map(|x| x.grad(&gradients));
    let output = values(output.inner().inner());
    [output]
        .into_iter()
        .chain(first.into_iter().map(|x| values(x.inner())))
        .chain(second.map(values))
        .collect()
}

fn assert_close(found: &[Vec<f64>], expected: &[Vec<f64>], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let largest = expected.iter().fold(1e-3, |m, x| f64::max(m, x.abs()));
        for (x, y) in found.iter().zip(expected) {
            let close = (x - y).abs() <= tolerance * largest;
            assert!(close, "{what}, result {index}: found {x}, expected {y}");
        }
    }
}

fn check(layer: impl Layer, what: &str) {
    let inputs = layer.sizes().len();
    for untracked in 0..inputs {
        let mut patterns = vec![vec![true; inputs]];
        if inputs > 1 {
            let mut pattern = vec![true; inputs];
            pattern[untracked] = false;
            patterns.push(pattern);
        }
        for tracked in patterns {
            let what = format!("{what}, tracked {tracked:?}");
            let plain = derivatives::<F64>(&layer, |x| layer.plain(x), &tracked);
            let ours = derivatives::<F64>(&layer, |x| layer.ours(x), &tracked);
            assert_close(&ours, &plain, layer.allowed(), &what);
            let single = derivatives::<F32>(&layer, |x| layer.ours(x), &tracked);
            assert_close(&single, &plain, 1e-5, &format!("{what}, in f32"));
        }
    }
}

#[test]
fn norms_and_their_derivatives() {
    for shape in [[1, 1, 2], [2, 3, 5], [1, 7, 16], [3, 5, 33], [2, 40, 64]] {
        check(Norm(shape, false), &format!("{shape:?}"));
    }
    for shape in [[1, 1, 3], [2, 3, 5], [1, 7, 16], [3, 5, 33], [2, 40, 64]] {
        check(Norm(shape, true), &format!("{shape:?}, without the mean"));
    }
}

#[test]
fn activations_and_their_derivatives() {
    for by in NONLINEARITIES {
        for shape in [[1, 1, 1], [2, 3, 5], [1, 7, 17], [4, 33, 128]] {
            check(Activate(shape, by), &format!("{by:?}, {shape:?}"));
        }
    }
}

#[test]
fn swiglu_and_its_derivatives() {
    for shape in [[1, 1, 1], [2, 3, 5], [1, 7, 17], [4, 33, 128]] {
        check(Gate(shape), &format!("{shape:?}"));
    }
}

#[test]
fn last_rows_and_their_derivatives() {
    for (shape, count) in [
        ([1, 1, 1], 1),
        ([2, 3, 5], 1),
        ([3, 7, 4], 5),
        ([2, 3, 2], 9),
    ] {
        check(Last(shape, count), &format!("{count} of {shape:?}"));
    }
}

#[test]
fn rotary_and_its_derivatives() {
    for shape in [
        [1, 1, 1, 2],
        [2, 3, 2, 4],
        [1, 7, 3, 5],
        [2, 33, 4, 16],
        [1, 2, 1, 1],
    ] {
        check(Turn(shape), &format!("{shape:?}"));
    }
}

#[test]
fn heads_and_their_derivatives() {
    for (shape, kv_heads, rotates) in [
        ([1, 1, 1, 2], 1, true),
        ([2, 3, 2, 4], 1, true),
        ([2, 3, 4, 5], 2, false),
        ([2, 7, 2, 5], 2, true),
        ([2, 33, 4, 16], 4, true),
    ] {
        let layer = Split(shape, kv_heads, rotates);
        check(layer, &format!("{shape:?}, {kv_heads}, rotated: {rotates}"));
    }
}

#[test]
fn token_losses_and_their_derivatives() {
    for shape in [[1, 1, 1], [2, 3, 5], [1, 7, 17], [3, 33, 70]] {
        check(Losses(shape), &format!("{shape:?}"));
    }
}

#[test]
fn head_losses_and_their_derivatives_some_rows_at_a_time() {
    for (shape, at_once) in [
        ([1, 1, 1], 1),
        ([7, 3, 5], 3),
        ([7, 3, 5], 100),
        ([40, 16, 70], 16),
    ] {
        check(Head(shape, at_once), &format!("{shape:?} by {at_once}"));
    }
}

#[test]
fn products_and_their_derivatives() {
    // The sums of the last one's gradients are long.
    for shape in [
        [1, 1, 1],
        [2, 3, 5],
        [7, 16, 33],
        [200, 64, 96],
        [1500, 24, 70],
    ] {
        check(Product(shape), &format!("{shape:?}"));
        check(Map(shape), &format!("{shape:?}, linear"));
        check(Sum(shape), &format!("{shape:?}, added"));
    }
}

#[test]
fn gradients_are_added_to_those_that_are_there() {
    for shape in [[1, 1, 4], [2, 9, 5], [3, 40, 16]] {
        let mut uses = vec![Used::Gate, Used::Attention];
        uses.extend([true, false].map(|centered| Used::Norm { centered }));
        uses.extend(NONLINEARITIES.map(Used::Activate));
        for used in uses {
            let what = format!("{shape:?}, {used:?} twice");
            check(Twice(shape, used), &what);
        }
    }
}

/// With sizes that are divided between threads.
#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    fn check(what: &str, layer: impl Layer + Sync) {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let tracked = vec![true; layer.sizes().len()];
            let results = || derivatives::<F32>(&layer, |x| layer.ours(x), &tracked);
            pool.build().unwrap().install(results)
        };
        let one = run(1);
        for threads in [2, 3, 4, 6] {
            assert!(one == run(threads), "{what}, {threads} threads");
        }
    }
    for centered in [false, true] {
        check("norm", Norm([8, 65, 96], centered));
    }
    for by in NONLINEARITIES {
        check("activation", Activate([8, 65, 96], by));
    }
    check("SwiGLU", Gate([8, 65, 96]));
    check("last rows", Last([8, 65, 96], 60));
    check("cross-entropy", Losses([4, 65, 300]));
    check("head", Head([260, 64, 300], 64));
    for rows in [300, 1100] {
        check("product", Product([rows, 128, 96]));
        check("linear", Map([rows, 128, 96]));
        check("linear, added", Sum([rows, 128, 96]));
    }
    for sizes in [
        [65, 1300, 70],
        [200, 700, 60],
        [60, 600, 200],
        [300, 1200, 520],
    ] {
        check("product", Product(sizes));
        check("linear", Map(sizes));
    }
    check("rotary", Turn([4, 65, 4, 16]));
    check("heads", Split([4, 65, 4, 16], 2, true));
}

/// Values and gradients are finite where the exponential overflows.
#[test]
fn swiglu_of_large_values() {
    let gate = [-1e4, -200.0, -88.0, -0.0, 88.0, 200.0, 1e4];
    let at = |x: f64| Tensor::<Autodiff<F32>, 3>::from_data([[[x as f32]]], &Default::default());
    for x in gate {
        let (gate, up) = (at(x).require_grad(), at(3.0).require_grad());
        let y = swiglu(Tensor::cat(vec![gate.clone(), up.clone()], 2));
        let gradients = y.sum().backward();
        let slope = gate.grad(&gradients).unwrap().into_scalar() as f64;
        let value = up.grad(&gradients).unwrap().into_scalar() as f64;
        let sigma = 1.0 / (1.0 + (-x).exp());
        assert!((value - x * sigma).abs() <= 1e-6 * x.abs(), "{x}: {value}");
        let expected = 3.0 * sigma * (1.0 + x * (1.0 - sigma));
        assert!((slope - expected).abs() <= 1e-5, "{x}: {slope}");
    }
}

#[test]
fn nan_inputs_give_nan_outputs() {
    let nan = |shape| Tensor::<F32, 3>::full(shape, f32::NAN, &Default::default());
    let ones = Tensor::<F32, 3>::ones([1, 2, 3], &Default::default());
    let weight = Tensor::<F32, 1>::ones([3], &Default::default());
    let all_nan = |x: Tensor<F32, 3>| x.into_data().iter::<f32>().all(f32::is_nan);
    assert!(all_nan(rms_norm(nan([1, 2, 3]), weight.clone(), 1e-5)));
    assert!(all_nan(layer_norm(nan([1, 2, 3]), weight, 1e-5)));
    for by in NONLINEARITIES {
        let x = nan([1, 2, 3]);
        let dx = F32::activate_backward(
            x.clone().into_primitive().tensor(),
            ones.clone().into_primitive().tensor(),
            by,
            None,
        );
        assert!(all_nan(activate(x, by)));
        assert!(all_nan(Tensor::from_primitive(TensorPrimitive::Float(dx))));
    }
    assert!(all_nan(swiglu(side_by_side(nan([1, 2, 3]), ones.clone()))));
    assert!(all_nan(swiglu(side_by_side(ones, nan([1, 2, 3])))));
}
