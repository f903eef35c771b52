//! Multi-hop association: a context of edges `[KV] 3 [SEP] 7 [KV_END]` that form chains, a query `[Q] 3 [Q_END]`, and as the
//! target the end of the chain that the node is in. Each word is a token; a node is one or more digits of base 16.

use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::generated::{self, Generates};
use super::source::Sources;
use super::{Example, Lengths, Question, Split, TextTokenizer};
use crate::error::{Error, at_least_one, require, sizes};

/// Tokens 0 to 10; the digits follow. `[MASK]` stands for the answer in the authors' queries and is not used here.
const MARKS: [&str; 11] = [
    "[PAD]",
    "[BOS]",
    "[EOS]",
    "[CTX]",
    "[CTX_END]",
    "[KV]",
    "[SEP]",
    "[KV_END]",
    "[Q]",
    "[Q_END]",
    "[MASK]",
];
/// The token that ends an answer.
const END: &str = "[EOS]";
/// The values of a digit.
const BASE: usize = 16;

/// The most hops.
const MAX_HOPS: usize = 8;
/// The most digits of a node.
const MAX_DIGITS: usize = 6;
/// The most edges.
const MAX_PAIRS: usize = 1 << 16;

/// Settings of multi-hop association.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MultihopConfig {
    /// `N`: edges in a context, in random order; each is a pair of a node and the next of its chain.
    pub pairs: usize,
    /// `H`: edges of a chain. There are `N/H` chains, and a question takes from 1 to `H` hops.
    pub hops: usize,
    /// `L`: digits of a node [default: the fewest that can tell the `N + N/H` nodes of a context apart].
    pub digits: Option<usize>,
    /// `R`: queries per context, for different nodes that are not the end of a chain, all answered from one WRITE.
    pub queries_per_context: usize,
    /// Training contexts; they are generated on demand, so their number takes no memory.
    pub train_samples: usize,
    /// Validation contexts.
    pub valid_samples: usize,
}

impl Default for MultihopConfig {
    fn default() -> Self {
        Self {
            pairs: 8,
            hops: 2,
            digits: None,
            queries_per_context: 1,
            train_samples: 1_000_000,
            valid_samples: 5_000,
        }
    }
}

impl MultihopConfig {
    /// Checks every value.
    ///
    /// # Errors
    ///
    /// The first value that cannot work, by its key and with the reason: [`Error::Config`].
    pub fn validate(&self) -> Result<(), Error> {
        let (pairs, hops, queries) = (self.pairs, self.hops, self.queries_per_context);
        sizes([("pairs", pairs), ("queries_per_context", queries)])?;
        at_least_one([
            ("train_samples", self.train_samples),
            ("valid_samples", self.valid_samples),
        ])?;
        let problem = format!("must be at most {MAX_PAIRS}");
        require(pairs <= MAX_PAIRS, "pairs", pairs, problem)?;
        let problem = format!("must be at least 1 and at most {MAX_HOPS}");
        require((1..=MAX_HOPS).contains(&hops), "hops", hops, problem)?;
        let problem = format!("must be a multiple of data.hops = {hops}: each chain has so many");
        require(pairs.is_multiple_of(hops), "pairs", pairs, problem)?;
        if let Some(digits) = self.digits {
            let fewest = self.fewest_digits();
            let problem = format!(
                "must be at least {fewest}, for {} different nodes of base {BASE}, and at most {MAX_DIGITS}",
                self.nodes()
            );
            let fits = (fewest..=MAX_DIGITS).contains(&digits);
            require(fits, "digits", digits, problem)?;
        }
        let problem = format!("must be at most data.pairs = {pairs}");
        require(queries <= pairs, "queries_per_context", queries, problem)
    }

    /// The training and the validation data.
    ///
    /// # Errors
    ///
    /// See [`MultihopConfig::validate`].
    pub fn open(&self, seed: u64) -> Result<Sources, Error> {
        generated::open(self, seed)
    }

