//! The Associative Recurrent Memory Transformer (arXiv 2407.04841) with two segments, as GradMem is compared with it: the
//! context is written into a matrix of each layer, the query is read with these matrices.
//!
//! A segment of the context is read as `[C; memory]` with learned memory vectors. After each layer its hidden states of
//! these vectors are written into the layer's memory `(W, z)`; before each layer what the memory answers is added to the
//! hidden states of all rows ([`associative_read`], [`associative_write`]). Nothing else passes from a segment to the next.
//! The query is the last segment, of which nothing is written.
//!
//! Positions begin at 0 in every segment, in both implementations. The authors' newer one counts on; with rotary positions,
//! which act by distances, that is the same function. There, too, one stream of context and query is cut into segments; it
//! is the same where `segment_size` divides the context's length and no query is longer.
//!
//! [`associative_read`]: gradmem_kernels::associative_read
//! [`associative_write`]: gradmem_kernels::associative_write

mod config;

use burn::module::{Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use gradmem_kernels::{Association, LayerBackend};

pub use config::{ArmtConfig, ArmtImplementation};

use crate::baselines::Answers;
use crate::episode::{Episode, Tokens, check_contexts};
use crate::error::Error;
use crate::memory::kinds::{self, Layout, Memory, MemoryFiles, Origin, check_room};
use crate::model::layers::{Associative, Init};
use crate::model::rows::{padding_last, select};
use crate::model::{Cache, CausalLm, MemoryRows, generate};

/// The method's name in a memory's file, and that of its kind.
const ARMT: &str = "armt";
const ASSOCIATIVE: &str = "associative";

/// A language model whose layers have associative memories that forward passes write.
///
/// The model must run its layers by [`forward_layers`](crate::model::forward_layers) and say so by
/// [`CausalLm::slots`].
#[derive(Module, Debug)]
pub struct Armt<B: Backend, M> {
    /// The language model.
    pub model: M,
    /// The vectors behind each segment: `[memory_tokens, d_model]`.
    pub memory: Param<Tensor<B, 2>>,
    /// Each layer's maps to and from its memory.
    pub layers: Vec<Associative<B>>,
    #[module(skip)]
    config: ArmtConfig,
}

impl ArmtConfig {
    /// Puts a memory on `model`, drawn by `seed`.
    ///
    /// # Errors
    ///
    /// See [`ArmtConfig::validate`]; also a model that does not say that it has layers, or has no attention where the
    /// implementation needs one, or no room for the memory.
    pub fn init<B: Backend, M: CausalLm<B>>(
        &self,
        model: M,
        seed: u64,
        device: &B::Device,
    ) -> Result<Armt<B, M>, Error> {
        self.build(model, Init::new(seed), device)
    }

    pub(crate) fn build<B: Backend, M: CausalLm<B>>(
        &self,
        model: M,
        mut init: Init,
        device: &B::Device,
    ) -> Result<Armt<B, M>, Error> {
        self.validate()?;
        init.draw_pending(&model);
        check_room(&model, "memory_tokens", self.written_with())?;
        let (d, slots) = (model.d_model(), model.slots());
        let maps = self.maps(d, &slots)?;
        let shape = [self.memory_tokens, d];
        let memory = match (self.memory_std, self.implementation) {
            (None, ArmtImplementation::Old) => {
                let drawn = init.normal(shape, 1.0, device);
                let std = || std_of_embeddings(&model, device).expand(shape);
                init.given(shape, device, || (drawn.val() * std()).detach())
            }
            (std, _) => init.normal(shape, std.unwrap_or(0.02), device),
        };
        Ok(Armt {
            memory,
            layers: (0..slots.layers)
                .map(|_| maps.init(&mut init, device))
                .collect(),
            model,
            config: self.clone(),
        })
    }
}

/// The standard deviation of all entries of a model's embeddings, `[1, 1]`.
fn std_of_embeddings<B: Backend, M: CausalLm<B>>(model: &M, device: &B::Device) -> Tensor<B, 2> {
    let vocab = model.vocab_size();
    let ids = Tensor::<B, 1, Int>::arange(0..vocab as i64, device);
    let embeddings = model.embed(ids.reshape([1, vocab]));
    let mean = embeddings.clone().mean().reshape([1, 1, 1]);
    let variance = (embeddings - mean).square().mean();
    variance.sqrt().reshape([1, 1])
}

/// What is read at once: samples, and a row of tokens of each.
type Segment<B> = (Vec<usize>, Tokens<B>);

/// Where memory vectors stand in the sequences of samples of different lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// Behind each sample's last token, as if it were alone.
    BehindTokens,
    /// Behind the longest sample's last token, as in the authors' padded batches.
    BehindPadding,
}

impl<B: Backend, M: Module<B>> Armt<B, M> {
    /// The settings in force.
    pub fn config(&self) -> &ArmtConfig {
        &self.config
    }
}

