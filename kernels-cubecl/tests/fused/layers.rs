//! The layers' kernels against the reference in f64, on pseudo-random values.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Int, Tensor, TensorData};
use gradmem_kernels::{AdamWStep, LayerBackend, Nonlinearity, Norm};

use crate::Gpu;
use crate::numbers::{F64, error, lift, lower, numbers};

const NONLINEARITIES: [Nonlinearity; 3] = [
    Nonlinearity::Silu,
    Nonlinearity::Gelu,
    Nonlinearity::GeluTanh,
];

/// Equal values on the GPU and in f64.
struct Numbers {
    dtype: DType,
    seed: u64,
}

impl Numbers {
    fn next<const D: usize>(&mut self, shape: [usize; D]) -> Both<D> {
        self.seed += 1;
        let values = numbers(self.seed, shape.iter().product()).into_iter();
        let values = values.map(|value| 2.0 * value);
        let data = TensorData::new(values.collect::<Vec<f32>>(), shape).convert_dtype(self.dtype);
        let exact = data.clone().convert_dtype(DType::F64);
        Both {
            gpu: Tensor::from_data(data, (&Default::default(), self.dtype)),
            cpu: Tensor::from_data(exact, &Default::default()),
        }
    }

    fn ids(&self, rows: usize, below: usize) -> (Tensor<Gpu, 1, Int>, Tensor<F64, 1, Int>) {
        let ids: Vec<i32> = (0..rows).map(|row| (row * 7919 % below) as i32).collect();
        let data = TensorData::new(ids, [rows]);
        (
            Tensor::from_data(data.clone(), &Default::default()),
            Tensor::from_data(data, &Default::default()),
        )
    }
}

#[derive(Clone)]
struct Both<const D: usize> {
    gpu: Tensor<Gpu, D>,
    cpu: Tensor<F64, D>,
}

impl<const D: usize> Both<D> {
    fn gpu(&self) -> FloatTensor<Gpu> {
        lower(self.gpu.clone())
    }

    fn cpu(&self) -> FloatTensor<F64> {
        lower(self.cpu.clone())
    }
}

impl Both<3> {
    /// The same values, with the first two dimensions in another order in memory.
    fn turned(self) -> Self {
        Self {
            gpu: (self.gpu.swap_dims(0, 1) + 0.0).swap_dims(0, 1),
            cpu: self.cpu,
        }
    }
}

/// Calls `check` for each type that the device has, with the error that is allowed in it.
fn each_type(what: &str, mut check: impl FnMut(&mut Numbers) -> Vec<f64>) {
    let device = Default::default();
    for (dtype, allowed) in [(DType::F32, 3e-6), (DType::F16, 3e-3), (DType::BF16, 2e-2)] {
        if !Gpu::supports_dtype(&device, dtype) {
            println!("{what}: this device has no {dtype:?}");
            continue;
        }
        let errors = check(&mut Numbers { dtype, seed: 0 });
        let worst = errors
            .iter()
            .fold(0.0, |m: f64, x| if *x <= m { m } else { *x });
        println!("{what} in {dtype:?}: {worst:.1e}");
        assert!(worst < allowed, "{what} in {dtype:?}: {errors:?}");
    }
}

/// A single row; rows that fill no cube and some cubes; more rows than cubes that add; a width beyond a cube's units.
const SHAPES: [[usize; 3]; 5] = [
    [1, 1, 4],
    [3, 5, 7],
    [2, 37, 128],
    [3, 100, 33],
    [1, 2, 1500],
];

