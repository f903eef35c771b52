//! What stands before a batch of sequences, read once, and their continuations.

use std::collections::BTreeMap;

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::GenerateConfig;
use crate::error::Error;
use crate::model::rows::{repeat, select, share};
use crate::model::tokens::check_ids;
use crate::model::{Cache, CausalLm, Tokens};

/// Continues prompts of any lengths, of at least one token each, by a language model without a memory.
///
/// # Errors
///
/// An empty prompt, and as [`Reader::generate`].
pub fn continue_prompts<B: Backend, M: CausalLm<B>>(
    model: &M,
    prompts: &[Vec<u32>],
    config: &GenerateConfig,
) -> Result<Vec<Vec<u32>>, Error> {
    if let Some(empty) = prompts.iter().position(Vec::is_empty) {
        return Err(Error::Input(format!(
            "prompt {empty} is empty: it needs at least one token"
        )));
    }
    Reader::of_cache(model, prompts.len(), Cache::new()).generate(prompts, config)
}

/// What stands before a batch of sequences, read once, for any number of continuations.
#[derive(Debug)]
pub struct Reader<'a, B: Backend, M> {
    model: &'a M,
    batch: usize,
    groups: Vec<Group<B>>,
}

/// Samples whose caches are of one length.
#[derive(Debug)]
struct Group<B: Backend> {
    samples: Vec<usize>,
    cache: Cache<B>,
    /// The hidden state of the last row that was read, `[batch, 1, d_model]`, if there was a row.
    last: Option<Tensor<B, 3>>,
}

impl<'a, B: Backend, M: CausalLm<B>> Reader<'a, B, M> {
    /// Reads `embeds` `[batch, seq, d_model]`.
    ///
    /// # Errors
    ///
    /// If `batch` or `seq` is 0, or `seq` is more than the model has positions.
    pub fn new(model: &'a M, embeds: Tensor<B, 3>) -> Result<Self, Error> {
        let mut cache = Cache::new();
        let [batch, seq, _] = embeds.dims();
        let positions = model.max_positions().unwrap_or(usize::MAX);
        if batch == 0 || seq == 0 || seq > positions {
            return Err(Error::Input(format!(
                "{batch} prefixes of {seq} vectors cannot be read: there must be at least one of \
                 each, and the model has {positions} positions"
            )));
        }
        let last = model.last_hidden(embeds, 1, Some(&mut cache));
        Ok(Self::of_group(model, batch, cache, Some(last)))
    }

    /// Of `batch` samples whose memory is in `cache` alone, without a vector that predicts the first token.
    pub(crate) fn of_cache(model: &'a M, batch: usize, cache: Cache<B>) -> Self {
        Self::of_group(model, batch, cache, None)
    }

    fn of_group(model: &'a M, batch: usize, cache: Cache<B>, last: Option<Tensor<B, 3>>) -> Self {
        let group = Group {
            samples: (0..batch).collect(),
            cache,
            last,
        };
        Self {
            model,
            batch,
            groups: vec![group],
        }
    }

    /// Of readers of some of the samples each, with those samples' indices.
    pub(crate) fn of_parts(model: &'a M, parts: Vec<(Vec<usize>, Self)>) -> Self {
        let batch = parts.iter().map(|(samples, _)| samples.len()).sum();
        let groups = parts.into_iter().flat_map(|(samples, part)| {
            part.groups.into_iter().map(move |group| Group {
                samples: group.samples.iter().map(|at| samples[*at]).collect(),
                ..group
            })
        });
        Self {
            model,
            batch,
            groups: groups.collect(),
        }
    }

    /// Number of samples.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Positions that are taken before the first token; the most, where samples differ.
    pub fn positions(&self) -> usize {
        let lengths = self.groups.iter().map(|group| group.cache.len());
        lengths.max().unwrap_or(0)
    }

    /// Bytes of keys and values, or of states, that are kept of what was read.
    pub fn cache_bytes(&self) -> usize {
        self.groups.iter().map(|group| group.cache.bytes()).sum()
    }

    /// Next-token logits of continuations. Of `batch · r` rows, the first `r` continue the first sample, and so
    /// on.
    ///
    /// # Shapes
    ///
    /// - `tokens`: `[batch · r, seq]`
    /// - output: `[batch · r, seq + 1, vocab_size]`, row 0 predicted before the first token; or, behind a memory that
    ///   predicts none, `[batch · r, seq, vocab_size]`; behind the end of a row that is shorter than others, what its filling would
    ///   predict: [`Reader::next_logits`] has those behind each row's own last token
    ///
    /// # Errors
    ///
    /// A number of rows that is not a multiple of `batch`, a token outside the vocabulary, more tokens than
    /// the model has positions, or none where nothing predicts the first.
    pub fn logits(&self, tokens: &Tokens<B>) -> Result<Tensor<B, 3>, Error> {
        Ok(self.model.logits(self.hidden_before(tokens, usize::MAX)?))
    }

