use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::super::generated::Generates;
use super::super::{Direction, Example, Question, Split};
use super::{KvConfig, PairOrder};
use crate::error::Error;

/// What a sample is made of.
struct Writer<'a> {
    config: &'a KvConfig,
    alphabet: Vec<char>,
}

impl Writer<'_> {
    fn word(&self, rng: &mut ChaCha8Rng, length: usize) -> String {
        let letters = &self.alphabet;
        (0..length)
            .map(|_| letters[rng.random_range(0..letters.len())])
            .collect()
    }

    /// `words` in this order among `letters` random letters, each at a position drawn by itself.
    fn scatter(&self, rng: &mut ChaCha8Rng, words: &[String], letters: usize) -> String {
        let mut positions: Vec<usize> = words
            .iter()
            .map(|_| rng.random_range(0..=letters))
            .collect();
        positions.sort_unstable();
        let mut text = String::new();
        let mut drawn = 0;
        for (word, position) in words.iter().zip(positions) {
            text += &self.word(rng, position - drawn);
            text += word;
            drawn = position;
        }
        text + &self.word(rng, letters - drawn)
    }

    fn context(&self, rng: &mut ChaCha8Rng, pairs: &[String]) -> String {
        let config = self.config;
        if config.segments == 0 {
            return self.scatter(rng, pairs, config.noise_letters()) + "|";
        }
        let mut segments = vec![Vec::new(); config.segments];
        for pair in pairs {
            segments[rng.random_range(0..config.segments)].push(pair.clone());
        }
        let segment = |held: &Vec<String>| {
            let letters = |length: usize| length.saturating_sub(held.len() * config.pair_len());
            let letters = letters(config.segment_min)..=letters(config.segment_max);
            let letters = rng.random_range(letters);
            self.scatter(rng, held, letters) + "|"
        };
        segments.iter().map(segment).collect()
    }
}

impl Generates for KvConfig {
    const STREAM: &'static [u8; 8] = b"gradmem0";

    fn validate(&self) -> Result<(), Error> {
        KvConfig::validate(self)
    }

    fn samples(&self, split: Split) -> usize {
        split.of(self.train_samples, self.valid_samples)
    }

