use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::kinds::{Attach, Layout, Prefix, check_room, control_tokens};
use super::{GradMemConfig, Lora, MemProj};
use crate::error::Error;
use crate::model::CausalLm;
use crate::model::layers::{Init, Linear};

/// A language model with a memory that WRITE changes by gradient descent.
///
/// Parameters carry the reference implementation's names: `model.…`, `mem`, `mem_proj.…`, `write_st`,
/// `write_head.weight` and so on; adapters are `write_lora.adapters.0.lora_A` and so on.
#[derive(Module, Debug)]
pub struct GradMem<B: Backend, M> {
    /// The language model.
    pub model: M,
    /// M0, where every WRITE starts: `[memory_tokens, d_model]`.
    pub mem: Param<Tensor<B, 2>>,
    /// The map between memory and model, or where every sample's own starts.
    pub mem_proj: Option<Linear<B>>,
    /// Before the memory in WRITE: `[ctrl_tokens, d_model]`.
    pub write_st: Option<Param<Tensor<B, 2>>>,
    /// Behind the memory in WRITE.
    pub write_end: Option<Param<Tensor<B, 2>>>,
    /// Before the memory in READ.
    pub read_st: Option<Param<Tensor<B, 2>>>,
    /// Behind the memory in READ.
    pub read_end: Option<Param<Tensor<B, 2>>>,
    /// The head that WRITE predicts with, if not the model's: `[vocab_size, d_model]`.
    pub write_head: Option<Linear<B>>,
    /// Adapters that the model has in WRITE only.
    pub write_lora: Option<Lora<B>>,
    #[module(skip)]
    pub(super) config: GradMemConfig,
}

impl GradMemConfig {
    /// Puts a memory on `model`, with M0 drawn from N(0, `memory_std`²) by `seed`.
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

    fn build<B: Backend, M: CausalLm<B>>(
        &self,
        model: M,
        mut init: Init,
        device: &B::Device,
    ) -> Result<GradMem<B, M>, Error> {
        self.validate()?;
        check_room(&model, "memory_tokens", self.prefix_len())?;
        let d = model.d_model();
        let mem = init.normal([self.memory_tokens, d], self.memory_std, device);
        let projects = self.mem_proj != MemProj::None;
        let mem_proj = projects.then(|| Linear::identity(d, &init, device));
        let [write_st, write_end, read_st, read_end] =
            control_tokens([self.ctrl_tokens, d], self.memory_std, &mut init, device);
        let write_head = self.write_head.then(|| {
            let shape = [model.vocab_size(), d];
            Linear::copy(shape, || model.head(), &init, device)
        });
        let lora = (self.write_lora_rank > 0).then(|| {
            Lora::new(
                &model,
                self.write_lora_rank,
                self.write_lora_alpha,
                &self.write_lora_targets,
                &mut init,
                device,
            )
        });
        Ok(GradMem {
            model: match self.freeze_backbone {
                true => model.map(&mut Freeze),
                false => model,
            },
            mem,
            mem_proj,
            write_st,
            write_end,
            read_st,
            read_end,
            write_head,
            write_lora: lora.transpose()?,
            config: self.clone(),
        })
    }
}

/// Takes gradients away from parameters, also from those that are yet to be loaded.
struct Freeze;

impl<B: Backend> ModuleMapper<B> for Freeze {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        param.set_require_grad(false)
    }
}

impl<B: Backend, M: Module<B>> GradMem<B, M> {
    /// The settings in force.
    pub fn config(&self) -> &GradMemConfig {
        &self.config
    }

    /// The same weights with another number of WRITE steps.
    pub fn with_write_steps(mut self, write_steps: usize) -> Self {
        self.config.write_steps = write_steps;
        self
    }

    /// The same weights with another WRITE step size.
    ///
    /// # Errors
    ///
    /// If it is not a positive number.
    pub fn with_write_lr(mut self, write_lr: f64) -> Result<Self, Error> {
        self.config.write_lr = write_lr;
        self.config.validate()?;
        Ok(self)
    }

    /// The memory as WRITE attaches it.
    pub(super) fn in_write(&self) -> Prefix<'_, B> {
        Prefix {
            start: self.write_st.as_ref(),
            end: self.write_end.as_ref(),
            ..self.in_read()
        }
    }

    /// The memory as READ attaches it.
    pub(super) fn in_read(&self) -> Prefix<'_, B> {
        Prefix {
            start: self.read_st.as_ref(),
            memory_tokens: self.config.memory_tokens,
            projection: self.mem_proj.as_ref(),
            end: self.read_end.as_ref(),
        }
    }
}

impl<B: Backend, M: CausalLm<B>> GradMem<B, M> {
    /// What one sample's memory is made of.
    pub(super) fn layout(&self) -> Layout {
        Layout {
            vectors: [self.config.memory_tokens, self.model.d_model()],
            own_projection: self.config.mem_proj == MemProj::PerSample,
        }
    }

    /// The first token of a context that WRITE predicts.
    pub(super) fn first_predicted(&self) -> usize {
        Attach::<B, M>::first(&self.in_write())
    }

    /// M_0 of each of `batch` samples: what WRITE changes, one tensor `[batch, rows, columns]` for each matrix.
    pub(super) fn start(&self, batch: usize) -> Vec<Tensor<B, 3>> {
        let each = |x: Tensor<B, 2>| {
            let [rows, d] = x.dims();
            x.unsqueeze::<3>().expand([batch, rows, d])
        };
        let mut start = vec![each(self.mem.val())];
        if let (MemProj::PerSample, Some(proj)) = (self.config.mem_proj, &self.mem_proj) {
            start.push(each(proj.weight.val()));
            start.extend(proj.bias.as_ref().map(|bias| each(bias.val().unsqueeze())));
        }
        start
    }
}