    /// The logits of the token that follows each row, whatever their lengths.
    ///
    /// # Shapes
    ///
    /// - `tokens`: `[batch · r, seq]`
    /// - output: `[batch · r, vocab_size]`
    ///
    /// # Errors
    ///
    /// As [`Reader::logits`]; also an empty row behind a memory that predicts no first token.
    pub fn next_logits(&self, tokens: &Tokens<B>) -> Result<Tensor<B, 2>, Error> {
        let hidden = self.hidden_before(tokens, usize::MAX)?;
        let [rows, places, d_model] = hidden.dims();
        // One where the memory predicts the first token.
        let first = places - tokens.width();
        let last = tokens.lengths().enumerate().map(|(row, length)| {
            let at = (first + length).checked_sub(1).ok_or_else(|| {
                Error::Input(format!("continuation {row} is empty: {NOTHING_BEFORE}"))
            })?;
            Ok(row * places + at)
        });
        let last = last.collect::<Result<Vec<_>, Error>>()?;
        let hidden = select(hidden.flatten::<2>(0, 1), &last);
        let logits = self.model.logits(hidden.reshape([1, rows, d_model]));
        Ok(logits.squeeze_dim(0))
    }

    /// The last `rows` of the hidden states of each continuation that [`Reader::logits`] are made of, or all where these are fewer.
    pub(crate) fn hidden_before(
        &self,
        tokens: &Tokens<B>,
        rows: usize,
    ) -> Result<Tensor<B, 3>, Error> {
        let times = share(tokens.len(), self.batch())?;
        tokens.check(self.model, self.positions(), "continuation")?;
        if tokens.width() == 0 && self.groups.iter().any(|group| group.last.is_none()) {
            return Err(Error::Input(NOTHING_BEFORE.into()));
        }
        let tokens = tokens.ids();
        if let [group] = self.groups.as_slice() {
            return Ok(self.hidden(group, tokens, times, rows));
        }
        let mut order = Vec::new();
        let parts = self.groups.iter().map(|group| {
            let samples = group.samples.iter();
            let continuations: Vec<usize> = samples
                .flat_map(|sample| sample * times..(sample + 1) * times)
                .collect();
            let tokens = select(tokens.clone(), &continuations);
            order.extend(continuations);
            self.hidden(group, tokens, times, rows)
        });
        let hidden = Tensor::cat(parts.collect(), 0);
        let mut places = vec![0; order.len()];
        for (at, continuation) in order.into_iter().enumerate() {
            places[continuation] = at;
        }
        Ok(select(hidden, &places))
    }

    fn hidden(
        &self,
        group: &Group<B>,
        tokens: Tensor<B, 2, Int>,
        times: usize,
        rows: usize,
    ) -> Tensor<B, 3> {
        let seq = tokens.dims()[1];
        let last = group.last.clone().filter(|_| rows > seq);
        let last = last.map(|last| repeat(last, times));
        let read = (seq > 0).then(|| {
            let mut cache = group.cache.repeat(times);
            let embeds = self.model.embed(tokens);
            self.model.last_hidden(embeds, rows, Some(&mut cache))
        });
        match (last, read) {
            (Some(last), Some(read)) => Tensor::cat(vec![last, read], 1),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => unreachable!("a checked row has tokens"),
        }
    }

    /// The most probable tokens by `head`, each after those before it, without a token to begin with: so many of each
    /// sample; none if the head tells none.
    pub(crate) fn greedily(
        &self,
        tokens: usize,
        head: impl Fn(Tensor<B, 3>) -> Option<Tensor<B, 3>>,
    ) -> Option<Vec<Vec<u32>>> {
        let mut rows = vec![Vec::with_capacity(tokens); self.batch];
        for group in &self.groups {
            let Some(mut hidden) = group.last.clone() else {
                continue;
            };
            let (samples, mut cache) = (&group.samples, group.cache.clone());
            for at in 0..tokens {
                let next = head(hidden.clone())?.argmax(2).reshape([samples.len(), 1]);
                for (sample, id) in samples.iter().zip(next.to_data().iter::<i64>()) {
                    rows[*sample].push(id as u32);
                }
                if at + 1 < tokens {
                    hidden = self.model.hidden_after(self.model.embed(next), &mut cache);
                }
            }
        }
        Some(rows)
    }

