//! Models of `burn::nn` modules as they are: each module can be differentiated twice, or is refused by name.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::backend::Autodiff;
use burn::module::Module;
use burn::nn::activation::{Activation, ActivationConfig};
use burn::nn::attention::{
    MhaInput, MultiHeadAttention, MultiHeadAttentionConfig, generate_autoregressive_mask,
};
use burn::nn::conv::{Conv1d, Conv1dConfig, ConvTranspose1d, ConvTranspose1dConfig};
use burn::nn::gru::{Gru, GruConfig};
use burn::nn::interpolate::{Interpolate1d, Interpolate1dConfig};
use burn::nn::norm::{Normalization, NormalizationConfig};
use burn::nn::pool::{AdaptiveAvgPool1d, AdaptiveAvgPool1dConfig, AvgPool1d, AvgPool1dConfig};
use burn::nn::pool::{MaxPool1d, MaxPool1dConfig};
use burn::nn::transformer::{
    TransformerEncoder, TransformerEncoderConfig, TransformerEncoderInput,
};
use burn::nn::{
    BatchNormConfig, Dropout, DropoutConfig, Embedding, EmbeddingConfig, GroupNormConfig,
    InstanceNormConfig, LayerNormConfig, Linear, LinearConfig, Lstm, LstmConfig, PReluConfig,
    PaddingConfig1d, PositionalEncoding, PositionalEncodingConfig, RmsNormConfig, RotaryEncoding,
    RotaryEncodingConfig, SwiGluConfig,
};
use burn::optim::GradientsParams;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use gradmem::episode::{Episode, Tokens};
use gradmem::memory::{GradMem, GradMemConfig, MetaGradient};
use gradmem::model::CausalLm;

use crate::differences::{assert_exact, moved};
use crate::shared::{gradients, number, values};

type I = burn_ndarray::NdArray<f64>;
type B = Autodiff<I>;

const D: usize = 8;

/// A module that maps `[batch, seq, D]` to the same shape.
#[allow(clippy::large_enum_variant)] // A test has one.
#[derive(Module, Debug)]
enum Layer<B: Backend> {
    Linear(Linear<B>),
    Activation(Activation<B>),
    Normalization(Normalization<B>),
    Attention(MultiHeadAttention<B>),
    Encoder(TransformerEncoder<B>),
    Lstm(Lstm<B>),
    Gru(Gru<B>),
    Conv(Conv1d<B>),
    ConvTranspose(ConvTranspose1d<B>),
    Rotary(RotaryEncoding<B>),
    Positions(PositionalEncoding<B>),
    Dropout(Dropout),
    MaxPool(MaxPool1d),
    AvgPool(AvgPool1d),
    AdaptivePool(AdaptiveAvgPool1d),
    Interpolate(Interpolate1d),
}

impl<B: Backend> Layer<B> {
    fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let over_sequence =
            |f: &dyn Fn(Tensor<B, 3>) -> Tensor<B, 3>| f(x.clone().swap_dims(1, 2)).swap_dims(1, 2);
        let [batch, seq, _] = x.dims();
        let mask = || generate_autoregressive_mask::<B>(batch, seq, &x.device());
        match self {
            Self::Linear(layer) => layer.forward(x),
            Self::Activation(layer) => layer.forward(x),
            // Channels come second.
            Self::Normalization(layer @ (Normalization::Layer(_) | Normalization::Rms(_))) => {
                layer.forward(x)
            }
            Self::Normalization(layer) => over_sequence(&|x| layer.forward(x)),
            Self::Attention(layer) => {
                let input = MhaInput::self_attn(x.clone()).mask_attn(mask());
                layer.forward(input).context
            }
            Self::Encoder(layer) => {
                layer.forward(TransformerEncoderInput::new(x.clone()).mask_attn(mask()))
            }
            Self::Lstm(layer) => layer.forward(x, None).0,
            Self::Gru(layer) => layer.forward(x, None),
            Self::Conv(layer) => over_sequence(&|x| layer.forward(x)),
            Self::ConvTranspose(layer) => over_sequence(&|x| layer.forward(x)),
            Self::Rotary(layer) => layer.forward(x),
            Self::Positions(layer) => layer.forward(x),
            Self::Dropout(layer) => layer.forward(x),
            Self::MaxPool(layer) => over_sequence(&|x| layer.forward(x)),
            Self::AvgPool(layer) => over_sequence(&|x| layer.forward(x)),
            Self::AdaptivePool(layer) => layer.forward(x),
            Self::Interpolate(layer) => layer.forward(x),
        }
    }
}

/// An embedding, the mean of all before, and the layer.
#[derive(Module, Debug)]
struct Probe<B: Backend> {
    embedding: Embedding<B>,
    layer: Layer<B>,
}

