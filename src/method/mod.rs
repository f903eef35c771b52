//! The ways to answer questions about a context, as one: GradMem and what it is compared with. What
//! trains and evaluates them need not know which it has.

use burn::module::{AutodiffModule, Module, ModuleDisplay};
use burn::optim::GradientsParams;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor};
use gradmem_kernels::KernelBackend;
use serde::{Deserialize, Serialize};

use crate::baselines::{InContext, InContextConfig, Rmt, RmtConfig};
use crate::error::Error;
use crate::memory::{
    GradMem, GradMemConfig, Memory, MemoryFile, MetaGradient, Outer, Reconstruction, Share,
    check_labels, next_token_loss,
};
use crate::model::generate::{GenerateConfig, Prefix};
use crate::model::{AnyLm, CausalLm, ModelConfig, Writable};

/// Something that answers queries about contexts and can be trained to.
pub trait Method<B: Backend>: Module<B> + ModuleDisplay {
    /// Takes in `contexts` and answers `queries`.
    ///
    /// # Shapes
    ///
    /// - `contexts`: `[batch, context_len]`, padded on the right
    /// - `queries`: `[batch · r, seq]`, query and target together
    /// - `labels`: `[batch · r, seq]`, the tokens to predict, negative where there is none
    ///
    /// # Errors
    ///
    /// Whatever does not fit the model.
    fn answers(
        &self,
        contexts: Tensor<B, 2, Int>,
        queries: Tensor<B, 2, Int>,
        labels: Tensor<B, 2, Int>,
    ) -> Result<Answers<B>, Error>;

    /// The gradient of what training minimises, for a batch or a part that counts as `share` of one, and
    /// the answers it belongs to. `how` says nothing to a method whose gradient has one way only.
    ///
    /// # Shapes
    ///
    /// As [`Method::answers`].
    ///
    /// # Errors
    ///
    /// As [`Method::answers`].
    fn gradient(
        &self,
        contexts: Tensor<B, 2, Int>,
        queries: Tensor<B, 2, Int>,
        labels: Tensor<B, 2, Int>,
        _how: MetaGradient,
        share: Share,
    ) -> Result<(GradientsParams, Answers<B>), Error>
    where
        B: AutodiffBackend,
        Self: AutodiffModule<B>,
    {
        let answers = self.answers(contexts, queries, labels)?;
        let loss = share.of(&answers.read_loss, answers.write_term.as_ref());
        Ok((GradientsParams::from_grads(loss.backward(), self), answers))
    }

    /// What the losses of a batch, `contexts` `[batch, context_len]` and `labels` `[batch · r, seq]`, are
    /// means over.
    fn counted(&self, contexts: &Tensor<B, 2, Int>, labels: &Tensor<B, 2, Int>) -> Counted {
        Counted {
            labels: labels.to_data().iter::<i64>().filter(|x| *x >= 0).count(),
            written: contexts.dims()[0],
        }
    }

    /// How well the memory that `answers` were given from reconstructs its contexts, if the method
    /// reconstructs.
    ///
    /// # Errors
    ///
    /// Whatever does not fit the model.
    fn reconstruction(
        &self,
        _answers: &Answers<B>,
        _contexts: Tensor<B, 2, Int>,
    ) -> Result<Option<Reconstruction<B>>, Error> {
        Ok(None)
    }
}

/// What the losses of a batch are means over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Labels: the READ loss.
    pub labels: usize,
    /// Contexts, or their tokens: what a reconstruction loss adds.
    pub written: usize,
}

impl Counted {
    /// What a part counts in the whole.
    pub fn share(self, whole: Self) -> Share {
        let share = |part: usize, whole: usize| part as f64 / whole.max(1) as f64;
        Share {
            labels: share(self.labels, whole.labels),
            written: share(self.written, whole.written),
        }
    }
}

impl std::iter::Sum for Counted {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), |sum, part| Self {
            labels: sum.labels + part.labels,
            written: sum.written + part.written,
        })
    }
}

/// Answers, and how they came about.
#[derive(Clone, Debug)]
pub struct Answers<B: Backend> {
    /// Mean `−log p` of the labelled tokens, `[1]`.
    pub read_loss: Tensor<B, 1>,
    /// What a reconstruction loss adds to what training minimises, `[1]`.
    pub write_term: Option<Tensor<B, 1>>,
    /// Row 0 is predicted before the first query token: `[batch · r, seq + 1, vocab_size]`.
    pub logits: Tensor<B, 3>,
    /// What was written, if anything was.
    pub memory: Option<Memory<B>>,
}

