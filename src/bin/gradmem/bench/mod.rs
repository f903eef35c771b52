//! `gradmem bench`: how long a training step takes, attention alone, or many questions to one context, and in
//! how much memory.

mod read;

use std::process::ExitCode;
use std::time::Instant;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::optim::{AdamWConfig, GradientsAccumulator, Optimizer};
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::{DType, Distribution, Tensor, TensorPrimitive};
use gradmem::Error;
use gradmem::episode::{Episode, Tokens};
use gradmem::kernels::KernelBackend;
use gradmem::memory::{GradMemConfig, MetaGradient};
use gradmem::model::LlamaConfig;
use gradmem::support::profile::{self, Phase, timed};
use serde::Serialize;

use crate::args::{AttentionBench, Bench, BenchPart, Float, StepBench};
use crate::backend::{Job, device_bytes, dispatch};
use crate::output::say;

pub fn bench(args: Bench) -> Result<ExitCode, Error> {
    match args.part {
        None => step(args.step),
        Some(BenchPart::Attention(args)) => attention(args),
        Some(BenchPart::Read(args)) => read::read(args),
    }
}

/// What was measured, as `--json` prints it; the names are those of `benches/torch_baseline.py`.
#[derive(Serialize)]
struct StepReport {
    /// The median.
    seconds_per_step: f64,
    loss: f64,
    /// The way to the outer gradient that was taken; none with --test-time.
    meta_gradient: Option<MetaGradient>,
    peak_rss_bytes: Option<u64>,
    peak_device_bytes: Option<u64>,
}

