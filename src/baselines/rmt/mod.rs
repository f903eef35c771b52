//! The Recurrent Memory Transformer (arXiv 2207.06881) with two segments, as GradMem is compared with
//! it: the context is written by forward passes, the query is read with what they left.
//!
//! A pass reads `[mem′; C; mem′]` and takes the last `m` hidden states as the new memory; there are K
//! passes. READ is `[mem; Q]`.

mod config;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

pub use config::{RmtConfig, RmtProj};

use crate::baselines::Answers;
use crate::episode::{Episode, Tokens, check_contexts};
use crate::error::Error;
use crate::memory::kinds::{
    self, Layout, Memory, MemoryFiles, Origin, Prefix, check_room, control_tokens,
};
use crate::model::layers::{Affine, Init, LayerNorm};
use crate::model::rows::{padding_last, pick};
use crate::model::{CausalLm, generate, losses_by_head};

/// The method's name in a memory's file.
const RMT: &str = "rmt";

/// A language model with a memory that forward passes write.
///
/// Parameters carry the reference implementation's names.
#[derive(Module, Debug)]
pub struct Rmt<B: Backend, M> {
    /// The language model.
    pub model: M,
    /// Where every WRITE starts: `[memory_tokens, d_model]`.
    pub mem: Param<Tensor<B, 2>>,
    /// Between memory and model in WRITE.
    pub mem_proj: Option<Affine<B>>,
    /// Between memory and model in READ.
    pub read_mem_proj: Option<Affine<B>>,
    /// Before the memory in WRITE, on both sides of the context: `[ctrl_tokens, d_model]`.
    pub write_st: Option<Param<Tensor<B, 2>>>,
    /// Behind the memory before the context.
    pub write_end: Option<Param<Tensor<B, 2>>>,
    /// Before the memory in READ.
    pub read_st: Option<Param<Tensor<B, 2>>>,
    /// Behind the memory in READ.
    pub read_end: Option<Param<Tensor<B, 2>>>,
    /// Of what passes after the first add to the memory.
    pub mem_residual_ln: Option<LayerNorm<B>>,
    /// The head of the reconstruction, if it has one of its own: `[vocab_size, d_model]`.
    pub write_head: Option<Affine<B>>,
    #[module(skip)]
    config: RmtConfig,
}

impl RmtConfig {
    /// Puts a memory on `model`, drawn by `seed`.
    ///
    /// # Errors
    ///
    /// See [`RmtConfig::validate`]; also if the model has no room for the memory.
    pub fn init<B: Backend, M: CausalLm<B>>(
        &self,
        model: M,
        seed: u64,
        device: &B::Device,
    ) -> Result<Rmt<B, M>, Error> {
        self.build(model, Init::new(seed), device)
    }

    pub(crate) fn build<B: Backend, M: CausalLm<B>>(
        &self,
        model: M,
        mut init: Init,
        device: &B::Device,
    ) -> Result<Rmt<B, M>, Error> {
        self.validate()?;
        init.draw_pending(&model);
        check_room(&model, "memory_tokens", self.written_with())?;
        let d = model.d_model();
        let std = self.memory_std;
        let mem = init.normal([self.memory_tokens, d], std, device);
        let mem_proj = (self.mem_proj != RmtProj::None).then(|| {
            let bound = 1.0 / (d as f64).sqrt();
            Affine::new(
                init.uniform([d, d], bound, device),
                Some(init.uniform([d], bound, device)),
            )
        });
        let reads = self.mem_proj == RmtProj::ProjRw;
        let read_mem_proj = reads.then(|| Affine::identity(d, &init, device));
        let [write_st, write_end, read_st, read_end] =
            control_tokens([self.ctrl_tokens, d], std, &mut init, device);
        let mem_residual_ln = self
            .mem_residual
            .then(|| LayerNorm::new(d, 1e-5, &init, device));
        let write_head = self.write_head.then(|| {
            let shape = [model.vocab_size(), d];
            Affine::copy(shape, || model.head(), &init, device)
        });
        Ok(Rmt {
            model,
            mem,
            mem_proj,
            read_mem_proj,
            write_st,
            write_end,
            read_st,
            read_end,
            mem_residual_ln,
            write_head,
            config: self.clone(),
        })
    }
}