impl<B: Backend> From<Outer<B>> for Answers<B> {
    fn from(outer: Outer<B>) -> Self {
        Self {
            read_loss: outer.read_loss,
            write_term: outer.write_term,
            logits: outer.logits,
            memory: Some(outer.memory),
        }
    }
}

impl<B: Backend, M: Writable<B>> Method<B> for GradMem<B, M> {
    fn answers(
        &self,
        contexts: Tensor<B, 2, Int>,
        queries: Tensor<B, 2, Int>,
        labels: Tensor<B, 2, Int>,
    ) -> Result<Answers<B>, Error> {
        Ok(self.outer(contexts, queries, labels)?.into())
    }

    fn gradient(
        &self,
        contexts: Tensor<B, 2, Int>,
        queries: Tensor<B, 2, Int>,
        labels: Tensor<B, 2, Int>,
        how: MetaGradient,
        share: Share,
    ) -> Result<(GradientsParams, Answers<B>), Error>
    where
        B: AutodiffBackend,
        Self: AutodiffModule<B>,
    {
        let (gradient, outer) = self.outer_gradient(contexts, queries, labels, how, share)?;
        Ok((gradient, outer.into()))
    }

    fn reconstruction(
        &self,
        answers: &Answers<B>,
        contexts: Tensor<B, 2, Int>,
    ) -> Result<Option<Reconstruction<B>>, Error> {
        let memory = answers.memory.as_ref();
        memory
            .map(|memory| GradMem::reconstruction(self, memory, contexts))
            .transpose()
    }
}

impl<B: Backend, M: CausalLm<B>> Method<B> for Rmt<B, M> {
    fn answers(
        &self,
        contexts: Tensor<B, 2, Int>,
        queries: Tensor<B, 2, Int>,
        labels: Tensor<B, 2, Int>,
    ) -> Result<Answers<B>, Error> {
        let outer = self.outer(contexts, queries, labels)?;
        Ok(Answers {
            write_term: outer.reconstruction_term(),
            read_loss: outer.read_loss,
            logits: outer.logits,
            memory: outer.memories.into_iter().last().map(Memory::from_vectors),
        })
    }

    /// No query token stands before a label in the first column; the reconstruction loss is a mean over
    /// the contexts' tokens.
    fn counted(&self, contexts: &Tensor<B, 2, Int>, labels: &Tensor<B, 2, Int>) -> Counted {
        let pad = self.config().pad_token as i64;
        let seq = labels.dims()[1];
        let is_counted = |(at, label): (usize, i64)| at % seq > 0 && label >= 0;
        let labels = labels.to_data();
        let labels = labels.iter::<i64>().enumerate();
        Counted {
            labels: labels.filter(|x| is_counted(*x)).count(),
            written: contexts
                .to_data()
                .iter::<i64>()
                .filter(|x| *x != pad)
                .count(),
        }
    }
}

impl<B: Backend, M: CausalLm<B>> Method<B> for InContext<B, M> {
    fn answers(
        &self,
        contexts: Tensor<B, 2, Int>,
        queries: Tensor<B, 2, Int>,
        labels: Tensor<B, 2, Int>,
    ) -> Result<Answers<B>, Error> {
        check_labels(&queries, &labels, self.model.vocab_size())?;
        let logits = self.logits(contexts, queries)?;
        let loss = next_token_loss(logits.clone(), labels);
        Ok(Answers {
            read_loss: loss,
            write_term: None,
            logits,
            memory: None,
        })
    }
}

/// A method's name, as it is written in settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum MethodName {
    /// [`GradMem`]
    #[default]
    #[serde(rename = "gradmem")]
    GradMem,
    /// [`Rmt`]
    Rmt,
    /// [`InContext`]
    InContext,
}

impl MethodName {
    /// The name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GradMem => "gradmem",
            Self::Rmt => "rmt",
            Self::InContext => "in-context",
        }
    }
}

/// The settings of a method.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum MethodConfig {
    /// [`GradMem`]
    GradMem(GradMemConfig),
    /// [`Rmt`]
    Rmt(RmtConfig),
    /// [`InContext`]
    InContext(InContextConfig),
}

