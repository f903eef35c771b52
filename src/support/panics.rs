//! Dependencies that panic on inconsistent files.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic on this thread is caught here.
#[cfg(feature = "mpi")]
pub(crate) fn is_guarded() -> bool {
    GUARDED.get()
}

/// Runs what a dependency may panic in; `None` if it does. The panic is not printed: the caller makes an error
/// of it and drops what was being made.
pub fn catch_panic<T>(run: impl FnOnce() -> T) -> Option<T> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                hook(info);
            }
        }));
    });
    let before = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(run));
    GUARDED.set(before);
    result.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_nothing() {
        assert_eq!(catch_panic(|| 5), Some(5));
        assert_eq!(
            catch_panic(|| catch_panic(|| [1, 2][1..][2..].len())),
            Some(None)
        );
        assert!(catch_unwind(|| catch_panic(|| 1).map(|_| panic!("not caught"))).is_err());
    }
}