impl<B: Backend, M: Module<B>> Rmt<B, M> {
    /// The settings in force.
    pub fn config(&self) -> &RmtConfig {
        &self.config
    }

    /// The same weights with another number of passes.
    ///
    /// # Errors
    ///
    /// If there are none.
    pub fn with_write_steps(mut self, write_steps: usize) -> Result<Self, Error> {
        self.config.write_steps = write_steps;
        self.config.validate()?;
        Ok(self)
    }
}

impl<B: Backend, M: CausalLm<B>> Rmt<B, M> {
    /// Writes each context into memory vectors of its own by K forward passes.
    ///
    /// A sample is read as if it were alone, whatever the others' lengths.
    ///
    /// # Errors
    ///
    /// An empty context, a token the model does not have, or more tokens than the model has positions.
    pub fn write(&self, contexts: &Tokens<B>) -> Result<Memory<B>, Error> {
        self.check_contexts(contexts)?;
        Ok(self.passes(contexts, false).0)
    }

    /// Next-token logits of `queries` given the memory, as
    /// [`GradMem::read`](crate::memory::GradMem::read).
    ///
    /// # Errors
    ///
    /// Shapes that do not fit, a token the model does not have, or more tokens than positions.
    pub fn read(&self, memory: &Memory<B>, queries: &Tokens<B>) -> Result<Tensor<B, 3>, Error> {
        Ok(self
            .model
            .logits(self.read_hidden(memory, queries, usize::MAX)?))
    }

    /// The last `rows` of the hidden states that [`Rmt::read`] makes its logits of.
    fn read_hidden(
        &self,
        memory: &Memory<B>,
        queries: &Tokens<B>,
        rows: usize,
    ) -> Result<Tensor<B, 3>, Error> {
        memory.check(&self.layout())?;
        kinds::read(&self.in_read(), &self.model, memory, queries, rows)
    }

