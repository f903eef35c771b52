//! Every kind of memory, way of writing chunks and loss beside READ's, in f64: the meta-gradient against central
//! differences, Replay against Unrolled, batches against their samples, and memories that are written on, saved and read.

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module, ModuleMapper, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use gradmem::episode::{Episode, Tokens};
use gradmem::kernels::KernelBackend;
use gradmem::memory::{
    Chunks, EnergyConfig, GateKind, GradMem, GradMemConfig, GradMode, LearnedLr, LiftedObjective,
    LoraPlace, Memory, MemoryFile, MemoryFloat, MemoryKind, MetaGradient, WriteObjective,
};
use gradmem::model::generate::GenerateConfig;
use gradmem::model::{AnyLm, CausalLm, LlamaConfig, ModelConfig};

use crate::differences::{assert_exact, moved};
use crate::shared::{
    Gradients, assert_close, assert_same, gradients, llama, models, number, values,
};

type I = burn_ndarray::NdArray<f64>;
type B = Autodiff<I>;
type Model<B> = GradMem<B, AnyLm<B>>;

/// A Llama of one layer, where depth is no matter.
fn shallow() -> ModelConfig {
    ModelConfig::Llama(LlamaConfig {
        num_hidden_layers: 1,
        ..llama()
    })
}

/// Settings of every kind, with names.
fn kinds() -> Vec<(&'static str, GradMemConfig)> {
    let base = GradMemConfig {
        memory_tokens: 3,
        memory_std: 0.5,
        write_lr: 0.05,
        write_head: true,
        ..GradMemConfig::default()
    };
    let lora = GradMemConfig {
        kind: MemoryKind::Lora,
        lora_rank: 2,
        lora_alpha: 3.0,
        ..base.clone()
    };
    let kv = GradMemConfig {
        kind: MemoryKind::Kv,
        ..base.clone()
    };
    vec![
        ("prefix", base),
        ("lora between layers", lora.clone()),
        (
            "lora of modules",
            GradMemConfig {
                lora_place: LoraPlace::Modules,
                ..lora.clone()
            },
        ),
        ("lora in one layer", lora.with_layers([1])),
        ("keys and values", kv.clone()),
        ("keys and values in one layer", kv.clone().with_layers([1])),
        (
            "keys and values with maps",
            kv.with_mem_proj(gradmem::memory::MemProj::Proj),
        ),
    ]
}

fn fits(model: &ModelConfig, config: &GradMemConfig) -> bool {
    !matches!(model, ModelConfig::Mamba(_)) || config.kind != MemoryKind::Kv
}

fn model<T: KernelBackend>(lm: &ModelConfig, config: &GradMemConfig) -> Model<T> {
    let device = Default::default();
    let lm = lm.init(3, &device).unwrap();
    let gradmem = config.init(lm, 4, &device).unwrap();
    // What starts at zero or the identity is moved, so that every part has a gradient.
    gradmem.map(&mut Shake(0))
}

/// Adds small numbers to every parameter, the same for every backend.
struct Shake(usize);

impl<T: Backend> ModuleMapper<T> for Shake {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<T, D>>) -> Param<Tensor<T, D>> {
        param.map(|tensor| {
            let shape = tensor.dims();
            let values = tensor.to_data().iter::<f64>().collect::<Vec<_>>();
            let values = values.into_iter().map(|value| {
                self.0 += 1;
                value + 0.1 * (self.0 as f64 * 0.7).sin()
            });
            let data = TensorData::new(values.collect::<Vec<f64>>(), shape);
            Tensor::from_data(data, &tensor.device()).set_require_grad(tensor.is_require_grad())
        })
    }
}

const CONTEXTS: [&[u32]; 3] = [&[4, 7, 2, 9, 4, 8, 1], &[5, 10, 3], &[6, 1, 1, 2, 9]];
const ANSWERS: [(&[u32], &[u32]); 6] = [
    (&[4], &[7, 2]),
    (&[9, 3], &[2]),
    (&[5], &[10, 6]),
    (&[2], &[2, 5]),
    (&[6, 1], &[1]),
    (&[1], &[9, 9]),
];

fn contexts<T: Backend>() -> Tokens<T> {
    Tokens::new(&CONTEXTS, &Default::default()).unwrap()
}

fn episode<T: Backend>() -> Episode<T> {
    Episode::from_answers(contexts(), &ANSWERS).unwrap()
}

/// The gradients of the episode, by Unrolled and by Replay.
fn both_ways(model: &Model<B>) -> [Gradients; 2] {
    [MetaGradient::Unrolled, MetaGradient::Replay].map(|how| gradient(model, &episode(), how))
}

fn gradient(model: &Model<B>, episode: &Episode<B>, how: MetaGradient) -> Gradients {
    gradients(model, &model.outer_gradient(episode, how).unwrap().0)
}