#[test]
fn norms() {
    each_type("norms", |numbers| {
        let mut errors = Vec::new();
        let kinds = [false, true].map(|centered| Norm {
            epsilon: 1e-5,
            centered,
        });
        for (shape, by) in SHAPES.into_iter().flat_map(|s| kinds.map(|by| (s, by))) {
            let [x, g, a] = [(); 3].map(|()| numbers.next(shape));
            let (x, g) = (x.turned(), g.turned());
            let [w, c] = [(); 2].map(|()| numbers.next([shape[2]]));
            let gpu = Gpu::norm(x.gpu(), w.gpu(), by);
            let cpu = F64::norm(x.cpu(), w.cpu(), by);
            errors.push(error::<3>(gpu, cpu));
            for (wanted, adds) in [(false, false), (true, false), (false, true), (true, true)] {
                let onto = adds.then(|| [a.gpu(), c.gpu()]);
                let onto = onto.map_or([None, None], |onto| onto.map(Some));
                let (dx, dw) = Gpu::norm_backward(x.gpu(), w.gpu(), g.gpu(), by, wanted, onto);
                let onto = adds.then(|| [a.cpu(), c.cpu()]);
                let onto = onto.map_or([None, None], |onto| onto.map(Some));
                let (dx64, dw64) = F64::norm_backward(x.cpu(), w.cpu(), g.cpu(), by, wanted, onto);
                errors.push(error::<3>(dx, dx64));
                assert_eq!((dw.is_some(), dw64.is_some()), (wanted, wanted));
                errors.extend(dw.zip(dw64).map(|(dw, dw64)| error::<1>(dw, dw64)));
            }
            for (has_a, has_c) in [(true, false), (false, true), (true, true)] {
                let gpu = Gpu::norm_double_backward(
                    x.gpu(),
                    w.gpu(),
                    g.gpu(),
                    [has_a.then(|| a.gpu()), has_c.then(|| c.gpu())],
                    by,
                    has_a.then(|| w.gpu()),
                );
                let cpu = F64::norm_double_backward(
                    x.cpu(),
                    w.cpu(),
                    g.cpu(),
                    [has_a.then(|| a.cpu()), has_c.then(|| c.cpu())],
                    by,
                    has_a.then(|| w.cpu()),
                );
                let ([g, x, w], [g64, x64, w64]) = (gpu, cpu);
                errors.extend([error::<3>(g, g64), error::<3>(x, x64), error::<1>(w, w64)]);
            }
        }
        errors
    });
}

#[test]
fn activations() {
    each_type("activations", |numbers| {
        let mut errors = Vec::new();
        for shape in SHAPES {
            for by in NONLINEARITIES {
                let [x, g, a] = [(); 3].map(|()| numbers.next(shape).turned());
                errors.push(error::<3>(
                    Gpu::activate(x.gpu(), by),
                    F64::activate(x.cpu(), by),
                ));
                for adds in [false, true] {
                    let onto = (adds.then(|| a.gpu()), adds.then(|| a.cpu()));
                    let gpu = Gpu::activate_backward(x.gpu(), g.gpu(), by, onto.0);
                    let cpu = F64::activate_backward(x.cpu(), g.cpu(), by, onto.1);
                    errors.push(error::<3>(gpu, cpu));
                }
                let gpu = Gpu::activate_double_backward(x.gpu(), g.gpu(), a.gpu(), by);
                let cpu = F64::activate_double_backward(x.cpu(), g.cpu(), a.cpu(), by);
                errors.extend(gpu.into_iter().zip(cpu).map(|(x, y)| error::<3>(x, y)));
            }
        }
        errors
    });
}

/// Values and derivatives are finite where the exponential or a square overflows.
#[test]
fn activations_of_large_values() {
    for by in NONLINEARITIES {
        let x = [-1e30, -1e4, -88.0, -30.0, 30.0, 88.0, 1e4, 1e30];
        let x = Tensor::<Gpu, 3>::from_data([[x]], &Default::default());
        let [x, ones] = [x.clone(), x.ones_like()].map(lower);
        let y = Gpu::activate(x.clone(), by);
        let dx = Gpu::activate_backward(x.clone(), ones.clone(), by, None);
        let [_, to_x] = Gpu::activate_double_backward(x, ones.clone(), ones, by);
        for values in [y, dx.clone(), to_x] {
            let values = lift::<Gpu, 3>(values).into_data();
            assert!(values.iter::<f32>().all(f32::is_finite), "{by:?}: {values}");
        }
        let slopes = lift::<Gpu, 3>(dx).into_data().to_vec::<f32>().unwrap();
        assert_eq!(slopes[4..], [1.0; 4], "{by:?}");
    }
}

#[test]
fn last_rows() {
    each_type("last rows", |numbers| {
        let mut errors = Vec::new();
        for [batch, seq, d] in SHAPES {
            let x = numbers.next([batch, seq + 2, d]).turned();
            for count in [1, seq + 1] {
                let gpu = Gpu::last_rows(x.gpu(), count);
                let cpu = F64::last_rows(x.cpu(), count);
                errors.push(error::<3>(gpu.clone(), cpu.clone()));
                let gpu = Gpu::behind_zeros(gpu, seq + 2);
                errors.push(error::<3>(gpu, F64::behind_zeros(cpu, seq + 2)));
            }
        }
        errors
    });
}

