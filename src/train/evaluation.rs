//! What a trained run can do with held-out samples: at any numbers of WRITE steps in one pass, at a number
//! each sample chooses for itself, and in answers of its own words.

use std::time::{Duration, Instant};

use burn::data::dataloader::DataLoaderBuilder;
use gradmem_kernels::KernelBackend;

use super::NOTICE;
use super::learner::evaluate;
use super::metrics::{Measure, Scores};
pub use super::results::{Adaptive, Evaluation, Forgetting, Row, Shown};
use super::scoring::{Hits, PendingHits, PendingReconstruction, UnreadHits, write_scores};
use super::trained::Trained;
use crate::data::{Asked, Batch, ExampleBatcher, Samples, Spaced, Task, answers};
use crate::error::{Error, at_least_one};
use crate::memory::{GradMem, MOST_STEPS, StopRule};
use crate::method::AnyMethod;
use crate::model::AnyLm;
use crate::model::generate::GenerateConfig;
use crate::support::readback::{Readback, Slot};

/// The time from one line of progress to the next.
const BETWEEN_LINES: Duration = Duration::from_secs(30);

/// What to find out.
#[derive(Clone, Debug, Default)]
pub struct EvalOptions {
    /// Numbers of WRITE steps [default: as many as the run was trained with].
    pub write_steps: Option<Vec<usize>>,
    /// Held-out contexts, evenly spaced among the run's [default: all of them].
    pub samples: Option<usize>,
    /// Lets each sample stop by itself, after at most so many steps, by the rule that does best on as many
    /// contexts of the training set.
    pub adaptive: Option<usize>,
    /// Generates answers, and the contexts again.
    pub generate: bool,
    /// The most right and the most wrong answers to keep.
    pub examples: usize,
    /// Finds out what is left of each chunk after those behind it.
    pub forgetting: bool,
}

impl EvalOptions {
    /// The numbers of WRITE steps, each once, from the smallest.
    fn each_write_steps(&self) -> Option<Vec<usize>> {
        let mut steps = self.write_steps.clone()?;
        steps.sort_unstable();
        steps.dedup();
        Some(steps)
    }
}

/// The rules that are tried: every tolerance with every patience.
const TOLERANCES: [f64; 10] = [0.0, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.02, 0.05, 0.1, 0.3];
const PATIENCES: [usize; 3] = [1, 2, 3];

impl<B: KernelBackend> Trained<B> {
    /// Scores held-out samples.
    ///
    /// # Errors
    ///
    /// If the method has no such numbers of steps, WRITE becomes non-finite before the first of
    /// them, or the run's data are gone.
    pub fn evaluate(&self, options: &EvalOptions) -> Result<Evaluation, Error> {
        if options.forgetting {
            self.in_sequence()?;
        }
        let task = self.task()?;
        let samples = options.samples.unwrap_or(task.valid.len());
        at_least_one([("samples", samples)])?;
        let samples = samples.min(task.valid.len());
        let own = self.method.write_steps();
        let mut found = Evaluation {
            weights: self.weights.sha256(),
            samples,
            precision: gradmem_kernels::precision(),
            ..Evaluation::default()
        };
        match &self.method {
            AnyMethod::GradMem(gradmem) => self.one_pass(gradmem, &task, options, &mut found)?,
            method => self.one_by_one(method, &task, options, &mut found)?,
        }
        if options.forgetting {
            found.forgetting = Some(self.forgetting_of(&task, samples)?);
        }
        if options.generate {
            let scores = self.answer(&task, samples, options.examples, &mut found.examples)?;
            let of_own = |row: &&mut Row| row.write_steps == own;
            match found.rows.iter_mut().find(of_own) {
                Some(row) => row.scores.extend(scores.to_json()),
                None => {
                    found.rows.push(Row::new(own, &scores));
                    found.rows.sort_by_key(|row| row.write_steps);
                }
            }
        }
        Ok(found)
    }