impl<B: Backend> Probe<B> {
    fn new(layer: Layer<B>) -> Self {
        B::seed(&Default::default(), 7);
        let embedding = EmbeddingConfig::new(11, D).init(&Default::default());
        Self { embedding, layer }
    }
}

impl<B: Backend> CausalLm<B> for Probe<B> {
    fn d_model(&self) -> usize {
        D
    }
    fn vocab_size(&self) -> usize {
        11
    }
    fn max_positions(&self) -> Option<usize> {
        None
    }
    fn embed(&self, tokens: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.embedding.forward(tokens)
    }
    fn hidden(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let seen = x.clone().cumsum(1).mul_scalar(0.3);
        x + self.layer.forward(seen)
    }
    fn head(&self) -> Tensor<B, 2> {
        self.embedding.weight.val()
    }
}

fn on<B: Backend>(name: &str) -> Layer<B> {
    let device = &Default::default();
    let activation = |config: ActivationConfig| Layer::Activation(config.init(device));
    let norm = |config: NormalizationConfig| Layer::Normalization(config.init(device));
    let same = PaddingConfig1d::Explicit(1, 1);
    match name {
        "Linear" => Layer::Linear(LinearConfig::new(D, D).init(device)),
        "Relu" => activation(ActivationConfig::Relu),
        "Gelu" => activation(ActivationConfig::Gelu),
        "Sigmoid" => activation(ActivationConfig::Sigmoid),
        "Tanh" => activation(ActivationConfig::Tanh),
        "Selu" => activation(ActivationConfig::Selu),
        "HardSwish" => activation(ActivationConfig::HardSwish),
        "PRelu" => activation(ActivationConfig::PRelu(PReluConfig::new())),
        "SwiGlu" => activation(ActivationConfig::SwiGlu(
            SwiGluConfig::new(D, D).with_bias(true),
        )),
        "LayerNorm" => norm(NormalizationConfig::Layer(LayerNormConfig::new(D))),
        "RmsNorm" => norm(NormalizationConfig::Rms(RmsNormConfig::new(D))),
        "GroupNorm" => norm(NormalizationConfig::Group(GroupNormConfig::new(2, D))),
        "InstanceNorm" => norm(NormalizationConfig::Instance(InstanceNormConfig::new(D))),
        "BatchNorm" => norm(NormalizationConfig::Batch(BatchNormConfig::new(D))),
        "MultiHeadAttention" => {
            let config = MultiHeadAttentionConfig::new(D, 2).with_dropout(0.0);
            Layer::Attention(config.init(device))
        }
        "TransformerEncoder" => {
            let config = TransformerEncoderConfig::new(D, 12, 2, 1).with_dropout(0.0);
            Layer::Encoder(config.init(device))
        }
        "Lstm" => Layer::Lstm(LstmConfig::new(D, D, true).init(device)),
        "Gru" => Layer::Gru(GruConfig::new(D, D, true).init(device)),
        "Conv1d" => Layer::Conv(Conv1dConfig::new(D, D, 3).with_padding(same).init(device)),
        "ConvTranspose1d" => {
            let config = ConvTranspose1dConfig::new([D, D], 3).with_padding(1);
            Layer::ConvTranspose(config.init(device))
        }
        "RotaryEncoding" => Layer::Rotary(RotaryEncodingConfig::new(32, D).init(device)),
        "PositionalEncoding" => Layer::Positions(PositionalEncodingConfig::new(D).init(device)),
        "Dropout" => Layer::Dropout(DropoutConfig::new(0.3).init()),
        "MaxPool1d" => {
            let config = MaxPool1dConfig::new(3).with_stride(1);
            Layer::MaxPool(config.with_padding(same).init())
        }
        "AvgPool1d" => {
            let config = AvgPool1dConfig::new(3).with_stride(1);
            Layer::AvgPool(config.with_padding(same).init())
        }
        "AdaptiveAvgPool1d" => Layer::AdaptivePool(AdaptiveAvgPool1dConfig::new(D).init()),
        "Interpolate1d" => {
            let config = Interpolate1dConfig::new().with_output_size(Some(D));
            Layer::Interpolate(config.init())
        }
        other => panic!("{other}?"),
    }
}

fn gradmem<B: Backend>(name: &str, steps: usize) -> GradMem<B, Probe<B>> {
    let config = GradMemConfig::new()
        .with_memory_tokens(2)
        .with_write_steps(steps)
        .with_write_lr(0.5)
        .with_memory_std(0.5);
    let device = Default::default();
    config.init(Probe::new(on(name)), 4, &device).unwrap()
}

fn episode<B: Backend>() -> Episode<B> {
    let contexts = Tokens::new(&[[4_u32, 7, 2, 9], [5, 10, 3, 1]], &Default::default()).unwrap();
    Episode::from_answers(contexts, &[([4, 7], [2]), ([9, 5], [10])]).unwrap()
}