/// The sum of gradients of the same parameters.
fn sum(parts: impl Iterator<Item = Gradients>) -> Gradients {
    let sum = parts.reduce(|mut sum, part| {
        for ((_, sum), (_, part)) in sum.iter_mut().zip(part) {
            sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
        }
        sum
    });
    sum.unwrap()
}

/// The meta-gradient by both strategies against each other and against central differences of the loss.
fn check(what: &str, lm: &ModelConfig, config: &GradMemConfig) {
    compare(what, &model::<B>(lm, config), &model::<I>(lm, config));
}

/// The same of a model that is on both backends.
fn compare<P, Q>(what: &str, tracked: &GradMem<B, AnyLm<B>, P>, plain: &GradMem<I, AnyLm<I>, Q>)
where
    P: LiftedObjective<B, AnyLm<B>>,
    Q: LiftedObjective<I, AnyLm<I>>,
    GradMem<B, AnyLm<B>, P>: AutodiffModule<B>,
{
    let by = |how| {
        let (found, outer) = tracked.outer_gradient(&episode(), how).unwrap();
        (gradients(tracked, &found), values(outer.loss())[0])
    };
    let (unrolled, loss) = by(MetaGradient::Unrolled);
    let (replayed, same) = by(MetaGradient::Replay);
    assert!((loss - same).abs() < 1e-12, "{what}: {loss} is not {same}");
    assert_same(what, &replayed, &unrolled);
    let at = |only, by| number(moved(plain, only, by).outer(&episode()).unwrap().loss());
    assert!((at(None, 0.0) - loss).abs() < 1e-12, "{what}");
    assert_exact(what, &unrolled, 2e-5, 1e-6, at);
}

#[test]
fn every_kind_on_every_model_is_the_derivative_of_the_whole() {
    for lm in models() {
        for (kind, config) in kinds() {
            if fits(&lm, &config) {
                let config = config
                    .with_inner_loss_weight(0.4)
                    .with_inner_clip_norm(Some(0.4));
                check(&format!("{kind} on {}", lm.model_type()), &lm, &config);
            }
        }
    }
}

fn in_chunks() -> Vec<(String, GradMemConfig)> {
    let ways = [Chunks::Sequential, Chunks::Parallel, Chunks::Concatenated];
    let kinds = kinds();
    let some = [&kinds[0], &kinds[2], &kinds[4]];
    let all = ways.into_iter().flat_map(|way| {
        some.map(|(kind, config)| {
            let name = format!("{kind}, {way:?}");
            (name, config.clone().with_chunks(3, way))
        })
    });
    all.collect()
}

#[test]
fn every_way_of_chunks_is_the_derivative_of_the_whole() {
    for (name, config) in in_chunks() {
        // One of the ways counts chunks as the reference does; all have the WRITE loss.
        let config = config.with_inner_loss_weight(0.5);
        check(&name, &shallow(), &config);
    }
    let reference = GradMemConfig {
        reference_chunks: true,
        second_order_steps: Some(1),
        ..in_chunks()[3].1.clone()
    };
    // First-order steps are constants: differences do not know that, Replay does.
    let tracked = model::<B>(&shallow(), &reference);
    let [unrolled, replayed] = both_ways(&tracked);
    assert_same("counted as the reference does", &replayed, &unrolled);
}

#[test]
fn every_gate_is_the_derivative_of_the_whole() {
    for gate in [GateKind::Convex, GateKind::Mamba] {
        for gate_dimensions in [true, false] {
            let config = GradMemConfig {
                gate,
                gate_dimensions,
                ..kinds()[0].1.clone().with_chunks(3, Chunks::Sequential)
            };
            check(&format!("{gate:?}"), &shallow(), &config);
        }
    }
}