fn step(args: StepBench) -> Result<ExitCode, Error> {
    let (backend, json) = (args.backend.clone(), args.json);
    let (mut seconds, loss, meta_gradient) = dispatch(&backend, args)?;
    let report = StepReport {
        seconds_per_step: median(&mut seconds),
        loss,
        meta_gradient,
        peak_rss_bytes: peak_rss_bytes(),
        peak_device_bytes: device_bytes(&backend.name),
    };
    if json {
        print_json(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    say!(
        "{:.4} s a step (median of {}), loss {:.4}{}",
        report.seconds_per_step,
        seconds.len(),
        report.loss,
        report
            .meta_gradient
            .map_or(String::new(), |how| format!(", {how:?}")),
    );
    print_memory(report.peak_rss_bytes, report.peak_device_bytes);
    Ok(ExitCode::SUCCESS)
}

impl Job for StepBench {
    type Output = (Vec<f64>, f64, Option<MetaGradient>);

    /// The same work as `benches/torch_baseline.py`: a Llama with a tied head, mean losses, AdamW.
    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<Self::Output, Error> {
        if self.query < 2 || self.iters == 0 || self.queries == 0 || self.micro_batch == Some(0) {
            return Err(Error::Input(
                "--query must be at least 2, --queries, --iters and --micro-batch at least 1"
                    .into(),
            ));
        }
        let positions = self.memory.saturating_add(self.context.max(self.query));
        bounded(&[self.batch, self.queries, positions, self.dim])?;
        let model = LlamaConfig::new(self.vocab, self.dim, self.layers, self.heads)
            .with_tied_head(true)
            .with_max_positions(positions)
            .init::<Autodiff<B>>(self.seed, device)?;
        let mut gradmem = GradMemConfig::new()
            .with_memory_tokens(self.memory)
            .with_write_steps(self.steps)
            .with_write_lr(self.write_lr)
            .with_grad_mode(self.grad_mode.into())
            .init(model, self.seed, device)?;
        let mut optimizer = AdamWConfig::new().with_weight_decay(0.0).init();

        let rows = |count: usize, columns: usize, seed: u64| -> Vec<Vec<u32>> {
            let first = 4.min(self.vocab as u64 - 1);
            let many = self.vocab as u64 - first;
            let id = |i: u64| (first + (i * 2654435761 + seed * 40503) / 7 % many) as u32;
            let ids: Vec<u32> = (0..(count * columns) as u64).map(id).collect();
            ids.chunks(columns).map(<[u32]>::to_vec).collect()
        };
        let contexts = Tokens::new(&rows(self.batch, self.context, 1), device)?;
        // The second half of each query is the target.
        let queries = rows(self.batch * self.queries, self.query, 2);
        let half = self.query / 2;
        let answers: Vec<_> = queries.iter().map(|row| row.split_at(half)).collect();
        let episode = Episode::<Autodiff<B>>::from_answers(contexts, &answers)?;
        let contexts = self.micro_batch.unwrap_or(self.batch).clamp(1, self.batch);
        let how = self.meta_gradient.into();
        let how = gradmem.choose(how, [contexts, self.context]);

        let mut seconds = Vec::new();
        let mut last = f64::NAN;
        for iteration in 0..self.warmup + self.iters {
            let start = Instant::now();
            if self.test_time {
                let outer = gradmem.valid().outer(&episode.inner())?;
                last = scalar(outer.loss());
            } else {
                let mut total = GradientsAccumulator::new();
                last = 0.0;
                for part in episode.clone().split(contexts) {
                    let share = part.len() as f64 / self.batch as f64;
                    let (gradient, outer) = gradmem.outer_gradient(&part, how)?;
                    total.accumulate(&gradmem, gradient);
                    last += share * scalar(outer.loss());
                }
                gradmem = timed::<B, _>(Phase::Optimizer, device, || {
                    optimizer.step(1e-4, gradmem, total.grads())
                });
            }
            profile::report(iteration + 1);
            synchronize::<B>(device)?;
            if iteration >= self.warmup {
                seconds.push(start.elapsed().as_secs_f64());
            }
        }
        Ok((seconds, last, (!self.test_time).then_some(how)))
    }
}

fn scalar<B: BurnBackend>(x: Tensor<B, 1>) -> f64 {
    x.into_data().iter::<f64>().next().unwrap_or(f64::NAN)
}

/// One sequence length, one process: so memory is that of this length alone.
#[derive(Serialize)]
struct AttentionReport {
    seq: usize,
    forward_seconds: f64,
    backward_seconds: f64,
    double_backward_seconds: f64,
    /// Multiplications and additions that the double backward's twelve products need at least, as far
    /// as a query sees, by the second.
    double_backward_flops_per_second: f64,
    /// The same of a square matrix product of this type, as Burn computes it on this device.
    matmul_flops_per_second: f64,
    peak_rss_bytes: Option<u64>,
    peak_device_bytes: Option<u64>,
}

fn attention(args: AttentionBench) -> Result<ExitCode, Error> {
    let (backend, json, seq) = (args.backend.clone(), args.json, args.seq);
    let matmul = args.matmul;
    bounded(&[args.batch, args.heads, seq, args.dim])?;
    let pairs = (seq * (seq + 1) / 2 * args.batch * args.heads) as f64;
    let flops = 12.0 * 2.0 * pairs * args.dim as f64;
    let [forward, backward, double_backward] = dispatch(&backend, args.clone())?;
    let memory = (peak_rss_bytes(), device_bytes(&backend.name));
    let product = match matmul {
        true => dispatch(&backend, Matmul(args))?,
        false => f64::NAN,
    };
    let report = AttentionReport {
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
    print_memory(report.peak_rss_bytes, report.peak_device_bytes);
    Ok(ExitCode::SUCCESS)
}

impl Job for AttentionBench {
    /// Medians of the forward, the backward and the double backward.
    type Output = [f64; 3];

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<[f64; 3], Error> {
        let kv_heads = self.kv_heads.unwrap_or(self.heads);
        if self.iters == 0 || kv_heads == 0 || !self.heads.is_multiple_of(kv_heads) {
            return Err(Error::Input(
                "--iters must be at least 1, and --heads a multiple of --kv-heads".into(),
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

impl AttentionBench {
    /// The median time of `work`, every round waited for.
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

/// What the device's own matrix product reaches.
struct Matmul(AttentionBench);

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

/// Fails on sizes of which a tensor would have none, or more numbers than any device can hold.
fn bounded(sizes: &[usize]) -> Result<(), Error> {
    let numbers = sizes.iter().try_fold(1u32, |numbers, size| {
        u32::try_from(*size)
            .ok()
            .and_then(|size| numbers.checked_mul(size))
    });
    match numbers {
        Some(1..) => Ok(()),
        _ => Err(Error::Input(format!(
            "a tensor of {sizes:?} numbers: sizes must be at least 1, and their product below 2³²"
        ))),
    }
}

fn synchronize<B: BurnBackend>(device: &B::Device) -> Result<(), Error> {
    B::sync(device).map_err(|error| Error::Input(format!("the device failed: {error:?}")))
}

fn median(seconds: &mut [f64]) -> f64 {
    seconds.sort_by(f64::total_cmp);
    let half = seconds.len() / 2;
    match seconds.len() % 2 {
        0 => (seconds[half - 1] + seconds[half]) / 2.0,
        _ => seconds[half],
    }
}

/// The most memory this process ever had resident; known on Linux.
fn peak_rss_bytes() -> Option<u64> {
    profile::host_bytes("/proc/self/status", "VmHWM")
}

fn print_json(report: &impl Serialize) -> Result<(), Error> {
    let json = serde_json::to_string(report).map_err(|error| Error::Input(error.to_string()))?;
    say!("{json}");
    Ok(())
}

fn print_memory(rss: Option<u64>, device: Option<u64>) {
    for (bytes, what) in [(rss, "resident"), (device, "reserved on the device")] {
        if let Some(bytes) = bytes {
            say!("{:.1} MiB {what}", bytes as f64 / (1 << 20) as f64);
        }
    }
}
