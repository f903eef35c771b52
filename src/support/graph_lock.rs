//! Burn 0.21 differentiates in one thread at a time.

use std::cell::RefCell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Held while a graph is built and differentiated: one thread of the process at a time has it.
///
/// In Burn 0.21 every `backward()` sweeps over the graphs of the whole process, and may take from a graph what another thread is
/// just adding to it: a part of the gradient is lost, without a word. So WRITE's steps, [`outer_gradient`](crate::memory::GradMem::outer_gradient)
/// and [`Method::gradient`](crate::method::Method::gradient) hold this lock, and may be called in any threads: they wait for
/// each other. A `backward()` of one's own in a program of several threads needs it too, from the graph's first operation on:
///
/// ```
/// # #[cfg(feature = "flex")] {
/// # use burn::backend::Autodiff;
/// # use gradmem::{episode::{Episode, Tokens}, memory::{GradMemConfig, GraphLock}, model::LlamaConfig};
/// # fn main() -> Result<(), gradmem::Error> {
/// # type B = Autodiff<burn_flex::Flex>;
/// # let device = Default::default();
/// # let lm = LlamaConfig::new(70, 16, 1, 2).init::<B>(0, &device)?;
/// # let gradmem = GradMemConfig::new().init(lm, 1, &device)?;
/// # let episode = Episode::from_answers(Tokens::<B>::new(&[[9, 4, 7, 5]], &device)?, &[([9, 4], [7])])?;
/// let lock = GraphLock::new();
/// let gradients = gradmem.outer(&episode)?.loss().backward();
/// drop(lock);
/// # let _ = gradients;
/// # Ok(()) }
/// # main().unwrap();
/// # }
/// ```
#[must_use]
pub struct GraphLock {
    is_inner: bool,
    /// It belongs to its thread.
    thread: PhantomData<MutexGuard<'static, ()>>,
}

/// What of graphs a thread is at.
struct Held {
    /// While there is any lock of this thread.
    guard: Option<MutexGuard<'static, ()>>,
    locks: usize,
    /// In a gradient within WRITE or READ, possibly within an outer graph.
    is_inner: bool,
}

static LOCK: Mutex<()> = Mutex::new(());

thread_local! {
    static HELD: RefCell<Held> = const {
        RefCell::new(Held { guard: None, locks: 0, is_inner: false })
    };
}

impl GraphLock {
    /// Waits until no other thread holds it. A thread that holds it may take it again.
    ///
    /// # Panics
    ///
    /// Inside of a gradient that this thread takes. That is how a task of rayon's begins in a thread that waits for another
    /// one: WRITE's products on the CPU are such tasks, so WRITE cannot be one itself, as in `par_iter`; there it may also
    /// wait for ever, for a thread that waits for rayon. Call it in threads of their own, or with all contexts as one batch,
    /// which is faster.
    #[allow(clippy::new_without_default)] // It waits.
    pub fn new() -> Self {
        Self::hold(false)
    }

    /// For a gradient within WRITE or READ.
    pub(crate) fn inner() -> Self {
        Self::hold(true)
    }

    fn hold(is_inner: bool) -> Self {
        HELD.with_borrow_mut(|held| {
            assert!(
                !held.is_inner,
                "a gradient was begun inside of another one in the same thread, as by WRITE in a task of rayon's: call WRITE in \
                 threads of their own, or with all contexts as one batch"
            );
            if held.guard.is_none() {
                held.guard = Some(LOCK.lock().unwrap_or_else(PoisonError::into_inner));
            }
            held.locks += 1;
            held.is_inner = is_inner;
        });
        Self {
            is_inner,
            thread: PhantomData,
        }
    }
}

impl Drop for GraphLock {
    fn drop(&mut self) {
        HELD.with_borrow_mut(|held| {
            held.locks -= 1;
            held.is_inner &= !self.is_inner;
            if held.locks == 0 {
                held.guard = None;
            }
        });
    }
}

impl fmt::Debug for GraphLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GraphLock").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_graph_may_hold_gradients_but_a_gradient_holds_none() {
        let outer = GraphLock::new();
        drop(GraphLock::inner());
        drop(GraphLock::new());
        let inner = GraphLock::inner();
        let nested = std::panic::catch_unwind(|| drop(GraphLock::inner()));
        assert!(nested.is_err());
        drop((inner, outer));
        // In the other order, which is that of a struct's fields.
        let [first, second] = [GraphLock::new(), GraphLock::new()];
        drop(first);
        assert!(LOCK.try_lock().is_err());
        drop(second);
        // Free again, for other threads too.
        std::thread::spawn(|| drop(GraphLock::inner()))
            .join()
            .unwrap();
    }
}
