//! How much memory is held, and how much was at most.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::Relaxed};

/// The most that reading an input may take.
pub const MOST: usize = 1 << 30;

#[global_allocator]
static HEAP: Counted = Counted;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// What was held before the input.
static BEFORE: AtomicUsize = AtomicUsize::new(0);
static READING: AtomicBool = AtomicBool::new(false);
/// The input that is read: its number, and its format's name.
static NUMBER: AtomicUsize = AtomicUsize::new(0);
static FORMAT: AtomicPtr<&'static str> = AtomicPtr::new(std::ptr::null_mut());

struct Counted;

impl Counted {
    fn take(size: usize) {
        let held = HELD.fetch_add(size, Relaxed).saturating_add(size);
        PEAK.fetch_max(held, Relaxed);
        if READING.load(Relaxed) && held.saturating_sub(BEFORE.load(Relaxed)) > MOST {
            READING.store(false, Relaxed);
            let format = FORMAT.load(Relaxed);
            // SAFETY: null, or a box that is never freed.
            let format = unsafe { format.as_ref() }.unwrap_or(&"");
            let number = NUMBER.load(Relaxed);
            // A request that fails ends the program without saying for what; a panic must not leave an
            // allocator.
            let _ = writeln!(
                std::io::stderr(),
                "{format} {number}: asks for {size} bytes, more than {MOST} in all"
            );
            std::process::abort();
        }
    }
}

// SAFETY: the system's allocator, with a count beside it.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::take(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::take(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if size > layout.size() {
            Self::take(size - layout.size());
        } else {
            HELD.fetch_sub(layout.size() - size, Relaxed);
        }
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Does something for an input, and says how many bytes more than before were held at most.
pub fn peak<T>(format: &'static str, number: usize, run: impl FnOnce() -> T) -> (T, usize) {
    if unsafe { FORMAT.load(Relaxed).as_ref() } != Some(&format) {
        FORMAT.store(Box::into_raw(Box::new(format)), Relaxed);
    }
    NUMBER.store(number, Relaxed);
    let before = HELD.load(Relaxed);
    BEFORE.store(before, Relaxed);
    PEAK.store(before, Relaxed);
    READING.store(true, Relaxed);
    let result = run();
    READING.store(false, Relaxed);
    (result, PEAK.load(Relaxed) - before)
}