#[test]
fn what_is_learned_of_the_steps_is_exact() {
    use LearnedLr::{Dimension, Step, Vector};
    let kinds = kinds();
    let [prefix, lora, kv] = [0, 2, 4].map(|kind| kinds[kind].1.clone().with_write_steps(3));
    let own = prefix
        .clone()
        .with_mem_proj(gradmem::memory::MemProj::PerSample);
    let cases = [
        ("momentum", prefix.clone().with_momentum(Some(0.6))),
        ("α of steps", prefix.clone().with_learned_lr([Step])),
        (
            "α of numbers, and momentum",
            own.with_learned_lr([Vector, Dimension])
                .with_momentum(Some(0.4)),
        ),
        (
            "all, lora",
            lora.with_learned_lr([Step, Dimension])
                .with_momentum(Some(0.5)),
        ),
        (
            "all, keys and values in chunks",
            kv.with_learned_lr([Step, Vector])
                .with_momentum(Some(0.5))
                .with_chunks(3, Chunks::Sequential),
        ),
        (
            "all, chunks beside each other",
            prefix
                .clone()
                .with_learned_lr([Dimension, Step])
                .with_momentum(Some(0.5))
                .with_inner_loss_weight(0.3)
                .with_chunks(3, Chunks::Concatenated),
        ),
    ];
    for (what, config) in cases {
        check(what, &shallow(), &config);
    }
    // First-order steps are constants, their sizes are not. Differences do not know that, Replay does.
    for (mode, last) in [(GradMode::First, None), (GradMode::Second, Some(1))] {
        let config = prefix
            .clone()
            .with_learned_lr([Step, Vector])
            .with_momentum(Some(0.5))
            .with_grad_mode(mode)
            .with_second_order_steps(last);
        let tracked = model::<B>(&shallow(), &config);
        let [unrolled, replayed] = both_ways(&tracked);
        assert_same(&format!("{mode:?}"), &replayed, &unrolled);
        for (name, gradient) in unrolled
            .iter()
            .filter(|(name, _)| name.starts_with("inner"))
        {
            let trained = gradient.iter().any(|x| x.abs() > 1e-6);
            assert!(trained, "{name} is not trained");
        }
    }
    // The path of memories is WRITE's, beyond the steps that were trained too.
    let learned = prefix.with_learned_lr([Step]).with_momentum(Some(0.5));
    let model = model::<I>(&shallow(), &learned);
    let contexts = contexts();
    let path: Vec<_> = model.trajectory(&contexts).unwrap().take(6).collect();
    for steps in [3, 5] {
        let written = model
            .clone()
            .with_write_steps(steps)
            .unwrap()
            .write(&contexts)
            .unwrap();
        let gap = written.vectors() - path[steps].vectors();
        assert!(values(gap.abs().max())[0] < 1e-13, "K = {steps}");
    }
}

#[test]
fn a_random_number_of_steps_is_that_of_the_whole_batch() {
    let config = kinds()[0].1.clone().with_random_write_steps(Some([1, 4]));
    let tracked = model::<B>(&shallow(), &config);
    let mut seen = std::collections::BTreeSet::new();
    for first in 0..11u32 {
        let mut rows = CONTEXTS.map(<[u32]>::to_vec);
        rows[0][0] = first;
        let contexts = Tokens::new(&rows, &Default::default()).unwrap();
        let episode: Episode<B> = Episode::from_answers(contexts, &ANSWERS).unwrap();
        let drawn = tracked.outer(&episode).unwrap().memory.losses.len();
        assert!((1..=4).contains(&drawn));
        if !seen.insert(drawn) {
            continue;
        }
        // It is what that number of steps is, whichever way and in parts.
        let fixed = config
            .clone()
            .with_random_write_steps(None)
            .with_write_steps(drawn);
        let fixed = model::<B>(&shallow(), &fixed);
        let expected = gradient(&fixed, &episode, MetaGradient::Unrolled);
        let parts = episode.clone().split(1).into_iter();
        let parts = parts.map(|part| gradient(&tracked, &part, MetaGradient::Replay));
        assert_same(&format!("K = {drawn}"), &sum(parts), &expected);
    }
    assert!(seen.len() > 2, "{seen:?}");
    // The same contexts are written with another number in another step.
    let steps = (0..11).map(|step| {
        let outer = tracked.outer(&episode().at_step(step)).unwrap();
        outer.memory.losses.len()
    });
    let seen: std::collections::BTreeSet<usize> = steps.collect();
    assert!(seen.len() > 2, "{seen:?}");
    let plain = model::<I>(&shallow(), &config);
    assert_eq!(plain.answer(&episode()).unwrap().memory.losses.len(), 2);
}

#[test]
fn the_weight_of_the_write_loss_falls_with_the_steps() {
    let config = kinds()[0].1.clone().with_inner_loss_weight(0.8);
    let falling = config.clone().with_inner_loss_steps(Some(4));
    let falling = model::<B>(&shallow(), &falling);
    for (step, weight) in [(0, 0.8), (1, 0.6), (3, 0.2), (4, 0.0), (9, 0.0)] {
        let fixed = config.clone().with_inner_loss_weight(weight);
        let fixed = model::<B>(&shallow(), &fixed);
        for how in [MetaGradient::Unrolled, MetaGradient::Replay] {
            let parts = episode().at_step(step).split(1).into_iter();
            let parts = parts.map(|part| gradient(&falling, &part, how));
            let expected = gradient(&fixed, &episode(), how);
            assert_same(&format!("step {step}"), &sum(parts), &expected);
        }
    }
}

