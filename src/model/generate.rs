//! Greedy and sampled decoding after a prefix that is read once.

mod reader;

use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Uniform};
use serde::{Deserialize, Serialize};

pub(crate) use reader::NOTHING_BEFORE;
pub use reader::{Reader, continue_prompts};

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

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng;

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