impl MethodConfig {
    /// The method on a model with random weights, all drawn by `seed`.
    ///
    /// # Errors
    ///
    /// Settings that cannot work, alone or together.
    pub fn init<B: KernelBackend>(
        &self,
        model: &ModelConfig,
        seed: u64,
        device: &B::Device,
    ) -> Result<AnyMethod<B>, Error> {
        // The memory draws from a stream of its own.
        self.attach(model.init(seed, device)?, !seed, device)
    }

    /// The method on a model that is there already, with what it adds drawn by `seed`.
    ///
    /// # Errors
    ///
    /// As [`MethodConfig::init`].
    pub fn attach<B: KernelBackend>(
        &self,
        model: AnyLm<B>,
        seed: u64,
        device: &B::Device,
    ) -> Result<AnyMethod<B>, Error> {
        Ok(match self {
            Self::GradMem(config) => AnyMethod::GradMem(config.init(model, seed, device)?),
            Self::Rmt(config) => AnyMethod::Rmt(config.init(model, seed, device)?),
            Self::InContext(config) => AnyMethod::InContext(config.init(model)?),
        })
    }

    /// The method's name.
    pub fn name(&self) -> MethodName {
        match self {
            Self::GradMem(_) => MethodName::GradMem,
            Self::Rmt(_) => MethodName::Rmt,
            Self::InContext(_) => MethodName::InContext,
        }
    }

    /// The method on a model, all weights yet to be loaded.
    ///
    /// # Errors
    ///
    /// As [`MethodConfig::init`].
    pub fn blank<B: KernelBackend>(
        &self,
        model: &ModelConfig,
        device: &B::Device,
    ) -> Result<AnyMethod<B>, Error> {
        let model = model.blank(device)?;
        Ok(match self {
            Self::GradMem(config) => AnyMethod::GradMem(config.blank(model, device)?),
            Self::Rmt(config) => AnyMethod::Rmt(config.blank(model, device)?),
            Self::InContext(config) => AnyMethod::InContext(config.init(model)?),
        })
    }
}

/// Does the same with whichever there is.
macro_rules! each {
    ($value:expr, $inner:ident => $body:expr) => {
        match $value {
            AnyMethod::GradMem($inner) => $body,
            AnyMethod::Rmt($inner) => $body,
            AnyMethod::InContext($inner) => $body,
        }
    };
}

/// A method that is known at run time only, on a model that is.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // A program has one.
#[non_exhaustive]
pub enum AnyMethod<B: Backend> {
    /// `gradmem`
    GradMem(GradMem<B, AnyLm<B>>),
    /// `rmt`
    Rmt(Rmt<B, AnyLm<B>>),
    /// `in-context`
    InContext(InContext<B, AnyLm<B>>),
}

impl<B: KernelBackend> AnyMethod<B> {
    /// The settings it was made with.
    pub fn config(&self) -> MethodConfig {
        match self {
            Self::GradMem(method) => MethodConfig::GradMem(method.config().clone()),
            Self::Rmt(method) => MethodConfig::Rmt(method.config().clone()),
            Self::InContext(method) => MethodConfig::InContext(method.config().clone()),
        }
    }

    /// Its language model.
    pub fn model(&self) -> &AnyLm<B> {
        each!(self, method => &method.model)
    }

    /// Where its weights are.
    pub fn device(&self) -> B::Device {
        self.model().head().device()
    }

    /// WRITE steps or passes; none if nothing is written.
    pub fn write_steps(&self) -> Option<usize> {
        match self {
            Self::GradMem(method) => Some(method.config().write_steps),
            Self::Rmt(method) => Some(method.config().write_steps),
            Self::InContext(_) => None,
        }
    }

    /// The same weights with another number of WRITE steps.
    ///
    /// # Errors
    ///
    /// If the method has no such number of steps.
    pub fn with_write_steps(self, write_steps: usize) -> Result<Self, Error> {
        Ok(match self {
            Self::GradMem(method) => Self::GradMem(method.with_write_steps(write_steps)),
            Self::Rmt(method) => Self::Rmt(method.with_write_steps(write_steps)?),
            Self::InContext(_) => {
                return Err(writes_nothing());
            }
        })
    }

    /// Writes contexts into memory.
    ///
    /// # Errors
    ///
    /// Contexts that do not fit the model; a method that writes nothing.
    pub fn write(&self, contexts: Tensor<B, 2, Int>) -> Result<Memory<B>, Error> {
        match self {
            Self::GradMem(method) => method.write(contexts),
            Self::Rmt(method) => method.write(contexts),
            Self::InContext(_) => Err(writes_nothing()),
        }
    }

