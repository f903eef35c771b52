//! The in-context baseline in f64: three ways to read the questions of a context, and what each is equal to.

use burn::backend::Autodiff;
use burn::optim::GradientsParams;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor};
use gradmem::baselines::{InContext, InContextConfig, Questions};
use gradmem::episode::{Episode, Tokens};
use gradmem::memory::MetaGradient;
use gradmem::method::Method;
use gradmem::model::{AnyLm, CausalLm, LlamaConfig};

use crate::shared::{self, assert_same, gradients, named_models, values};

type I = burn_ndarray::NdArray<f64>;
type B = Autodiff<I>;

const WAYS: [Questions; 3] = [Questions::Separate, Questions::Shared, Questions::Joint];

/// Of different lengths, two of them alike.
const CONTEXTS: [&[u32]; 3] = [&[4, 7, 2, 9, 4], &[5, 10, 3], &[3, 9, 5, 7, 1]];

/// Two questions to each: query, target.
const ANSWERS: [(&[u32], &[u32]); 6] = [
    (&[4, 7], &[2]),
    (&[9], &[4, 8]),
    (&[5], &[10]),
    (&[6, 1, 10], &[3]),
    (&[], &[9]),
    (&[7, 7], &[1, 1]),
];

fn method(model: &AnyLm<B>, questions: Questions) -> InContext<B, AnyLm<B>> {
    let config = InContextConfig::new().with_questions(questions);
    config.init(model.clone())
}

fn tokens<R: AsRef<[u32]>>(rows: &[R]) -> Tokens<B> {
    Tokens::new(rows, &Default::default()).unwrap()
}

fn episode() -> Episode<B> {
    Episode::from_answers(tokens(&CONTEXTS), &ANSWERS).unwrap()
}

/// Rows of logits that predict a query's tokens and the one behind them.
fn rows_of(logits: &Tensor<B, 3>, query: usize) -> Vec<f64> {
    let (asked, target) = ANSWERS[query];
    let rows = asked.len() + target.len() + 1;
    values(logits.clone().narrow(0, query, 1).narrow(1, 0, rows))
}

fn assert_close(what: &str, found: &[f64], expected: &[f64]) {
    shared::assert_close(what, found, expected, 1e-11);
}

fn is_far(a: &[f64], b: &[f64]) -> bool {
    a.iter().zip(b).any(|(a, b)| (a - b).abs() > 1e-3)
}

#[test]
fn a_shared_context_equals_separate_sequences() {
    for (name, model) in named_models::<B>() {
        let [separate, shared] = [Questions::Separate, Questions::Shared].map(|questions| {
            let method = method(&model, questions);
            let logits = method.training_logits(episode().contexts(), episode().queries());
            let gradient = method.gradient(&episode(), MetaGradient::Auto).unwrap();
            (logits.unwrap(), gradient)
        });
        for query in 0..ANSWERS.len() {
            let [a, b] = [&shared.0, &separate.0].map(|logits| rows_of(logits, query));
            assert_close(&format!("{name}, query {query}"), &a, &b);
        }
        let [a, b] = [&shared.1.0, &separate.1.0].map(|found| gradients(&model, found));
        assert_same(name, &a, &b);
        let [a, b] = [shared.1.1, separate.1.1].map(|answers| values(answers.read_loss));
        assert_close(&format!("{name}, loss"), &a, &b);
    }
}

/// Where most lengths occur once, a pass for each of them is more than the contexts once for each question.
#[test]
fn contexts_of_many_lengths_are_read_once_for_each_question() {
    let (contexts, queries) = (
        tokens(&[&[4u32, 7, 2, 9][..], &[5, 10, 3], &[3, 9]]),
        tokens(&ANSWERS.map(|(query, target)| [query, target].concat())),
    );
    for (name, model) in named_models::<B>() {
        let [shared, separate] = [Questions::Shared, Questions::Separate].map(|questions| {
            let method = method(&model, questions);
            values(method.training_logits(&contexts, &queries).unwrap())
        });
        assert_eq!(shared, separate, "{name}");
    }
}

#[test]
fn a_joint_question_has_those_before_it_in_its_context() {
    for (name, model) in named_models::<B>() {
        let (contexts, episode) = (tokens(&CONTEXTS), episode());
        let joint = method(&model, Questions::Joint);
        let logits = joint.training_logits(&contexts, episode.queries()).unwrap();
        let alone = joint.logits(&contexts, episode.queries()).unwrap();
        for query in 0..ANSWERS.len() {
            let what = format!("{name}, query {query}");
            let found = rows_of(&logits, query);
            let context = CONTEXTS[query / 2];
            if query % 2 == 0 {
                assert_close(&what, &found, &rows_of(&alone, query));
                continue;
            }
            assert!(is_far(&found, &rows_of(&alone, query)), "{what}");
            let context = [context, episode.queries().row(query - 1)].concat();
            let own = tokens(&[episode.queries().row(query)]);
            let expected = joint.logits(&tokens(&[context]), &own).unwrap();
            assert_close(&what, &found, &values(expected));
        }
    }
}

