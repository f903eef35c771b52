//! Dependencies that panic on files which contradict themselves.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

/// Does what a dependency may panic in; none if it does. The panic is not printed: whoever calls makes an
/// error of it, and drops what was being made.
pub(crate) fn guarded<T>(run: impl FnOnce() -> T) -> Option<T> {
    thread_local! {
        static GUARDED: Cell<bool> = const { Cell::new(false) };
    }
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
        assert_eq!(guarded(|| 5), Some(5));
        assert_eq!(guarded(|| guarded(|| [1, 2][1..][2..].len())), Some(None));
        assert!(catch_unwind(|| guarded(|| 1).map(|_| panic!("not guarded"))).is_err());
    }
}
