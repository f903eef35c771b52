//! One trait for what answers queries about a context, GradMem and its baselines, so that training and
//! evaluation are written once.

mod any;

use burn::module::{AutodiffModule, Module, ModuleDisplay};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use gradmem_kernels::LayerBackend;

pub use any::{AnyMethod, MethodConfig, MethodName};

pub use crate::baselines::Answers;

use crate::baselines::{Armt, InContext, Rmt};
use crate::episode::{Episode, Totals};
use crate::error::Error;
use crate::memory::{GradMem, GraphLock, LiftedObjective, MetaGradient, Outer, Reconstruction};
use crate::model::{CausalLm, Writable};

/// Something that answers queries about contexts and can be trained to.
pub trait Method<B: Backend>: Module<B> + ModuleDisplay {
    /// Answers the queries of an episode from its contexts.
    ///
    /// # Errors
    ///
    /// Whatever does not fit the model.
    fn answers(&self, episode: &Episode<B>) -> Result<Answers<B>, Error>;

    /// The gradient of what training minimises and the answers it belongs to. Of a part of a batch it is what
    /// the part adds to the gradient of the whole. `strategy` is for methods that are differentiated through
    /// WRITE.
    ///
    /// # Errors
    ///
    /// As [`Method::answers`].
    fn gradient(
        &self,
        episode: &Episode<B>,
        strategy: MetaGradient,
    ) -> Result<(GradientsParams, Answers<B>), Error>
    where
        B: AutodiffBackend,
        Self: AutodiffModule<B>,
    {
        let _ = strategy;
        let _lock = GraphLock::new();
        let answers = self.answers(episode)?;
        Ok((answers.gradient(self, episode), answers))
    }

    /// What [`MetaGradient::Auto`] is at this moment, for steps that compute contexts `[batch, seq]` at once; the
    /// others are what they are.
    ///
    /// # Errors
    ///
    /// If such a step certainly does not fit into memory.
    fn settle(&self, strategy: MetaGradient, contexts: [usize; 2]) -> Result<MetaGradient, Error> {
        let _ = contexts;
        Ok(strategy)
    }

    /// How many labels the READ loss is a mean over.
    fn counted_labels(&self, totals: Totals) -> usize {
        totals.labels
    }

    /// How well the memory that `answers` were given from reconstructs the contexts, if the method
    /// reconstructs.
    ///
    /// # Errors
    ///
    /// Whatever does not fit the model.
    fn reconstruction(
        &self,
        answers: &Answers<B>,
        episode: &Episode<B>,
    ) -> Result<Option<Reconstruction<B>>, Error> {
        let _ = (answers, episode);
        Ok(None)
    }

    /// Each sample's WRITE loss before the first step, if the [losses](crate::memory::Memory::losses) of its memory do not have it: in
    /// several chunks one after another they have the first one's.
    ///
    /// # Errors
    ///
    /// Whatever does not fit the model.
    fn start_loss(&self, episode: &Episode<B>) -> Result<Option<Tensor<B, 1>>, Error> {
        let _ = episode;
        Ok(None)
    }
}

impl<B: AutodiffBackend> Answers<B> {
    /// The gradient of their losses, as [`Method::gradient`] has it.
    fn gradient<M: Method<B> + AutodiffModule<B>>(
        &self,
        method: &M,
        episode: &Episode<B>,
    ) -> GradientsParams {
        let read_loss = episode.share(self.read_loss.clone(), |totals| {
            method.counted_labels(totals)
        });
        let loss = match self.write_term.clone() {
            Some(term) => read_loss + episode.share(term, |totals| totals.context_tokens),
            None => read_loss,
        };
        GradientsParams::from_grads(loss.backward(), method)
    }
}

impl<B: Backend> From<Outer<B>> for Answers<B> {
    fn from(outer: Outer<B>) -> Self {
        Self {
            read_loss: outer.read_loss,
            write_term: outer.term,
            predicted: outer.predicted,
            memory: Some(outer.memory),
            drift: outer.drift,
        }
    }
}

impl<B: Backend, M: Writable<B>, O: LiftedObjective<B, M>> Method<B> for GradMem<B, M, O> {
    fn answers(&self, episode: &Episode<B>) -> Result<Answers<B>, Error> {
        Ok(self.answer(episode)?.into())
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
        let (gradient, outer) = self.outer_gradient(episode, strategy)?;
        Ok((gradient, outer.into()))
    }

    fn settle(&self, strategy: MetaGradient, contexts: [usize; 2]) -> Result<MetaGradient, Error> {
        let chosen = match strategy {
            MetaGradient::Auto => self.choose(strategy, contexts),
            chosen => chosen,
        };
        self.check_memory(chosen, contexts)?;
        Ok(chosen)
    }

    fn counted_labels(&self, totals: Totals) -> usize {
        self.counted()(totals)
    }

    fn reconstruction(
        &self,
        answers: &Answers<B>,
        episode: &Episode<B>,
    ) -> Result<Option<Reconstruction<B>>, Error> {
        let Some(memory) = &answers.memory else {
            return Ok(None);
        };
        let (loss, accuracy) = self.measure(memory, episode.contexts())?;
        Ok(accuracy.map(|accuracy| Reconstruction { loss, accuracy }))
    }

    fn start_loss(&self, episode: &Episode<B>) -> Result<Option<Tensor<B, 1>>, Error> {
        let contexts = episode.contexts();
        let in_a_row = self.config().chunks_in_a_row(contexts.width()) > 1;
        let start = in_a_row.then(|| GradMem::start_loss(self, None, contexts));
        start.transpose()
    }
}

impl<B: Backend, M: CausalLm<B>> Method<B> for Rmt<B, M> {
    fn answers(&self, episode: &Episode<B>) -> Result<Answers<B>, Error> {
        self.outer(episode)
    }

    /// No query token stands before a label in the first column.
    fn counted_labels(&self, totals: Totals) -> usize {
        totals.later_labels
    }
}

impl<B: LayerBackend, M: CausalLm<B>> Method<B> for Armt<B, M> {
    fn answers(&self, episode: &Episode<B>) -> Result<Answers<B>, Error> {
        self.outer(episode)
    }

    /// Nothing predicts a label in the first column.
    fn counted_labels(&self, totals: Totals) -> usize {
        totals.later_labels
    }
}

impl<B: Backend, M: CausalLm<B>> Method<B> for InContext<B, M> {
    fn answers(&self, episode: &Episode<B>) -> Result<Answers<B>, Error> {
        episode.labels().check(&self.model)?;
        let joined = self.joined();
        let hidden = joined.hidden(episode.contexts(), episode.queries())?;
        let (read_loss, predicted) = episode.answered(&self.model, hidden);
        Ok(Answers::new(read_loss, predicted))
    }

    /// With the questions read as in training.
    fn gradient(
        &self,
        episode: &Episode<B>,
        _strategy: MetaGradient,
    ) -> Result<(GradientsParams, Answers<B>), Error>
    where
        B: AutodiffBackend,
        Self: AutodiffModule<B>,
    {
        episode.labels().check(&self.model)?;
        let _lock = GraphLock::new();
        let joined = self.joined();
        let hidden = joined.training_hidden(episode.contexts(), episode.queries())?;
        let (read_loss, predicted) = episode.answered(&self.model, hidden);
        let answers = Answers::new(read_loss, predicted);
        Ok((answers.gradient(self, episode), answers))
    }
}
