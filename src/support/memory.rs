//! How much memory this process may still take.

#[cfg(target_os = "linux")]
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::backend::Backend;

use crate::error::Error;

/// Processes of this program that compute on this machine together.
static PROCESSES: AtomicU64 = AtomicU64::new(1);

/// Says that so many processes, this one among them, share the machine's memory evenly.
#[cfg(feature = "mpi")]
pub(crate) fn share_among(processes: usize) {
    PROCESSES.store(processes.max(1) as u64, Ordering::Relaxed);
}

/// Bytes that new tensors on the host may take, where the system says so. On Linux it is the least of what the system
/// has available, what is left of the limits of the process's control groups (a container's, a batch job's), and what is
/// left of its address space (`ulimit -v`); elsewhere what the system has available.
#[cfg(not(target_os = "linux"))]
pub(crate) fn available() -> Option<u64> {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    Some(system.available_memory()).filter(|bytes| *bytes > 0)
}

/// See above.
#[cfg(target_os = "linux")]
pub(crate) fn available() -> Option<u64> {
    let membership = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = [
        host_bytes("/proc/meminfo", "MemAvailable"),
        left_in_groups(Path::new("/sys/fs/cgroup"), &membership),
        left_of_address_space(),
    ];
    limits.into_iter().flatten().min()
}

/// Bytes that new tensors of this process may take on a device, where they are known: on a CPU its share of what is [`available`].
pub(crate) fn available_on<B: Backend>(device: &B::Device) -> Option<f64> {
    let backend = B::name(device);
    if !["flex", "ndarray"].iter().any(|cpu| backend.contains(cpu)) {
        return None;
    }
    Some((available()? / PROCESSES.load(Ordering::Relaxed)) as f64)
}

/// Fails if that is known to be less than `needed` bytes.
///
/// - `what`: what needs them, with that verb: the message goes on with `at least … MiB`
/// - `advice`: what to try instead
pub(crate) fn check_free<B: Backend>(
    device: &B::Device,
    needed: f64,
    what: &str,
    advice: &str,
) -> Result<(), Error> {
    match available_on::<B>(device) {
        Some(free) if needed > free => Err(Error::Input(format!(
            "{what} at least {:.0} MiB, and {:.0} MiB are free: try {advice}",
            mib(needed),
            mib(free)
        ))),
        _ => Ok(()),
    }
}

/// In units of 2²⁰ bytes.
pub(crate) fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

/// An amount of memory that Linux tells in one of its files, such as `VmHWM` of `/proc/self/status`, the most
/// this process ever had resident; on other systems nothing.
pub fn host_bytes(file: &str, field: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// What is left of RLIMIT_AS, if there is a limit.
#[cfg(target_os = "linux")]
fn left_of_address_space() -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let limit = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max address space"))?;
    let limit: u64 = limit.split_whitespace().next()?.parse().ok()?;
    Some(limit.saturating_sub(host_bytes("/proc/self/status", "VmSize")?))
}

/// What is left of the least memory limit of a process's control groups and of those around them.
///
/// - `root`: where the hierarchies are mounted
/// - `membership`: `/proc/self/cgroup`, lines of `ID:CONTROLLERS:PATH`; version 2 has no controllers there
#[cfg(target_os = "linux")]
fn left_in_groups(root: &Path, membership: &str) -> Option<u64> {
    let lines = membership.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        rest.split_once(':')
    });
    let left = lines.flat_map(|(controllers, path)| {
        let is_version_2 = controllers.is_empty();
        let mounts = match is_version_2 {
            true => vec![root.to_path_buf(), root.join("unified")],
            false if controllers.split(',').any(|name| name == "memory") => {
                vec![root.join("memory")]
            }
            false => Vec::new(),
        };
        // From inside a container its path may not exist, and the root is the container's own group.
        mounts.into_iter().flat_map(move |mount| {
            let group = mount.join(path.trim_start_matches('/'));
            let groups = group.ancestors().map(Path::to_path_buf);
            let groups: Vec<_> = groups
                .take_while(|group| group.starts_with(&mount))
                .collect();
            groups
                .into_iter()
                .filter_map(move |group| left_in_group(&group, is_version_2))
        })
    });
    left.min()
}

/// What is left of a control group's own limit, if it has one. Pages of files that are not in use do not count.
#[cfg(target_os = "linux")]
fn left_in_group(group: &Path, is_version_2: bool) -> Option<u64> {
    let [limit, usage, unused] = match is_version_2 {
        true => ["memory.max", "memory.current", "inactive_file"],
        false => [
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ],
    };
    let number = |name: &str| -> Option<u64> {
        let text = std::fs::read_to_string(group.join(name)).ok()?;
        text.trim().parse().ok()
    };
    let (limit, usage) = (number(limit)?, number(usage)?);
    let stat = std::fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let unused = stat.lines().find_map(|line| {
        let value = line.strip_prefix(unused)?.strip_prefix(' ')?;
        value.trim().parse::<u64>().ok()
    });
    Some(limit.saturating_sub(usage.saturating_sub(unused.unwrap_or(0))))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// A hierarchy of control groups: folders with files and what these hold.
    fn groups(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn the_tightest_group_counts_and_unused_files_do_not() {
        let root = groups(&[
            ("memory.max", "max\n"),
            ("memory.current", "900\n"),
            ("a/memory.max", "1000\n"),
            ("a/memory.current", "700\n"),
            (
                "a/memory.stat",
                "anon 300\ninactive_file 200\nactive_file 9\n",
            ),
            ("a/b/memory.max", "5000\n"),
            ("a/b/memory.current", "10\n"),
        ]);
        assert_eq!(left_in_groups(root.path(), "0::/a/b\n"), Some(500));
        assert_eq!(left_in_groups(root.path(), "0::/\n"), None);
        assert_eq!(left_in_groups(root.path(), "0::/not/mounted\n"), None);
        assert_eq!(left_in_groups(root.path(), ""), None);
    }

    #[test]
    fn version_1_and_a_path_that_is_outside_of_the_container() {
        let root = groups(&[
            ("memory/memory.limit_in_bytes", "4096\n"),
            ("memory/memory.usage_in_bytes", "96\n"),
        ]);
        let membership = "12:cpu,cpuacct:/\n4:memory:/docker/1234\n0::/\n";
        assert_eq!(left_in_groups(root.path(), membership), Some(4000));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn something_is_available_here() {
        assert!(available().unwrap() > 1 << 20);
    }
}