#[test]
fn smoothed_labels_are_a_part_of_the_loss_on_all_tokens() {
    let model = model::<I>(&shallow(), &kinds()[0].1);
    let (plain, smoothed) = (episode(), episode().with_label_smoothing(0.3));
    let memory = model.write(plain.contexts()).unwrap();
    let logits = model.read(&memory, plain.queries()).unwrap();
    let log_p = values(burn::tensor::activation::log_softmax(logits.clone(), 2));
    let [_, places, vocab] = logits.dims();
    let (mut sum, mut count) = (0.0, 0);
    for (row, labels) in plain.labels().rows().enumerate() {
        for (column, label) in labels.iter().enumerate().filter(|(_, label)| **label >= 0) {
            let start = (row * places + column) * vocab;
            let log_p = &log_p[start..start + vocab];
            let all: f64 = log_p.iter().sum::<f64>() / vocab as f64;
            sum -= 0.7 * log_p[*label as usize] + 0.3 * all;
            count += 1;
        }
    }
    let expected = sum / f64::from(count);
    let found = values(smoothed.read_loss(logits))[0];
    assert!(
        (found - expected).abs() < 1e-12,
        "{found} is not {expected}"
    );
    let (found, told) = model.read_answers(&memory, &smoothed).unwrap();
    let found = values(found)[0];
    assert!(
        (found - expected).abs() < 1e-12,
        "{found} is not {expected}"
    );
    // What is told is the same.
    let (_, plainly) = model.read_answers(&memory, &plain).unwrap();
    let ids = |told: gradmem::episode::Predicted<I>| told.tokens.unwrap().into_data();
    assert_eq!(ids(told), ids(plainly));
}

/// Wherever the labels are, the rows that are not computed change nothing.
#[test]
fn answers_are_those_of_all_logits() {
    let whole = episode();
    let lengths: Vec<usize> = whole.queries().lengths().collect();
    let labelled = |is: fn(usize, usize) -> bool| {
        let rows = lengths.iter().map(|length| {
            let labels = (0..*length).map(|column| if is(column, *length) { 5 } else { -1 });
            labels.collect::<Vec<i64>>()
        });
        rows.collect::<Vec<_>>()
    };
    let patterns = [
        ("none", labelled(|_, _| false)),
        ("the first", labelled(|column, _| column == 0)),
        ("the last", labelled(|column, length| column + 1 == length)),
        ("all", labelled(|_, _| true)),
    ];
    for (name, config) in kinds() {
        let model = model::<I>(&ModelConfig::Llama(llama()), &config);
        let memory = model.write(whole.contexts()).unwrap();
        let logits = model.read(&memory, whole.queries()).unwrap();
        for (place, labels) in &patterns {
            let (contexts, queries) = (whole.contexts().clone(), whole.queries().clone());
            let episode = Episode::new(contexts, queries, labels).unwrap();
            let expected = values(episode.read_loss(logits.clone()));
            let (found, _) = model.read_answers(&memory, &episode).unwrap();
            let what = format!("{name}, labels: {place}");
            assert_close(&what, &values(found), &expected, 1e-12);
        }
    }
}

/// An objective with a parameter: tokens that are predicted badly count more.
#[derive(Module, Debug)]
struct Focal<B: Backend> {
    sharpness: Param<Tensor<B, 1>>,
}

impl<T: Backend> Focal<T> {
    fn new() -> Self {
        let sharpness = Tensor::from_data([0.7], &Default::default());
        Self {
            sharpness: Param::from_tensor(sharpness),
        }
    }
}

impl<T: Backend, M: CausalLm<T>> WriteObjective<T, M> for Focal<T> {
    fn losses(&self, model: &M, hidden: Tensor<T, 3>, next: Tensor<T, 2, Int>) -> Tensor<T, 2> {
        let loss = model.token_losses(model.logits(hidden), next);
        let wrong = (loss.clone().neg() * self.sharpness.val().unsqueeze()).exp();
        wrong.neg().add_scalar(1.0) * loss
    }
}

#[test]
fn another_objective_is_the_derivative_of_the_whole() {
    fn both<P, Q>(what: &str, of_b: P, of_i: Q)
    where
        P: LiftedObjective<B, AnyLm<B>>,
        Q: LiftedObjective<I, AnyLm<I>>,
        GradMem<B, AnyLm<B>, P>: AutodiffModule<B>,
    {
        let device = Default::default();
        for config in [
            kinds()[0].1.clone(),
            kinds()[4].1.clone(),
            kinds()[0].1.clone().with_chunks(3, Chunks::Parallel),
        ] {
            let config = config.with_write_head(false).with_inner_loss_weight(0.3);
            let lm = &shallow();
            let tracked = config.init_with(lm.init(3, &device).unwrap(), of_b.clone(), 4, &device);
            let plain = config.init_with(lm.init(3, &device).unwrap(), of_i.clone(), 4, &device);
            let what = format!("{what}, {:?}, {:?}", config.kind, config.chunk_size);
            compare(
                &what,
                &tracked.unwrap().map(&mut Shake(0)),
                &plain.unwrap().map(&mut Shake(0)),
            );
        }
    }
    let device = Default::default();
    both("focal", Focal::new(), Focal::new());
    for reconstruct in [false, true] {
        let config = EnergyConfig::new(5).with_reconstruct(reconstruct);
        let lm = shallow().init(3, &device).unwrap();
        let of_b = config.init::<B, _>(&lm, 5, &device).unwrap();
        let lm = shallow().init(3, &device).unwrap();
        let of_i = config.init::<I, _>(&lm, 5, &device).unwrap();
        both("energy", of_b, of_i);
    }
}

