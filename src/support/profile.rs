//! How long the parts of a training step take and by how much they grow the process, for the log at debug
//! level (`RUST_LOG=gradmem=debug`). At other levels nothing is measured and nothing is waited for.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use burn::tensor::backend::Backend;

use super::memory::host_bytes;

/// A part of a training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The reconstruction losses of all WRITE steps.
    WriteForward,
    /// Their gradients to the memory.
    WriteBackward,
    /// READ and its loss.
    Read,
    /// The gradient through all of them; in Replay, of the graphs that are built again.
    OuterBackward,
    /// The optimizer's step.
    Optimizer,
}

const PHASES: [(Phase, &str); 5] = [
    (Phase::WriteForward, "WRITE forward"),
    (Phase::WriteBackward, "WRITE backward"),
    (Phase::Read, "READ"),
    (Phase::OuterBackward, "outer backward"),
    (Phase::Optimizer, "optimizer"),
];

#[derive(Clone, Copy, Default)]
struct Spent {
    time: Duration,
    /// Bytes by which the process's resident memory grew.
    grown: i64,
}

thread_local! {
    static SPENT: RefCell<[Spent; PHASES.len()]> = RefCell::default();
}

/// Does `work`, and at debug level counts it as a phase's once the device is done with it.
pub fn timed<B: Backend, R>(phase: Phase, device: &B::Device, work: impl FnOnce() -> R) -> R {
    if !log::log_enabled!(log::Level::Debug) {
        return work();
    }
    let settle = || {
        // A device that fails will say so where its results are read.
        let _ = B::sync(device);
        (Instant::now(), resident_bytes())
    };
    let (start, before) = settle();
    let result = work();
    let (end, after) = settle();
    SPENT.with_borrow_mut(|spent| {
        let spent = &mut spent[phase as usize];
        spent.time += end - start;
        spent.grown += after.unwrap_or(0) - before.unwrap_or(0);
    });
    result
}

/// Logs what this thread's phases took since the last report.
pub fn report(step: usize) {
    if !log::log_enabled!(log::Level::Debug) {
        return;
    }
    let spent = SPENT.take();
    let mut parts = Vec::new();
    for (phase, name) in PHASES {
        let Spent { time, grown } = spent[phase as usize];
        let grown = match grown >> 20 {
            0 => String::new(),
            mebibytes => format!(" ({mebibytes:+} MiB)"),
        };
        parts.push(format!("{name} {:.4} s{grown}", time.as_secs_f64()));
    }
    let resident = resident_bytes().map(|bytes| format!("; {} MiB resident", bytes >> 20));
    log::debug!(
        "step {step}: {}{}",
        parts.join(", "),
        resident.unwrap_or_default()
    );
}

fn resident_bytes() -> Option<i64> {
    host_bytes("/proc/self/status", "VmRSS").map(|bytes| bytes as i64)
}