    fn example(&self, _: Split, _: usize, rng: &mut ChaCha8Rng) -> Example {
        let config = self;
        let writer = Writer {
            config,
            alphabet: self.alphabet(),
        };
        let mut pairs: Vec<(String, String)> = Vec::with_capacity(config.pairs);
        let mut keys = std::collections::HashSet::with_capacity(config.pairs);
        while pairs.len() < config.pairs {
            let key = writer.word(rng, config.key_len);
            if keys.insert(key.clone()) {
                pairs.push((key, writer.word(rng, config.value_len)));
            }
        }
        let mut questions: Vec<Question> = match pairs.len() {
            0 => Vec::new(),
            count => rand::seq::index::sample(rng, count, config.queries_per_context)
                .into_iter()
                .map(|at| Question {
                    query: format!("?!{}:", pairs[at].0),
                    target: format!("{}!|", pairs[at].1),
                    answers: Vec::new(),
                })
                .collect(),
        };
        // Drawn here and for a mix only, so that the pairs and questions of an index are the same in every order.
        let direction = match config.order {
            PairOrder::Forward | PairOrder::Inverse => None,
            PairOrder::Mix if rng.random() => Some(Direction::Forward),
            PairOrder::Mix => Some(Direction::Backward),
        };
        let inverse = match direction {
            Some(direction) => direction == Direction::Backward,
            None => config.order == PairOrder::Inverse,
        };
        let pair = |(key, value): &(String, String)| match inverse {
            true => format!("!{value}:{key}!"),
            false => format!("!{key}:{value}!"),
        };
        let pairs: Vec<String> = pairs.iter().map(pair).collect();
        let mark = match direction {
            Some(Direction::Forward) => "F",
            Some(Direction::Backward) => "B",
            None => "",
        };
        let context = format!("{mark}{}", writer.context(rng, &pairs));
        if questions.is_empty() {
            questions.push(Question {
                query: "?!:".into(),
                target: context.clone(),
                answers: Vec::new(),
            });
        }
        Example {
            direction,
            ..Example::new(context, questions)
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::data::dataset::Dataset;

    use super::*;
    use crate::data::Generated;

    fn dataset(split: Split, seed: u64) -> Generated<KvConfig> {
        Generated::new(KvConfig::default(), split, seed).unwrap()
    }

    #[test]
    fn samples_have_unique_keys_and_questions_about_their_pairs() {
        let config = KvConfig {
            pairs: 4,
            key_len: 1,
            value_len: 3,
            queries_per_context: 4,
            ..KvConfig::default()
        };
        let dataset = Generated::new(config.clone(), Split::Train, 7).unwrap();
        for index in 0..200 {
            let example = dataset.get(index).unwrap();
            assert_eq!(example.context.len(), config.context_len());
            let mut queries: Vec<_> = example.questions.iter().map(|q| &q.query).collect();
            queries.sort();
            queries.dedup();
            assert_eq!(queries.len(), 4, "two questions about the same pair");
            for question in &example.questions {
                assert_eq!(
                    question.query.len() + question.target.len(),
                    config.question_len()
                );
                let key = question.query.trim_matches(['?', '!', ':']);
                let value = question.target.trim_matches(['!', '|']);
                let pair = format!("!{key}:{value}!");
                assert!(example.context.contains(&pair), "{example:?}");
                assert_eq!(example.context.matches(&format!("!{key}:")).count(), 1);
            }
        }
    }

    #[test]
    fn a_context_has_one_order_and_says_which_in_a_mix() {
        let config = |order| KvConfig {
            pairs: 8,
            queries_per_context: 8,
            order,
            ..KvConfig::default()
        };
        let set = |order| Generated::new(config(order), Split::Train, 5).unwrap();
        let [forward, inverse, mix] =
            [PairOrder::Forward, PairOrder::Inverse, PairOrder::Mix].map(set);
        // `!ab:cd!` of each pair, turned round.
        let turned = |context: &str| {
            let pairs = context.strip_suffix('|').unwrap().split_inclusive('!');
            let pairs: Vec<&str> = pairs.filter(|part| *part != "!").collect();
            let turned = pairs.iter().map(|pair| {
                let (first, second) = pair.trim_matches('!').split_once(':').unwrap();
                format!("!{second}:{first}!")
            });
            turned.collect::<String>() + "|"
        };
        let mut found = std::collections::HashMap::<char, usize>::new();
        for index in 0..200 {
            let (there, back) = (forward.example(index), inverse.example(index));
            assert_eq!((there.direction, back.direction), (None, None));
            assert_eq!(back.context, turned(&there.context));
            assert_eq!(back.questions, there.questions);
            let mixed = mix.example(index);
            assert_eq!(mixed.questions, there.questions);
            assert_eq!(mixed.context.len(), config(PairOrder::Mix).context_len());
            let (mark, pairs) = mixed.context.split_at(1);
            let (direction, context) = match mark {
                "F" => (Direction::Forward, there.context),
                _ => (Direction::Backward, back.context),
            };
            assert_eq!((mixed.direction, pairs), (Some(direction), &*context));
            *found.entry(mark.chars().next().unwrap()).or_default() += 1;
        }
        assert_eq!(found.len(), 2);
        assert!(found.contains_key(&'B') && found[&'F'] > 70 && found[&'F'] < 130);
        // The marks are letters of the alphabet, so the tokens are those of every order.
        let tokenizer = |order| config(order).tokenizer().unwrap();
        let ids = tokenizer(PairOrder::Mix).encode("F!B").unwrap();
        assert_eq!(ids, [35, 66, 31]);
        let print = |order| tokenizer(order).fingerprint();
        assert_eq!(print(PairOrder::Mix), print(PairOrder::Forward));
    }

    #[test]
    fn a_mix_can_be_among_letters_and_in_segments() {
        let base = KvConfig {
            pairs: 6,
            order: PairOrder::Mix,
            ..KvConfig::default()
        };
        let noise = KvConfig {
            noise: 0.5,
            ..base.clone()
        };
        let segments = KvConfig {
            segments: 4,
            ..base
        };
        for config in [noise, segments] {
            let set = Generated::new(config.clone(), Split::Valid, 1).unwrap();
            for index in 0..50 {
                let example = set.example(index);
                let context = &example.context;
                let exact = config.segments == 0;
                let (length, most) = (context.len(), config.context_len());
                assert!(length == most || !exact && length < most, "{context}");
                let question = &example.questions[0];
                let key = question.query.trim_matches(['?', '!', ':']);
                let value = question.target.trim_matches(['!', '|']);
                let pair = match context.starts_with('F') {
                    true => format!("!{key}:{value}!"),
                    false => format!("!{value}:{key}!"),
                };
                assert!(context.contains(&pair), "{context}: {pair}");
            }
        }
    }

    #[test]
    fn pairs_are_among_letters_with_segments_and_with_noise() {
        let segments = KvConfig {
            pairs: 6,
            segments: 4,
            ..KvConfig::default()
        };
        let noise = KvConfig {
            pairs: 6,
            noise: 0.5,
            alphabet: 512,
            ..KvConfig::default()
        };
        for config in [segments, noise] {
            let tokenizer = config.tokenizer().unwrap();
            let set = Generated::new(config.clone(), Split::Train, 3).unwrap();
            for index in 0..100 {
                let Example {
                    context, questions, ..
                } = set.get(index).unwrap();
                tokenizer.encode(&context).unwrap();
                let parts: Vec<&str> = context.split_terminator('|').collect();
                let chars = context.chars().count();
                match config.segments {
                    0 => assert_eq!((parts.len(), chars), (1, config.context_len())),
                    n => {
                        assert_eq!(parts.len(), n);
                        let fits = |part: &&str| (32..=64).contains(&part.chars().count());
                        assert!(parts.iter().all(fits), "{context}");
                    }
                }
                assert_eq!(context.matches(':').count(), 6);
                let [key, value] = [&questions[0].query[2..], &questions[0].target];
                assert_eq!(
                    context
                        .matches(&format!("!{key}{}", &value[..value.len() - 1]))
                        .count(),
                    1
                );
            }
        }
    }

    #[test]
    fn each_pair_has_a_position_of_its_own() {
        let config = KvConfig {
            pairs: 2,
            noise: 0.5,
            ..KvConfig::default()
        };
        let set = Generated::new(config, Split::Train, 0).unwrap();
        let first = |index: &usize| set.example(*index).context.starts_with('!');
        // One of two positions among 14 letters is in front of them in 1 - (14 / 15)² of the contexts.
        let found = (0..2000).filter(first).count();
        assert!((200..320).contains(&found), "{found}");
    }

    #[test]
    fn a_segment_of_many_pairs_has_no_letters() {
        let config = KvConfig {
            pairs: 16,
            segments: 2,
            segment_min: 4,
            segment_max: 8,
            ..KvConfig::default()
        };
        let set = Generated::new(config.clone(), Split::Train, 0).unwrap();
        let contexts: Vec<String> = (0..100).map(|index| set.example(index).context).collect();
        let longest = contexts.iter().map(String::len).max().unwrap();
        assert!(longest <= config.context_len(), "{longest}");
        for context in contexts {
            let of = |part: &str| (part.matches(':').count() * config.pair_len(), part.len());
            let fits = |part| match of(part) {
                (pairs, length) if pairs > 8 => pairs == length,
                (_, length) => (4..=8).contains(&length),
            };
            assert!(context.split_terminator('|').all(fits), "{context}");
        }
    }

    #[test]
    fn the_target_of_the_copy_task_is_the_context() {
        let config = KvConfig {
            pairs: 0,
            segments: 2,
            ..KvConfig::default()
        };
        let example = Generated::new(config, Split::Valid, 0)
            .unwrap()
            .get(5)
            .unwrap();
        assert_eq!(example.questions[0].query, "?!:");
        assert_eq!(example.questions[0].target, example.context);
        assert_eq!(example.context.matches('|').count(), 2);
    }

    #[test]
    fn generated_samples_do_not_change_between_versions() {
        let example = dataset(Split::Valid, 3).get(5).unwrap();
        assert_eq!(&example.context[..14], "!z3:Oi!!ul:VT!");
    }

    #[test]
    fn there_can_be_as_many_pairs_as_keys() {
        let mut config = KvConfig {
            pairs: 62,
            key_len: 1,
            ..KvConfig::default()
        };
        let full = Generated::new(config.clone(), Split::Train, 0).unwrap();
        assert!(full.get(0).is_some());
        config.pairs = 63;
        let error = Generated::new(config, Split::Train, 0).unwrap_err();
        assert!(error.to_string().contains("only 62 different keys"));
    }
}
