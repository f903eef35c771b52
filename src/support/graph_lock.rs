//! Burn 0.21 differentiates in one thread at a time.

use std::cell::Cell;
use std::fmt;
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
    /// None in a thread that holds the lock already.
    _guard: Option<MutexGuard<'static, ()>>,
    before: Held,
}

/// What of a graph this thread is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Nothing,
    Outer,
    /// A gradient within WRITE or READ, possibly within an outer graph.
    Inner,
}

static LOCK: Mutex<()> = Mutex::new(());

thread_local! {
    static HELD: Cell<Held> = const { Cell::new(Held::Nothing) };
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
        Self::hold(Held::Outer)
    }

    /// For a gradient within WRITE or READ.
    pub(crate) fn inner() -> Self {
        Self::hold(Held::Inner)
    }

    fn hold(held: Held) -> Self {
        let before = HELD.get();
        assert!(
            before != Held::Inner,
            "a gradient was begun inside of another one in the same thread, as by WRITE in a task of rayon's: call WRITE in \
             threads of their own, or with all contexts as one batch"
        );
        let guard =
            (before == Held::Nothing).then(|| LOCK.lock().unwrap_or_else(PoisonError::into_inner));
        HELD.set(held);
        Self {
            _guard: guard,
            before,
        }
    }
}

impl Drop for GraphLock {
    fn drop(&mut self) {
        HELD.set(self.before);
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
        // Free again, for other threads too.
        std::thread::spawn(|| drop(GraphLock::inner()))
            .join()
            .unwrap();
    }
}
