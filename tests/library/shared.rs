//! What several tests of the library share: small models, numbers of tensors and of gradients, and how close they are.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};
use gradmem::baselines::Armt;
use gradmem::kernels::KernelBackend;
use gradmem::model::{
    AnyLm, CausalLm, Gpt2Config, GptNeoXConfig, LlamaConfig, MambaConfig, ModelConfig,
};

pub const VOCAB: usize = 19;

/// A Llama with weights large enough that every curvature and every difference of answers shows.
pub fn llama() -> LlamaConfig {
    LlamaConfig {
        initializer_range: 0.3,
        max_position_embeddings: 40,
        ..LlamaConfig::new(VOCAB, 16, 2, 4).with_kv_heads(2)
    }
}

/// Such a model of every type, a Llama first.
pub fn models() -> Vec<ModelConfig> {
    let gpt2 = Gpt2Config {
        initializer_range: 0.3,
        n_positions: 40,
        ..Gpt2Config::new(VOCAB, 16, 2, 2)
    };
    let neox = GptNeoXConfig {
        initializer_range: 0.3,
        max_position_embeddings: 40,
        ..GptNeoXConfig::new(VOCAB, 16, 2, 2)
    };
    let mamba = MambaConfig {
        initializer_range: 0.5,
        state_size: 4,
        time_step_min: 0.1,
        time_step_max: 1.0,
        ..MambaConfig::new(VOCAB, 16, 2)
    };
    vec![
        ModelConfig::Llama(llama()),
        ModelConfig::Gpt2(gpt2),
        ModelConfig::GptNeoX(neox),
        ModelConfig::Mamba(mamba),
    ]
}

/// These models with weights, and their names.
pub fn named_models<B: Backend>() -> Vec<(&'static str, AnyLm<B>)> {
    let init = |config: ModelConfig| {
        let model = config.init(3, &Default::default()).unwrap();
        (config.model_type(), model)
    };
    models().into_iter().map(init).collect()
}

/// ARMT with maps to values that are not zero, as they are at the start.
pub fn writing<B: KernelBackend, M: CausalLm<B>>(mut armt: Armt<B, M>) -> Armt<B, M> {
    for maps in &mut armt.layers {
        maps.w_mv.weight = maps.w_mv.weight.clone().map(|x| {
            let count = x.shape().num_elements();
            let values = (0..count).map(|i| ((i * 37 % 23) as f64 - 11.0) / 30.0);
            let data = TensorData::new(values.collect::<Vec<_>>(), x.dims());
            Tensor::from_data(data, &x.device()).set_require_grad(x.is_require_grad())
        });
    }
    armt
}

pub fn values<B: Backend, const D: usize>(x: Tensor<B, D>) -> Vec<f64> {
    x.into_data().iter::<f64>().collect()
}

pub fn number<B: Backend>(x: Tensor<B, 1>) -> f64 {
    values(x)[0]
}

/// Each parameter's name and gradient.
pub type Gradients = Vec<(String, Vec<f64>)>;

/// The gradient of every parameter; zeros of those that have none.
pub fn gradients<B: AutodiffBackend>(
    module: &impl Module<B>,
    found: &GradientsParams,
) -> Gradients {
    struct Collect<'a> {
        found: &'a GradientsParams,
        path: Vec<String>,
        all: Gradients,
    }
    impl<B: AutodiffBackend> ModuleVisitor<B> for Collect<'_> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.into());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let gradient = match self.found.get::<B::InnerBackend, D>(param.id) {
                Some(gradient) => values(gradient),
                None => vec![0.0; param.val().shape().num_elements()],
            };
            self.all.push((self.path.join("."), gradient));
        }
    }
    let mut collect = Collect {
        found,
        path: Vec::new(),
        all: Vec::new(),
    };
    module.visit(&mut collect);
    collect.all
}

/// Numbers that differ by no more than `tolerance` of the largest.
pub fn assert_close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().map(|x| x.abs()).fold(1e-6, f64::max);
    for (a, b) in found.iter().zip(expected) {
        assert!(
            (a - b).abs() <= tolerance * largest,
            "{what}: {a} is not {b}"
        );
    }
}

/// Gradients that differ by rounding: by no more than 10⁻¹¹ of the largest number of all.
pub fn assert_same(what: &str, found: &Gradients, expected: &Gradients) {
    let numbers = expected.iter().flat_map(|(_, gradient)| gradient);
    let largest = numbers.map(|x| x.abs()).fold(1e-3, f64::max);
    assert_eq!(found.len(), expected.len(), "{what}");
    for ((name, found), (_, expected)) in found.iter().zip(expected) {
        for (a, b) in found.iter().zip(expected) {
            let off = (a - b).abs() / largest;
            assert!(off < 1e-11, "{what}: {name} is off by {off:.1e}");
        }
    }
}