impl<B: LayerBackend, M: CausalLm<B>> Armt<B, M> {
    /// Writes each context into matrices of its own by one forward pass for each of its segments.
    ///
    /// A sample is read as if it were alone, whatever the others' lengths.
    ///
    /// # Errors
    ///
    /// An empty context, a token the model does not have, or a segment that with the memory vectors has more tokens than
    /// the model has positions.
    pub fn write(&self, contexts: &Tokens<B>) -> Result<Memory<B>, Error> {
        self.write_placed(contexts, Placement::BehindTokens)
    }

    /// Next-token logits of `queries` given the memory, which predicts no first token: the first row is predicted from the
    /// first token.
    ///
    /// # Shapes
    ///
    /// - `queries`: `[batch · r, seq]`; each memory answers `r` in a row
    /// - output: `[batch · r, seq, vocab_size]`
    ///
    /// # Errors
    ///
    /// Shapes that do not fit, a query without tokens, a token the model does not have, or more tokens than positions.
    pub fn read(&self, memory: &Memory<B>, queries: &Tokens<B>) -> Result<Tensor<B, 3>, Error> {
        self.reader(memory)?.logits(queries)
    }

    /// The memories for any number of queries.
    ///
    /// # Errors
    ///
    /// If they are of another shape than this model's.
    pub fn reader(&self, memory: &Memory<B>) -> Result<generate::Reader<'_, B, M>, Error> {
        let written = self.associations(memory)?;
        let mut cache = Cache::new();
        for (index, (maps, written)) in self.layers.iter().zip(written).enumerate() {
            cache.layer(index).associate(maps.clone(), Some(written));
        }
        Ok(generate::Reader::of_cache(&self.model, memory.len(), cache))
    }

    /// Writes the contexts, reads the queries and takes the outer loss. A label in the first column is not counted: no
    /// query token stands before it.
    ///
    /// # Errors
    ///
    /// As [`Armt::write`] and [`Armt::read`]; also labels beyond the vocabulary.
    pub fn outer(&self, episode: &Episode<B>) -> Result<Answers<B>, Error> {
        self.outer_placed(episode, Placement::BehindTokens)
    }

    /// [`Armt::outer`] with the memory vectors there.
    pub(crate) fn outer_placed(
        &self,
        episode: &Episode<B>,
        placement: Placement,
    ) -> Result<Answers<B>, Error> {
        episode.check_questions(&self.model, 0)?;
        let joined = self.joined();
        let memory = joined.write_placed(episode.contexts(), placement)?;
        let (reader, rows) = (joined.reader(&memory)?, episode.labels().rows_needed());
        let hidden = reader.hidden_before(episode.queries(), rows)?;
        let (read_loss, predicted) = episode.answered(&self.model, hidden);
        Ok(Answers {
            memory: Some(memory),
            ..Answers::new(read_loss, predicted)
        })
    }

    /// With the model made ready for many passes.
    fn joined(&self) -> Self {
        let mut joined = self.clone();
        joined.model = self.model.joined();
        joined
    }

    /// A short hash of all weights and the model's settings, as [`GradMem::fingerprint`].
    ///
    /// [`GradMem::fingerprint`]: crate::memory::GradMem::fingerprint
    pub fn fingerprint(&self) -> String {
        kinds::fingerprint(self, &self.model.settings())
    }

    /// This model's memories as files. The [fingerprint](Armt::fingerprint), a hash of all weights, is computed once for all of
    /// them.
    pub fn files(&self) -> MemoryFiles<B> {
        let origin = Origin {
            method: ARMT.into(),
            model: self.fingerprint(),
            write_steps: 1,
            write_lr: None,
            tokenizer: None,
        };
        MemoryFiles::new(origin, self.layout(), self.memory.val().device())
    }

    /// What one sample's memory is made of: each layer's `W`, the heads below one another, and `z`, if there is one.
    fn layout(&self) -> Layout {
        let heads = self.config.n_heads;
        let matrices = self.layers.iter().enumerate().flat_map(|(layer, maps)| {
            let [rows, columns] = maps.config().matrix_shape();
            let matrix = (format!("W_mem.{layer}"), [rows, columns]);
            let sum = (format!("z.{layer}"), [heads, rows / heads]);
            [Some(matrix), self.config.use_denom.then_some(sum)]
        });
        Layout::new(ASSOCIATIVE, matrices.flatten()).of_whole_contexts()
    }

    fn write_placed(&self, contexts: &Tokens<B>, placement: Placement) -> Result<Memory<B>, Error> {
        check_contexts(contexts)?;
        contexts.check_ids(&self.model, "context")?;
        let mut written: Option<Vec<Association<B>>> = None;
        let segments = self.segments(contexts)?;
        for (_, tokens) in &segments {
            tokens.check(&self.model, self.config.written_with(), "context")?;
        }
        for (samples, tokens) in segments {
            let all = samples.len() == contexts.len();
            written = Some(match written {
                Some(before) if !all => {
                    let own = before.iter().map(|x| rows_of(x, &samples)).collect();
                    let own = self.pass(&tokens, Some(own), placement)?;
                    let pairs = before.into_iter().zip(own);
                    pairs.map(|(x, own)| replaced(x, own, &samples)).collect()
                }
                before => self.pass(&tokens, before, placement)?,
            });
        }
        let matrices = written.into_iter().flatten().flat_map(|layer| {
            let [batch, heads, features, d_value] = layer.matrix.dims();
            let matrix = layer.matrix.reshape([batch, heads * features, d_value]);
            [Some(matrix), layer.normalizer].into_iter().flatten()
        });
        Ok(Memory::from_fast(matrices.collect()))
    }

    /// The segments of the contexts in order, each with the samples that have tokens there.
    fn segments(&self, contexts: &Tokens<B>) -> Result<Vec<Segment<B>>, Error> {
        let longest = contexts.lengths().max().unwrap_or(0);
        let size = match self.config.segment_size {
            Some(size) if size < longest => size,
            _ => return Ok(vec![((0..contexts.len()).collect(), contexts.clone())]),
        };
        let segment = |start: usize| {
            let rows = contexts.rows().enumerate();
            let rows = rows.filter(|(_, row)| row.len() > start);
            let rows = rows.map(|(sample, row)| (sample, &row[start..row.len().min(start + size)]));
            let (samples, rows): (Vec<_>, Vec<_>) = rows.unzip();
            Ok((samples, Tokens::new(&rows, &contexts.device())?))
        };
        (0..longest).step_by(size).map(segment).collect()
    }

    /// What is written in each layer after one more segment.
    fn pass(
        &self,
        tokens: &Tokens<B>,
        written: Option<Vec<Association<B>>>,
        placement: Placement,
    ) -> Result<Vec<Association<B>>, Error> {
        let embeds = self.model.embed(tokens.ids());
        let ([batch, width, d], device) = (embeds.dims(), embeds.device());
        let count = self.config.memory_tokens;
        let lengths: Vec<usize> = tokens.lengths().collect();
        let memory = self.memory.val().unsqueeze::<3>().expand([batch, count, d]);
        let x = Tensor::cat(vec![embeds, memory], 1);
        let padded = lengths.iter().any(|length| *length != width);
        let behind_tokens = placement == Placement::BehindTokens;
        let (x, starts) = match behind_tokens {
            true => (padding_last(x, [0, width], &lengths), lengths.clone()),
            false => (x, vec![width; batch]),
        };
        let seq = width + count;
        let rows = MemoryRows::new(&starts, count, seq, &device);
        let both_ways = self.config.implementation == ArmtImplementation::Thinking;
        // Behind the tokens, and looking back only, they see by causal attention what they should.
        let rows = match both_ways || padded && !behind_tokens {
            true => rows.looking_at(&lengths, both_ways, &starts, seq),
            false => rows,
        };
        let mut cache = Cache::new();
        let mut written = written.map(|written| written.into_iter());
        for (index, maps) in self.layers.iter().enumerate() {
            let before = written.as_mut().and_then(Iterator::next);
            let layer = cache.layer(index);
            layer.associate(maps.clone(), before);
            layer.write_from(rows.clone());
        }
        self.model.hidden_after(x, &mut cache);
        let layers = 0..self.layers.len();
        let written = layers.map(|index| cache.layer(index).association().cloned());
        written.collect::<Option<Vec<_>>>().ok_or_else(|| {
            Error::Input(
                "the model says that it has layers, but does not run them by forward_layers, which writes ARMT's memory"
                    .into(),
            )
        })
    }

    /// Each layer's part of a memory.
    fn associations(&self, memory: &Memory<B>) -> Result<Vec<Association<B>>, Error> {
        memory.check(&self.layout())?;
        let fast = memory.fast();
        let each = if self.config.use_denom { 2 } else { 1 };
        let layers = fast.chunks(each).map(|layer| {
            let [batch, rows, d_value] = layer[0].dims();
            let heads = self.config.n_heads;
            Association {
                matrix: layer[0]
                    .clone()
                    .reshape([batch, heads, rows / heads, d_value]),
                normalizer: layer.get(1).cloned(),
            }
        });
        Ok(layers.collect())
    }
}

/// What is written for these samples.
fn rows_of<B: Backend>(x: &Association<B>, samples: &[usize]) -> Association<B> {
    let normalizer = x.normalizer.clone();
    Association {
        matrix: select(x.matrix.clone(), samples),
        normalizer: normalizer.map(|x| select(x, samples)),
    }
}

/// `x` with what is written for these `samples` replaced by `own`.
fn replaced<B: Backend>(
    x: Association<B>,
    own: Association<B>,
    samples: &[usize],
) -> Association<B> {
    let batch = x.matrix.dims()[0];
    let mut places: Vec<usize> = (0..batch).collect();
    for (at, sample) in samples.iter().enumerate() {
        places[*sample] = batch + at;
    }
    let normalizer = x.normalizer.zip(own.normalizer);
    Association {
        matrix: select(Tensor::cat(vec![x.matrix, own.matrix], 0), &places),
        normalizer: normalizer.map(|(x, own)| select(Tensor::cat(vec![x, own], 0), &places)),
    }
}