    /// Reads memories once, for any number of queries.
    ///
    /// # Errors
    ///
    /// Memories of another model; a method that writes nothing.
    pub fn reader(&self, memory: &Memory<B>) -> Result<Prefix<'_, B, AnyLm<B>>, Error> {
        match self {
            Self::GradMem(method) => method.reader(memory),
            Self::Rmt(method) => method.reader(memory),
            Self::InContext(_) => Err(writes_nothing()),
        }
    }

    /// Takes in `contexts` and goes on from each of the `prompts`, of which every context has as many in a
    /// row, as `config` says.
    ///
    /// # Errors
    ///
    /// Contexts or prompts that do not fit the model.
    pub fn generate(
        &self,
        contexts: Tensor<B, 2, Int>,
        prompts: &[Vec<u32>],
        config: &GenerateConfig,
    ) -> Result<Vec<Vec<u32>>, Error> {
        match self {
            Self::InContext(method) => method.generate(contexts, prompts, config),
            _ => {
                let memory = self.write(contexts)?;
                self.reader(&memory)?.generate(prompts, config)
            }
        }
    }

    /// Takes memories out of the backend, to be described further and saved.
    ///
    /// # Errors
    ///
    /// Memories of another model or with numbers that are not finite; a method that writes nothing.
    pub fn pack(&self, memory: &Memory<B>) -> Result<MemoryFile, Error> {
        match self {
            Self::GradMem(method) => method.pack(memory),
            Self::Rmt(method) => method.pack(memory),
            Self::InContext(_) => Err(writes_nothing()),
        }
    }

    /// Memories that this model wrote, back on its backend.
    ///
    /// # Errors
    ///
    /// If another model wrote them; a method that writes nothing.
    pub fn unpack(&self, file: &MemoryFile) -> Result<Memory<B>, Error> {
        match self {
            Self::GradMem(method) => method.unpack(file),
            Self::Rmt(method) => method.unpack(file),
            Self::InContext(_) => Err(writes_nothing()),
        }
    }

    /// The token that fills a batch's shorter contexts.
    pub fn pad_token(&self) -> usize {
        each!(self, method => method.config().pad_token)
    }

    /// The longest context that can be written, in tokens; `None` if there is no limit.
    ///
    /// # Errors
    ///
    /// A method that writes nothing.
    pub fn longest_context(&self) -> Result<Option<usize>, Error> {
        let beside = match self {
            Self::GradMem(method) => method.config().prefix_len(),
            Self::Rmt(method) => method.config().written_with(),
            Self::InContext(_) => return Err(writes_nothing()),
        };
        let positions = self.model().max_positions();
        Ok(positions.map(|positions| positions.saturating_sub(beside)))
    }
}

/// The language model alone.
impl<B: KernelBackend> From<AnyMethod<B>> for AnyLm<B> {
    fn from(method: AnyMethod<B>) -> Self {
        each!(method, method => method.model)
    }
}

fn writes_nothing() -> Error {
    Error::Input(
        "the in-context baseline keeps the whole context and writes no memory: \
         use a model trained with gradmem or rmt"
            .into(),
    )
}

impl<B: KernelBackend> Method<B> for AnyMethod<B> {
    fn answers(
        &self,
        contexts: Tensor<B, 2, Int>,
        queries: Tensor<B, 2, Int>,
        labels: Tensor<B, 2, Int>,
    ) -> Result<Answers<B>, Error> {
        each!(self, method => method.answers(contexts, queries, labels))
    }

    fn gradient(
        &self,
        contexts: Tensor<B, 2, Int>,
        queries: Tensor<B, 2, Int>,
        labels: Tensor<B, 2, Int>,
        how: MetaGradient,
        share: Share,
    ) -> Result<(GradientsParams, Answers<B>), Error>
    where
        B: AutodiffBackend,
        Self: AutodiffModule<B>,
    {
        each!(self, method => method.gradient(contexts, queries, labels, how, share))
    }

    fn counted(&self, contexts: &Tensor<B, 2, Int>, labels: &Tensor<B, 2, Int>) -> Counted {
        each!(self, method => method.counted(contexts, labels))
    }

    fn reconstruction(
        &self,
        answers: &Answers<B>,
        contexts: Tensor<B, 2, Int>,
    ) -> Result<Option<Reconstruction<B>>, Error> {
        each!(self, method => Method::reconstruction(method, answers, contexts))
    }
}
