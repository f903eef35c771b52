//! The linear scan against a loop, and its first two derivatives against central differences.

use burn::backend::Autodiff;
use burn::tensor::{Distribution, Tensor, backend::Backend};
use burn_ndarray::NdArray;
use gradmem_kernels::{Direction, ScanBackend, linear_scan};

type B = NdArray<f64>;
type D1 = Autodiff<B>;
type D2 = Autodiff<D1>;

fn random(shape: [usize; 3], low: f64, high: f64) -> Tensor<B, 3> {
    Tensor::random(shape, Distribution::Uniform(low, high), &Default::default())
}

fn values<B: Backend, const D: usize>(x: &Tensor<B, D>) -> Vec<f64> {
    x.to_data().iter::<f64>().collect()
}

fn looped(a: &Tensor<B, 3>, b: &Tensor<B, 3>, direction: Direction) -> Tensor<B, 3> {
    let [batch, seq, width] = a.dims();
    let mut h = Tensor::zeros([batch, 1, width], &Default::default());
    let mut rows = Vec::new();
    for step in 0..seq {
        let t = match direction == Direction::Reverse {
            true => seq - 1 - step,
            false => step,
        };
        h = a.clone().narrow(1, t, 1) * h + b.clone().narrow(1, t, 1);
        rows.push(h.clone());
    }
    if direction == Direction::Reverse {
        rows.reverse();
    }
    Tensor::cat(rows, 1)
}

#[test]
fn values_match_a_loop_in_both_directions() {
    B::seed(&Default::default(), 1);
    for seq in [1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 33] {
        for direction in [Direction::Forward, Direction::Reverse] {
            let (a, b) = (
                random([2, seq, 3], -1.2, 1.2),
                random([2, seq, 3], -1.0, 1.0),
            );
            let lower = |x: Tensor<B, 3>| x.into_primitive().tensor();
            let found = B::linear_scan(lower(a.clone()), lower(b.clone()), direction);
            let found: Tensor<B, 3> =
                Tensor::from_primitive(burn::tensor::TensorPrimitive::Float(found));
            for (x, y) in values(&found)
                .iter()
                .zip(values(&looped(&a, &b, direction)))
            {
                assert!((x - y).abs() < 1e-12, "seq {seq} {direction:?}: {x} {y}");
            }
        }
    }
}

/// `⟨u, ∂L/∂a⟩ + ⟨v, ∂L/∂b⟩` for `L = Σ w sin(h)`, and its gradients to a and b.
#[test]
fn first_and_second_derivatives_match_central_differences() {
    B::seed(&Default::default(), 2);
    for seq in [1, 2, 5, 8, 13] {
        let shape = [2, seq, 2];
        let (a, b) = (random(shape, -1.1, 1.1), random(shape, -1.0, 1.0));
        let [w, u, v] = [0; 3].map(|_| random(shape, -1.0, 1.0));
        let loss = |a: &Tensor<B, 3>, b: &Tensor<B, 3>| {
            let h = linear_scan(a.clone(), b.clone());
            values(&(h.sin() * w.clone()).sum())[0]
        };
        // The derivative of the loss along (u, v), which is differentiated again.
        let (a2, b2) = (
            Tensor::<D1, 3>::from_inner(a.clone()).require_grad(),
            Tensor::<D1, 3>::from_inner(b.clone()).require_grad(),
        );
        let (a1, b1) = (
            Tensor::<D2, 3>::from_inner(a2.clone()).require_grad(),
            Tensor::<D2, 3>::from_inner(b2.clone()).require_grad(),
        );
        let lift = |x: &Tensor<B, 3>| Tensor::<D1, 3>::from_inner(x.clone());
        let h = linear_scan(a1.clone(), b1.clone());
        let grads = (h.sin() * Tensor::from_inner(lift(&w))).sum().backward();
        let (da, db) = (a1.grad(&grads).unwrap(), b1.grad(&grads).unwrap());
        let along = (da * lift(&u)).sum() + (db * lift(&v)).sum();
        let grads = along.backward();
        let zeros = || Tensor::zeros(shape, &Default::default());
        let ha = a2.grad(&grads).unwrap_or_else(zeros);
        let hb = b2.grad(&grads).unwrap_or_else(zeros);

        let e = 1e-3;
        let four = |f: &dyn Fn(f64) -> f64| {
            (8.0 * (f(e) - f(-e)) - (f(2.0 * e) - f(-2.0 * e))) / (12.0 * e)
        };
        let step = |x: &Tensor<B, 3>, d: &Tensor<B, 3>, t: f64| x.clone() + d.clone() * t;
        let slope =
            |a: &Tensor<B, 3>, b: &Tensor<B, 3>| four(&|t| loss(&step(a, &u, t), &step(b, &v, t)));
        let found = values(&along)[0];
        let expected = slope(&a, &b);
        assert!(
            (found - expected).abs() < 1e-8,
            "seq {seq}: {found} {expected}"
        );
        let [p, q] = [0; 2].map(|_| random(shape, -1.0, 1.0));
        let found = values(&(ha * p.clone()).sum())[0] + values(&(hb * q.clone()).sum())[0];
        let expected = four(&|t| slope(&step(&a, &p, t), &step(&b, &q, t)));
        assert!(
            (found - expected).abs() < 1e-6,
            "seq {seq}: {found} {expected}"
        );
    }
}
