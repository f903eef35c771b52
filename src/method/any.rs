use burn::module::{AutodiffModule, Module};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use gradmem_kernels::KernelBackend;
use serde::{Deserialize, Serialize};

use super::{Answers, Method};
use crate::baselines::{Armt, ArmtConfig, InContext, InContextConfig, Rmt, RmtConfig};
use crate::episode::{Episode, Tokens, Totals};
use crate::error::Error;
use crate::memory::{GradMem, GradMemConfig, Memory, MemoryFiles, MetaGradient, Reconstruction};
use crate::model::generate::{GenerateConfig, Reader};
use crate::model::layers::Init;
#[cfg(feature = "train")]
use crate::model::rows_at_once;
use crate::model::{AnyLm, CausalLm, ModelConfig, weights};
use crate::support::memory::check_free;

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
    /// [`Armt`]
    Armt,
    /// [`InContext`]
    InContext,
}

impl MethodName {
    /// The name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GradMem => "gradmem",
            Self::Rmt => "rmt",
            Self::Armt => "armt",
            Self::InContext => "in-context",
        }
    }

    /// The sections of settings that methods have.
    pub const SECTIONS: [&str; 4] = ["memory", "rmt", "armt", "in_context"];

    /// The one of this method.
    pub fn section(self) -> &'static str {
        let [memory, rmt, armt, in_context] = Self::SECTIONS;
        match self {
            Self::GradMem => memory,
            Self::Rmt => rmt,
            Self::Armt => armt,
            Self::InContext => in_context,
        }
    }
}

/// The settings of a method.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant)] // A program has few.
#[non_exhaustive]
pub enum MethodConfig {
    /// [`GradMem`]
    GradMem(GradMemConfig),
    /// [`Rmt`]
    Rmt(RmtConfig),
    /// [`Armt`]
    Armt(ArmtConfig),
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
        let blank = self.blank_on(model.clone(), device)?;
        let added = weights::count(&blank).saturating_sub(weights::count(&model));
        let advice = "fewer memory vectors or a smaller rank";
        check_free::<B>(
            device,
            4.0 * added as f64,
            "what the method adds to the model needs",
            advice,
        )?;
        self.build(model, Init::new(seed), device)
    }

    /// The method's name.
    pub fn name(&self) -> MethodName {
        match self {
            Self::GradMem(_) => MethodName::GradMem,
            Self::Rmt(_) => MethodName::Rmt,
            Self::Armt(_) => MethodName::Armt,
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
        self.blank_on(model.blank(device)?, device)
    }

    /// The method on a model that is there already, with the weights of what it adds yet to be loaded.
    pub(crate) fn blank_on<B: KernelBackend>(
        &self,
        model: AnyLm<B>,
        device: &B::Device,
    ) -> Result<AnyMethod<B>, Error> {
        self.build(model, Init::blank(), device)
    }

    /// Whether the first token of a text without a query is predicted, from what was written alone.
    #[cfg(feature = "train")]
    pub(crate) fn predicts_first(&self) -> bool {
        match self {
            Self::GradMem(config) => config.first_predicted() == 0,
            Self::Rmt(_) | Self::Armt(_) => false,
            Self::InContext(_) => true,
        }
    }

    /// The longest sequence in training, memory included, for a context of so many tokens with as many questions, each of
    /// `question` tokens with its target.
    #[cfg(feature = "train")]
    pub(crate) fn positions(&self, context: usize, question: usize, questions: usize) -> usize {
        match self {
            Self::GradMem(config) => {
                let write = config
                    .longest_chunk(context)
                    .saturating_add(config.prefix_len());
                write.max(question.saturating_add(config.read_after(context)))
            }
            Self::Rmt(config) => {
                let write = context.saturating_add(config.written_with());
                write.max(question.saturating_add(config.prefix_len()))
            }
            Self::Armt(config) => config.positions(context).max(question),
            Self::InContext(config) => config.positions(context, question, questions),
        }
    }

    fn build<B: KernelBackend>(
        &self,
        model: AnyLm<B>,
        init: Init,
        device: &B::Device,
    ) -> Result<AnyMethod<B>, Error> {
        Ok(match self {
            Self::GradMem(config) => AnyMethod::GradMem(config.build(model, init, device)?),
            Self::Rmt(config) => AnyMethod::Rmt(config.build(model, init, device)?),
            Self::Armt(config) => AnyMethod::Armt(config.build(model, init, device)?),
            Self::InContext(config) => AnyMethod::InContext(config.init(model)),
        })
    }
}

