//! Greedy and sampled decoding after a prefix that is read once.

use std::collections::BTreeMap;

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, Uniform};
use serde::{Deserialize, Serialize};

use super::rows::{repeat, select, share};
use super::tokens::check_ids;
use super::{Cache, CausalLm, Tokens};
use crate::error::{Error, require};

/// How the tokens of a continuation are chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[must_use]
pub struct GenerateConfig {
    /// Longest continuation, in tokens.
    pub max_tokens: usize,
    /// Tokens that end a continuation; they are not part of it.
    pub stop: Vec<u32>,
    /// Divides the logits before sampling; 0 takes the most probable token.
    pub temperature: f64,
    /// Samples among this many of the most probable tokens only; among all unless given.
    pub top_k: Option<usize>,
    /// Samples among the most probable tokens whose probabilities add up to this (nucleus sampling,
    /// arXiv 1904.09751).
    pub top_p: f64,
    /// Seed of the samples. A prompt's samples depend on its index, not on the other prompts.
    pub seed: u64,
    /// The index of the first prompt, where these are some of many.
    pub first: usize,
}

impl Default for GenerateConfig {
    fn default() -> Self {
        Self {
            max_tokens: 64,
            stop: Vec::new(),
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            seed: 0,
            first: 0,
        }
    }
}

impl GenerateConfig {
    /// Greedy, up to `max_tokens` tokens.
    pub fn greedy(max_tokens: usize) -> Self {
        Self {
            max_tokens,
            ..Self::default()
        }
    }

    /// Ends at any of these tokens.
    pub fn with_stop(mut self, stop: impl IntoIterator<Item = u32>) -> Self {
        self.stop = stop.into_iter().collect();
        self
    }

    /// Samples at this temperature with this seed.
    pub fn with_sampling(mut self, temperature: f64, seed: u64) -> Self {
        self.temperature = temperature;
        self.seed = seed;
        self
    }

    /// Samples among the `k` most probable tokens only.
    pub fn with_top_k(mut self, k: Option<usize>) -> Self {
        self.top_k = k;
        self
    }

    /// Samples among the most probable tokens whose probabilities add up to `p`.
    pub fn with_top_p(mut self, p: f64) -> Self {
        self.top_p = p;
        self
    }

    /// Checks every value.
    ///
    /// # Errors
    ///
    /// The first value that cannot work, by its key and with the reason: [`Error::Config`].
    pub fn validate(&self) -> Result<(), Error> {
        let t = self.temperature;
        let fits = t >= 0.0 && t.is_finite();
        require(
            fits,
            "temperature",
            t,
            "must be 0 (greedy) or a positive number",
        )?;
        let problem = "must be at least 1 (leave it out for all tokens)";
        require(self.top_k != Some(0), "top_k", 0, problem)?;
        let p = self.top_p;
        require(
            p > 0.0 && p <= 1.0,
            "top_p",
            p,
            "must be above 0 and at most 1",
        )
    }

    /// Chooses a token by its logits.
    fn choose(&self, logits: &[f64], rng: &mut ChaCha8Rng) -> u32 {
        let rank = |logit: f64| {
            if logit.is_nan() {
                f64::NEG_INFINITY
            } else {
                logit
            }
        };
        let mut order: Vec<usize> = (0..logits.len()).collect();
        let most_probable_first =
            |a: &usize, b: &usize| rank(logits[*b]).total_cmp(&rank(logits[*a]));
        if self.temperature == 0.0 || self.top_k == Some(1) {
            // Of equal logits, the lowest token.
            let best = order.into_iter().min_by(most_probable_first);
            return best.unwrap_or(0) as u32;
        }
        order.sort_by(most_probable_first);
        order.truncate(self.top_k.unwrap_or(logits.len()));
        let highest = order.first().map_or(0.0, |first| rank(logits[*first]));
        let weight = |token: &usize| ((rank(logits[*token]) - highest) / self.temperature).exp();
        let weights: Vec<f64> = order.iter().map(weight).collect();
        let total: f64 = weights.iter().sum();
        let mut kept = 0.0;
        let mut count = 0;
        while count < weights.len() && (count == 0 || kept < self.top_p * total) {
            kept += weights[count];
            count += 1;
        }
        let mut left = Uniform::new(0.0, kept).map_or(0.0, |uniform| uniform.sample(rng));
        let last = count.saturating_sub(1);
        let chosen = weights[..last].iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        order[chosen.unwrap_or(last)] as u32
    }
}

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
    state: State<B>,
}

