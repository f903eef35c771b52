//! Processes that an MPI has started.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ::mpi::Threading;
use ::mpi::datatype::PartitionMut;
use ::mpi::environment::Universe;
use ::mpi::topology::SimpleCommunicator;
use ::mpi::traits::{Communicator, CommunicatorCollectives, Root};

use super::{TreeSum, World};
use crate::error::Error;
use crate::support::memory::share_among;
use crate::support::panics;

/// What the launchers of Open MPI, MPICH and Slurm tell each process.
const LAUNCHED: [&str; 4] = ["OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE"];

/// The numbers that are sent at once: MPI counts in 32 bits.
const AT_ONCE: usize = 1 << 24;

/// The processes that `mpirun` or `srun` has started.
pub struct Mpi {
    /// MPI ends when it is dropped.
    _universe: Universe,
    rank: usize,
    size: usize,
    local_rank: usize,
    waiting: Arc<Waiting>,
}

/// Since when this process waits for others.
struct Waiting {
    start: Instant,
    /// Milliseconds behind `start`, plus one; 0 if it does not wait.
    since: AtomicU64,
}

impl Waiting {
    /// Ends all processes. If this one is inside MPI, on another thread, it ends without a word to MPI, at which its
    /// launcher ends the others.
    fn end(&self, status: u8) -> ! {
        if self.since.load(Ordering::Relaxed) == 0 {
            SimpleCommunicator::world().abort(status.into())
        }
        std::process::exit(status.into())
    }
}

impl fmt::Debug for Mpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mpi({} of {})", self.rank, self.size)
    }
}

impl Mpi {
    /// Whether a launcher of MPI has started this process.
    pub fn is_launched() -> bool {
        LAUNCHED.iter().any(|name| std::env::var_os(name).is_some())
    }

    /// Joins the processes that were started together, once in a process. From then on a panic ends all of them, and so
    /// does a wait for others of more than `patience`: one of them is gone or stuck.
    ///
    /// # Errors
    ///
    /// If MPI cannot be used.
    pub fn join(patience: Duration) -> Result<Self, Error> {
        let (universe, _) = ::mpi::initialize_with_threading(Threading::Serialized)
            .ok_or_else(|| Error::Failed("MPI has been initialized before".into()))?;
        let world = SimpleCommunicator::world();
        let [rank, size] = [world.rank(), world.size()].map(|n| n as usize);
        let waiting = Arc::new(Waiting {
            start: Instant::now(),
            since: AtomicU64::new(0),
        });
        watch(waiting.clone(), patience, rank);
        let hook = std::panic::take_hook();
        let of_hook = waiting.clone();
        std::panic::set_hook(Box::new(move |info| {
            hook(info);
            // Of what is caught, the caller makes an error.
            if !panics::is_guarded() {
                of_hook.end(1);
            }
        }));
        let here = world.split_shared(world.rank());
        share_among(here.size() as usize);
        Ok(Self {
            rank,
            size,
            local_rank: here.rank() as usize,
            _universe: universe,
            waiting,
        })
    }

    /// Runs what all processes take part in.
    fn together<T>(&self, run: impl FnOnce(&SimpleCommunicator) -> T) -> T {
        let now = self.waiting.start.elapsed().as_millis() as u64;
        self.waiting.since.store(now + 1, Ordering::Relaxed);
        let result = run(&SimpleCommunicator::world());
        self.waiting.since.store(0, Ordering::Relaxed);
        result
    }
}

impl World for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn local_rank(&self) -> usize {
        self.local_rank
    }

    fn gather(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.together(|world| {
            let mut lengths = vec![0u64; self.size];
            world.all_gather_into(&(bytes.len() as u64), &mut lengths[..]);
            let counts: Vec<i32> = lengths.iter().map(|n| *n as i32).collect();
            let starts: Vec<i32> = counts
                .iter()
                .scan(0, |sum, n| Some(std::mem::replace(sum, *sum + n)))
                .collect();
            let mut all = vec![0u8; lengths.iter().sum::<u64>() as usize];
            let mut parts = PartitionMut::new(&mut all[..], &counts[..], &starts[..]);
            world.all_gather_varcount_into(bytes, &mut parts);
            let mut all = all.into_iter();
            let parts = lengths.iter();
            parts
                .map(|n| all.by_ref().take(*n as usize).collect())
                .collect()
        })
    }

    fn broadcast(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        self.together(|world| {
            let first = world.process_at_rank(0);
            let mut length = bytes.len() as u64;
            first.broadcast_into(&mut length);
            bytes.resize(length as usize, 0);
            for part in bytes.chunks_mut(AT_ONCE) {
                first.broadcast_into(part);
            }
        });
        bytes
    }

    /// Each process adds one slice of all processes' numbers.
    fn sum(&self, numbers: &mut [f32]) {
        self.together(|world| {
            for part in numbers.chunks_mut(AT_ONCE) {
                let slice = part.len().div_ceil(self.size);
                let mut sent = part.to_vec();
                sent.resize(slice * self.size, 0.0);
                let mut received = vec![0f32; slice * self.size];
                world.all_to_all_into(&sent[..], &mut received[..]);
                let mut tree = TreeSum::new(|mut sum: Vec<f32>, later: Vec<f32>| {
                    let pairs = sum.iter_mut().zip(later);
                    pairs.for_each(|(sum, later)| *sum += later);
                    sum
                });
                received
                    .chunks(slice)
                    .for_each(|one| tree.push(one.to_vec()));
                let sums = tree.finish().unwrap_or_default();
                world.all_gather_into(&sums[..], &mut sent[..]);
                part.copy_from_slice(&sent[..part.len()]);
            }
        });
    }

    fn abort(&self, status: u8) -> ! {
        self.waiting.end(status)
    }
}

/// Ends this process when it has waited for others for more than `patience`.
fn watch(waiting: Arc<Waiting>, patience: Duration, rank: usize) {
    let watch = move || {
        loop {
            std::thread::sleep(Duration::from_millis(200));
            let since = waiting.since.load(Ordering::Relaxed);
            let now = waiting.start.elapsed().as_millis() as u64 + 1;
            if since > 0 && now.saturating_sub(since) > patience.as_millis() as u64 {
                log::error!(
                    "process {rank} has waited for the others for {} s: one of them is gone or stuck. What was saved is \
                     whole; the same command goes on from there (--patience)",
                    patience.as_secs()
                );
                std::process::exit(1);
            }
        }
    };
    let thread = std::thread::Builder::new().name("watchdog".into());
    if let Err(e) = thread.spawn(watch) {
        log::warn!("nobody watches whether other processes stay silent: {e}");
    }
}
