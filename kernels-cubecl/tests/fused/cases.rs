//! The GPU kernels against the reference in f64, on pseudo-random values.

use std::sync::{Mutex, Once};

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, TensorData};
use gradmem_kernels::AttentionBackend;

use crate::Gpu;
use crate::numbers::{F64, error, lower, numbers};

/// Makes a panic on the device's thread abort the process, where it would otherwise only leave invalid results.
fn abort_on_device_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            hook(info);
            let thread = std::thread::current();
            if !thread.name().unwrap_or_default().contains("::") && thread.name() != Some("main") {
                std::process::abort();
            }
        }));
    });
}

#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    query_len: usize,
    key_len: usize,
    dim: usize,
}

impl Case {
    fn query(&self) -> [usize; 4] {
        [self.batch, self.heads, self.query_len, self.dim]
    }

    fn key(&self) -> [usize; 4] {
        [self.batch, self.kv_heads, self.key_len, self.dim]
    }
}

/// Equal values on the GPU, in `dtype`, and on the CPU in f64; optionally transposed views.
struct Inputs {
    dtype: DType,
    transposed: bool,
    seed: u64,
}

impl Inputs {
    fn next(&mut self, shape: [usize; 4]) -> (FloatTensor<Gpu>, FloatTensor<F64>) {
        self.seed += 1;
        // Half of the tensors are stored as [batch, len, heads, dim], the order of a model's projections.
        let transposed = self.transposed && self.seed.is_multiple_of(2);
        let [b, h, t, d] = shape;
        let stored = if transposed { [b, t, h, d] } else { shape };
        let values = numbers(self.seed, stored.iter().product());
        let data = TensorData::new(values, stored).convert_dtype(self.dtype);
        let exact = data.clone().convert_dtype(DType::F64);
        let gpu = Tensor::<Gpu, 4>::from_data(data, (&Default::default(), self.dtype));
        let cpu = Tensor::<F64, 4>::from_data(exact, &Default::default());
        match transposed {
            true => (lower(gpu.swap_dims(1, 2)), lower(cpu.swap_dims(1, 2))),
            false => (lower(gpu), lower(cpu)),
        }
    }
}

/// Fills the memory with NaN that the next outputs will reuse.
fn poison(case: Case, dtype: DType) {
    let device = Default::default();
    let shapes = [case.query(), case.key()];
    let nans: Vec<_> = shapes
        .iter()
        .flat_map(|shape| std::iter::repeat_n(*shape, 4))
        .map(|shape| Tensor::<Gpu, 4>::full(shape, f32::NAN, (&device, dtype)))
        .collect();
    Gpu::sync(&device).unwrap();
    drop(nans);
}

