//! What a memory that is written chunk by chunk still holds of the chunks before.

use burn::tensor::Tensor;
use gradmem_kernels::KernelBackend;

use super::results::Forgetting;
use super::scoring::UnreadHits;
use super::trained::Trained;
use crate::data::{Asked, Batch, Task};
use crate::error::Error;
use crate::memory::{Chunks, GradMem};
use crate::method::AnyMethod;
use crate::model::AnyLm;
use crate::support::readback::{Readback, Slot};

impl<B: KernelBackend> Trained<B> {
    /// The method and the size of its chunks; an error of a run that does not write chunks one after another.
    pub(super) fn in_sequence(&self) -> Result<(&GradMem<B, AnyLm<B>>, usize), Error> {
        if let AnyMethod::GradMem(gradmem) = &self.method
            && let Some(size) = gradmem.config().chunk_size
            && gradmem.config().chunks != Chunks::Parallel
        {
            return Ok((gradmem, size));
        }
        Err(Error::Input(
            "--forgetting is for a run of gradmem whose chunks are written one after another: with memory.chunk_size, and not with \
             memory.chunks = \"parallel\""
                .into(),
        ))
    }

    /// The forgetting matrix on held-out samples: after chunk i, how well chunk j ≤ i is answered and reconstructed.
    /// An error as [`in_sequence`](Self::in_sequence).
    pub(super) fn forgetting_of(&self, task: &Task, samples: usize) -> Result<Forgetting, Error> {
        let (gradmem, size) = self.in_sequence()?;
        let mut answered = Cells::default();
        let mut reconstructed = Cells::default();
        let (mut questions_seen, mut unplaced) = (0, 0);
        self.each_batch(task, &task.valid, samples, |_, batch| {
            let contexts = batch.episode.contexts();
            let lengths: Vec<usize> = contexts.lengths().collect();
            let mut placed = Vec::new();
            for (row, context, asked) in batch.questions() {
                questions_seen += 1;
                match place(contexts.row(context), asked) {
                    Some(at) => placed.push((row, context, at / size)),
                    None => unplaced += 1,
                }
            }
            for (after, found) in after_chunks(gradmem, &batch)?.into_iter().enumerate() {
                for (row, context, chunk) in &placed {
                    // Nothing is written over a context that ended before.
                    let own = gradmem.config().chunks_of(lengths[*context]);
                    let matched = found.matches[*row].filter(|_| *chunk <= after && after < own);
                    if let Some(right) = matched {
                        answered.add(after, *chunk, f64::from(right), 1.0);
                    }
                }
                for (chunk, (right, count)) in found.accuracies.into_iter().enumerate() {
                    reconstructed.add(after, chunk, right, count);
                }
            }
            Ok(())
        })?;
        if unplaced > 0 {
            log::warn!(
                "{unplaced} of {questions_seen} questions stand nowhere in their context, or more than once: how many are answered after \
                 each chunk is not known"
            );
        }
        Ok(Forgetting {
            chunk_size: size,
            answered: (unplaced == 0).then(|| answered.means()),
            reconstructed: reconstructed.means(),
        })
    }
}

/// What the memory after a chunk holds.
struct After {
    /// Whether each question is answered.
    matches: Vec<Option<bool>>,
    /// Of each chunk up to it: the tokens that are predicted, and how many there are.
    accuracies: Vec<(f64, f64)>,
}

fn after_chunks<B: KernelBackend>(
    gradmem: &GradMem<B, AnyLm<B>>,
    batch: &Batch<B>,
) -> Result<Vec<After>, Error> {
    let episode = &batch.episode;
    let mut readback = Readback::new();
    let mut pending = Vec::new();
    for memory in gradmem.after_each_chunk(episode.contexts())? {
        let (_, predicted) = gradmem.read_answers(&memory, episode)?;
        let hits = UnreadHits::of(predicted, batch);
        let hits = hits.pend(&mut readback);
        let accuracies =
            gradmem.accuracy_of_chunks(&memory, episode.contexts(), pending.len() + 1)?;
        let accuracies: Vec<(Slot, Vec<usize>)> = accuracies
            .into_iter()
            .map(|(shares, counts): (Tensor<B, 1>, Vec<usize>)| (readback.push(shares), counts))
            .collect();
        pending.push((hits, accuracies));
    }
    let values = readback.read();
    let found = pending.into_iter().map(|(hits, accuracies)| After {
        matches: hits
            .hits(&values)
            .iter()
            .map(|hits| hits.is_match())
            .collect(),
        accuracies: accuracies
            .into_iter()
            .map(|(shares, counts)| {
                let right = values.of(shares).iter().zip(&counts);
                let right = right.map(|(share, count)| share * *count as f64);
                (right.sum(), counts.iter().sum::<usize>() as f64)
            })
            .collect(),
    });
    Ok(found.collect())
}

/// The token that a question is about: what its query's tokens stand before in the context, the first of several left out,
/// which is the question's own. None where they stand nowhere or more than once.
fn place(context: &[u32], asked: &Asked) -> Option<usize> {
    let query = &asked.tokens[..asked.target];
    let query = match query {
        [] => return None,
        [_] => query,
        [_, rest @ ..] => rest,
    };
    let mut found = context
        .windows(query.len())
        .enumerate()
        .filter(|(_, window)| *window == query);
    match (found.next(), found.next()) {
        // By what follows it: that is asked for.
        (Some((at, _)), None) => Some(at + query.len()),
        _ => None,
    }
}

/// Sums and counts by row and column.
#[derive(Default)]
struct Cells(Vec<Vec<(f64, f64)>>);

impl Cells {
    fn add(&mut self, row: usize, column: usize, value: f64, count: f64) {
        if self.0.len() <= row {
            self.0.resize(row + 1, Vec::new());
        }
        let cells = &mut self.0[row];
        if cells.len() <= column {
            cells.resize(column + 1, (0.0, 0.0));
        }
        cells[column].0 += value;
        cells[column].1 += count;
    }

    fn means(self) -> Vec<Vec<Option<f64>>> {
        let rows = self.0.into_iter().map(|cells| {
            let means = cells.into_iter();
            means
                .map(|(sum, count)| (count > 0.0).then(|| sum / count))
                .collect()
        });
        rows.collect()
    }
}