    fn one_pass(
        &self,
        gradmem: &GradMem<B, AnyLm<B>>,
        task: &Task,
        options: &EvalOptions,
        found: &mut Evaluation,
    ) -> Result<(), Error> {
        let own = gradmem.config().write_steps;
        let wanted = options.each_write_steps().unwrap_or_else(|| vec![own]);
        let (cap, samples) = (options.adaptive, found.samples);
        if let Some(cap) = cap.filter(|cap| *cap > MOST_STEPS) {
            return Err(Error::Input(format!(
                "--adaptive {cap}: WRITE takes at most {MOST_STEPS} steps"
            )));
        }
        if cap.is_some() && gradmem.config().chunks_in_a_row(task.lengths.context) > 1 {
            return Err(Error::Input(
                "--adaptive compares the losses of one piece of text: with memory.chunk_size every chunk has its own".into(),
            ));
        }
        let paths;
        (found.rows, paths) = self.sweep(gradmem, task, &task.valid, samples, &wanted, cap)?;
        if let Some(cap) = cap {
            let seen = samples.min(task.train.len());
            let (_, trained) = self.sweep(gradmem, task, &task.train, seen, &[], Some(cap))?;
            let (rule, _, exact) = best_rule(&trained, cap);
            let (mean_write_steps, exact_match) = paths.under(&rule);
            found.adaptive = Some(Adaptive {
                rule,
                chosen_on: (seen, exact),
                mean_write_steps,
                exact_match,
            });
        }
        Ok(())
    }

    fn one_by_one(
        &self,
        method: &AnyMethod<B>,
        task: &Task,
        options: &EvalOptions,
        found: &mut Evaluation,
    ) -> Result<(), Error> {
        if options.adaptive.is_some() {
            return Err(Error::Input(format!(
                "{} has no loss to stop by: only gradmem's WRITE can stop by itself",
                self.config.method.as_str()
            )));
        }
        let wanted = match options.each_write_steps() {
            Some(steps) => steps.into_iter().map(Some).collect(),
            None => vec![None],
        };
        for k in wanted {
            let method = match k {
                Some(k) => method.clone().with_write_steps(k)?,
                None => method.clone(),
            };
            let mut scores = Scores::default();
            self.each_batch(task, &task.valid, found.samples, |index, batch| {
                let part = evaluate(&method, batch);
                scores.merge(&part.map_err(|fault| fault.in_evaluation(index))?);
                Ok(())
            })?;
            found.rows.push(Row::new(method.write_steps(), &scores));
        }
        Ok(())
    }