/// Fails where the meta-gradient is off by more than `most`.
fn check(name: &str, most: f64) {
    let model = gradmem::<B>(name, 2);
    let found = model.outer(&episode()).unwrap().loss().backward();
    let found = gradients(&model, &GradientsParams::from_grads(found, &model));
    let plain = gradmem::<I>(name, 2);
    assert_exact(name, &found, 2e-3, most, |only, by| {
        let outer = moved(&plain, only, by).outer(&episode()).unwrap();
        number(outer.loss())
    });
}

#[test]
fn modules_of_burn_nn_can_be_differentiated_twice() {
    let exact = [
        "Linear",
        "Relu",
        "Tanh",
        "Selu",
        "PRelu",
        "GroupNorm",
        "InstanceNorm",
        "MultiHeadAttention",
        "Conv1d",
        "ConvTranspose1d",
        "RotaryEncoding",
        "PositionalEncoding",
        "MaxPool1d",
    ];
    for name in exact {
        check(name, 1e-7);
    }
    // Of these Burn computes something in f32, or the first gradient of GELU, in READ, from an approximation.
    let nearly = [
        ("LayerNorm", 1e-5),
        ("RmsNorm", 1e-4),
        ("Sigmoid", 1e-4),
        ("HardSwish", 1e-4),
        ("SwiGlu", 1e-4),
        ("Lstm", 1e-4),
        ("Gru", 1e-4),
        ("Gelu", 1e-4),
        ("TransformerEncoder", 1e-3),
    ];
    for (name, most) in nearly {
        check(name, most);
    }
}

#[test]
fn modules_that_cannot_be_are_named_in_training_and_write_without_it() {
    for name in ["AvgPool1d", "AdaptiveAvgPool1d", "Interpolate1d"] {
        let trained = gradmem::<B>(name, 1);
        let stopped = catch_unwind(AssertUnwindSafe(|| trained.outer(&episode())));
        let message = stopped.unwrap_err().downcast::<String>().unwrap();
        let says = |words: &str| assert!(message.contains(words), "{name}: {message}");
        says(name);
        says("cannot be differentiated twice");
        let plain = gradmem::<I>(name, 1);
        assert!(plain.outer(&episode()).is_ok(), "{name}");
    }
}

/// Windows that reach beyond the edge, or lie there alone, have the backend's maxima.
#[test]
fn max_pooling_on_a_tape_is_the_backends() {
    use burn::tensor::module::max_pool2d;
    use gradmem::kernels::Tape;
    fn check<I: Backend>() {
        let x = Tensor::<I, 1, Int>::arange(0..2 * 3 * 5 * 7, &Default::default()).float();
        let x = (x * 1.7).sin().reshape([2, 3, 5, 7]) - 2.0;
        for (kernel, stride, padding, dilation, ceil) in [
            ([3, 3], [1, 1], [1, 1], [1, 1], false),
            ([2, 3], [2, 2], [1, 1], [1, 1], true),
            ([2, 2], [2, 2], [1, 1], [1, 1], true),
            ([2, 2], [1, 2], [0, 0], [2, 1], false),
        ] {
            let lifted = Tensor::<Tape<I>, 4>::from_inner(x.clone());
            let found = max_pool2d(lifted, kernel, stride, padding, dilation, ceil).inner();
            let expected = max_pool2d(x.clone(), kernel, stride, padding, dilation, ceil);
            assert_eq!(found.to_data(), expected.to_data(), "{kernel:?} {stride:?}");
        }
    }
    check::<I>();
    check::<burn_flex::Flex>();
}

fn written<B: Backend>(model: &GradMem<B, Probe<B>>, contexts: &[&[u32]]) -> Vec<Vec<f64>> {
    let rows: Vec<Vec<u32>> = contexts.iter().map(|row| row.to_vec()).collect();
    let contexts = Tokens::new(&rows, &Default::default()).unwrap();
    let memory = model.write(&contexts).unwrap();
    let values = values(memory.vectors());
    let each = values.len() / rows.len();
    values.chunks(each).map(<[f64]>::to_vec).collect()
}

/// At test time WRITE takes gradients, but is no training.
#[test]
fn dropout_and_batch_statistics_are_for_training() {
    const A: &[u32] = &[4, 7, 2, 9];
    const B: &[u32] = &[5, 10, 3, 1];
    for name in ["Dropout", "BatchNorm"] {
        let model = gradmem::<I>(name, 2);
        let first = written(&model, &[A]);
        assert_eq!(first, written(&model, &[A]), "{name}");
        let in_a_batch = written(&model, &[A, B]);
        for (x, y) in first[0].iter().zip(&in_a_batch[0]) {
            assert!((x - y).abs() < 1e-12, "{name}: {x} {y}");
        }
    }
}