    /// Reads the memories once, for any number of queries.
    ///
    /// # Errors
    ///
    /// If the memory is of another shape than this model's.
    pub fn reader(&self, memory: &Memory<B>) -> Result<generate::Reader<'_, B, M>, Error> {
        memory.check(&self.layout())?;
        kinds::reader(&self.in_read(), &self.model, memory)
    }

    /// Writes the contexts, reads the queries and takes the outer loss. A label in the first column is not
    /// predicted: no query token stands before it.
    ///
    /// # Errors
    ///
    /// As [`Rmt::write`] and [`Rmt::read`]; also labels beyond the vocabulary.
    pub fn outer(&self, episode: &Episode<B>) -> Result<Answers<B>, Error> {
        self.check_contexts(episode.contexts())?;
        episode.check_questions(&self.model, self.config.prefix_len())?;
        let joined = self.joined();
        let reconstructs = self.config.reconstruction_loss_weight > 0.0;
        let (memory, losses) = joined.passes(episode.contexts(), reconstructs);
        // Without the row that the memory alone predicts, unless there is no other.
        let behind_tokens = episode.queries().width().max(1);
        let rows = episode.labels().rows_needed().min(behind_tokens);
        let hidden = joined.read_hidden(&memory, episode.queries(), rows)?;
        let (read_loss, predicted) = episode.answered(&self.model, hidden);
        let count = losses.len() as f64;
        let total = losses.into_iter().reduce(|sum, loss| sum + loss);
        let weight = self.config.reconstruction_loss_weight;
        let term = total.map(|total| total.mul_scalar(1.0 / count).mul_scalar(weight));
        Ok(Answers {
            write_term: term,
            memory: Some(memory),
            ..Answers::new(read_loss, predicted)
        })
    }

    /// A short hash of all weights and the model's settings, as [`GradMem::fingerprint`].
    ///
    /// [`GradMem::fingerprint`]: crate::memory::GradMem::fingerprint
    pub fn fingerprint(&self) -> String {
        kinds::fingerprint(self, &self.model.settings())
    }

    /// This model's memories as files. The [fingerprint](Rmt::fingerprint), a hash of all weights, is computed once for all of
    /// them.
    pub fn files(&self) -> MemoryFiles<B> {
        let origin = Origin {
            method: RMT.into(),
            model: self.fingerprint(),
            write_steps: self.config.write_steps,
            write_lr: None,
            tokenizer: None,
        };
        MemoryFiles::new(origin, self.layout(), self.mem.val().device())
    }

    /// With the model made ready for many passes.
    fn joined(&self) -> Self {
        let mut joined = self.clone();
        joined.model = self.model.joined();
        joined
    }

    /// What one sample's memory is made of.
    fn layout(&self) -> Layout {
        let shape = [self.config.memory_tokens, self.model.d_model()];
        Layout::prefix(shape, false).of_whole_contexts()
    }

    /// The memory before the context in WRITE.
    fn in_write(&self) -> Prefix<'_, B> {
        Prefix {
            start: self.write_st.as_ref(),
            memory_tokens: self.config.memory_tokens,
            projection: self.mem_proj.as_ref(),
            end: self.write_end.as_ref(),
        }
    }

    /// The memory as READ attaches it.
    fn in_read(&self) -> Prefix<'_, B> {
        Prefix {
            start: self.read_st.as_ref(),
            memory_tokens: self.config.memory_tokens,
            projection: self.read_mem_proj.as_ref(),
            end: self.read_end.as_ref(),
        }
    }

    fn check_contexts(&self, contexts: &Tokens<B>) -> Result<(), Error> {
        check_contexts(contexts)?;
        contexts.check(&self.model, self.config.written_with(), "context")
    }

    /// The memory after all passes, and if asked for the reconstruction losses of those after the first and of one more, in nats a
    /// token.
    fn passes(&self, contexts: &Tokens<B>, reconstructs: bool) -> (Memory<B>, Vec<Tensor<B, 1>>) {
        let config = &self.config;
        let embeds = self.model.embed(contexts.ids());
        let lengths: Vec<usize> = contexts.lengths().collect();
        let batch = lengths.len();
        let start = self.mem.val().unsqueeze::<3>();
        let [_, m, d] = start.dims();
        let mut memory = start.expand([batch, m, d]);
        let mut losses = Vec::new();
        // One upload for all passes.
        let counted = reconstructs.then(|| contexts.mask());
        for pass in 0..config.write_steps + usize::from(reconstructs) {
            let hidden = self.pass(memory.clone(), embeds.clone(), &lengths);
            if let (1.., Some(counted)) = (pass, &counted) {
                losses.push(self.reconstruction_loss(hidden.clone(), contexts, counted));
            }
            if pass == config.write_steps {
                break;
            }
            // The last vectors of each sample's own sequence.
            let end = |length: &usize| config.written_with() + length;
            let rows = lengths.iter().map(|l| (end(l) - m..end(l)).collect());
            let new = pick(hidden, &rows.collect::<Vec<_>>());
            memory = match &self.mem_residual_ln {
                Some(norm) if pass > 0 => memory + norm.plain(new),
                _ => new,
            };
        }
        (Memory::from_vectors(memory), losses)
    }

    /// One pass over `[write_st; mem′; write_end; C; write_st; mem′]`. Each sample's context is followed at
    /// once by what stands behind it; its padding goes to the end, where nothing looks back at it. So no
    /// mask is needed and positions count what is read.
    fn pass(&self, memory: Tensor<B, 3>, embeds: Tensor<B, 3>, lengths: &[usize]) -> Tensor<B, 3> {
        let front = self.in_write();
        let behind = Prefix { end: None, ..front };
        let projected = front.project::<M>(&[memory]);
        let (front, behind) = (front.frame(projected.clone()), behind.frame(projected));
        let padded = [front.dims()[1], embeds.dims()[1]];
        let x = Tensor::cat(vec![front, embeds, behind], 1);
        self.model.hidden(padding_last(x, padded, lengths))
    }

    /// The mean of −log p(c_i | …) over all tokens of the batch, `[1]`.
    fn reconstruction_loss(
        &self,
        hidden: Tensor<B, 3>,
        contexts: &Tokens<B>,
        counted: &Tensor<B, 2>,
    ) -> Tensor<B, 1> {
        let hidden = hidden.narrow(1, self.config.prefix_len() - 1, contexts.width());
        let head = self.write_head.as_ref();
        let losses = losses_by_head(&self.model, head, hidden, contexts.ids());
        (losses * counted.clone())
            .sum()
            .mul_scalar(1.0 / contexts.count() as f64)
    }
}