/// What a model has read: its cache, and the hidden state of the last row `[batch, 1, d_model]`, if there was a row.
type State<B> = (Cache<B>, Option<Tensor<B, 3>>);

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
        let last = model.hidden_after(embeds, &mut cache);
        let last = last.narrow(1, seq - 1, 1);
        Ok(Self::of_group(model, batch, (cache, Some(last))))
    }

    /// Of `batch` samples whose memory is in `cache` alone, without a vector that predicts the first token.
    pub(crate) fn of_cache(model: &'a M, batch: usize, cache: Cache<B>) -> Self {
        Self::of_group(model, batch, (cache, None))
    }

    fn of_group(model: &'a M, batch: usize, state: State<B>) -> Self {
        let samples = (0..batch).collect();
        Self {
            model,
            batch,
            groups: vec![Group { samples, state }],
        }
    }

    /// Of readers of some of the samples each, with those samples' indices.
    pub(crate) fn of_parts(model: &'a M, parts: Vec<(Vec<usize>, Self)>) -> Self {
        let batch = parts.iter().map(|(samples, _)| samples.len()).sum();
        let groups = parts.into_iter().flat_map(|(samples, part)| {
            part.groups.into_iter().map(move |group| Group {
                samples: group.samples.iter().map(|at| samples[*at]).collect(),
                state: group.state,
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
        let lengths = self.groups.iter().map(|group| group.state.0.len());
        lengths.max().unwrap_or(0)
    }

    /// Bytes of keys and values, or of states, that are kept of what was read.
    pub fn cache_bytes(&self) -> usize {
        self.groups.iter().map(|group| group.state.0.bytes()).sum()
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
        Ok(self.model.logits(self.hidden_before(tokens)?))
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
        let hidden = self.hidden_before(tokens)?;
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

    /// The hidden states that [`Reader::logits`] are made of.
    pub(crate) fn hidden_before(&self, tokens: &Tokens<B>) -> Result<Tensor<B, 3>, Error> {
        let times = share(tokens.len(), self.batch())?;
        tokens.check(self.model, self.positions(), "continuation")?;
        if tokens.width() == 0 && self.groups.iter().any(|group| group.state.1.is_none()) {
            return Err(Error::Input(NOTHING_BEFORE.into()));
        }
        let tokens = tokens.ids();
        if let [group] = self.groups.as_slice() {
            return Ok(self.hidden(group, tokens, times));
        }
        let mut order = Vec::new();
        let parts = self.groups.iter().map(|group| {
            let samples = group.samples.iter();
            let rows: Vec<usize> = samples
                .flat_map(|sample| sample * times..(sample + 1) * times)
                .collect();
            let tokens = select(tokens.clone(), &rows);
            order.extend(rows);
            self.hidden(group, tokens, times)
        });
        let hidden = Tensor::cat(parts.collect(), 0);
        let mut places = vec![0; order.len()];
        for (at, row) in order.into_iter().enumerate() {
            places[row] = at;
        }
        Ok(select(hidden, &places))
    }

    fn hidden(&self, group: &Group<B>, tokens: Tensor<B, 2, Int>, times: usize) -> Tensor<B, 3> {
        let (cache, last) = &group.state;
        let last = last.clone().map(|last| repeat(last, times));
        let read = (tokens.dims()[1] > 0).then(|| {
            let mut cache = cache.repeat(times);
            self.model
                .hidden_after(self.model.embed(tokens), &mut cache)
        });
        match (last, read) {
            (Some(last), Some(read)) => Tensor::cat(vec![last, read], 1),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => unreachable!("a checked row has tokens"),
        }
    }

    /// The most probable tokens by `head`, each after those before it, without a token to begin with: so many of each
    /// sample; none if the head tells none.
    pub(crate) fn told(
        &self,
        tokens: usize,
        head: impl Fn(Tensor<B, 3>) -> Option<Tensor<B, 3>>,
    ) -> Option<Vec<Vec<u32>>> {
        let mut rows = vec![Vec::with_capacity(tokens); self.batch];
        for Group { samples, state } in &self.groups {
            let (mut cache, last) = state.clone();
            let Some(mut hidden) = last else { continue };
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
        for Group { samples, state } in &self.groups {
            // Prompts of one length form a batch, so that no row needs padding: the prompts, and their samples' places in the group.
            let mut lengths: BTreeMap<usize, (Vec<usize>, Vec<usize>)> = BTreeMap::new();
            for (place, sample) in samples.iter().enumerate() {
                let own = sample * times..(sample + 1) * times;
                for (row, prompt) in own.clone().zip(&prompts[own]) {
                    let (rows, places) = lengths.entry(prompt.len()).or_default();
                    rows.push(row);
                    places.push(place);
                }
            }
            for (seq, (rows, places)) in lengths {
                let (cache, last) = state;
                let mut cache = cache.select(&places);
                let last = if seq > 0 {
                    let prompts: Vec<_> = rows.iter().map(|row| &prompts[*row]).collect();
                    Some(self.read_prompts(&prompts, &mut cache, &device)?)
                } else {
                    last.clone().map(|last| select(last, &places))
                };
                let last = last.ok_or_else(|| Error::Input(NOTHING_BEFORE.into()))?;
                let found = continue_rows(self.model, (cache, last), &rows, config, &device)?;
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
        let hidden = self.model.hidden_after(embeds, cache);
        Ok(hidden.narrow(1, tokens.width() - 1, 1))
    }
}

/// Why a sequence without a token cannot be continued.
pub(crate) const NOTHING_BEFORE: &str =
    "there is no token to begin with, and this memory predicts none: a query needs at least one";

/// The continuations of `rows`, the prompts' indices, behind what is in the cache and the last hidden state of each.
fn continue_rows<B: Backend, M: CausalLm<B>>(
    model: &M,
    (mut cache, mut last): (Cache<B>, Tensor<B, 3>),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(config: &GenerateConfig, logits: &[f64]) -> Vec<usize> {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut counts = vec![0; logits.len()];
        for _ in 0..4000 {
            counts[config.choose(logits, &mut rng) as usize] += 1;
        }
        counts
    }

    #[test]
    fn sampling_follows_the_probabilities_and_its_limits() {
        let logits = [0.1f64.ln(), 0.6f64.ln(), 0.3f64.ln(), f64::NAN];
        let sampled = GenerateConfig::default().with_sampling(1.0, 0);
        let near = |counts: &[usize], shares: &[f64]| {
            for (count, share) in counts.iter().zip(shares) {
                let found = *count as f64 / 4000.0;
                assert!((found - share).abs() < 0.03, "{counts:?} {shares:?}");
            }
        };
        near(&counts(&sampled, &logits), &[0.1, 0.6, 0.3, 0.0]);
        let top_k = sampled.clone().with_top_k(Some(2));
        near(&counts(&top_k, &logits), &[0.0, 2.0 / 3.0, 1.0 / 3.0, 0.0]);
        let top_p = sampled.clone().with_top_p(0.85);
        near(&counts(&top_p, &logits), &[0.0, 2.0 / 3.0, 1.0 / 3.0, 0.0]);
        let cold = sampled.clone().with_sampling(0.5, 0);
        near(
            &counts(&cold, &logits),
            &[0.01 / 0.46, 0.36 / 0.46, 0.09 / 0.46, 0.0],
        );
        assert_eq!(counts(&GenerateConfig::default(), &logits), [0, 4000, 0, 0]);
        assert_eq!(counts(&GenerateConfig::default(), &[1.0, 1.0]), [4000, 0]);
    }
}