/// Does the same with whichever there is.
macro_rules! each {
    ($value:expr, $inner:ident => $body:expr) => {
        match $value {
            AnyMethod::GradMem($inner) => $body,
            AnyMethod::Rmt($inner) => $body,
            AnyMethod::Armt($inner) => $body,
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
    /// `armt`
    Armt(Armt<B, AnyLm<B>>),
    /// `in-context`
    InContext(InContext<B, AnyLm<B>>),
}

impl<B: KernelBackend> AnyMethod<B> {
    /// About how many bytes an evaluation takes for each of up to 100 contexts: WRITE's graph, and the logits with what is
    /// made of them.
    ///
    /// - `context`, `question`: tokens of the context, and of a query with its target
    #[cfg(feature = "train")]
    pub(crate) fn evaluation_bytes(
        &self,
        context: usize,
        question: usize,
        questions: usize,
    ) -> f64 {
        /// Logits, their softmax, its gradient and one in between.
        const COPIES: f64 = 4.0;
        let model = self.model();
        let vocab_size = model.vocab_size();
        // However many contexts there are, so many rows of logits exist at once.
        let read = context + questions * question;
        let rows = (read as f64).min(rows_at_once(vocab_size) as f64 / 100.0);
        let logits = 4.0 * COPIES * vocab_size as f64 * rows;
        // About what one layer makes of a token, and as much again.
        let layer = 2.0 * 4.0 * model.numbers_per_token() / model.config().layers().max(1) as f64;
        let graph = match self {
            // Its logits are not there any more when READ's are.
            Self::GradMem(gradmem) => gradmem.layers_bytes([1, context]),
            // Forward passes keep a layer at a time.
            Self::Rmt(_) | Self::Armt(_) => layer * read as f64,
            Self::InContext(_) => layer * (questions * (context + question)) as f64,
        };
        logits + graph
    }

    /// The settings it was made with.
    pub fn config(&self) -> MethodConfig {
        match self {
            Self::GradMem(method) => MethodConfig::GradMem(method.config().clone()),
            Self::Rmt(method) => MethodConfig::Rmt(method.config().clone()),
            Self::Armt(method) => MethodConfig::Armt(method.config().clone()),
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
            // Over each segment.
            Self::Armt(_) => Some(1),
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
            Self::GradMem(method) => Self::GradMem(method.with_write_steps(write_steps)?),
            Self::Rmt(method) => Self::Rmt(method.with_write_steps(write_steps)?),
            Self::Armt(_) if write_steps == 1 => self,
            Self::Armt(_) => {
                return Err(Error::Input(format!(
                    "armt writes by one pass over each segment, not by {write_steps}"
                )));
            }
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
    pub fn write(&self, contexts: &Tokens<B>) -> Result<Memory<B>, Error> {
        match self {
            Self::GradMem(method) => method.write(contexts),
            Self::Rmt(method) => method.write(contexts),
            Self::Armt(method) => method.write(contexts),
            Self::InContext(_) => Err(writes_nothing()),
        }
    }

    /// Writes more into memories that this method wrote, one context to each.
    ///
    /// # Errors
    ///
    /// As [`GradMem::write_on`]; a method that does not write on.
    pub fn write_on(&self, memory: Memory<B>, contexts: &Tokens<B>) -> Result<Memory<B>, Error> {
        match self {
            Self::GradMem(method) => method.write_on(memory, contexts),
            Self::InContext(_) => Err(writes_nothing()),
            other => Err(Error::Input(format!(
                "a memory of {} is written from its whole context at once: nothing is added to it",
                other.config().name().as_str()
            ))),
        }
    }

    /// Reads memories once, for any number of queries.
    ///
    /// # Errors
    ///
    /// Memories of another model; a method that writes nothing.
    pub fn reader(&self, memory: &Memory<B>) -> Result<Reader<'_, B, AnyLm<B>>, Error> {
        match self {
            Self::GradMem(method) => method.reader(memory),
            Self::Rmt(method) => method.reader(memory),
            Self::Armt(method) => method.reader(memory),
            Self::InContext(_) => Err(writes_nothing()),
        }
    }

    /// Continues each of the `prompts` after its context, as `config` says; every context has as many prompts in
    /// a row.
    ///
    /// # Errors
    ///
    /// Contexts or prompts that do not fit the model.
    pub fn generate(
        &self,
        contexts: &Tokens<B>,
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

    /// This model's memories as files. All weights are hashed once for all of them.
    ///
    /// # Errors
    ///
    /// A method that writes nothing.
    pub fn files(&self) -> Result<MemoryFiles<B>, Error> {
        match self {
            Self::GradMem(method) => Ok(method.files()),
            Self::Rmt(method) => Ok(method.files()),
            Self::Armt(method) => Ok(method.files()),
            Self::InContext(_) => Err(writes_nothing()),
        }
    }

    /// The longest context that can be written, in tokens; `None` if there is no limit.
    ///
    /// # Errors
    ///
    /// A method that writes nothing.
    pub fn longest_context(&self) -> Result<Option<usize>, Error> {
        let beside = match self {
            Self::GradMem(method) if method.config().chunk_size.is_some() => {
                let positions = self.model().max_positions();
                return Ok(
                    positions.and_then(|positions| method.config().longest_in_chunks(positions))
                );
            }
            Self::GradMem(method) => method.config().prefix_len(),
            Self::Rmt(method) => method.config().written_with(),
            Self::Armt(method) if method.config().segment_size.is_some() => return Ok(None),
            Self::Armt(method) => method.config().written_with(),
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
        "this model was not trained to write a memory (a pretrained model, or the in-context baseline): use a run of gradmem, rmt or armt, \
         train one from it (`train --from`), or optimise vectors for the text (`write --optimizer adam`, `GradMem::cram`)"
            .into(),
    )
}

impl<B: KernelBackend> Method<B> for AnyMethod<B> {
    fn answers(&self, episode: &Episode<B>) -> Result<Answers<B>, Error> {
        each!(self, method => method.answers(episode))
    }

    fn gradient(
        &self,
        episode: &Episode<B>,
        strategy: MetaGradient,
    ) -> Result<(GradientsParams, Answers<B>), Error>
    where
        B: AutodiffBackend,
        Self: AutodiffModule<B>,
    {
        each!(self, method => method.gradient(episode, strategy))
    }

    fn settle(&self, strategy: MetaGradient, contexts: [usize; 2]) -> Result<MetaGradient, Error> {
        each!(self, method => method.settle(strategy, contexts))
    }

    fn counted_labels(&self, totals: Totals) -> usize {
        each!(self, method => method.counted_labels(totals))
    }

    fn reconstruction(
        &self,
        answers: &Answers<B>,
        episode: &Episode<B>,
    ) -> Result<Option<Reconstruction<B>>, Error> {
        each!(self, method => Method::reconstruction(method, answers, episode))
    }

    fn start_loss(&self, episode: &Episode<B>) -> Result<Option<Tensor<B, 1>>, Error> {
        each!(self, method => Method::start_loss(method, episode))
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn_flex::Flex;

    use super::*;
    use crate::model::LlamaConfig;

    #[test]
    fn what_a_method_adds_must_fit_into_memory() {
        let model = ModelConfig::Llama(LlamaConfig::new(10, 1 << 12, 1, 1));
        let adapters = GradMemConfig::new().with_write_lora(1 << 24, 16.0);
        let method = MethodConfig::GradMem(adapters);
        let blank = model.blank::<Flex>(&Default::default()).unwrap();
        let Err(error) = method.attach(blank, 0, &Default::default()) else {
            panic!("hundreds of gigabytes were given");
        };
        let text = error.to_string();
        assert!(text.contains("MiB are free"), "{text}");
        assert!(error.is_user_error());
    }
}