#[test]
fn swiglu() {
    each_type("SwiGLU", |numbers| {
        let mut errors = Vec::new();
        for [batch, seq, d] in SHAPES {
            let [x, a] = [(); 2].map(|()| numbers.next([batch, seq, 2 * d]).turned());
            let g = numbers.next([batch, seq, d]);
            errors.push(error::<3>(Gpu::swiglu(x.gpu()), F64::swiglu(x.cpu())));
            for adds in [false, true] {
                let onto = (adds.then(|| a.gpu()), adds.then(|| a.cpu()));
                let gpu = Gpu::swiglu_backward(x.gpu(), g.gpu(), onto.0);
                let cpu = F64::swiglu_backward(x.cpu(), g.cpu(), onto.1);
                errors.push(error::<3>(gpu, cpu));
            }
            let gpu = Gpu::swiglu_double_backward(x.gpu(), g.gpu(), a.gpu());
            let cpu = F64::swiglu_double_backward(x.cpu(), g.cpu(), a.cpu());
            errors.extend(gpu.into_iter().zip(cpu).map(|(x, y)| error::<3>(x, y)));
        }
        errors
    });
}

/// Far from zero the exponential overflows; values and gradients stay what they are.
#[test]
fn swiglu_of_large_values() {
    let gate = [-1e4, -200.0, -88.0, -0.0, 88.0, 200.0, 1e4];
    let gate = Tensor::<Gpu, 3>::from_data([[gate]], &Default::default());
    let ones = gate.ones_like();
    let x = Tensor::cat(vec![gate, ones.clone()], 2);
    let dx = Gpu::swiglu_backward(lower(x.clone()), lower(ones.clone()), None);
    let slopes = lift::<Gpu, 3>(dx.clone()).into_data();
    assert_eq!(slopes.to_vec::<f32>().unwrap()[3..7], [0.5, 1.0, 1.0, 1.0]);
    let [_, to_x] =
        Gpu::swiglu_double_backward(lower(x.clone()), lower(ones), lower(x.ones_like()));
    for values in [Gpu::swiglu(lower(x)), dx, to_x] {
        let values = lift::<Gpu, 3>(values).into_data();
        assert!(values.iter::<f32>().all(f32::is_finite), "{values}");
    }
}

#[test]
fn token_losses() {
    each_type("cross-entropy", |numbers| {
        let mut errors = Vec::new();
        for (rows, vocab) in [(1, 1), (3, 7), (70, 70), (5, 3000)] {
            let [z, a] = [(); 2].map(|()| numbers.next([rows, vocab]));
            let g = numbers.next([rows]);
            let (targets, targets64) = numbers.ids(rows, vocab);
            let (ids, ids64) = (targets.into_primitive(), targets64.into_primitive());
            let gpu = Gpu::token_losses(z.gpu(), ids.clone());
            let cpu = F64::token_losses(z.cpu(), ids64.clone());
            errors.push(error::<1>(gpu, cpu));
            let gpu = Gpu::token_losses_backward(z.gpu(), ids.clone(), g.gpu());
            let cpu = F64::token_losses_backward(z.cpu(), ids64.clone(), g.cpu());
            errors.push(error::<2>(gpu, cpu));
            let [gpu, to_z] = Gpu::token_losses_double_backward(z.gpu(), ids, g.gpu(), a.gpu());
            let [cpu, to_z64] = F64::token_losses_double_backward(z.cpu(), ids64, g.cpu(), a.cpu());
            errors.extend([error::<1>(gpu, cpu), error::<2>(to_z, to_z64)]);
        }
        errors
    });
}

/// Large logits overflow without the largest one taken away.
#[test]
fn token_losses_of_large_logits() {
    let logits = Tensor::<Gpu, 2>::from_data([[1e4, -1e4, 9.9e3]], &Default::default());
    let ids = Tensor::<Gpu, 1, Int>::from_data([2], &Default::default());
    let losses = Gpu::token_losses(lower(logits), ids.into_primitive());
    let losses = lift::<Gpu, 1>(losses).into_data().to_vec::<f32>().unwrap();
    assert_eq!(losses, [100.0]);
}

/// The tables of a rotation of heads of this width.
fn rotation(numbers: &mut Numbers, seq: usize, dim: usize) -> (Both<3>, Both<3>, Both<2>) {
    let [cos, sin] = [(); 2].map(|()| numbers.next([1, seq, dim]));
    let half = dim / 2;
    let turn = |row: usize, column: usize| match (row, column) {
        (i, j) if i == j + half && j < half => -1.0,
        (i, j) if j == i + half && i < half => 1.0,
        _ => 0.0,
    };
    let turn: Vec<f32> = (0..dim * dim).map(|at| turn(at / dim, at % dim)).collect();
    let data = TensorData::new(turn, [dim, dim]).convert_dtype(numbers.dtype);
    let exact = data.clone().convert_dtype(DType::F64);
    let turn = Both {
        gpu: Tensor::from_data(data, (&Default::default(), numbers.dtype)),
        cpu: Tensor::from_data(exact, &Default::default()),
    };
    (cos, sin, turn)
}