    /// Continues prompts of any lengths; a prompt may be empty where something stands before it. They share the samples
    /// as the rows of [`Reader::logits`] do.
    ///
    /// A continuation ends before a stop token, after `max_tokens`, or when the model has no more positions.
    ///
    /// # Errors
    ///
    /// As [`Reader::logits`], and [`GenerateConfig::validate`].
    pub fn generate(
        &self,
        prompts: &[Vec<u32>],
        config: &GenerateConfig,
    ) -> Result<Vec<Vec<u32>>, Error> {
        config.validate()?;
        if prompts.is_empty() {
            return Ok(Vec::new());
        }
        let times = share(prompts.len(), self.batch())?;
        check_ids(
            prompts.iter().map(|ids| &ids[..]),
            self.model.vocab_size(),
            "prompt",
        )?;
        let device = self.model.head().device();
        let mut answers = vec![Vec::new(); prompts.len()];
        for group in &self.groups {
            // Prompts of one length form a batch, so that no row needs padding: the prompts, and their samples' places in the group.
            let mut lengths: BTreeMap<usize, (Vec<usize>, Vec<usize>)> = BTreeMap::new();
            for (place, sample) in group.samples.iter().enumerate() {
                let own = sample * times..(sample + 1) * times;
                for (row, prompt) in own.clone().zip(&prompts[own]) {
                    let (rows, places) = lengths.entry(prompt.len()).or_default();
                    rows.push(row);
                    places.push(place);
                }
            }
            for (seq, (rows, places)) in lengths {
                let mut cache = group.cache.select(&places);
                let last = if seq > 0 {
                    let prompts: Vec<_> = rows.iter().map(|row| &prompts[*row]).collect();
                    Some(self.read_prompts(&prompts, &mut cache, &device)?)
                } else {
                    group.last.clone().map(|last| select(last, &places))
                };
                let last = last.ok_or_else(|| Error::Input(NOTHING_BEFORE.into()))?;
                let found = continue_rows(self.model, cache, last, &rows, config, &device)?;
                for (row, answer) in rows.into_iter().zip(found) {
                    answers[row] = answer;
                }
            }
        }
        Ok(answers)
    }

    /// The last hidden states `[prompts, 1, d_model]` of prompts of one length, which follow what is in `cache`.
    fn read_prompts(
        &self,
        prompts: &[&Vec<u32>],
        cache: &mut Cache<B>,
        device: &B::Device,
    ) -> Result<Tensor<B, 3>, Error> {
        let tokens = Tokens::new(prompts, device)?;
        tokens.check(self.model, cache.len(), "prompt")?;
        let embeds = self.model.embed(tokens.ids());
        Ok(self.model.last_hidden(embeds, 1, Some(cache)))
    }
}

/// Why a sequence without a token cannot be continued.
pub(crate) const NOTHING_BEFORE: &str =
    "there is no token to begin with, and this memory predicts none: a query needs at least one";

/// The continuations of `rows`, the prompts' indices, behind what is in the cache and the last hidden state of each.
fn continue_rows<B: Backend, M: CausalLm<B>>(
    model: &M,
    mut cache: Cache<B>,
    mut last: Tensor<B, 3>,
    rows: &[usize],
    config: &GenerateConfig,
    device: &B::Device,
) -> Result<Vec<Vec<u32>>, Error> {
    let positions = model.max_positions().unwrap_or(usize::MAX);
    // The last token chosen is not read.
    let remaining = positions.saturating_sub(cache.len()).saturating_add(1);
    let limit = config.max_tokens.min(remaining);
    let rng = |row: &usize| {
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        rng.set_stream((config.first + row) as u64);
        rng
    };
    let mut rngs: Vec<ChaCha8Rng> = rows.iter().map(rng).collect();
    let mut answers = vec![Vec::new(); rows.len()];
    let mut open = vec![true; rows.len()];
    for step in 0..limit {
        let logits = model.logits(last).to_data();
        let logits: Vec<f64> = logits.iter::<f64>().collect();
        let mut next = Vec::with_capacity(rows.len());
        for (at, logits) in logits.chunks(model.vocab_size()).enumerate() {
            if !logits.iter().any(|logit| logit.is_finite()) {
                return Err(Error::Failed(format!(
                    "the model's logits for token {step} after prompt {} are non-finite",
                    rows[at]
                )));
            }
            let token = config.choose(logits, &mut rngs[at]);
            open[at] &= !config.stop.contains(&token);
            if open[at] {
                answers[at].push(token);
            }
            next.push(token);
        }
        if step + 1 == limit || !open.contains(&true) {
            break;
        }
        last = model.hidden_after(model.embed(column(next, device)), &mut cache);
    }
    Ok(answers)
}

/// Token ids as `[…, 1]`.
fn column<B: Backend>(ids: Vec<u32>, device: &B::Device) -> Tensor<B, 2, Int> {
    let shape = [ids.len(), 1];
    let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
    Tensor::from_data(TensorData::new(ids, shape), device)
}
