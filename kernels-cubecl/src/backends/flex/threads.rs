//! Threads that stay awake between two loops.

use std::cell::Cell;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rayon::Yield;

/// How long threads look for the next loop before they sleep. A layer is many short loops, with a little work of one thread between them:
/// waking the others for each takes longer than that.
const PATIENCE: Duration = Duration::from_millis(10);

thread_local! {
    /// Whether this thread looks for work.
    static LOOKS: Cell<bool> = const { Cell::new(false) };
}

/// To be called before a loop: keeps the other threads of the pool awake for those that follow soon. Not if the caller is outside the pool,
/// because such a thread is one more than there are cores, and the others would be in its way.
pub fn stay_awake() {
    /// When a loop last began or a thread took part in one.
    static LAST: AtomicU64 = AtomicU64::new(0);
    let Some(own) = rayon::current_thread_index() else {
        return;
    };
    let is_recent = |last: u64, now: u64| now < last + PATIENCE.as_nanos() as u64;
    let begun = nanoseconds();
    let last = LAST.swap(begun, Ordering::Relaxed);
    if last > 0 && is_recent(last, begun) {
        return;
    }
    rayon::spawn_broadcast(move |thread| {
        if thread.index() == own || LOOKS.replace(true) {
            return;
        }
        while is_recent(LAST.load(Ordering::Relaxed), nanoseconds()) {
            match rayon::yield_now() {
                Some(Yield::Executed) => LAST.store(nanoseconds(), Ordering::Relaxed),
                // Threads of other programs come first.
                _ => std::thread::yield_now(),
            }
        }
        LOOKS.set(false);
    });
}

/// Since the first call, and at least one.
fn nanoseconds() -> u64 {
    static FIRST: LazyLock<Instant> = LazyLock::new(Instant::now);
    FIRST.elapsed().as_nanos() as u64 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_look_for_loops_and_then_sleep() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build();
        let looking = || rayon::broadcast(|_| LOOKS.get()).into_iter();
        pool.unwrap().install(|| {
            let own = rayon::current_thread_index();
            let deadline = Instant::now() + Duration::from_secs(60);
            let others = |index: usize| Some(index) != own;
            loop {
                stay_awake();
                if looking().enumerate().all(|(at, looks)| looks == others(at)) {
                    break;
                }
                assert!(Instant::now() < deadline, "nobody stays awake");
            }
            while looking().any(|looks| looks) {
                assert!(Instant::now() < deadline, "nobody goes to sleep");
                std::thread::sleep(2 * PATIENCE);
            }
        });
    }
}