/// Before the first step, of all chunks: at M0, and at the end of what is written on.
#[test]
fn the_loss_where_write_begins_is_of_all_chunks() {
    let lm = ModelConfig::Llama(llama());
    let zero = |config: &GradMemConfig| model::<I>(&lm, &config.clone().with_write_steps(0));
    for chunks in [Chunks::Sequential, Chunks::Concatenated, Chunks::Parallel] {
        for (kind, config) in kinds() {
            let config = config.with_chunks(3, chunks);
            let gradmem = model::<I>(&lm, &config);
            let start = values(gradmem.start_loss(None, &contexts()).unwrap());
            let none = zero(&config).write(&contexts()).unwrap();
            let at_m0 = values(gradmem.write_loss(&none, &contexts()).unwrap());
            assert_close(&format!("{chunks:?}, {kind}"), &start, &at_m0, 1e-13);
            let written = gradmem.write(&contexts()).unwrap();
            if chunks == Chunks::Parallel {
                // All of them are in the first step.
                let first = values(written.losses[0].clone());
                assert_close(kind, &start, &first, 1e-13);
                continue;
            }
            // Written on with a text of one chunk: the first step's loss is where it begins.
            let more = Tokens::new(&[[8u32, 5, 3]; 3], &Default::default()).unwrap();
            let start = values(gradmem.start_loss(Some(&written), &more).unwrap());
            let on = gradmem.write_on(written, &more).unwrap();
            let first = values(on.losses[0].clone());
            assert_close(&format!("{chunks:?}, {kind}, on"), &start, &first, 1e-13);
        }
    }
}

#[test]
fn an_objective_that_tells_no_tokens_says_so() {
    let device = Default::default();
    let lm: AnyLm<I> = shallow().init(3, &device).unwrap();
    let config = kinds()[0].1.clone();
    let refused = config.init_with(lm.clone(), Focal::new(), 4, &device);
    let refused = refused.err().unwrap().to_string();
    assert!(refused.contains("write_head"), "{refused}");
    let config = config.with_write_head(false);
    let plain = config.init::<I, _>(lm.clone(), 4, &device).unwrap();
    let focal = config.init_with(lm, Focal::new(), 4, &device).unwrap();
    let memory = focal.write(&contexts()).unwrap();
    // Its loss is not the reconstruction's, and is smaller.
    let [own, nats] = [
        values(focal.write_loss(&memory, &contexts()).unwrap()),
        values(plain.write_loss(&memory, &contexts()).unwrap()),
    ];
    assert!(
        own.iter().zip(&nats).all(|(own, nats)| own < nats),
        "{own:?} {nats:?}"
    );
    for refused in [
        focal.reconstruction(&memory, &contexts()).err().unwrap(),
        focal.reconstruct(&memory, &[7, 3, 5]).err().unwrap(),
    ] {
        assert!(refused.to_string().contains("tells no tokens"), "{refused}");
    }
}