    /// The task's tokenizer: `[PAD]` 0, `[BOS]` 1, `[EOS]` 2, `[CTX]` 3, `[CTX_END]` 4, `[KV]` 5, `[SEP]` 6, `[KV_END]` 7, `[Q]` 8,
    /// `[Q_END]` 9, `[MASK]` 10, and the digits `0 … f`, 11 to 26.
    ///
    /// # Errors
    ///
    /// None.
    pub fn tokenizer() -> Result<TextTokenizer, Error> {
        let digits = (0..BASE).map(|digit| format!("{digit:x}"));
        let words = MARKS.iter().map(|mark| mark.to_string()).chain(digits);
        TextTokenizer::words(words, END)
    }

    /// The lengths of its samples; a target is a node and the end token.
    pub(super) fn lengths(&self) -> Lengths {
        let node = self.node_len();
        Lengths {
            context: 4 + self.pairs * (2 * node + 3),
            question: 2 + node + node + 1,
            questions: self.queries_per_context,
            target: node + 1,
            ..Lengths::default()
        }
    }

    /// Different nodes of a context.
    fn nodes(&self) -> usize {
        self.pairs + self.pairs / self.hops
    }

    /// The fewest digits that can tell the nodes apart.
    fn fewest_digits(&self) -> usize {
        let nodes = self.nodes();
        let enough = |digits: &usize| BASE.pow(*digits as u32) >= nodes;
        (1..MAX_DIGITS).find(enough).unwrap_or(MAX_DIGITS)
    }

    /// Digits of a node.
    fn node_len(&self) -> usize {
        self.digits.unwrap_or_else(|| self.fewest_digits())
    }

    /// The digits of a node, the highest first: `0 7`.
    fn name(&self, node: usize) -> String {
        let digits = (0..self.node_len() as u32).rev();
        let digits = digits.map(|place| format!("{:x}", node / BASE.pow(place) % BASE));
        digits.collect::<Vec<_>>().join(" ")
    }

    /// The chains of a sample, each with the names of its nodes from the first to the end.
    fn chains(&self, rng: &mut ChaCha8Rng) -> Vec<Vec<String>> {
        let all = BASE.pow(self.node_len() as u32);
        let nodes = rand::seq::index::sample(rng, all, self.nodes()).into_vec();
        let chains = nodes.chunks(self.hops + 1);
        let names = |chain: &[usize]| chain.iter().map(|node| self.name(*node)).collect();
        chains.map(names).collect()
    }
}

impl Generates for MultihopConfig {
    const STREAM: &'static [u8; 8] = b"multihop";

    fn validate(&self) -> Result<(), Error> {
        MultihopConfig::validate(self)
    }

    fn samples(&self, split: Split) -> usize {
        split.of(self.train_samples, self.valid_samples)
    }

