//! The meta-gradient of a small GradMem against central differences in f64.
//!
//! Full second order must agree with the differences. First order and none must differ from them, and
//! be what they are defined to be: the gradient of a READ loss whose WRITE updates are constants.

use burn::backend::Autodiff;
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};
use gradmem::Error;
use gradmem::episode::{Episode, Tokens};
use gradmem::memory::{GradMem, GradMemConfig, GradMode, Memory};
use gradmem::model::{Llama, LlamaConfig};

use crate::differences::{assert_exact, moved, off_by};
use crate::shared::{Gradients, gradients, number, values};

type I = burn_ndarray::NdArray<f64>;
type B = Autodiff<I>;
type Model<B> = GradMem<B, Llama<B>>;

fn model<T: gradmem::kernels::KernelBackend>(config: &GradMemConfig) -> Model<T> {
    let lm = LlamaConfig::new(11, 8, 2, 2).with_kv_heads(1);
    // Weights large enough that every curvature shows.
    let lm = LlamaConfig {
        initializer_range: 0.4,
        ..lm
    };
    let lm = lm.init(3, &Default::default()).unwrap();
    let config = GradMemConfig {
        memory_tokens: 3,
        memory_std: 0.5,
        write_lr: 0.3,
        ..config.clone()
    };
    config.init(lm, 4, &Default::default()).unwrap()
}

/// Rows with padding 0.
fn padded<T: burn::tensor::backend::Backend>(rows: &[&[i64]]) -> Result<Tokens<T>, Error> {
    let shape = [rows.len(), rows[0].len()];
    let data = TensorData::new(rows.concat(), shape);
    Tokens::from_padded(Tensor::from_data(data, &Default::default()), 0)
}

fn ids<T: burn::tensor::backend::Backend>(rows: &[&[i64]]) -> Tokens<T> {
    padded(rows).unwrap()
}

fn episode<T: burn::tensor::backend::Backend>() -> Episode<T> {
    Episode::new(ids(&CONTEXTS), ids(&QUERIES), &LABELS).unwrap()
}

const CONTEXTS: [&[i64]; 2] = [&[4, 7, 2, 9, 4], &[5, 10, 3, 0, 0]];
const QUERIES: [&[i64]; 4] = [&[4, 7, 2], &[9, 1, 2], &[5, 10, 6], &[2, 2, 0]];
const LABELS: [&[i64]; 4] = [&[-1, 7, 2], &[-1, -1, 2], &[-1, 10, 6], &[2, 2, -1]];

fn outer_loss<T: gradmem::kernels::KernelBackend>(model: &Model<T>) -> Tensor<T, 1> {
    model.outer(&episode()).unwrap().loss()
}

fn meta_gradient(model: &Model<B>) -> Gradients {
    let found = outer_loss(model).backward();
    gradients(model, &GradientsParams::from_grads(found, model))
}

/// How far the weights move for a difference.
const STEP: f64 = 1e-5;

/// Fails unless the meta-gradient is the derivative of `loss`, of a model, which parameter moves, and how far.
fn check(what: &str, config: &GradMemConfig, loss: impl Fn(&Model<I>, Option<usize>, f64) -> f64) {
    let found = meta_gradient(&model::<B>(config));
    let plain = model::<I>(config);
    let loss = |only, by| loss(&plain, only, by);
    assert_exact(what, &found, STEP, 1e-6, loss);
}

/// The whole thing: WRITE and READ with the moved weights.
fn full(model: &Model<I>, only: Option<usize>, by: f64) -> f64 {
    number(outer_loss(&moved(model, only, by)))
}

fn assert_not_second_order(config: &GradMemConfig) {
    let found = meta_gradient(&model::<B>(config));
    let plain = model::<I>(config);
    let off = off_by(&found, STEP, |only, by| full(&plain, only, by));
    assert!(off > 1e-2, "the same as second order");
}

/// What first order is defined to be: WRITE's updates come from the weights as they are, and only
/// READ, and M0 where the updates are added to it, are moved.
fn constant_updates(model: &Model<I>, only: Option<usize>, by: f64, start_moves: bool) -> f64 {
    let written = model.write(&ids(&CONTEXTS)).unwrap();
    let moved = moved(model, only, by);
    let start =
        |model: &Model<I>| -> Tensor<I, 3> { model.memory.prefix().unwrap().mem.val().unsqueeze() };
    let vectors = match start_moves {
        true => written.vectors() + (start(&moved) - start(model)),
        false => written.vectors(),
    };
    let logits = moved.read(&Memory::from_vectors(vectors), &ids(&QUERIES));
    number(episode().read_loss(logits.unwrap()))
}

fn config(steps: usize) -> GradMemConfig {
    GradMemConfig::new()
        .with_write_steps(steps)
        .with_write_head(true)
}

#[test]
fn second_order_is_the_derivative_of_the_whole() {
    for steps in [0, 1, 2, 3] {
        check(&format!("K = {steps}"), &config(steps), full);
    }
}