#[test]
fn every_loss_beside_reads_is_exact() {
    let base = kinds()[0].1.clone().with_write_steps(3);
    // ĝ and δ are constants, which differences of the whole do not know: these are compared with each other, and with the
    // reference's numbers in tests/golden.
    let constants = [
        (
            "step alignment",
            GradMemConfig {
                step_alignment_weight: 0.7,
                ..base.clone()
            },
        ),
        (
            "step alignment with the last step, by norm",
            GradMemConfig {
                step_alignment_weight: 0.7,
                align_last_step: true,
                alignment_norm: true,
                ..base.clone()
            },
        ),
        (
            "memory alignment",
            GradMemConfig {
                memory_alignment_weight: 0.7,
                ..base.clone()
            },
        ),
        (
            "all of them, in parallel chunks",
            GradMemConfig {
                step_alignment_weight: 0.3,
                align_last_step: true,
                alignment_norm: true,
                intermediate_read_weight: 0.4,
                memory_alignment_weight: 0.2,
                star_weight: 0.3,
                memory_noise: 0.05,
                inner_loss_weight: 0.2,
                ..base.clone()
            }
            .with_chunks(3, Chunks::Parallel),
        ),
        (
            "STAR",
            GradMemConfig {
                star_weight: 0.7,
                star_step: 0.3,
                ..base.clone()
            },
        ),
    ];
    for (what, config) in &constants {
        // What is added is a function of a memory's matrices: other kinds, with more of them, have all at once.
        let kinds = kinds();
        let kinds = match config.chunk_size {
            Some(_) => vec![&kinds[0], &kinds[1], &kinds[4]],
            None => vec![&kinds[0]],
        };
        for (kind, other) in kinds {
            let config = GradMemConfig {
                kind: other.kind,
                lora_rank: other.lora_rank,
                lora_alpha: other.lora_alpha,
                ..config.clone()
            };
            let tracked = model::<B>(&shallow(), &config);
            let [unrolled, replayed] = both_ways(&tracked);
            assert_same(&format!("{what}, {kind}"), &replayed, &unrolled);
            // It is there at all.
            let without = GradMemConfig {
                step_alignment_weight: 0.0,
                align_last_step: false,
                alignment_norm: false,
                memory_alignment_weight: 0.0,
                star_weight: 0.0,
                star_step: base.star_step,
                memory_noise: 0.0,
                ..config.clone()
            };
            let plain = model::<I>(&shallow(), &without).outer(&episode()).unwrap();
            let all = model::<I>(&shallow(), &config).outer(&episode()).unwrap();
            let gap = (values(plain.loss())[0] - values(all.loss())[0]).abs();
            assert!(gap > 1e-5, "{what}, {kind}: adds nothing");
            let quiet = model::<I>(&shallow(), &config).answer(&episode()).unwrap();
            let gap = values(quiet.read_loss)[0] - values(plain.read_loss)[0];
            assert!(gap.abs() < 1e-12, "{what}: an evaluation is without it");
        }
    }
    // This is a function of the parameters like any other.
    let read = GradMemConfig {
        intermediate_read_weight: 0.7,
        ..base.clone()
    };
    check("intermediate READ", &shallow(), &read);
    // The noise is relative to M0, as a constant.
    let noise = GradMemConfig {
        memory_noise: 0.05,
        ..base
    };
    let [unrolled, replayed] = both_ways(&model(&shallow(), &noise));
    assert_same("noise", &replayed, &unrolled);
    // Each step of the outer loop draws its own.
    let gradmem = model::<I>(&shallow(), &noise);
    let loss = |step| values(gradmem.outer(&episode().at_step(step)).unwrap().loss())[0];
    assert_eq!(loss(0), loss(0));
    assert!(loss(0) != loss(1));
}

/// A sample's memory and what it answers depend neither on its neighbours nor on their lengths.
#[test]
fn a_batch_is_its_samples() {
    let whole = kinds()
        .into_iter()
        .map(|(name, config)| (name.to_string(), config));
    let gated = GradMemConfig {
        gate: GateKind::Convex,
        ..in_chunks()[0].1.clone()
    };
    let gated = [("a gate".to_string(), gated)];
    for (name, config) in whole.chain(in_chunks()).chain(gated) {
        let gradmem = model::<I>(
            &ModelConfig::Llama(llama()),
            &config.with_inner_clip_norm(Some(0.3)),
        );
        let queries = Tokens::<I>::new(&[[4, 7], [5, 10], [6, 1]], &Default::default()).unwrap();
        let together = gradmem.write(&contexts()).unwrap();
        let logits = gradmem.read(&together, &queries).unwrap();
        for (row, context) in CONTEXTS.iter().enumerate() {
            let alone = Tokens::new(&[context], &Default::default()).unwrap();
            let alone = gradmem.write(&alone).unwrap();
            let one = together.select(&[row]).unwrap();
            assert_eq!(one.parts().len(), alone.parts().len(), "{name}");
            for (a, b) in one
                .parts()
                .iter()
                .flatten()
                .zip(alone.parts().iter().flatten())
            {
                let gap = values((a.clone() - b.clone()).abs().max())[0];
                assert!(gap < 1e-13, "{name}: sample {row} is off by {gap:.1e}");
            }
            let query = queries.slice(row..row + 1);
            let alone = gradmem.read(&alone, &query).unwrap();
            let gap = values((logits.clone().narrow(0, row, 1) - alone).abs().max())[0];
            assert!(gap < 1e-12, "{name}: answer {row} is off by {gap:.1e}");
        }
    }
}

