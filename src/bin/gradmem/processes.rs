//! The processes that `mpirun` or `srun` has started.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gradmem::Error;
use gradmem::train::world::{Alone, World};

/// Whether another process speaks for this one.
static SILENT: AtomicBool = AtomicBool::new(false);

/// Whether another process speaks for this one: what it was asked for and how it ended.
pub fn is_silent() -> bool {
    SILENT.load(Ordering::Relaxed)
}

/// The number of processes that a launcher says it has started.
fn launched() -> usize {
    let sizes = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"];
    let sizes = sizes.iter().filter_map(|name| std::env::var(name).ok());
    sizes
        .filter_map(|size| size.parse().ok())
        .max()
        .unwrap_or(1)
}

/// Fails if there are several processes: each would do all of the work.
pub fn refuse_several() -> Result<(), Error> {
    match launched() {
        ..=1 => Ok(()),
        n => Err(Error::Input(format!(
            "{n} processes were started: only `gradmem train` runs on several"
        ))),
    }
}

/// Joins the processes that were started together, if there are several.
#[cfg(feature = "mpi")]
pub fn join(patience: Duration) -> Result<Arc<dyn World>, Error> {
    use gradmem::train::world::Mpi;
    if !Mpi::is_launched() {
        return Ok(Arc::new(Alone));
    }
    let world = Mpi::join(patience)?;
    if world.rank() > 0 {
        SILENT.store(true, Ordering::Relaxed);
        log::set_max_level(log::LevelFilter::Error);
    }
    Ok(Arc::new(world))
}

/// This one process; fails if there are several.
#[cfg(not(feature = "mpi"))]
pub fn join(_: Duration) -> Result<Arc<dyn World>, Error> {
    match launched() {
        ..=1 => Ok(Arc::new(Alone)),
        n => Err(Error::Input(format!(
            "{n} processes were started, but this program was built without MPI: build it with --features mpi"
        ))),
    }
}
