use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::kinds::{Attach, Layout};
use super::start::Start;
use super::{
    Gate, GradMemConfig, InnerOptimizer, Lora, MOST_STEPS, Memory, Reconstruct, WriteObjective,
};
use crate::error::{Error, positive};
use crate::model::CausalLm;
use crate::model::layers::Init;

/// A language model with a memory that WRITE changes by gradient descent.
///
/// Parameters carry the reference implementation's names where it has them: `model.…`, `mem`, `mem_proj.…`, `write_st`,
/// `write_head.weight` and so on; adapters are `write_lora.adapters.0.lora_A` and so on.
#[derive(Module, Debug)]
pub struct GradMem<B: Backend, M, O = Reconstruct<B>> {
    /// The language model.
    pub model: M,
    /// M0, where every WRITE starts, and what maps a memory to the model.
    pub memory: Start<B>,
    /// What WRITE descends on.
    pub objective: O,
    /// Adapters that the model has in WRITE only.
    pub write_lora: Option<Lora<B>>,
    /// How much WRITE's steps keep of the memory, if that is learned.
    pub gate: Option<Gate<B>>,
    /// What is learned of WRITE's steps, if anything is.
    pub inner: Option<InnerOptimizer<B>>,
    #[module(skip)]
    pub(super) config: GradMemConfig,
}

impl GradMemConfig {
    /// Puts a memory on `model`, with M0 drawn by `seed`: N(0, `memory_std`²) around what `memory_start` says.
    ///
    /// # Errors
    ///
    /// See [`GradMemConfig::validate`]; also if the model has no room for the memory.
    pub fn init<B: Backend, M: CausalLm<B>>(
        &self,
        model: M,
        seed: u64,
        device: &B::Device,
    ) -> Result<GradMem<B, M>, Error> {
        self.build(model, Init::new(seed), device)
    }

    /// The same with an objective of one's own for WRITE.
    ///
    /// # Errors
    ///
    /// As [`GradMemConfig::init`]; also a `write_head`, which is the reconstruction's.
    pub fn init_with<B: Backend, M: CausalLm<B>, O: WriteObjective<B, M>>(
        &self,
        model: M,
        objective: O,
        seed: u64,
        device: &B::Device,
    ) -> Result<GradMem<B, M, O>, Error> {
        if self.write_head {
            let problem = "it is the reconstruction's: an objective of one's own has its own";
            return Err(Error::config("write_head", true, problem));
        }
        self.build_with(model, Init::new(seed), device, |_, _| objective)
    }

    /// The same with weights that are yet to be loaded, as the model's may be.
    ///
    /// # Errors
    ///
    /// As [`GradMemConfig::init`].
    pub fn blank<B: Backend, M: CausalLm<B>>(
        &self,
        model: M,
        device: &B::Device,
    ) -> Result<GradMem<B, M>, Error> {
        self.build(model, Init::blank(), device)
    }

    pub(crate) fn build<B: Backend, M: CausalLm<B>>(
        &self,
        model: M,
        init: Init,
        device: &B::Device,
    ) -> Result<GradMem<B, M>, Error> {
        self.build_with(model, init, device, |model, init| {
            Reconstruct::new(model, self.write_head, init, device)
        })
    }

    fn build_with<B: Backend, M: CausalLm<B>, O: Module<B>>(
        &self,
        model: M,
        mut init: Init,
        device: &B::Device,
        objective: impl FnOnce(&M, &Init) -> O,
    ) -> Result<GradMem<B, M, O>, Error> {
        self.validate()?;
        init.draw_pending(&model);
        if !init.is_blank() {
            check_head(&model)?;
        }
        let memory = Start::new(self, &model, &mut init, device)?;
        let d = model.d_model();
        let objective = objective(&model, &init);
        init.draw_pending(&objective);
        let inner = self.inner(&memory, &init, device);
        let write_lora = self.write_lora(&model, &mut init, device)?;
        Ok(GradMem {
            model: match self.freeze_backbone {
                true => model.map(&mut RequireGrad(false)),
                false => model,
            },
            memory,
            objective,
            write_lora,
            gate: Gate::new(self.gate, d, self.gate_dimensions, &mut init, device),
            inner,
            config: self.clone(),
        })
    }

    /// The adapters in WRITE, if there are to be any.
    fn write_lora<B: Backend, M: Module<B>>(
        &self,
        model: &M,
        init: &mut Init,
        device: &B::Device,
    ) -> Result<Option<Lora<B>>, Error> {
        let (rank, alpha) = (self.write_lora_rank, self.write_lora_alpha);
        let targets = &self.write_lora_targets;
        let made = (rank > 0).then(|| Lora::new(model, rank, alpha, targets, init, device));
        made.transpose()
    }
}

/// Fails on a head that is not of the vocabulary and the width that the model says it has.
fn check_head<B: Backend, M: CausalLm<B>>(model: &M) -> Result<(), Error> {
    let (found, says) = (model.head().dims(), [model.vocab_size(), model.d_model()]);
    match found == says {
        true => Ok(()),
        false => Err(Error::Input(format!(
            "the model's head has a weight {found:?}, but its vocab_size and d_model are {says:?}"
        ))),
    }
}

