//! The processes that train together: one on each device, the same program with the same settings.
//!
//! A batch is divided into leaves (`train.micro_batch` contexts each). Each process computes a block of them, and their
//! gradients are added in a balanced binary tree, whose upper levels are between processes: the result does not depend
//! on how many there are.

#[cfg(feature = "mpi")]
mod mpi;

use std::fmt;
use std::ops::Range;

use serde::Serialize;
use serde::de::DeserializeOwned;

#[cfg(feature = "mpi")]
pub use self::mpi::Mpi;
use super::fault::{Fault, Sent};
use super::metrics::Scores;
use crate::error::{Error, require};

/// Processes that train together. All call the same functions in the same order, each on the thread that trains.
///
/// [`Alone`] is one process; `Mpi` (feature `mpi`) is what `mpirun` or `srun` has started. Another transport is another
/// implementation.
pub trait World: fmt::Debug + Send + Sync {
    /// This process, from 0. The first one writes files and shows progress.
    fn rank(&self) -> usize;

    /// The number of processes.
    fn size(&self) -> usize;

    /// This process among those of its machine, from 0: the device that it computes on.
    fn local_rank(&self) -> usize;

    /// The bytes of all processes, in the order of their ranks.
    fn gather(&self, bytes: &[u8]) -> Vec<Vec<u8>>;

    /// The bytes of the first process.
    fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8>;

    /// Adds the numbers of all processes, of which each has as many, in a balanced binary tree in the order of their ranks:
    /// the same sums, to the bit, everywhere.
    fn sum(&self, numbers: &mut [f32]);

    /// Ends this process and all others, which would wait for it for ever.
    fn abort(&self, status: u8) -> !;
}

/// One process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl World for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn local_rank(&self) -> usize {
        0
    }

    fn gather(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        vec![bytes.to_vec()]
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8> {
        bytes
    }

    fn sum(&self, _: &mut [f32]) {}

    fn abort(&self, status: u8) -> ! {
        std::process::exit(status.into())
    }
}

/// The size of a leaf where `train.micro_batch` does not say it: the batch's share of a process. It is kept in the run's
/// settings, so that a run that goes on with another number of processes has the same leaves.
///
/// # Errors
///
/// If the batch cannot be divided so that every process has as many leaves: numbers of leaves and of processes are powers
/// of two.
pub(super) fn leaf_size(
    batch_size: usize,
    micro_batch: Option<usize>,
    processes: usize,
) -> Result<Option<usize>, Error> {
    if processes == 1 {
        return Ok(micro_batch);
    }
    if !processes.is_power_of_two() {
        return Err(Error::Input(format!(
            "{processes} processes were started: 2, 4, 8 or another power of two can train together"
        )));
    }
    let leaf = micro_batch.unwrap_or(batch_size / processes).max(1);
    let leaves = batch_size / leaf;
    let fits = leaf * leaves == batch_size && leaves.is_power_of_two() && leaves >= processes;
    let problem = format!(
        "with {processes} processes a batch of {batch_size} contexts is divided into {processes}, or twice as many, or four \
         times, parts of equal size; a run keeps the size that it began with"
    );
    require(fits, "micro_batch", leaf, problem)?;
    Ok(Some(leaf))
}

/// Fails if a run that began without parts of its batches goes on with several processes: other parts have other rounding.
pub(super) fn check_leaves(begun: Option<usize>, processes: usize) -> Result<(), Error> {
    let problem = "is not set in this run, which began with whole batches: parts would round otherwise. Go on with one \
                   process, or set it and have another rounding from here on";
    require(
        begun.is_some() || processes == 1,
        "micro_batch",
        "none",
        problem,
    )
}

/// The results of all processes' leaves, or of other parts that are numbered, in the order of their numbers.
pub(super) fn exchanged(
    world: &dyn World,
    mut parts: Vec<(usize, Result<Scores, Fault>)>,
) -> Vec<Result<Scores, Fault>> {
    if world.size() > 1 {
        parts = gathered(world, &parts).into_iter().flatten().collect();
    }
    parts.sort_by_key(|(at, _)| *at);
    parts.into_iter().map(|(_, result)| result).collect()
}

/// The values of all processes, in the order of their ranks.
fn gathered<T: Serialize + DeserializeOwned>(world: &dyn World, mine: &T) -> Vec<T> {
    let config = bincode::config::standard();
    let bytes = bincode::serde::encode_to_vec(mine, config);
    let bytes = bytes.expect("what is sent has lengths");
    let hear = |bytes: Vec<u8>| bincode::serde::decode_from_slice(&bytes, config);
    let all = world.gather(&bytes).into_iter().map(hear);
    let all = all.collect::<Result<Vec<(T, usize)>, _>>();
    let all = all.expect("processes of one version understand each other");
    all.into_iter().map(|(value, _)| value).collect()
}

/// The result of this process if all have one; else the error of the first one that has none, in every process. All
/// processes call it.
///
/// # Errors
///
/// That of the first process that has one.
pub fn all_or_none<T>(world: &dyn World, result: Result<T, Error>) -> Result<T, Error> {
    if world.size() == 1 {
        return result;
    }
    let sent = result.as_ref().err().cloned().map(Sent);
    let all = gathered(world, &sent).into_iter().enumerate();
    match all.filter_map(|(rank, sent)| Some((rank, sent?))).next() {
        None => result,
        Some((rank, _)) if rank == world.rank() => result,
        Some((_, Sent(error))) => Err(error),
    }
}