/// The reference counts as many chunks for each sample as the batch's longest has. What a sample's own chunks lose is not changed.
#[test]
fn the_references_chunks_are_measured_as_a_samples_own() {
    for chunks in [Chunks::Sequential, Chunks::Concatenated] {
        let config = GradMemConfig {
            reference_chunks: true,
            ..kinds()[0].1.clone().with_chunks(3, chunks)
        };
        let config = config.with_inner_loss_weight(0.5);
        let gradmem = model::<I>(&shallow(), &config);
        let written = gradmem.write(&contexts()).unwrap();
        let together = gradmem.reconstruction(&written, &contexts()).unwrap();
        for (row, context) in CONTEXTS.iter().enumerate() {
            let alone = Tokens::new(&[context], &Default::default()).unwrap();
            let one = written.select(&[row]).unwrap();
            let found = gradmem.reconstruction(&one, &alone).unwrap();
            let expected = together.loss.clone().narrow(0, row, 1);
            let name = format!("{chunks:?}, sample {row}");
            assert_close(&name, &values(found.loss), &values(expected), 1e-13);
        }
        let term = |episode: &Episode<I>| number(gradmem.outer(episode).unwrap().term.unwrap());
        let alone: Vec<f64> = episode().split(1).iter().map(term).collect();
        let mean = alone.iter().sum::<f64>() / alone.len() as f64;
        assert!((term(&episode()) - mean).abs() < 1e-13, "{chunks:?}");
        let on = gradmem.write_on(written, &contexts());
        assert_eq!(on.is_err(), chunks == Chunks::Concatenated);
    }
}

#[test]
fn parts_of_a_batch_sum_up_to_the_whole() {
    let aligned = |config: GradMemConfig| GradMemConfig {
        step_alignment_weight: 0.3,
        alignment_norm: true,
        intermediate_read_weight: 0.4,
        star_weight: 0.2,
        memory_noise: 0.1,
        inner_loss_weight: 0.5,
        ..config
    };
    let kinds = kinds();
    let mut cases = vec![
        ("prefix", aligned(kinds[0].1.clone())),
        ("lora", aligned(kinds[1].1.clone())),
        ("kv", aligned(kinds[4].1.clone())),
    ];
    for (name, config) in in_chunks() {
        let name: &'static str = name.leak();
        let config = GradMemConfig {
            star_weight: 0.2,
            ..config.with_inner_loss_weight(0.5)
        };
        cases.push((name, config));
    }
    for (name, config) in cases {
        let tracked = model::<B>(&shallow(), &config);
        let whole = gradient(&tracked, &episode(), MetaGradient::Unrolled);
        // One part by each strategy.
        let parts = episode().split(2).into_iter();
        let parts = parts.zip([MetaGradient::Unrolled, MetaGradient::Replay]);
        let parts = parts.map(|(part, how)| gradient(&tracked, &part, how));
        assert_same(name, &sum(parts), &whole);
    }
}

#[test]
fn memories_of_every_kind_are_saved_and_generate() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("memory.safetensors");
    let whole = kinds()
        .into_iter()
        .map(|(name, config)| (name.to_string(), config));
    for (name, config) in whole.chain(in_chunks()) {
        for lm in models() {
            let on = lm.model_type();
            // Chunks are the same on all models.
            if !fits(&lm, &config) || (config.chunk_size.is_some() && on != "llama") {
                continue;
            }
            let what = format!("{name} on {on}");
            let gradmem = model::<I>(&lm, &config);
            let memory = gradmem.write(&contexts()).unwrap();
            gradmem.save_memory(&memory, &path).unwrap();
            let back = gradmem.load_memory(&path).unwrap();
            assert_eq!(
                back.counts().collect::<Vec<_>>(),
                memory.counts().collect::<Vec<_>>(),
                "{what}"
            );
            let queries =
                Tokens::<I>::new(&[[4, 7], [5, 10], [6, 1]], &Default::default()).unwrap();
            let read = |memory: &Memory<I>| values(gradmem.read(memory, &queries).unwrap());
            for (a, b) in read(&back).into_iter().zip(read(&memory)) {
                assert!((a - b).abs() < 1e-4, "{what}: {a} is not {b}");
            }
            // A continuation from what is kept is what is computed anew each time.
            let prompts = vec![vec![4, 7], vec![5], vec![6, 1]];
            let reader = gradmem.reader(&memory).unwrap();
            let found = reader
                .generate(&prompts, &GenerateConfig::greedy(4))
                .unwrap();
            for (row, prompt) in prompts.iter().enumerate() {
                let one = memory.select(&[row]).unwrap();
                let mut text = prompt.clone();
                for token in &found[row] {
                    let query = Tokens::new(&[&text], &Default::default()).unwrap();
                    let logits = gradmem.read(&one, &query).unwrap();
                    let last = logits.dims()[1] - 1;
                    let next = values(logits.narrow(1, last, 1).argmax(2).float())[0];
                    assert_eq!(next as u32, *token, "{what}");
                    text.push(*token);
                }
            }
            // In bytes: rounded, and by how much is said.
            let bytes = gradmem.files().pack(&memory).unwrap();
            let bytes = bytes.with_float(MemoryFloat::Int8);
            bytes.save(&path).unwrap();
            let rounded = MemoryFile::open(&path).unwrap();
            let again = gradmem.files().unpack(&rounded).unwrap();
            for (sample, row) in rounded.samples.iter().zip(0..) {
                let [kept, exact] = [&again, &memory].map(|memory| {
                    let one = memory.select(&[row]).unwrap();
                    let parts = one.parts().iter().flatten().cloned();
                    parts.flat_map(values).collect::<Vec<f64>>()
                });
                let squares: f64 = kept.iter().zip(&exact).map(|(a, b)| (a - b).powi(2)).sum();
                let total: f64 = exact.iter().map(|value| value.powi(2)).sum();
                let change = (squares / total).sqrt();
                assert!(change > 0.0 && change < 0.01, "{what}: {change}");
                // The file counts what fills a sample's missing chunks too.
                assert!((sample.rounding.unwrap() - change).abs() < 2e-3, "{what}");
            }
        }
    }
}

