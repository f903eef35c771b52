//! Every way to the outer gradient leads to the same numbers: Replay and Unrolled, parts of a batch and the
//! whole; in f64.

use std::path::Path;

use burn::backend::Autodiff;
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};
use burn::train::TrainStep;
use gradmem::baselines::{ArmtConfig, ArmtImplementation, InContextConfig, Questions, RmtConfig};
use gradmem::data::Batch;
use gradmem::episode::{Episode, Tokens};
use gradmem::interop::parity;
use gradmem::memory::{GradMemConfig, GradMode, MemProj, MetaGradient};
use gradmem::method::{AnyMethod, MethodConfig};
use gradmem::model::{LlamaConfig, ModelConfig};
use gradmem::support::readback::transfers;
use gradmem::train::learner::{MetaLearner, OuterStep};
use gradmem::train::metrics::Measure;

type I = burn_ndarray::NdArray<f64>;
type B = Autodiff<I>;

fn assert_close(found: &TensorData, expected: &TensorData, what: &str) {
    assert_eq!(found.shape, expected.shape, "{what}");
    let largest = expected.iter::<f64>().map(f64::abs).fold(1e-6, f64::max);
    for (a, b) in found.iter::<f64>().zip(expected.iter::<f64>()) {
        assert!((a - b).abs() <= 1e-11 * largest, "{what}: {a} is not {b}");
    }
}

/// All that the reference cases compare, gradients included, to rounding.
#[test]
fn replay_equals_unrolled_on_every_case() {
    let mut cases = 0;
    for folder in ["golden", "oracle"] {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        for entry in std::fs::read_dir(tests.join(folder)).unwrap() {
            let case = entry.unwrap().path();
            if !case.is_dir() {
                continue;
            }
            let compute = |how| parity::compute::<I>(&case, how, &Default::default()).unwrap();
            let unrolled = compute(MetaGradient::Unrolled);
            let replay = compute(MetaGradient::Replay);
            let name = |x: &(String, TensorData)| x.0.clone();
            let names: Vec<_> = unrolled.iter().map(name).collect();
            assert_eq!(names, replay.iter().map(name).collect::<Vec<_>>());
            for ((name, found), (_, expected)) in replay.iter().zip(&unrolled) {
                assert_close(found, expected, &format!("{}: {name}", case.display()));
            }
            cases += 1;
        }
    }
    assert!(cases > 40);
}

fn method(config: MethodConfig) -> AnyMethod<B> {
    let model = LlamaConfig {
        // Weights large enough that every curvature shows.
        initializer_range: 0.4,
        ..LlamaConfig::new(11, 8, 2, 2)
    };
    let model = ModelConfig::Llama(model);
    config.init(&model, 3, &Default::default()).unwrap()
}

fn gradmem(change: impl FnOnce(&mut GradMemConfig)) -> AnyMethod<B> {
    let mut config = GradMemConfig {
        memory_tokens: 3,
        memory_std: 0.5,
        write_steps: 3,
        write_lr: 0.3,
        ..GradMemConfig::default()
    };
    change(&mut config);
    method(MethodConfig::GradMem(config))
}

/// Contexts of different lengths, queries with different numbers of labels.
fn batch() -> Batch<B> {
    let device = Default::default();
    let contexts: [&[u32]; 5] = [
        &[4, 7, 2, 9, 4],
        &[5, 10, 3],
        &[6, 1],
        &[8, 8, 8, 2],
        &[3, 9, 5, 7, 1],
    ];
    let contexts = Tokens::new(&contexts, &device).unwrap();
    let queries: Vec<[u32; 5]> = (0..10)
        .map(|i| [1 + i % 10, 2, 3 + i % 7, 4, 5 + i % 5])
        .collect();
    let labels: Vec<Vec<i64>> = queries
        .iter()
        .enumerate()
        .map(|(i, row)| {
            let label = |at: usize| if at > i % 5 { i64::from(row[at]) } else { -1 };
            (0..5).map(label).collect()
        })
        .collect();
    let queries = Tokens::new(&queries, &device).unwrap();
    Batch {
        episode: Episode::new(contexts, queries, &labels).unwrap(),
        scored: labels,
        asked: Vec::new(),
    }
}

