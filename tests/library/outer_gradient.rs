//! Every way to the outer gradient leads to the same numbers: Replay and Unrolled, parts of a batch and the
//! whole; in f64.

use burn::backend::Autodiff;
use burn::train::TrainStep;
use gradmem::baselines::{ArmtConfig, ArmtImplementation, InContextConfig, Questions, RmtConfig};
use gradmem::data::Batch;
use gradmem::episode::{Episode, Tokens};
use gradmem::memory::{GradMemConfig, GradMode, MemProj, MetaGradient};
use gradmem::method::{AnyMethod, Method, MethodConfig};
use gradmem::model::{LlamaConfig, ModelConfig};
use gradmem::support::readback::transfers;
use gradmem::train::learner::{MetaLearner, OuterStep};
use gradmem::train::metrics::Measure;

use crate::shared::{Gradients, assert_close, gradients, writing};

type I = burn_ndarray::NdArray<f64>;
type B = Autodiff<I>;

fn method(config: MethodConfig) -> AnyMethod<B> {
    let model = LlamaConfig {
        // Weights large enough that every curvature shows.
        initializer_range: 0.4,
        ..LlamaConfig::new(11, 8, 1, 2)
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

/// The gradients, and the scores that are means.
fn step(method: &AnyMethod<B>, settings: OuterStep) -> (Gradients, Vec<Option<f64>>) {
    let learner = MetaLearner::new(method.clone(), settings);
    let before = transfers();
    let output = learner.step(Ok(batch()));
    assert_eq!(transfers() - before, 1, "read-backs of a step");
    assert!(output.item.error.is_none(), "{:?}", output.item.error);
    let scores = Measure::ALL.iter();
    let scores = scores.map(|measure| output.item.scores.mean(*measure));
    (gradients(method, &output.grads), scores.collect())
}

/// Parts of each of these sizes against the whole batch.
fn check(what: &str, method: &AnyMethod<B>, sizes: &[usize], clip_norm: Option<f64>) {
    let settings = OuterStep {
        clip_norm,
        ..OuterStep::default()
    };
    let (whole, scores) = step(method, settings.clone());
    let strategies: &[MetaGradient] = match method {
        AnyMethod::GradMem(_) => &[MetaGradient::Unrolled, MetaGradient::Replay],
        // The others do not ask.
        _ => &[MetaGradient::Unrolled],
    };
    for meta_gradient in strategies {
        for contexts in sizes {
            let (parts, of_parts) = step(
                method,
                OuterStep {
                    meta_gradient: *meta_gradient,
                    micro_batch: Some(*contexts),
                    ..settings.clone()
                },
            );
            let what = format!("{what}, {meta_gradient:?}, {contexts} at once");
            for ((name, found), (_, expected)) in parts.iter().zip(&whole) {
                assert_close(&format!("{what}: {name}"), found, expected, 1e-11);
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

/// One, two or three of five contexts, and more than there are.
const SIZES: [usize; 4] = [1, 2, 3, 64];

#[test]
fn parts_of_every_size_sum_up_to_the_whole() {
    for clip_norm in [None, Some(1e-2)] {
        let what = format!("clipped to {clip_norm:?}");
        check(&what, &gradmem(|_| {}), &SIZES, clip_norm);
    }
}

#[test]
fn parts_of_a_batch_sum_up_to_the_whole() {
    let clipping = gradmem(|config| {
        config.inner_loss_weight = 0.7;
        config.inner_clip_norm = Some(0.2);
        config.second_order_steps = Some(2);
        config.write_head = true;
    });
    check("clipping, inner loss, last 2 of 3", &clipping, &[2], None);
    let per_sample = gradmem(|config| {
        config.mem_proj = MemProj::PerSample;
        config.write_lora_rank = 2;
        config.ctrl_tokens = 1;
    });
    check("per sample, adapters", &per_sample, &[2], None);
    for grad_mode in [GradMode::First, GradMode::None] {
        let method = gradmem(|config| {
            config.grad_mode = grad_mode;
            config.inner_loss_weight = 0.7;
        });
        check(&format!("{grad_mode:?}"), &method, &[2], None);
    }
    for write_steps in [0, 1] {
        let method = gradmem(|config| config.write_steps = write_steps);
        check(&format!("K = {write_steps}"), &method, &[2], None);
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
    let rmt = method(MethodConfig::Rmt(rmt));
    check("RMT", &rmt, &SIZES, None);
    // What stands at the start of a row is not predicted, neither in the loss nor in what is told.
    assert_eq!(rmt.answers(&batch().episode).unwrap().predicted.first, 1);
    for questions in [Questions::Separate, Questions::Shared, Questions::Joint] {
        let config = InContextConfig::new().with_questions(questions);
        let what = format!("in-context, {questions:?}");
        check(
            &what,
            &method(MethodConfig::InContext(config)),
            &[1, 2],
            None,
        );
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
            let AnyMethod::Armt(armt) = method(MethodConfig::Armt(armt)) else {
                unreachable!("it is ARMT");
            };
            check(&what, &AnyMethod::Armt(writing(armt)), &[2], None);
        }
    }
}