/// Writing on is writing the chunks that follow.
#[test]
fn a_memory_is_written_on() {
    let halves = |row: &&[u32]| (row[..3].to_vec(), row[3..].to_vec());
    let long: Vec<&[u32]> = vec![CONTEXTS[0], CONTEXTS[2]];
    let (first, rest): (Vec<_>, Vec<_>) = long.iter().map(halves).unzip();
    let tokens = |rows: &[Vec<u32>]| Tokens::<I>::new(rows, &Default::default()).unwrap();
    for (name, config) in in_chunks() {
        let gradmem = model::<I>(&shallow(), &config);
        let all: Vec<Vec<u32>> = long.iter().map(|row| row.to_vec()).collect();
        let at_once = gradmem.write(&tokens(&all)).unwrap();
        let on = gradmem.write(&tokens(&first)).unwrap();
        let on = gradmem.write_on(on, &tokens(&rest)).unwrap();
        if config.chunks == Chunks::Parallel {
            continue;
        }
        let counts = |memory: &Memory<I>| memory.counts().collect::<Vec<_>>();
        assert_eq!(counts(&on), counts(&at_once), "{name}");
        for row in 0..2 {
            let [a, b] = [&on, &at_once].map(|memory| memory.select(&[row]).unwrap());
            for (a, b) in a.parts().iter().flatten().zip(b.parts().iter().flatten()) {
                let gap = values((a.clone() - b.clone()).abs().max())[0];
                assert!(gap < 1e-13, "{name}: {gap:.1e}");
            }
        }
    }
}

#[test]
fn what_contradicts_is_refused() {
    let device = Default::default();
    let refused = |lm: usize, config: &GradMemConfig| {
        let lm = models()[lm].init::<I>(1, &device).unwrap();
        config.init(lm, 1, &device).unwrap_err().to_string()
    };
    let kinds = kinds();
    let (lora, kv) = (&kinds[1].1, &kinds[4].1);
    let own = kv
        .clone()
        .with_mem_proj(gradmem::memory::MemProj::PerSample);
    assert!(refused(0, &own).contains("is for a memory of kind `prefix`, not `kv`"));
    let unknown = lora.clone().with_lora_modules(["gate_projj"]);
    let error = refused(0, &unknown);
    assert!(error.contains("`lora_targets` = gate_projj") && error.contains("mlp.gate_proj"));
    assert!(refused(0, &lora.clone().with_layers([2])).contains("0 … 1"));
    assert!(refused(3, kv).contains("no keys and values"));
    assert!(refused(0, &kv.clone().with_ctrl_tokens(1)).contains("ctrl_tokens"));
    let zero = kinds[0].1.clone().with_chunks(0, Chunks::Sequential);
    assert!(refused(0, &zero).contains("`chunk_size` = 0: must be at least 1"));
    let one = kv.clone().with_chunks(1, Chunks::Sequential);
    assert!(refused(0, &one).contains("must be at least 2"));
    // The memory alone predicts the one token of a chunk of a prefix.
    let one = kinds[0].1.clone().with_chunks(1, Chunks::Sequential);
    assert!(model::<I>(&shallow(), &one).write(&contexts()).is_ok());
    let early = GradMemConfig {
        step_alignment_weight: 0.1,
        ..kinds[0].1.clone().with_chunks(3, Chunks::Sequential)
    };
    assert!(refused(0, &early).contains("not written yet"));
    // A query without a token has nothing to begin with.
    let gradmem = model::<I>(&shallow(), lora);
    let memory = gradmem.write(&contexts()).unwrap();
    let empty = Tokens::<I>::new(&[&[][..], &[], &[]], &device).unwrap();
    assert!(gradmem.read(&memory, &empty).is_err());
    let reader = gradmem.reader(&memory).unwrap();
    let nothing = reader.generate(&vec![vec![]; 3], &GenerateConfig::greedy(1));
    assert!(
        nothing
            .unwrap_err()
            .to_string()
            .contains("no token to begin with")
    );
    // A context of one token is nothing to write for it: the memory stays as it starts.
    let single = Tokens::<I>::new(&[[4]], &device).unwrap();
    let written = gradmem.write(&single).unwrap();
    assert_eq!(values(written.losses[0].clone()), [0.0]);
}