/// `burn::nn` draws a weight when it is first used, and a clone of one that is not draws its own.
#[test]
fn a_fresh_model_is_one_model() {
    let model = gradmem::<I>("TransformerEncoder", 2);
    let memories = [(); 3].map(|()| written(&model, &[&[4, 7, 2, 9]]));
    assert_eq!(memories[0], memories[1]);
    assert_eq!(memories[0], memories[2]);
    // Its head must be of the vocabulary and width that it says it has.
    let mut other = model.model.clone();
    other.embedding = EmbeddingConfig::new(12, D).init(&Default::default());
    let problem = GradMemConfig::new().init(other, 0, &Default::default());
    let problem = problem.unwrap_err().to_string();
    assert!(
        problem.contains("[12, 8]") && problem.contains("[11, 8]"),
        "{problem}"
    );
    let trained = gradmem::<B>("TransformerEncoder", 2);
    let losses = [(); 2].map(|()| number(trained.outer(&episode()).unwrap().loss()));
    assert_eq!(losses[0], losses[1]);
}

#[test]
fn replay_tells_when_a_step_is_another_when_it_is_taken_again() {
    for (name, draws) in [("Linear", false), ("Dropout", true)] {
        let model = gradmem::<B>(name, 3);
        let (_, outer) = model
            .outer_gradient(&episode(), MetaGradient::Replay)
            .unwrap();
        let drift = number(outer.drift.unwrap());
        assert_eq!(drift > 1e-3, draws, "{name}: {drift}");
        let (_, outer) = model
            .outer_gradient(&episode(), MetaGradient::Unrolled)
            .unwrap();
        assert!(outer.drift.is_none());
    }
}

/// Burn's linear layer has the same names and the other layout: a square weight would fit.
#[test]
fn a_record_of_the_other_layout_is_refused() {
    use burn::record::{DoublePrecisionSettings, NamedMpkBytesRecorder, Recorder as _};
    use gradmem::model::layers::{Affine, AffineConfig, Init};
    type Named = NamedMpkBytesRecorder<DoublePrecisionSettings>;
    let device = Default::default();
    let theirs = LinearConfig::new(D, D).init::<I>(&device);
    let ours = || AffineConfig::new(D, D).init::<I>(0.5, &mut Init::new(3), &device);
    let weight = |layer: &Affine<I>| layer.weight.to_data();
    // What is its own comes back.
    let bytes = Named::new().record(ours().into_record(), ()).unwrap();
    let loaded = Named::new().load(bytes, &device).unwrap();
    let other = AffineConfig::new(D, D).init::<I>(0.5, &mut Init::new(4), &device);
    assert_eq!(weight(&other.load_record(loaded)), weight(&ours()));

    type OfOurs = <Affine<I> as Module<I>>::Record;
    let bytes = Named::new().record(theirs.into_record(), ()).unwrap();
    let refused = Named::new().load::<OfOurs>(bytes, &device).err().unwrap();
    assert!(refused.to_string().contains("layout"), "{refused}");
}

#[test]
fn a_linear_layer_is_the_same_map_in_either_layout() {
    use gradmem::model::layers::Affine;
    let device = Default::default();
    let theirs = LinearConfig::new(5, 3).init::<B>(&device);
    let x = Tensor::<B, 3>::random([2, 4, 5], burn::tensor::Distribution::Default, &device);
    let expected = theirs.forward(x.clone()).to_data();
    let ours = Affine::from(theirs.clone());
    assert_eq!(ours.weight.dims(), [3, 5]);
    assert_eq!(ours.weight.id, theirs.weight.id);
    assert!(ours.weight.is_require_grad());
    let found = ours.forward(x.clone()).to_data();
    found.assert_approx_eq::<f64>(&expected, burn::tensor::Tolerance::absolute(1e-12));
    let gradients = ours.forward(x).sum().backward();
    assert_eq!(ours.weight.grad(&gradients).unwrap().dims(), [3, 5]);
    let back = Linear::from(ours);
    assert_eq!(back.weight.to_data(), theirs.weight.to_data());
}

/// As Burn's configurations do, and without a silent default where a name is wrong.
#[test]
fn a_configuration_is_saved_and_loaded() {
    use burn::config::Config as _;
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("memory.json");
    let config = GradMemConfig::new()
        .with_memory_tokens(3)
        .with_write_head(true);
    config.save(&path).unwrap();
    assert_eq!(GradMemConfig::load(&path).unwrap(), config);
    std::fs::write(&path, r#"{"memory_token": 3}"#).unwrap();
    let refused = GradMemConfig::load(&path).unwrap_err().to_string();
    assert!(refused.contains("memory_token"), "{refused}");
}