/// The files, by name, that the first process makes, in every process; none where there is no other process.
pub(super) fn from_the_first(
    world: &dyn World,
    make: impl FnOnce() -> Result<Vec<(String, Vec<u8>)>, Error>,
) -> Result<Vec<(String, Vec<u8>)>, Error> {
    if world.size() == 1 {
        return Ok(Vec::new());
    }
    let made = match world.rank() {
        0 => make(),
        _ => Ok(Vec::new()),
    };
    let made = all_or_none(world, made)?;
    let count = gathered(world, &made.len())[0];
    let mut made = made.into_iter();
    let files = (0..count).map(|_| {
        let (name, bytes) = made.next().unwrap_or_default();
        let name = world.broadcast(name.into_bytes());
        (
            String::from_utf8_lossy(&name).into_owned(),
            world.broadcast(bytes),
        )
    });
    Ok(files.collect())
}

/// Fails in every process unless all have the same `text`; `what` names it.
pub(super) fn same(world: &dyn World, what: &str, text: &str) -> Result<(), Error> {
    if world.size() == 1 {
        return Ok(());
    }
    let all = gathered(world, &text.to_string());
    match all.iter().position(|other| *other != all[0]) {
        None => Ok(()),
        Some(rank) => Err(Error::Input(format!(
            "process {rank} has {what} other than process 0: {}",
            first_difference(&all[rank], &all[0])
        ))),
    }
}

/// The first lines that differ.
fn first_difference(a: &str, b: &str) -> String {
    let longest = a.lines().count().max(b.lines().count());
    let line = |text: &str, at: usize| text.lines().nth(at).unwrap_or("nothing").to_string();
    let pairs = (0..longest).map(|at| (line(a, at), line(b, at)));
    let found = pairs.into_iter().find(|(a, b)| a != b).unwrap_or_default();
    format!("{}, not {}", found.0, found.1)
}

/// Whether the training is to stop, and why: if any process was asked to. All must be at the same step.
pub(super) fn agreed_stop(
    world: &dyn World,
    step: usize,
    stop: Option<String>,
) -> Result<Option<String>, Error> {
    if world.size() == 1 {
        return Ok(stop);
    }
    let all = gathered(world, &(step, stop));
    match all.iter().position(|(other, _)| *other != step) {
        None => Ok(all.into_iter().find_map(|(_, stop)| stop)),
        Some(rank) => Err(Error::Failed(format!(
            "process {rank} is at step {}, and process {} at step {step}",
            all[rank].0,
            world.rank()
        ))),
    }
}

/// The leaves that a process computes.
///
/// # Errors
///
/// If there are not as many for each process, in a balanced tree.
pub(super) fn block(leaves: usize, world: &dyn World) -> Result<Range<usize>, Error> {
    let size = world.size();
    let share = leaves / size;
    if size > 1 && (share * size != leaves || !share.is_power_of_two()) {
        return Err(Error::Input(format!(
            "a batch has {leaves} parts of train.micro_batch contexts: {size} processes need {size}, or twice as many, or \
             four times"
        )));
    }
    Ok(world.rank() * share..(world.rank() + 1) * share)
}

/// A sum in a balanced binary tree, of values that come one after another: at most one for each level is kept.
pub(super) struct TreeSum<T, F> {
    /// Sums of 1, 2, 4, … values.
    levels: Vec<Option<T>>,
    add: F,
}

impl<T, F: FnMut(T, T) -> T> TreeSum<T, F> {
    /// `add` is given the earlier value first.
    pub(super) fn new(add: F) -> Self {
        Self {
            levels: Vec::new(),
            add,
        }
    }

    /// Adds the next value.
    pub(super) fn push(&mut self, mut value: T) {
        for level in &mut self.levels {
            match level.take() {
                Some(before) => value = (self.add)(before, value),
                None => {
                    *level = Some(value);
                    return;
                }
            }
        }
        self.levels.push(Some(value));
    }

    /// The sum of all values, if there were any.
    pub(super) fn finish(mut self) -> Option<T> {
        let levels = std::mem::take(&mut self.levels);
        let add = &mut self.add;
        levels
            .into_iter()
            .flatten()
            .reduce(|after, before| add(before, after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_balanced() {
        let sum = |n: usize| {
            let mut tree = TreeSum::new(|a: String, b: String| format!("({a}{b})"));
            (0..n).for_each(|i| tree.push(i.to_string()));
            tree.finish()
        };
        assert_eq!(sum(0), None);
        assert_eq!(sum(1).unwrap(), "0");
        assert_eq!(sum(4).unwrap(), "((01)(23))");
        assert_eq!(sum(8).unwrap(), "(((01)(23))((45)(67)))");
        assert_eq!(sum(7).unwrap(), "(((01)(23))((45)6))");
    }

    #[test]
    fn a_batch_is_divided_among_processes_or_refused() {
        assert_eq!(leaf_size(32, None, 1).unwrap(), None);
        assert_eq!(leaf_size(32, Some(5), 1).unwrap(), Some(5));
        assert_eq!(leaf_size(32, None, 4).unwrap(), Some(8));
        assert_eq!(leaf_size(32, Some(4), 2).unwrap(), Some(4));
        for (batch, micro, processes) in [
            (32, Some(16), 4),
            (32, Some(5), 2),
            (30, None, 4),
            (24, Some(4), 2),
            (1, None, 2),
        ] {
            let error = leaf_size(batch, micro, processes).unwrap_err().to_string();
            assert!(error.contains("micro_batch"), "{error}");
        }
        assert!(
            leaf_size(30, None, 3)
                .unwrap_err()
                .to_string()
                .contains("power of two")
        );
    }
}
