//! Which letter stood where? Four letters are written into a memory, and read by their places from the memory
//! alone, with a model and a training loop of one's own.

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module, Param};
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::tensor::{Distribution, Int, Tensor, activation::softmax, backend::Backend};
use gradmem::episode::{Episode, Tokens};
use gradmem::kernels::LayerBackend;
use gradmem::model::CausalLm;
use gradmem::model::layers::{Embedding, Init, Affine, AffineConfig};
use gradmem::{Error, memory::GradMemConfig};

#[cfg(feature = "flex")]
type Plain = burn_flex::Flex;
#[cfg(all(feature = "vulkan", not(feature = "flex")))]
type Plain = burn_wgpu::Vulkan;
type B = Autodiff<Plain>;

/// Tokens: padding, the places, eight letters.
const PLACES: usize = 4;
const FIRST_LETTER: usize = PLACES + 1;
const VOCAB: usize = FIRST_LETTER + 8;

/// A transformer of one block: an attention head and a hidden layer.
#[derive(Module, Debug)]
struct Net<B: Backend> {
    embedding: Embedding<B>,
    positions: Param<Tensor<B, 2>>,
    maps: [Affine<B>; 5],
}

impl<B: Backend> Net<B> {
    fn new(d: usize, device: &B::Device) -> Self {
        let mut init = Init::new(1);
        Self {
            embedding: Embedding::new([VOCAB, d], 0.5, &mut init, device),
            positions: init.normal([16, d], 0.5, device),
            maps: [(d, d), (d, d), (d, d), (d, 4 * d), (4 * d, d)]
                .map(|(i, o)| AffineConfig::new(i, o).init(0.15, &mut init, device)),
        }
    }
}

impl<B: LayerBackend> CausalLm<B> for Net<B> {
    fn d_model(&self) -> usize {
        self.positions.dims()[1]
    }

    fn vocab_size(&self) -> usize {
        VOCAB
    }

    fn max_positions(&self) -> Option<usize> {
        Some(self.positions.dims()[0])
    }

    fn embed(&self, tokens: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.embedding.forward(tokens)
    }

    fn hidden(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let [_, seq, d] = x.dims();
        let x = x + self.positions.val().narrow(0, 0, seq).unsqueeze();
        let [query, key, value, up, down] = &self.maps;
        let future = Tensor::<B, 2>::ones([seq, seq], &x.device()).triu(1) * -1e9;
        let scores = query
            .forward(x.clone())
            .matmul(key.forward(x.clone()).transpose());
        let weights = softmax(scores * (d as f64).powf(-0.5) + future.unsqueeze(), 2);
        let x = x.clone() + weights.matmul(value.forward(x));
        x.clone() + down.forward(up.forward(x).tanh())
    }

    fn head(&self) -> Tensor<B, 2> {
        self.embedding.weight.val()
    }
}

/// Contexts of PLACES letters; each place is a query, its letter the target.
fn episode<B: Backend>(n: usize) -> Result<Episode<B>, Error> {
    let device = Default::default();
    let letters = Distribution::Uniform(FIRST_LETTER as f64, VOCAB as f64);
    let contexts = Tensor::<B, 2, Int>::random([n, PLACES], letters, &device);
    let contexts = Tokens::from_tensor(contexts)?;
    let answers: Vec<_> = contexts
        .rows()
        .flat_map(|row| (1..).zip(row).map(|(place, letter)| ([place], [*letter])))
        .collect();
    Episode::from_answers(contexts, &answers)
}

fn main() -> Result<(), Error> {
    let device = Default::default();
    Plain::seed(&device, 1);
    let memory = GradMemConfig::new().with_write_lr(0.3);
    let mut gradmem = memory.init(Net::<B>::new(32, &device), 2, &device)?;
    let mut optimizer = AdamWConfig::new().init();
    for step in 0..=200 {
        let loss = gradmem.outer(&episode(64)?)?.loss();
        if step % 50 == 0 {
            println!("step {step}: READ loss {:.3}", loss.clone().into_scalar());
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &gradmem);
        gradmem = optimizer.step(3e-3, gradmem, gradients);
    }

    // From here on without a tape: write, save, load, ask.
    let gradmem = gradmem.valid();
    let episode = episode(100)?;
    let file = std::env::temp_dir().join(format!("letters-{}.safetensors", std::process::id()));
    gradmem.save_memory(&gradmem.write(episode.contexts())?, &file)?;
    let logits = gradmem.read(&gradmem.load_memory(&file)?, episode.queries())?;
    std::fs::remove_file(&file).ok();
    let found = logits.narrow(1, 1, 1).argmax(2).reshape([-1, 1]);
    let letters = episode.queries().ids().narrow(1, 1, 1);
    let right: i64 = found.equal(letters).int().sum().into_scalar().into();
    println!("{right} of {} letters are read from memory", 100 * PLACES);
    assert!(right >= 95 * PLACES as i64, "these are too few");
    Ok(())
}