    fn example(&self, _: Split, _: usize, rng: &mut ChaCha8Rng) -> Example {
        let chains = self.chains(rng);
        // Edge number `e` is edge `e mod H` of chain `e / H`, from the node that a question may be about.
        let place = |edge: usize| (&chains[edge / self.hops], edge % self.hops);
        let order = rand::seq::index::sample(rng, self.pairs, self.pairs);
        let edges: String = order
            .into_iter()
            .map(|edge| {
                let (chain, at) = place(edge);
                format!("[KV] {} [SEP] {} [KV_END] ", chain[at], chain[at + 1])
            })
            .collect();
        let asked = rand::seq::index::sample(rng, self.pairs, self.queries_per_context);
        let questions = asked.into_iter().map(|edge| {
            let (chain, at) = place(edge);
            Question {
                query: format!("[Q] {} [Q_END]", chain[at]),
                target: format!("{} {END}", chain[self.hops]),
                answers: Vec::new(),
            }
        });
        let questions = questions.collect();
        let context = format!("[BOS] [CTX] {edges}[CTX_END] [EOS]");
        Example::new(context, questions)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use burn::data::dataset::Dataset;

    use super::*;
    use crate::data::Generated;
    use crate::data::{DataConfig, TokensConfig};

    #[test]
    fn the_answer_is_the_end_of_the_chain() {
        for (pairs, hops, digits) in [(8, 2, 1), (8, 8, 1), (6, 1, 1), (16, 4, 2), (32, 2, 2)] {
            let config = MultihopConfig {
                pairs,
                hops,
                queries_per_context: pairs,
                ..MultihopConfig::default()
            };
            let task = DataConfig::Multihop(config);
            let task = task.open(&TokensConfig::default(), 3, None).unwrap();
            assert_eq!(task.tokenizer.vocab_size(), 27);
            for index in 0..50 {
                let sample = task.train.get(index).unwrap().unwrap();
                assert_eq!(sample.context.len(), task.lengths.context);
                let edges = sample.context.strip_prefix(&[1, 3]).unwrap();
                let edges = edges.strip_suffix(&[4, 2]).unwrap();
                let mut next = HashMap::new();
                for edge in edges.chunks(2 * digits + 3) {
                    assert_eq!((edge[0], edge[digits + 1], edge[2 * digits + 2]), (5, 6, 7));
                    let node = |at: usize| edge[at..at + digits].to_vec();
                    let (from, to) = (node(1), node(digits + 2));
                    assert!(from.iter().chain(&to).all(|id| (11..27).contains(id)));
                    assert_eq!(next.insert(from, to), None);
                }
                assert_eq!(next.len(), pairs);
                let mut lengths = HashMap::<usize, usize>::new();
                let mut asked = HashSet::new();
                for question in &sample.asked {
                    assert_eq!(question.tokens.len(), task.lengths.question);
                    let (query, target) = question.tokens.split_at(question.target);
                    assert_eq!(
                        (query[0], query[digits + 1], query.len()),
                        (8, 9, digits + 2)
                    );
                    let mut node = query[1..=digits].to_vec();
                    asked.insert(node.clone());
                    let mut taken = 0;
                    while let Some(to) = next.get(&node) {
                        (node, taken) = (to.clone(), taken + 1);
                    }
                    assert_eq!(target, [&node[..], &[2]].concat());
                    *lengths.entry(taken).or_default() += 1;
                }
                // Each node but the ends is asked for once, so each number of hops has a question for each chain.
                assert_eq!(asked.len(), pairs);
                let expected: HashMap<_, _> = (1..=hops).map(|h| (h, pairs / hops)).collect();
                assert_eq!(lengths, expected);
            }
        }
    }

    #[test]
    fn edges_are_shuffled_and_nodes_have_the_digits_that_are_asked_for() {
        let config = MultihopConfig {
            digits: Some(3),
            ..MultihopConfig::default()
        };
        let set = Generated::new(config.clone(), Split::Train, 1).unwrap();
        assert_eq!(config.name(0x0a7), "0 a 7");
        assert_eq!(config.lengths().context, 4 + 8 * 9);
        // Whether the first edge leads to the second.
        let in_order = (0..200).filter(|index| {
            let context = set.get(*index).unwrap().context;
            let words: Vec<&str> = context.split(' ').collect();
            words[7..10] == words[12..15]
        });
        assert!(in_order.count() < 60);
    }

    #[test]
    fn impossible_settings_are_errors() {
        let wrong = |change: fn(&mut MultihopConfig)| {
            let mut config = MultihopConfig::default();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert!(wrong(|c| c.pairs = 0).contains("pairs"));
        assert!(wrong(|c| c.hops = 0).contains("at most 8"));
        assert!(wrong(|c| c.hops = 9).contains("at most 8"));
        assert!(wrong(|c| c.hops = 3).contains("multiple of data.hops = 3"));
        let error = wrong(|c| (c.pairs, c.digits) = (16, Some(1)));
        assert!(
            error.contains("at least 2, for 24 different nodes"),
            "{error}"
        );
        assert!(wrong(|c| c.digits = Some(7)).contains("at most 6"));
        assert!(wrong(|c| c.queries_per_context = 9).contains("data.pairs = 8"));
        let most = MultihopConfig {
            pairs: MAX_PAIRS,
            hops: 1,
            ..MultihopConfig::default()
        };
        most.validate().unwrap();
        assert_eq!(most.node_len(), 5);
    }
}
