//! `gradmem bench attention`: the passes of causal attention.

use std::process::ExitCode;
use std::time::Instant;

use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::{DType, Distribution, Tensor, TensorPrimitive};
use gradmem::Error;
use gradmem::kernels::KernelBackend;
use serde::Serialize;

use super::{
    check_rounds, check_shape, median, peak_rss_bytes, print_json, print_memory, synchronize,
};
use crate::args::{Backend, at_least_one};
use crate::backend::{Job, device_bytes, dispatch};
use crate::output::say;

/// Measure the forward, backward and double backward pass of causal attention.
#[derive(clap::Args, Clone)]
pub struct AttentionArgs {
    /// Sequence length, in tokens.
    #[arg(long, default_value_t = 1024)]
    seq: usize,
    /// Sequences.
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Query heads.
    #[arg(long, default_value_t = 12)]
    heads: usize,
    /// Key/value heads [default: as many as heads].
    #[arg(long)]
    kv_heads: Option<usize>,
    /// Width of a head.
    #[arg(long, default_value_t = 64)]
    dim: usize,
    /// Element type.
    #[arg(long, value_enum, default_value_t = Float::F32)]
    dtype: Float,
    /// Rounds that are timed, after the warm-up.
    #[arg(long, default_value_t = 10)]
    iters: usize,
    /// Rounds before those that are timed.
    #[arg(long, default_value_t = 3)]
    warmup: usize,
    /// Also measure a square matrix product, to compare with what the device reaches.
    #[arg(long)]
    matmul: bool,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backend: Backend,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum Float {
    F32,
    F16,
    Bf16,
}

/// The result, as `--json` prints it.
#[derive(Serialize)]
struct Report {
    seq: usize,
    forward_seconds: f64,
    backward_seconds: f64,
    double_backward_seconds: f64,
    /// Floating-point operations per second in the twelve matrix products that the double backward needs,
    /// over the keys that each query sees.
    double_backward_flops_per_second: f64,
    /// The same of Burn's square matrix product in this type; NaN without --matmul.
    matmul_flops_per_second: f64,
    peak_rss_bytes: Option<u64>,
    peak_device_bytes: Option<u64>,
}

pub fn run(args: AttentionArgs) -> Result<ExitCode, Error> {
    let (backend, json, seq) = (args.backend.clone(), args.json, args.seq);
    let (matmul, dtype) = (args.matmul, args.dtype);
    at_least_one(&[
        ("--seq", seq),
        ("--batch", args.batch),
        ("--heads", args.heads),
        ("--kv-heads", args.kv_heads.unwrap_or(1)),
        ("--dim", args.dim),
        ("--iters", args.iters),
    ])?;
    check_rounds(args.iters, args.warmup)?;
    check_shape(&[args.batch, args.heads, seq, args.dim])?;
    if args.backend.precision.is_some() {
        let problem = "--precision: attention is measured in the type of its tensors; use --dtype";
        return Err(Error::Input(problem.into()));
    }
    let pairs = (seq * (seq + 1) / 2 * args.batch * args.heads) as f64;
    let flops = 12.0 * 2.0 * pairs * args.dim as f64;
    let [forward, backward, double_backward] = dispatch(&backend, args.clone())?;
    let memory = (peak_rss_bytes(), device_bytes(&backend.name));
    let product = match matmul {
        true => dispatch(&backend, Matmul(args))?,
        false => f64::NAN,
    };
    let report = Report {
        seq,
        forward_seconds: forward,
        backward_seconds: backward,
        double_backward_seconds: double_backward,
        double_backward_flops_per_second: flops / double_backward,
        matmul_flops_per_second: product,
        peak_rss_bytes: memory.0,
        peak_device_bytes: memory.1,
    };
    if json {
        print_json(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    say!(
        "seq {seq}: forward {:.3} ms, backward {:.3} ms, double backward {:.3} ms ({:.3} TFLOP/s)",
        forward * 1e3,
        backward * 1e3,
        double_backward * 1e3,
        report.double_backward_flops_per_second / 1e12,
    );
    if matmul {
        let flops = report.matmul_flops_per_second / 1e12;
        let dtype = format!("{dtype:?}").to_lowercase();
        say!("a product of matrices of {dtype}: {flops:.3} TFLOP/s");
    }
    print_memory(report.peak_rss_bytes, report.peak_device_bytes);
    Ok(ExitCode::SUCCESS)
}

impl Job for AttentionArgs {
    /// Median seconds of the forward, the backward and the double backward pass.
    type Output = [f64; 3];

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<[f64; 3], Error> {
        let kv_heads = self.kv_heads.unwrap_or(self.heads);
        if !self.heads.is_multiple_of(kv_heads) {
            return Err(Error::Input(
                "--heads must be a multiple of --kv-heads".into(),
            ));
        }
        let dtype = float_type::<B>(self.dtype, device)?;
        let query = [self.batch, self.heads, self.seq, self.dim];
        let key = [self.batch, kv_heads, self.seq, self.dim];
        let random = |shape: [usize; 4]| {
            let x = Tensor::<B, 4>::random(shape, Distribution::Default, device).cast(dtype);
            match x.into_primitive() {
                TensorPrimitive::Float(x) => Ok(x),
                TensorPrimitive::QFloat(_) => Err(Error::Input("random numbers are floats".into())),
            }
        };
        let [q, grad_out, a] = [random(query)?, random(query)?, random(query)?];
        let [k, v, b, c] = [random(key)?, random(key)?, random(key)?, random(key)?];
        let scale = 1.0 / (self.dim as f64).sqrt();
        let (out, lse) = B::causal_attention(q.clone(), k.clone(), v.clone(), scale);

        let forward = self.time::<B, _>(device, || {
            B::causal_attention(q.clone(), k.clone(), v.clone(), scale)
        })?;
        let backward = self.time::<B, _>(device, || {
            B::causal_attention_backward(
                q.clone(),
                k.clone(),
                v.clone(),
                out.clone(),
                lse.clone(),
                grad_out.clone(),
                scale,
                [None, None, None],
            )
        })?;
        let double_backward = self.time::<B, _>(device, || {
            B::causal_attention_double_backward(
                q.clone(),
                k.clone(),
                v.clone(),
                out.clone(),
                lse.clone(),
                grad_out.clone(),
                [Some(a.clone()), Some(b.clone()), Some(c.clone())],
                scale,
            )
        })?;
        Ok([forward, backward, double_backward])
    }
}

impl AttentionArgs {
    /// The median seconds of `work`, with synchronization in every round.
    fn time<B: BurnBackend, R>(
        &self,
        device: &B::Device,
        work: impl Fn() -> R,
    ) -> Result<f64, Error> {
        let mut seconds = Vec::new();
        for iteration in 0..self.warmup + self.iters {
            synchronize::<B>(device)?;
            let start = Instant::now();
            drop(work());
            synchronize::<B>(device)?;
            if iteration >= self.warmup {
                seconds.push(start.elapsed().as_secs_f64());
            }
        }
        Ok(median(&mut seconds))
    }
}

/// Floating-point operations per second of Burn's matrix product.
struct Matmul(AttentionArgs);

impl Job for Matmul {
    type Output = f64;

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<f64, Error> {
        const SIDE: usize = 4096;
        let dtype = float_type::<B>(self.0.dtype, device)?;
        let [x, y] = [(); 2].map(|()| {
            Tensor::<B, 2>::random([SIDE, SIDE], Distribution::Default, device).cast(dtype)
        });
        let seconds = self
            .0
            .time::<B, _>(device, || x.clone().matmul(y.clone()))?;
        Ok(2.0 * (SIDE as f64).powi(3) / seconds)
    }
}

fn float_type<B: BurnBackend>(float: Float, device: &B::Device) -> Result<DType, Error> {
    let dtype = match float {
        Float::F32 => DType::F32,
        Float::F16 => DType::F16,
        Float::Bf16 => DType::BF16,
    };
    match B::supports_dtype(device, dtype) {
        true => Ok(dtype),
        false => Err(Error::Input(format!(
            "--dtype: this device does not compute in {dtype:?}"
        ))),
    }
}