/// From any layout in memory.
#[test]
fn rotary_and_contiguous() {
    each_type("rotary", |numbers| {
        let mut errors = Vec::new();
        for [batch, seq, heads, dim] in [[1, 1, 1, 2], [2, 5, 3, 8], [3, 7, 2, 5], [2, 33, 4, 64]] {
            let x = numbers.next([batch, seq, heads, dim]);
            let (cos, sin, turn) = rotation(numbers, seq, dim);
            let expected = F64::ordered(x.cpu(), Some([cos.cpu(), sin.cpu(), turn.cpu()]));
            let first = x.gpu.clone().swap_dims(1, 2) + 0.0;
            let odd = x.gpu.clone().swap_dims(0, 3) + 0.0;
            for x in [x.gpu.clone(), first.swap_dims(1, 2), odd.swap_dims(0, 3)] {
                let found =
                    Gpu::ordered(lower(x.clone()), Some([cos.gpu(), sin.gpu(), turn.gpu()]));
                errors.push(error::<4>(found.clone(), expected.clone()));
                let moved = lift::<Gpu, 4>(Gpu::ordered(lower(x.clone()), None));
                assert_eq!(moved.into_data(), x.into_data());
            }
        }
        errors
    });
}

/// Heads out of a product's columns, and back from any layout.
#[test]
fn heads_of_columns() {
    each_type("heads", |numbers| {
        let mut errors = Vec::new();
        for ([batch, seq, heads, dim], kv_heads) in [
            ([1, 1, 1, 2], 1),
            ([2, 5, 3, 8], 1),
            ([3, 7, 2, 5], 2),
            ([2, 33, 4, 64], 2),
        ] {
            let x = numbers
                .next([batch, seq, (heads + 2 * kv_heads) * dim])
                .turned();
            let (cos, sin, turn) = rotation(numbers, seq, dim);
            for rotates in [false, true] {
                let on_gpu = || rotates.then(|| [cos.gpu(), sin.gpu(), turn.gpu()]);
                let on_cpu = || rotates.then(|| [cos.cpu(), sin.cpu(), turn.cpu()]);
                let gpu = Gpu::split_heads(x.gpu(), on_gpu(), [heads, kv_heads]);
                let cpu = F64::split_heads(x.cpu(), on_cpu(), [heads, kv_heads]);
                let pairs = gpu.clone().into_iter().zip(cpu);
                errors.extend(pairs.map(|(x, y)| error::<4>(x, y)));
                let odd = |x: FloatTensor<Gpu>| {
                    let x = lift::<Gpu, 4>(x).swap_dims(0, 3) + 0.0;
                    lower(x.swap_dims(0, 3))
                };
                let expected = gpu.clone().map(|x| x_of(&lift(x)));
                let expected = F64::join_heads(expected, on_cpu());
                for qkv in [gpu.clone(), gpu.map(odd)] {
                    let found = Gpu::join_heads(qkv, on_gpu());
                    errors.push(error::<3>(found, expected.clone()));
                }
            }
        }
        errors
    });
}

fn x_of(x: &Tensor<Gpu, 4>) -> FloatTensor<F64> {
    let data = x.to_data().convert_dtype(DType::F64);
    lower(Tensor::<F64, 4>::from_data(data, &Default::default()))
}

#[test]
fn adamw() {
    let step = AdamWStep {
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-3,
        time: 3,
        lr: 0.1,
        weight_decay: 0.2,
    };
    let mut numbers = Numbers {
        dtype: DType::F32,
        seed: 0,
    };
    for shape in SHAPES {
        let [x, m, g] = [(); 3].map(|()| numbers.next(shape));
        let v = Both {
            gpu: x.gpu.clone().square(),
            cpu: x.cpu.clone().square(),
        };
        let gpu = Gpu::adamw(&step, [x.gpu(), m.gpu(), v.gpu()], g.gpu());
        let cpu = F64::adamw(&step, [x.cpu(), m.cpu(), v.cpu()], g.cpu());
        for (x, y) in gpu.into_iter().zip(cpu) {
            let error = error::<3>(x, y);
            assert!(error < 3e-6, "{shape:?}: {error:.1e}");
        }
    }
}