    /// In a long pass the `log` crate's info says how far it is.
    pub(super) fn each_batch(
        &self,
        task: &Task,
        set: &Samples,
        samples: usize,
        mut work: impl FnMut(usize, Batch<B>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let batcher = ExampleBatcher::new(self.tokenizer.clone().into());
        let loader = DataLoaderBuilder::<B, _, _>::new(batcher)
            .batch_size(batch_size(&self.method, task))
            .set_device(self.method.device())
            .build(Spaced::new(set.clone(), samples));
        let (mut done, mut said) = (0, Instant::now());
        for (index, batch) in loader.iter().enumerate() {
            let batch = batch?;
            done += batch.episode.len();
            work(index, batch)?;
            if said.elapsed() > BETWEEN_LINES && done < samples {
                log::info!(target: NOTICE, "{done} of {samples} contexts");
                said = Instant::now();
            }
        }
        Ok(())
    }

    /// One pass over the samples: the scores at all `wanted` numbers of steps and, with a `cap`, each
    /// sample's losses and matches at all numbers up to it.
    fn sweep(
        &self,
        gradmem: &GradMem<B, AnyLm<B>>,
        task: &Task,
        set: &Samples,
        samples: usize,
        wanted: &[usize],
        cap: Option<usize>,
    ) -> Result<(Vec<Row>, Paths), Error> {
        let mut scores = vec![Scores::default(); wanted.len()];
        let mut paths = Paths::default();
        // The loss at the last memory shows in the step behind it.
        let last = wanted.iter().copied().chain(cap.map(|cap| cap + 1)).max();
        let last = last.unwrap_or(0);
        let in_chunks = gradmem.config().chunks_in_a_row(task.lengths.context) > 1;
        self.each_batch(task, set, samples, |_, batch| {
            let path = path_of(gradmem, &batch, in_chunks, last, |k| {
                wanted.contains(&k) || cap.is_some_and(|cap| k <= cap)
            })?;
            let values = path.readback.read();
            let (steps, before, places) = (path.steps, path.before, path.places);
            let start = paths.losses.len();
            paths.losses.resize(start + batch.len(), Vec::new());
            paths.matches.resize(start + batch.len(), Vec::new());
            for place in places {
                let hits = place.hits.hits(&values);
                if cap.is_some_and(|cap| place.k <= cap) {
                    paths.add_matches(start, &hits);
                }
                let Some(row) = wanted.iter().position(|wanted| *wanted == place.k) else {
                    continue;
                };
                let scores = &mut scores[row];
                let labels = gradmem.counted()(batch.episode.totals());
                let loss: f64 = values.of(place.read_loss).iter().sum();
                scores.add(Measure::ReadLoss, loss * labels as f64, labels);
                hits.iter().for_each(|hits| hits.add_to(scores));
                // What is non-finite shows in the mean.
                let taken = match before {
                    Some(_) => place.steps.iter(),
                    None => steps[..place.k].iter(),
                };
                let (losses, norms): (Vec<_>, Vec<_>) = taken.copied().unzip();
                write_scores([&losses, &norms], before, &values, scores).ok();
                let written = place.reconstruction.add_to(&values, place.k == 0, scores);
                if written.is_err() {
                    scores.add(Measure::WriteLossAfter, f64::NAN, batch.len());
                }
            }
            for (losses, _) in steps {
                for (at, loss) in values.of(losses).iter().enumerate() {
                    paths.losses[start + at].push(*loss);
                }
            }
            Ok(())
        })?;
        let finite = |scores: &Scores| {
            let means = Measure::ALL.iter().filter_map(|m| scores.mean(*m));
            means.into_iter().all(f64::is_finite)
        };
        let fine = scores.iter().take_while(|scores| finite(scores)).count();
        if let Some(k) = wanted.get(fine) {
            let message = format!("WRITE becomes non-finite within {k} steps");
            if fine == 0 {
                return Err(Error::Failed(message + ": evaluate fewer --write-steps"));
            }
            log::warn!("{message}: that and more are left out");
        }
        let rows = wanted.iter().zip(&scores).take(fine);
        let rows = rows.map(|(k, scores)| Row::new(Some(*k), scores));
        Ok((rows.collect(), paths))
    }

    /// Scores what the run says by itself, with as many WRITE steps as it was trained with.
    fn answer(
        &self,
        task: &Task,
        samples: usize,
        examples: usize,
        shown: &mut Vec<Shown>,
    ) -> Result<Scores, Error> {
        let mut scores = Scores::default();
        let tokenizer = &self.tokenizer;
        let end = tokenizer.end();
        // A target of a closed alphabet may have its end more than once: the copy task's has.
        let stop = if tokenizer.is_closed() {
            vec![]
        } else {
            vec![end]
        };
        let config = GenerateConfig {
            stop,
            ..GenerateConfig::greedy(task.lengths.target)
        };
        let (mut right, mut wrong) = (0, 0);
        self.each_batch(task, &task.valid, samples, |_, batch| {
            let contexts = batch.episode.contexts();
            let memory = match self.method.write_steps() {
                Some(_) => Some(self.method.write(contexts)?),
                None => None,
            };
            let prompt = |asked: &Asked| asked.tokens[..asked.target].to_vec();
            let prompts: Vec<_> = batch.asked.iter().map(prompt).collect();
            let said = match &memory {
                Some(memory) => self.method.reader(memory)?.generate(&prompts, &config)?,
                None => self.method.generate(contexts, &prompts, &config)?,
            };
            for (row, context, asked) in batch.questions() {
                let said = &said[row];
                let ends = asked.tokens[asked.target..].iter();
                let ends = ends.filter(|id| **id == end).count();
                let said = said.splitn(ends + 1, |id| *id == end).take(ends.max(1));
                let text = tokenizer.decode_answer(&said.collect::<Vec<_>>().concat())?;
                // In a closed alphabet every character counts, in prose only words do.
                let (is_right, f1) = match tokenizer.is_closed() {
                    true => {
                        let same = asked.answers.contains(&text);
                        (same, f64::from(same))
                    }
                    false => {
                        // A tokenizer may put spaces where the text has none: answers count as it decodes them, too.
                        let decoded = asked.answers.iter();
                        let decoded = decoded.map(|answer| tokenizer.as_decoded(answer));
                        let decoded = decoded.collect::<Result<Vec<_>, _>>()?;
                        let right = [&asked.answers[..], &decoded].concat();
                        (
                            answers::exact_match(&text, &right),
                            answers::f1(&text, &right),
                        )
                    }
                };
                scores.add(Measure::AnswerMatch, f64::from(is_right), 1);
                scores.add(Measure::AnswerF1, f1, 1);
                let kept = if is_right { &mut right } else { &mut wrong };
                if *kept < examples {
                    *kept += 1;
                    shown.push(Shown {
                        context: tokenizer.decode(contexts.row(context))?,
                        query: tokenizer.decode(&prompts[row])?,
                        target: asked.answers.first().cloned().unwrap_or_default(),
                        answer: text,
                        right: is_right,
                    });
                }
            }
            if let (AnyMethod::GradMem(gradmem), Some(memory)) = (&self.method, &memory)
                && gradmem.tells_from_nothing(task.lengths.context)
            {
                let lengths: Vec<usize> = contexts.lengths().collect();
                let rows = gradmem.reconstruct(memory, &lengths)?;
                for (row, context) in rows.iter().zip(contexts.rows()) {
                    let same = row.iter().zip(context).filter(|(a, b)| a == b).count();
                    let share = same as f64 / context.len().max(1) as f64;
                    scores.add(Measure::Reconstructed, share, 1);
                }
            }
            Ok(())
        })?;
        Ok(scores)
    }
}

/// Contexts of an evaluation that are computed at once: 100, or fewer if they would take more than 2 GiB. Settings and data
/// alone decide: another batch may round differently, and a resumed run must not.
pub(super) fn batch_size<B: KernelBackend>(method: &AnyMethod<B>, task: &Task) -> usize {
    let lengths = &task.lengths;
    let bytes = method.evaluation_bytes(lengths.context, lengths.question, lengths.questions);
    ((f64::from(1u32 << 31) / bytes) as usize).clamp(1, 100)
}

/// What a batch's memories after any number of WRITE steps answer, as tensors that wait for one transfer.
struct Trajectory<B: KernelBackend> {
    readback: Readback<B>,
    /// The losses before each step, and the norms of its gradients.
    steps: Vec<(Slot, Slot)>,
    /// The losses at M_0, if contexts are in several chunks: then each place has steps of its own.
    before: Option<Slot>,
    /// Where the answers were looked at.
    places: Vec<Place>,
}

/// The answers from M_k.
struct Place {
    k: usize,
    /// If contexts are in several chunks, the losses before each step that led here, and the norms of its gradients.
    steps: Vec<(Slot, Slot)>,
    read_loss: Slot,
    hits: PendingHits,
    reconstruction: PendingReconstruction,
}

/// Takes `steps` WRITE steps and answers at those numbers of them that are `wanted`.
fn path_of<B: KernelBackend>(
    gradmem: &GradMem<B, AnyLm<B>>,
    batch: &Batch<B>,
    in_chunks: bool,
    steps: usize,
    wanted: impl Fn(usize) -> bool,
) -> Result<Trajectory<B>, Error> {
    let episode = &batch.episode;
    let mut path = Trajectory {
        readback: Readback::new(),
        steps: Vec::new(),
        before: None,
        places: Vec::new(),
    };
    let contexts = episode.contexts();
    let mut memories = gradmem.trajectory(contexts)?;
    for k in 0..=steps {
        // With several chunks no memory is on the way to the next one.
        let memory = match in_chunks && k > 0 {
            false => memories.next(),
            true if wanted(k) => Some(gradmem.clone().with_write_steps(k)?.write(contexts)?),
            true => None,
        };
        let Some(memory) = memory else { continue };
        let readback = &mut path.readback;
        let mut steps = Vec::new();
        if in_chunks {
            if k == 0 {
                path.before = Some(readback.push(gradmem.start_loss(None, contexts)?));
            }
            let taken = memory.losses.iter().zip(memory.inner_norms());
            let taken =
                taken.map(|(loss, norm)| (readback.push(loss.clone()), readback.push(norm)));
            steps = taken.collect();
        } else if let (Some(loss), Some(norm)) = (memory.losses.last(), memory.inner_norms().pop())
        {
            let step = (readback.push(loss.clone()), readback.push(norm));
            path.steps.push(step);
        }
        if wanted(k) {
            let (read_loss, predicted) = gradmem.read_answers(&memory, episode)?;
            let hits = UnreadHits::of(predicted, batch);
            let written = gradmem.reconstruction(&memory, episode.contexts())?;
            path.places.push(Place {
                k,
                steps,
                read_loss: readback.push(read_loss),
                hits: hits.pend(readback),
                reconstruction: PendingReconstruction::new(written, readback),
            });
        }
    }
    Ok(path)
}

/// What becomes of each sample with every number of steps.
#[derive(Default)]
struct Paths {
    /// Its WRITE loss at `M_0, M_1, …`.
    losses: Vec<Vec<f64>>,
    /// How many of its questions are matched from `M_0, M_1, …`, and how many are scored.
    matches: Vec<Vec<[usize; 2]>>,
}

impl Paths {
    fn add_matches(&mut self, start: usize, hits: &[Hits]) {
        let contexts = self.matches.len() - start;
        let questions = hits.len() / contexts.max(1);
        for (at, hits) in hits.chunks(questions.max(1)).enumerate() {
            let known: Vec<bool> = hits.iter().filter_map(Hits::is_match).collect();
            let right = known.iter().filter(|right| **right).count();
            self.matches[start + at].push([right, known.len()]);
        }
    }