/// Two samples, written out as the sequences they are, without the method.
#[test]
fn the_joint_gradient_is_that_of_the_whole_sequences() {
    for (name, model) in named_models::<B>() {
        // Context, query, target, query, target; and the places of the targets.
        let sequences: [(&[i64], &[usize]); 2] = [
            (&[4, 7, 2, 9, 4, /**/ 4, 7, 2, /**/ 9, 4, 8], &[7, 9, 10]),
            (&[5, 10, 3, /**/ 5, 10, /**/ 6, 1, 10, 3], &[4, 8]),
        ];
        let device = Default::default();
        let mut loss = Tensor::<B, 1>::zeros([1], &device);
        for (ids, targets) in sequences {
            let sequence = Tensor::<B, 1, Int>::from_data(ids, &device).unsqueeze_dim(0);
            let hidden = model.hidden(model.embed(sequence));
            let log_p = log_softmax(model.logits(hidden), 2);
            for at in targets {
                let token = ids[*at] as usize;
                let one = log_p.clone().slice([0..1, at - 1..*at, token..token + 1]);
                loss = loss - one.reshape([1]);
            }
        }
        let loss = loss.mul_scalar(1.0 / 5.0);
        let expected = GradientsParams::from_grads(loss.backward(), &model);

        let episode = Episode::from_answers(tokens(&CONTEXTS[..2]), &ANSWERS[..4]).unwrap();
        let joint = method(&model, Questions::Joint);
        let (found, answers) = joint.gradient(&episode, MetaGradient::Auto).unwrap();
        assert_close(name, &values(answers.read_loss), &values(loss));
        assert_same(
            name,
            &gradients(&model, &found),
            &gradients(&model, &expected),
        );
    }
}

#[test]
fn evaluation_asks_each_question_alone() {
    for (name, model) in named_models::<B>() {
        let [separate, shared, joint] = WAYS.map(|questions| {
            let answers = method(&model, questions).answers(&episode()).unwrap();
            let told = answers.predicted.tokens.unwrap().into_data();
            (values(answers.read_loss), told)
        });
        assert!(separate == shared && separate == joint, "{name}");
    }
}

#[test]
fn what_has_no_positions_is_refused() {
    let config = LlamaConfig {
        max_position_embeddings: 13,
        ..shared::llama()
    };
    let model = AnyLm::Llama(config.init(3, &Default::default()).unwrap());
    let queries = tokens(&[[1, 2, 3], [4, 5, 6], [7, 8, 9]]);
    let logits = |questions, context: &[u32]| {
        let method = method(&model, questions);
        method.training_logits(&tokens(&[context]), &queries)
    };
    for questions in WAYS {
        assert!(logits(questions, &[1; 4]).is_ok());
        let last = if questions == Questions::Joint { 4 } else { 10 };
        assert!(logits(questions, &vec![1; last]).is_ok());
        let error = logits(questions, &vec![1; last + 1]).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("needs 14 positions"), "{error}");
    }
}

#[test]
fn a_long_context_with_a_short_query_needs_their_own_positions_only() {
    let config = LlamaConfig {
        max_position_embeddings: 9,
        ..shared::llama()
    };
    let model = AnyLm::Llama(config.init(3, &Default::default()).unwrap());
    let contexts = [vec![1, 2, 3, 4, 5, 6], vec![7, 8]];
    let queries = [vec![1, 2], vec![3, 4, 5, 6, 7]];
    let method = method(&model, Questions::Separate);
    let both = method.logits(&tokens(&contexts), &tokens(&queries));
    let both = both.unwrap();
    for (at, (context, query)) in contexts.iter().zip(&queries).enumerate() {
        let alone = method.logits(&tokens(&[context]), &tokens(&[query]));
        let rows = query.len() + 1;
        let part = both.clone().narrow(0, at, 1).narrow(1, 0, rows);
        let what = format!("prompt {at}");
        shared::assert_close(&what, &values(part), &values(alone.unwrap()), 1e-12);
    }
    let longer = [vec![1, 2, 3, 4, 5, 6], vec![7, 8, 9, 10, 11]];
    let error = method.logits(&tokens(&longer), &tokens(&queries));
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("a prompt of 10 tokens needs 10 positions"),
        "{error}"
    );
}
