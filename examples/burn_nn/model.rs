//! A GPT of `burn::nn` modules alone, with a short convolution by which each token sees the one before it.
use burn::module::Module;
use burn::nn;
use burn::nn::conv::{Conv1d, Conv1dConfig};
use burn::nn::transformer::{self, TransformerEncoder, TransformerEncoderConfig};
use burn::tensor::{Int, Tensor, backend::Backend};
use gradmem::{memory::GradMemConfig, model::CausalLm};

const D_MODEL: usize = 64;
const POSITIONS: usize = 64;

#[derive(Module, Debug)]
pub struct Gpt<B: Backend> {
    tokens: nn::Embedding<B>,
    positions: nn::Embedding<B>,
    before: Conv1d<B>,
    blocks: TransformerEncoder<B>,
    norm: nn::LayerNorm<B>,
}

impl<B: Backend> Gpt<B> {
    pub fn new(vocab_size: usize, device: &B::Device) -> Self {
        let (mean, std) = (0.0, 0.05);
        let normal = nn::Initializer::Normal { mean, std };
        let embedding = |n| nn::EmbeddingConfig::new(n, D_MODEL).with_initializer(normal.clone());
        let left = nn::PaddingConfig1d::Explicit(1, 0);
        let before = Conv1dConfig::new(D_MODEL, D_MODEL, 2).with_padding(left);
        let blocks = TransformerEncoderConfig::new(D_MODEL, 128, 4, 2).with_norm_first(true);
        let blocks = blocks.with_initializer(normal.clone()).with_dropout(0.0);
        Self {
            tokens: embedding(vocab_size).init(device),
            positions: embedding(POSITIONS).init(device),
            before: before.init(device),
            blocks: blocks.init(device),
            norm: nn::LayerNormConfig::new(D_MODEL).init(device),
        }
    }
}

impl<B: Backend> CausalLm<B> for Gpt<B> {
    fn d_model(&self) -> usize {
        D_MODEL
    }

    fn vocab_size(&self) -> usize {
        self.tokens.weight.dims()[0]
    }

    fn max_positions(&self) -> Option<usize> {
        Some(POSITIONS)
    }

    fn embed(&self, tokens: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.tokens.forward(tokens)
    }

    fn hidden(&self, embeds: Tensor<B, 3>) -> Tensor<B, 3> {
        let ([batch, seq, _], device) = (embeds.dims(), embeds.device());
        let places = Tensor::arange(0..seq as i64, &device).unsqueeze();
        let x = embeds + self.positions.forward(places);
        let x = x.clone() + self.before.forward(x.swap_dims(1, 2)).swap_dims(1, 2);
        let causal = nn::attention::generate_autoregressive_mask(batch, seq, &device);
        let input = transformer::TransformerEncoderInput::new(x).mask_attn(causal);
        self.norm.forward(self.blocks.forward(input))
    }

    fn head(&self) -> Tensor<B, 2> {
        self.tokens.weight.val()
    }
}

/// The memory that the programs of this folder put in front of it.
pub fn memory() -> GradMemConfig {
    GradMemConfig::new()
        .with_memory_tokens(8)
        .with_write_steps(2)
        .with_write_lr(0.5)
        .with_write_head(true)
}
