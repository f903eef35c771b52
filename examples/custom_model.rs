//! A language model of one's own is meta-trained and written through: anything that implements `CausalLm`
//! out of operations that can be differentiated twice. `Affine` needs the kernels' `LayerBackend`.

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module};
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use gradmem::Error;
use gradmem::episode::{Episode, Tokens};
use gradmem::kernels::LayerBackend;
use gradmem::memory::GradMemConfig;
use gradmem::model::CausalLm;
use gradmem::model::layers::{Affine, AffineConfig, Embedding, Init};

/// A running mean of everything so far, through one hidden layer: small, but causal.
#[derive(Module, Debug)]
struct MeanLm<B: Backend> {
    embedding: Embedding<B>,
    up: Affine<B>,
    down: Affine<B>,
}

impl<B: Backend> MeanLm<B> {
    fn new(vocab: usize, d: usize, device: &B::Device) -> Self {
        let mut init = Init::new(1);
        Self {
            embedding: Embedding::new([vocab, d], 0.5, &mut init, device),
            up: AffineConfig::new(d, 4 * d).init(0.3, &mut init, device),
            down: AffineConfig::new(4 * d, d).init(0.3, &mut init, device),
        }
    }
}

impl<B: LayerBackend> CausalLm<B> for MeanLm<B> {
    fn d_model(&self) -> usize {
        self.embedding.weight.dims()[1]
    }

    fn vocab_size(&self) -> usize {
        self.embedding.weight.dims()[0]
    }

    fn max_positions(&self) -> Option<usize> {
        None
    }

    fn embed(&self, tokens: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.embedding.forward(tokens)
    }

    fn hidden(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let seq = x.dims()[1];
        let counts = Tensor::<B, 1, Int>::arange(1..seq as i64 + 1, &x.device()).float();
        let mean = x.clone().cumsum(1) / counts.reshape([1, seq, 1]);
        x + self.down.forward(self.up.forward(mean).tanh())
    }

    fn head(&self) -> Tensor<B, 2> {
        self.embedding.weight.val()
    }
}

fn main() -> Result<(), Error> {
    type B = Autodiff<burn_flex::Flex>;
    let device = Default::default();
    let memory = GradMemConfig::new()
        .with_memory_tokens(2)
        .with_write_lr(1.0);
    let mut gradmem = memory.init(MeanLm::<B>::new(12, 16, &device), 2, &device)?;
    let mut optimizer = AdamWConfig::new().init();

    // Which of two letters is in the context? The memory has to say so.
    let contexts = Tokens::new(&[[4, 4, 6], [6, 5, 5]], &device)?;
    let episode = Episode::from_answers(contexts, &[([1], [4]), ([1], [5])])?;
    for step in 0..=60 {
        let outer = gradmem.outer(&episode)?;
        let loss = outer.loss();
        if step % 20 == 0 {
            println!("step {step:2}: READ loss {:.4}", loss.clone().into_scalar());
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &gradmem);
        gradmem = optimizer.step(1e-2, gradmem, gradients);
    }

    // Without a tape: what is written now is a memory to keep.
    let gradmem = gradmem.valid();
    let memory = gradmem.write(&episode.contexts().inner())?;
    let file = std::env::temp_dir().join("custom_model.mem.safetensors");
    gradmem.save_memory(&memory, &file)?;
    let memory = gradmem.load_memory(&file)?;
    let questions = Tokens::new(&[[1], [1]], &device)?;
    let answers = gradmem.read(&memory, &questions)?.narrow(1, 1, 1).argmax(2);
    println!("{}: answers {}", file.display(), answers.to_data());
    Ok(())
}
