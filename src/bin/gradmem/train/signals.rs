//! What signals do to a training: all of them stop it at the next step, saved.

use std::time::Duration;

use burn::train::Interrupter;
use gradmem::Error;
use gradmem::train::leave_dashboard;

use super::INTERRUPTED;
use crate::output::message;
use crate::processes::is_silent;

/// Stops at the next step: `why` is what the run says of it, `signal` what it was.
fn stop(interrupter: &Interrupter, why: &str, signal: &str) {
    // First of all: the message may have no reader any more.
    interrupter.stop(Some(why));
    if !is_silent() {
        message!("{signal}: stopping at the next step, to save; Ctrl-C stops at once");
    }
}

/// Ends the program without saving.
fn stop_at_once() {
    leave_dashboard();
    if !is_silent() {
        message!(
            "stopped at once; the last checkpoint is intact, and the same command resumes from it"
        );
    }
    std::process::exit(INTERRUPTED.into());
}

/// Makes SIGINT (Ctrl-C), SIGTERM, SIGHUP (a closed terminal) and SIGUSR1 stop the training at the next step, but for those that
/// the program was started to ignore, as `nohup` does. SIGUSR1 is what a job scheduler sends before time is up (Slurm's
/// `--signal=USR1@60`), and what `mpirun` passes on to all processes. A Ctrl-C after any of them ends the program at once.
#[cfg(unix)]
pub fn stop_on_signals(interrupter: &Interrupter) -> Result<(), Error> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
    use signal_hook::iterator::Signals;
    let caught = |e| Error::Failed(format!("signals cannot be caught: {e}"));
    let ignored = ignored();
    let is_ignored = |signal: i32| ignored >> (signal - 1) & 1 == 1;
    let wanted = [SIGINT, SIGTERM, SIGHUP].into_iter();
    let wanted = wanted
        .filter(|signal| !is_ignored(*signal))
        .chain([SIGUSR1]);
    let mut signals = Signals::new(wanted).map_err(caught)?;
    let interrupter = interrupter.clone();
    let wait = move || {
        let mut stopping = false;
        for signal in signals.forever() {
            match signal {
                SIGINT if stopping => stop_at_once(),
                SIGUSR1 => stop(&interrupter, "SIGUSR1.", "SIGUSR1"),
                SIGTERM => stop(&interrupter, "Interrupted.", "SIGTERM"),
                SIGHUP => stop(&interrupter, "Interrupted.", "SIGHUP"),
                _ => stop(&interrupter, "Interrupted.", "Ctrl-C"),
            }
            stopping = true;
        }
    };
    let thread = std::thread::Builder::new().name("signals".into());
    thread.spawn(wait).map(|_| ()).map_err(caught)
}

/// The signals that are ignored, as a mask; none where the system does not tell.
#[cfg(unix)]
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

/// Makes Ctrl-C stop the training at the next step. A second one ends the program at once.
#[cfg(not(unix))]
pub fn stop_on_signals(interrupter: &Interrupter) -> Result<(), Error> {
    use std::sync::atomic::{AtomicBool, Ordering};
    static PRESSED: AtomicBool = AtomicBool::new(false);
    let interrupter = interrupter.clone();
    ctrlc::set_handler(move || match PRESSED.swap(true, Ordering::Relaxed) {
        true => stop_at_once(),
        false => stop(&interrupter, "Interrupted.", "Ctrl-C"),
    })
    .map_err(|e| Error::Failed(format!("signals cannot be caught: {e}")))
}

/// Stops the training at the next step when this time is over.
pub fn stop_after(time: Duration, interrupter: &Interrupter) -> Result<(), Error> {
    let interrupter = interrupter.clone();
    let wait = move || {
        std::thread::sleep(time);
        interrupter.stop(Some("The time is over."));
    };
    let thread = std::thread::Builder::new().name("clock".into());
    let started = thread.spawn(wait).map(|_| ());
    started.map_err(|e| Error::Failed(format!("no clock can be started: {e}")))
}