/// Gradients by the parameters' order, and the scores that are means.
fn step(method: &AnyMethod<B>, settings: OuterStep) -> (Vec<TensorData>, Vec<Option<f64>>) {
    struct Collect<'a>(&'a GradientsParams, Vec<TensorData>);
    impl ModuleVisitor<B> for Collect<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            if let Some(gradient) = self.0.get::<I, D>(param.id) {
                self.1.push(gradient.into_data());
            }
        }
    }
    let learner = MetaLearner::new(method.clone(), settings);
    let before = transfers();
    let output = learner.step(Ok(batch()));
    assert_eq!(transfers() - before, 1, "read-backs of a step");
    assert!(output.item.error.is_none(), "{:?}", output.item.error);
    let mut collected = Collect(&output.grads, Vec::new());
    method.visit(&mut collected);
    let scores = Measure::ALL.iter();
    let scores = scores.map(|measure| output.item.scores.mean(*measure));
    (collected.1, scores.collect())
}

fn check(method: AnyMethod<B>, what: &str) {
    for clip_norm in [None, Some(1e-2)] {
        let settings = OuterStep {
            clip_norm,
            ..OuterStep::default()
        };
        let (whole, scores) = step(&method, settings.clone());
        assert!(!whole.is_empty());
        for meta_gradient in [MetaGradient::Unrolled, MetaGradient::Replay] {
            for contexts in [1, 2, 3, 64] {
                let (parts, of_parts) = step(
                    &method,
                    OuterStep {
                        meta_gradient,
                        micro_batch: Some(contexts),
                        ..settings.clone()
                    },
                );
                let what = format!(
                    "{what}, {meta_gradient:?}, {contexts} at once, clipped to {clip_norm:?}"
                );
                assert_eq!(parts.len(), whole.len(), "{what}");
                for (found, expected) in parts.iter().zip(&whole) {
                    assert_close(found, expected, &what);
                }
                for (found, expected) in of_parts.iter().zip(&scores) {
                    let close = match (found, expected) {
                        (Some(a), Some(b)) => (a - b).abs() <= 1e-11 * b.abs().max(1e-3),
                        (a, b) => a == b,
                    };
                    assert!(close, "{what}: {found:?} is not {expected:?}");
                }
            }
        }
    }
}

#[test]
fn parts_of_a_batch_sum_up_to_the_whole() {
    check(gradmem(|_| {}), "second order");
    check(
        gradmem(|config| {
            config.inner_loss_weight = 0.7;
            config.inner_clip_norm = Some(0.2);
            config.second_order_steps = Some(2);
            config.write_head = true;
        }),
        "clipping, inner loss, last 2 of 3",
    );
    check(
        gradmem(|config| {
            config.mem_proj = MemProj::PerSample;
            config.write_lora_rank = 2;
            config.ctrl_tokens = 1;
        }),
        "per sample, adapters",
    );
    for grad_mode in [GradMode::First, GradMode::None] {
        check(
            gradmem(|config| {
                config.grad_mode = grad_mode;
                config.inner_loss_weight = 0.7;
            }),
            &format!("{grad_mode:?}"),
        );
    }
    for write_steps in [0, 1] {
        check(
            gradmem(|config| config.write_steps = write_steps),
            &format!("K = {write_steps}"),
        );
    }
}

#[test]
fn the_baselines_too() {
    let rmt = RmtConfig {
        memory_tokens: 3,
        write_steps: 2,
        reconstruction_loss_weight: 0.6,
        ..RmtConfig::default()
    };
    check(method(MethodConfig::Rmt(rmt)), "RMT");
    for questions in [Questions::Separate, Questions::Shared, Questions::Joint] {
        let config = InContextConfig::new().with_questions(questions);
        let what = format!("in-context, {questions:?}");
        check(method(MethodConfig::InContext(config)), &what);
    }
    for implementation in [ArmtImplementation::Thinking, ArmtImplementation::Old] {
        for segment_size in [None, Some(2)] {
            let armt = ArmtConfig::new()
                .with_implementation(implementation)
                .with_memory_tokens(3)
                .with_keys(6, 2)
                .with_segment_size(segment_size)
                .with_memory_std(Some(0.5));
            let what = format!("ARMT, {implementation:?}, segments of {segment_size:?}");
            check(writing(method(MethodConfig::Armt(armt))), &what);
        }
    }
}

/// With values that are not zero, as they are at the start.
fn writing(method: AnyMethod<B>) -> AnyMethod<B> {
    let AnyMethod::Armt(mut armt) = method else {
        panic!("not ARMT")
    };
    for maps in &mut armt.layers {
        maps.w_mv.weight = maps.w_mv.weight.clone().map(|x| {
            let values = (0..64)
                .map(|i| ((i * 37 % 23) as f64 - 11.0) / 20.0)
                .collect::<Vec<_>>();
            Tensor::from_data(TensorData::new(values, x.dims()), &x.device()).require_grad()
        });
    }
    AnyMethod::Armt(armt)
}