impl GradMemConfig {
    fn inner<B: Backend>(
        &self,
        memory: &Start<B>,
        init: &Init,
        device: &B::Device,
    ) -> Option<InnerOptimizer<B>> {
        InnerOptimizer::new(
            &self.learned_lr,
            self.momentum,
            self.most_steps(),
            &memory.layout().shapes.0,
            init,
            device,
        )
    }
}

/// Whether parameters get gradients, also those that are yet to be loaded.
pub(crate) struct RequireGrad(pub bool);

impl<B: Backend> ModuleMapper<B> for RequireGrad {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        param.set_require_grad(self.0)
    }
}

impl<B: Backend, M: Module<B>, O: Module<B>> GradMem<B, M, O> {
    /// The settings in force.
    pub fn config(&self) -> &GradMemConfig {
        &self.config
    }

    /// The same weights with another number of WRITE steps, in place of random ones too.
    ///
    /// # Errors
    ///
    /// More than [`MOST_STEPS`].
    pub fn with_write_steps(mut self, write_steps: usize) -> Result<Self, Error> {
        if write_steps > MOST_STEPS {
            return Err(Error::Input(format!(
                "WRITE takes at most {MOST_STEPS} steps, not {write_steps}"
            )));
        }
        self.config.write_steps = write_steps;
        self.config.random_write_steps = None;
        Ok(self)
    }

    /// With the first `tokens` memory vectors, or keys and values, alone, if there are more.
    #[cfg(feature = "train")]
    pub(crate) fn with_first_tokens(mut self, tokens: usize) -> Self {
        if tokens < self.config.memory_tokens {
            self.memory = self.memory.first_tokens(tokens);
            self.config.memory_tokens = tokens;
        }
        self
    }

    /// With what `config` learns of WRITE's steps, from what these weights have of it.
    #[cfg(feature = "train")]
    pub(crate) fn with_inner(mut self, config: &GradMemConfig) -> Self {
        let fresh = config.inner(&self.memory, &Init::new(0), &self.memory.device());
        self.inner = match (fresh, self.inner) {
            (Some(fresh), Some(found)) => Some(fresh.begin_from(found)),
            (fresh, _) => fresh,
        };
        self
    }

    /// With the adapters in WRITE that `config` asks for, drawn by a seed, where these weights have none: they change nothing at first.
    #[cfg(feature = "train")]
    pub(crate) fn with_write_lora(
        mut self,
        config: &GradMemConfig,
        seed: u64,
    ) -> Result<Self, Error> {
        if self.write_lora.is_none() {
            let device = self.memory.device();
            self.write_lora = config.write_lora(&self.model, &mut Init::new(seed), &device)?;
        }
        Ok(self)
    }

    /// The same weights with another WRITE step size.
    ///
    /// # Errors
    ///
    /// If it is not a positive number.
    pub fn with_write_lr(mut self, write_lr: f64) -> Result<Self, Error> {
        positive([("write_lr", write_lr)])?;
        self.config.write_lr = write_lr;
        Ok(self)
    }

    /// What one sample's memory is made of.
    pub(crate) fn layout(&self) -> Layout {
        self.memory.layout()
    }

    /// The first token of a chunk that WRITE predicts.
    pub(super) fn first_predicted(&self) -> usize {
        self.config.first_predicted()
    }

    /// M_0 of each of `batch` samples: what WRITE changes, one tensor `[batch, rows, columns]` for each matrix.
    pub(crate) fn start(&self, batch: usize) -> Vec<Tensor<B, 3>> {
        self.memory.of_batch(batch)
    }
}

impl<B: Backend, M: CausalLm<B>, O> GradMem<B, M, O> {
    /// The memory as WRITE attaches it.
    pub(super) fn in_write(&self) -> Box<dyn Attach<B, M> + '_> {
        self.memory.in_write()
    }

    /// The memory as READ attaches it.
    pub(super) fn in_read(&self) -> Box<dyn Attach<B, M> + '_> {
        self.memory.in_read()
    }
}

impl<B: Backend, M: CausalLm<B>, O: WriteObjective<B, M>> GradMem<B, M, O> {
    /// With the losses that compare WRITE's steps with READ, whatever their weights are.
    pub(crate) fn with_alignment(&self) -> Self {
        let mut aligned = self.clone();
        aligned.config.step_alignment_weight = 1.0;
        aligned.config.intermediate_read_weight = 1.0;
        aligned
    }

    /// What READ is given, under the reference's names and in its shapes.
    pub(crate) fn named_matrices(&self, memory: &Memory<B>) -> Vec<(String, Tensor<B, 4>)> {
        let joined = self.in_read().join(memory.parts());
        let names = match &self.memory {
            Start::Prefix(_) => ["memory", "memory_W", "memory_b"]
                .map(String::from)
                .to_vec(),
            other => {
                let names = other.layout().names.into_iter();
                names.map(|name| format!("memory.{name}")).collect()
            }
        };
        let matrices = joined.into_iter().map(|matrix| match &self.memory {
            Start::Kv(start) => {
                let [batch, m, _] = matrix.dims();
                let [heads, head_dim] = start.heads();
                matrix.reshape([batch, m, heads, head_dim]).swap_dims(1, 2)
            }
            _ => matrix.unsqueeze_dim(1),
        });
        names.into_iter().zip(matrices).collect()
    }
}