/// The largest error of each of the nine results of one case.
fn errors(case: Case, dtype: DType, transposed: bool, present: [bool; 3]) -> [f64; 9] {
    abort_on_device_panic();
    let scale = 1.0 / (case.dim as f64).sqrt();
    let mut inputs = Inputs {
        dtype,
        transposed,
        seed: case.dim as u64 * 1000 + case.key_len as u64,
    };
    let (q, q64) = inputs.next(case.query());
    let (k, k64) = inputs.next(case.key());
    let (v, v64) = inputs.next(case.key());
    let (grad_out, grad_out64) = inputs.next(case.query());
    let shapes = [case.query(), case.key(), case.key()];
    let mut at = 0..3;
    let cotangents = shapes.map(|shape| {
        let pair = inputs.next(shape);
        present[at.next().unwrap()].then_some(pair)
    });
    let [a, b, c] = cotangents;
    let split = |x: Option<(FloatTensor<Gpu>, FloatTensor<F64>)>| x.unzip();
    let ((a, a64), (b, b64), (c, c64)) = (split(a), split(b), split(c));

    poison(case, dtype);
    let (out, lse) = Gpu::causal_attention(q.clone(), k.clone(), v.clone(), scale);
    let (out64, lse64) = F64::causal_attention(q64.clone(), k64.clone(), v64.clone(), scale);
    poison(case, dtype);
    let first = Gpu::causal_attention_backward(
        q.clone(),
        k.clone(),
        v.clone(),
        out.clone(),
        lse.clone(),
        grad_out.clone(),
        scale,
        // What the gradients are added to has the shapes of their cotangents.
        [a.clone(), b.clone(), c.clone()],
    );
    let first64 = F64::causal_attention_backward(
        q64.clone(),
        k64.clone(),
        v64.clone(),
        out64.clone(),
        lse64.clone(),
        grad_out64.clone(),
        scale,
        [a64.clone(), b64.clone(), c64.clone()],
    );
    poison(case, dtype);
    let second = Gpu::causal_attention_double_backward(
        q,
        k,
        v,
        out.clone(),
        lse.clone(),
        grad_out,
        [a, b, c],
        scale,
    );
    let second64 = F64::causal_attention_double_backward(
        q64,
        k64,
        v64,
        out64.clone(),
        lse64.clone(),
        grad_out64,
        [a64, b64, c64],
        scale,
    );
    let [dq, dk, dv] = first;
    let [dq64, dk64, dv64] = first64;
    let [g1, g2, g3, g4] = second;
    let [h1, h2, h3, h4] = second64;
    [
        error::<4>(out, out64),
        error::<4>(lse, lse64),
        error::<4>(dq, dq64),
        error::<4>(dk, dk64),
        error::<4>(dv, dv64),
        error::<4>(g1, h1),
        error::<4>(g2, h2),
        error::<4>(g3, h3),
        error::<4>(g4, h4),
    ]
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

fn check(case: Case, dtype: DType, transposed: bool, present: [bool; 3], tolerance: f64) -> f64 {
    let errors = errors(case, dtype, transposed, present);
    for (name, error) in NAMES.iter().zip(errors) {
        assert!(
            error <= tolerance,
            "{name} has error {error:.1e} in {case:?}, {dtype:?}, transposed {transposed}, cotangents {present:?}\n{errors:?}"
        );
    }
    errors.into_iter().fold(0.0, f64::max)
}

const LENS: [usize; 15] = [1, 257, 2, 129, 3, 128, 15, 100, 16, 65, 17, 64, 31, 63, 33];
const HEADS: [(usize, usize); 5] = [(1, 1), (2, 2), (4, 2), (3, 1), (6, 2)];

/// Every length with each of the head dims `dims` if `every`, otherwise with one of them in turn.
fn grid(dims: &[usize], every: bool) -> Vec<Case> {
    let pairs = LENS.iter().enumerate().flat_map(|(i, &len)| {
        let dims: &[usize] = match every {
            true => dims,
            false => &dims[i % dims.len()..][..1],
        };
        dims.iter().map(move |&dim| (len, dim))
    });
    let cases = pairs.enumerate().map(|(at, (len, dim))| {
        let (heads, kv_heads) = HEADS[at % HEADS.len()];
        Case {
            batch: 1 + at % 2,
            heads,
            kv_heads,
            // Some cases have more keys than queries, as with a key/value cache.
            query_len: if at % 4 == 3 { len.div_ceil(3) } else { len },
            key_len: len,
            dim,
        }
    });
    cases.collect()
}

fn check_all(cases: &[Case], dtype: DType, tolerance: f64) {
    let errors = cases
        .iter()
        .enumerate()
        .map(|(i, case)| check(*case, dtype, i % 2 == 1, [true; 3], tolerance));
    let worst = errors.fold(0.0, f64::max);
    println!("largest relative error in {dtype:?}: {worst:.1e}");
}

#[test]
fn unwritten_outputs_would_be_nan() {
    let case = Case {
        batch: 1,
        heads: 2,
        kv_heads: 2,
        query_len: 9,
        key_len: 9,
        dim: 16,
    };
    poison(case, DType::F32);
    let untouched = Tensor::<Gpu, 4>::empty(case.query(), &Default::default());
    let values = untouched.into_data().to_vec::<f32>().unwrap();
    assert!(values.iter().any(|x| x.is_nan()));
}

#[test]
fn f32_is_within_1e_4() {
    check_all(&grid(&[8, 64, 20, 32], false), DType::F32, 1e-4);
}

/// `cargo test --release -p gradmem-kernels --features vulkan,ndarray --test fused_vulkan -- --ignored`
#[test]
#[ignore = "takes many minutes on a software driver"]
fn f32_is_within_1e_4_for_every_length_with_every_head_dim() {
    let dims = [1, 3, 8, 16, 20, 32, 40, 64, 80, 96, 128, 256];
    check_all(&grid(&dims, true), DType::F32, 1e-4);
}

#[test]
fn absent_cotangents_count_as_zero() {
    let case = Case {
        batch: 2,
        heads: 4,
        kv_heads: 2,
        query_len: 37,
        key_len: 41,
        dim: 20,
    };
    for bits in [0b000, 0b001, 0b010, 0b100, 0b011] {
        let present = [0, 1, 2].map(|i| bits >> i & 1 == 1);
        check(case, DType::F32, false, present, 1e-4);
    }
}

/// Sums are in f32, so that only the rounding of stored values counts.
fn check_16_bit(dtype: DType, tolerance: f64) {
    if !Gpu::supports_dtype(&Default::default(), dtype) {
        println!("this device does not support {dtype:?}: skipped");
        return;
    }
    let mut cases = grid(&[64, 20, 128], false);
    cases.truncate(6);
    check_all(&cases, dtype, tolerance);
}

#[test]
fn bf16_is_within_2e_2() {
    check_16_bit(DType::BF16, 2e-2);
}

#[test]
fn f16_is_within_5e_3() {
    check_16_bit(DType::F16, 5e-3);
}

/// The kernels take less additional device memory than one matrix of scores; the reference takes several
/// matrices.
#[test]
fn memory_does_not_grow_with_the_square_of_the_sequence() {
    use gradmem_kernels::{Attention, set_attention};
    let case = Case {
        batch: 1,
        heads: 1,
        kv_heads: 1,
        query_len: 2048,
        key_len: 2048,
        dim: 8,
    };
    let growth = |attention| {
        set_attention(attention);
        let mut inputs = Inputs {
            dtype: DType::F32,
            transposed: false,
            seed: 1,
        };
        let [q, k, v, grad_out, a, b, c] = [(); 7].map(|()| inputs.next(case.query()).0);
        Gpu::sync(&Default::default()).unwrap();
        let reserved = |x: &FloatTensor<Gpu>| x.client.memory_usage().unwrap().bytes_reserved;
        let before = reserved(&q);
        let like = q.clone();
        let (out, lse) = Gpu::causal_attention(q.clone(), k.clone(), v.clone(), 0.3);
        let [dq, ..] = Gpu::causal_attention_backward(
            q.clone(),
            k.clone(),
            v.clone(),
            out.clone(),
            lse.clone(),
            grad_out.clone(),
            0.3,
            [None, None, None],
        );
        let cotangents = [Some(a), Some(b), Some(c)];
        let second =
            Gpu::causal_attention_double_backward(q, k, v, out, lse, grad_out, cotangents, 0.3);
        drop((dq, second));
        Gpu::sync(&Default::default()).unwrap();
        reserved(&like) - before
    };
    let scores = 2048 * 2048 * 4;
    let fused = growth(Attention::Fused);
    let reference = growth(Attention::Reference);
    set_attention(Attention::Fused);
    println!("growth in bytes: fused {fused}, reference {reference}");
    assert!(fused < scores && reference > 2 * scores);
}

/// A logger that records the warnings of this process.
struct Warnings(Mutex<Vec<String>>);

impl log::Log for Warnings {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.level() == log::Level::Warn {
            self.0.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

#[test]
fn the_reference_computes_unsupported_head_dims_and_logs_one_warning() {
    static WARNINGS: Warnings = Warnings(Mutex::new(Vec::new()));
    log::set_logger(&WARNINGS).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    let case = Case {
        batch: 1,
        heads: 2,
        kv_heads: 1,
        query_len: 5,
        key_len: 7,
        dim: 300,
    };
    for _ in 0..2 {
        check(case, DType::F32, false, [true; 3], 1e-4);
    }
    let warnings = WARNINGS.0.lock().unwrap();
    let about = warnings
        .iter()
        .filter(|text| text.contains("up to 256, not 300"));
    assert_eq!(about.count(), 1, "{warnings:?}");
}
