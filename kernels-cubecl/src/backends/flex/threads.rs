//! Threads that stay awake between two loops.

use std::cell::{Cell, OnceCell};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use rayon::Yield;

/// How long threads look for the next loop before they sleep. A layer is many short loops, with a little work of one thread between them:
/// waking the others for each takes longer than that.
const PATIENCE: Duration = Duration::from_millis(10);

thread_local! {
    /// When a loop of this thread last began or another thread took part in one; none for a thread that begins no loops.
    static LAST: OnceCell<Arc<AtomicU64>> = const { OnceCell::new() };
    /// Whether this thread looks for work.
    static LOOKS: Cell<bool> = const { Cell::new(false) };
}

/// To be called before a loop: keeps the other threads of the pool awake for those that follow soon. Not if the caller is outside the pool,
/// because such a thread is one more than there are cores, and the others would be in its way.
pub fn stay_awake() {
    if rayon::current_thread_index().is_none() || rayon::current_num_threads() == 1 {
        return;
    }
    let is_first = !begins_loops();
    let last = LAST.with(|last| last.get_or_init(Arc::default).clone());
    let now = nanoseconds();
    let before = last.swap(now, Ordering::Relaxed);
    if is_first || !is_recent(before, now) {
        rayon::spawn_broadcast(move |_| look_for_work(&last));
    }
}

/// Takes part in the pool's loops until there are none. Not on a thread that begins loops itself: it has work that it would leave for that.
fn look_for_work(last: &AtomicU64) {
    if begins_loops() || LOOKS.replace(true) {
        return;
    }
    loop {
        // The clock first: what is stored later is recent then.
        let now = nanoseconds();
        if !is_recent(last.load(Ordering::Relaxed), now) {
            break;
        }
        match rayon::yield_now() {
            Some(Yield::Executed) => last.store(nanoseconds(), Ordering::Relaxed),
            // Other programs' threads are let in between.
            _ => std::thread::yield_now(),
        }
    }
    LOOKS.set(false);
}

/// Whether this thread has begun loops.
fn begins_loops() -> bool {
    LAST.with(|last| last.get().is_some())
}

fn is_recent(last: u64, now: u64) -> bool {
    now < last + PATIENCE.as_nanos() as u64
}

/// Since the first call.
fn nanoseconds() -> u64 {
    static FIRST: LazyLock<Instant> = LazyLock::new(Instant::now);
    FIRST.elapsed().as_nanos() as u64
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