    /// The mean number of steps of a sample, and the share of all questions that are matched, under a rule.
    fn under(&self, rule: &StopRule) -> (f64, f64) {
        let (mut steps, mut right, mut scored) = (0, 0, 0);
        for (losses, found) in self.losses.iter().zip(&self.matches) {
            let k = rule.steps(losses.iter().copied());
            let [matched, known] = found.get(k).copied().unwrap_or_default();
            steps += k;
            right += matched;
            scored += known;
        }
        let share = |part: usize, whole: usize| part as f64 / whole.max(1) as f64;
        (share(steps, self.losses.len()), share(right, scored))
    }
}

/// The rule with the best exact match, of those the one with the fewest steps; and both numbers.
fn best_rule(paths: &Paths, cap: usize) -> (StopRule, f64, f64) {
    let rules = TOLERANCES.iter().flat_map(|tolerance| {
        PATIENCES.iter().map(move |patience| StopRule {
            tolerance: *tolerance,
            patience: *patience,
            cap,
        })
    });
    let tried = rules.map(|rule| {
        let (steps, exact) = paths.under(&rule);
        (rule, steps, exact)
    });
    tried
        .reduce(|best, next| {
            let better = next.2 > best.2 || (next.2 == best.2 && next.1 < best.1);
            if better { next } else { best }
        })
        .expect("there are rules")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_counts_questions_and_not_contexts() {
        let paths = Paths {
            losses: vec![vec![2.0, 1.0], vec![2.0, 1.0], vec![2.0, 1.0]],
            matches: vec![
                vec![[0, 1], [1, 1]],
                vec![[2, 5], [3, 5]],
                vec![[0, 0], [0, 0]],
            ],
        };
        assert_eq!(paths.under(&StopRule::new(1)), (1.0, 4.0 / 6.0));
        let never = StopRule::new(1).with_tolerance(10.0);
        assert_eq!(paths.under(&never), (0.0, 2.0 / 6.0));
    }
}