#[test]
fn second_order_goes_through_clipping_and_the_inner_loss() {
    let norms = {
        let memory = model::<I>(&config(2)).write(&ids(&CONTEXTS)).unwrap();
        values(memory.grad_norms[0].clone())
    };
    let between = (norms[0] + norms[1]) / 2.0;
    for (what, config) in [
        (
            "norm, one sample clipped",
            config(2).with_inner_clip_norm(Some(between)),
        ),
        (
            "norm, both clipped",
            config(2).with_inner_clip_norm(Some(between / 20.0)),
        ),
        (
            "value",
            config(2).with_inner_clip_value(Some(between / 12.0)),
        ),
        ("inner loss", config(2).with_inner_loss_weight(0.5)),
        (
            "inner loss, one step",
            config(1).with_inner_loss_weight(0.5),
        ),
    ] {
        check(what, &config, full);
    }
}

#[test]
fn first_order_holds_the_updates_constant() {
    for steps in [1, 2] {
        let config = config(steps).with_grad_mode(GradMode::First);
        check(&format!("K = {steps}"), &config, |m, only, by| {
            constant_updates(m, only, by, true)
        });
        assert_not_second_order(&config);
    }
}

#[test]
fn none_cuts_the_memory_off() {
    let config = config(2).with_grad_mode(GradMode::None);
    check("none", &config, |m, only, by| {
        constant_updates(m, only, by, false)
    });
    assert_not_second_order(&config);
}

#[test]
fn the_last_steps_alone_can_be_second_order() {
    let of = |last| config(3).with_second_order_steps(last);
    let gradient = |config: &GradMemConfig| -> Vec<f64> {
        meta_gradient(&model::<B>(config))
            .into_iter()
            .flat_map(|(_, gradient)| gradient)
            .collect()
    };
    let gap = |a: &[f64], b: &[f64]| {
        a.iter()
            .zip(b)
            .fold(0.0, |m, (a, b)| f64::max(m, (a - b).abs()))
    };
    let all = gradient(&of(None));
    assert!(gap(&gradient(&of(Some(3))), &all) < 1e-12);
    assert!(gap(&gradient(&of(Some(7))), &all) < 1e-12);
    let first = gradient(&config(3).with_grad_mode(GradMode::First));
    assert!(gap(&gradient(&of(Some(0))), &first) < 1e-12);
    for last in [1, 2] {
        let some = gradient(&of(Some(last)));
        assert!(gap(&some, &all) > 1e-3 && gap(&some, &first) > 1e-3);
    }
}

/// Training and inference are the same code: the memory is the same number for number.
#[test]
fn write_gives_the_same_memory_on_a_plain_backend() {
    for mode in [GradMode::None, GradMode::First, GradMode::Second] {
        let config = config(3).with_grad_mode(mode);
        let tracked = model::<B>(&config).write(&ids(&CONTEXTS)).unwrap();
        let plain = model::<I>(&config).write(&ids(&CONTEXTS)).unwrap();
        let gap = (tracked.vectors().inner() - plain.vectors()).abs().max();
        assert!(number(gap) < 1e-13);
    }
}

/// A sample's memory depends neither on its neighbours nor on its padding.
#[test]
fn a_batch_is_its_samples() {
    let model = model::<I>(&config(2).with_inner_clip_norm(Some(0.1)));
    let together = model.write(&ids(&CONTEXTS)).unwrap();
    for (sample, context) in [&CONTEXTS[0][..5], &CONTEXTS[1][..3]]
        .into_iter()
        .enumerate()
    {
        let alone = model.write(&ids(&[context])).unwrap();
        let gap = together.vectors().narrow(0, sample, 1) - alone.vectors();
        assert!(number(gap.abs().max()) < 1e-13, "sample {sample}");
    }
}

#[test]
fn what_cannot_be_written_or_read_is_an_error() {
    let model = model::<I>(&config(2));
    let write = |rows: &[&[i64]]| {
        let written = padded(rows).and_then(|contexts| model.write(&contexts));
        written.unwrap_err().to_string()
    };
    assert!(write(&[&[4, 5], &[0, 0]]).contains("context 1 of 2 is empty"));
    assert!(write(&[&[4, 11]]).contains("context 0 has token 11 at 1"));
    assert!(write(&[&[4, -1]]).contains("row 0 has -1 at 1, which is no token id"));
    assert!(write(&[&[4, 0, 5]]).contains("padding token 0 at 1"));
    assert!(write(&[&[4_i64; 1022][..]]).contains("needs 1025 positions"));
    let memory = model.write(&ids(&CONTEXTS)).unwrap();
    let read = |rows: &[&[i64]]| model.read(&memory, &ids(rows)).unwrap_err().to_string();
    assert!(read(&[&[4_i64][..]; 3]).contains("3 queries cannot be shared evenly by 2 memories"));
    assert!(read(&[&[4_i64, 99][..]; 2]).contains("query 0 has token 99 at 1"));
    let narrow = Memory::from_vectors(memory.vectors().narrow(1, 0, 2));
    assert!(
        model
            .read(&narrow, &ids(&QUERIES))
            .unwrap_err()
            .to_string()
            .contains("2 vectors")
    );
}
