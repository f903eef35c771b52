//! Settings of the process: the allocator, the log and the panic hook.

use std::io::Write as _;
use std::panic::PanicHookInfo;
#[cfg(unix)]
use std::sync::Arc;

use crate::backend::NO_ROCM;
use crate::output::{Errors, message, shown};
use crate::train::INTERRUPTED;

/// Makes the allocator keep its pages. Training frees and allocates the same large tensors repeatedly; pages
/// returned to the system would be cleared each time.
pub fn keep_pages() {
    /// `mi_option_purge_delay` of mimalloc.h, which the bindings leave out; −1 means never.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: it sets a number that the allocator reads, before any thread is started.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
}

/// Makes an empty variable of the environment that stands for an option count as one that is not set.
pub fn unset_empty_variables() {
    let name = "GRADMEM_MODEL";
    if std::env::var_os(name).is_some_and(|value| value.is_empty()) {
        // SAFETY: no other thread that could read the environment runs yet.
        unsafe { std::env::remove_var(name) };
    }
}

/// Makes a write beyond the limit on a file's size (`ulimit -f`) an error, which names the file: the signal of it would end the
/// program without a word.
pub fn catch_size_limit() {
    #[cfg(unix)]
    if let Err(e) = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default()) {
        log::warn!("a limit on the size of files ends the program without a message: {e}");
    }
}

/// Starts the log on standard error: warnings and notices. RUST_LOG changes the level, as in
/// RUST_LOG=gradmem=debug.
pub fn start_log() {
    let default = "error,gradmem=warn,gradmem_kernels=warn,gradmem::notice=info";
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(default))
        .format(|out, record| {
            let level = record.level().as_str().to_lowercase();
            writeln!(
                out,
                "gradmem: {level}: {}",
                shown(&record.args().to_string())
            )
        })
        .target(env_logger::Target::Pipe(Box::new(Errors)))
        .init();
}

/// Says a panic in one line, and ends the program when a thread of a GPU backend panics (a kernel that does not
/// compile, a lost device): the panic would end that thread only, and the results after it would be wrong.
pub fn report_panics() {
    let default_hook = std::panic::take_hook();
    let main = std::thread::current().id();
    std::panic::set_hook(Box::new(move |info| {
        let on_device = std::thread::current().id() != main && is_in_gpu_crate(info);
        if on_device && is_rocms_start(info) {
            message!("{NO_ROCM}");
            std::process::exit(2);
        }
        let message = info.to_string();
        if on_device && message.contains("No possible adapter") {
            message!(
                "no such GPU is found: install its driver (on Linux without a GPU: mesa-vulkan-drivers, a software driver), or use another backend, such as --backend flex"
            );
            std::process::exit(2);
        }
        // The dashboard's k key panics with this message, after it has restored the terminal.
        if message.contains("Killing training from user input") {
            gradmem::train::leave_dashboard();
            message!("killed; the last checkpoint is intact, and the same command resumes from it");
            std::process::exit(INTERRUPTED.into());
        }
        match std::env::var_os("RUST_BACKTRACE") {
            Some(wanted) if wanted != "0" => default_hook(info),
            _ => message!(
                "internal error: {}; RUST_BACKTRACE=1 prints where it comes from",
                message.replace('\n', " ")
            ),
        }
        if on_device {
            message!(
                "the device failed, and nothing after that can be trusted; what was saved before is whole"
            );
            std::process::exit(1);
        }
    }));
}

/// Whether the panic comes from the code of a GPU backend.
fn is_in_gpu_crate(info: &PanicHookInfo<'_>) -> bool {
    let crates = ["cubecl", "wgpu", "cudarc", "cubek"];
    info.location()
        .is_some_and(|at| crates.iter().any(|name| at.file().contains(name)))
}

/// Whether the panic comes from the start of CubeCL's runtime for ROCm, which asserts that there are a library and a card.
fn is_rocms_start(info: &PanicHookInfo<'_>) -> bool {
    info.location()
        .is_some_and(|at| at.file().contains("cubecl-hip") && at.file().ends_with("runtime.rs"))
}
