//! What all clients together may take: as configured, else by what the process may have.

use std::path::{Path, PathBuf};

use super::spec::Limits;

/// At least so many bytes may be held, however small the machine is.
const LEAST_BUFFERED: u64 = 64 << 20;
/// The memory of a machine that does not say.
const UNKNOWN: u64 = 1 << 30;

/// Caps over all listeners and workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Caps {
    pub(super) connections: usize,
    pub(super) requests: usize,
    /// Bytes.
    pub(super) buffered: usize,
}

impl Caps {
    /// For a process that may open `files` files and have `memory` bytes. A connection takes a file, a request another one for
    /// its server: each of them gets half of the files, less a tenth for everything else.
    pub(super) fn new(limits: &Limits, files: u64, memory: u64) -> Self {
        let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let half = number(files / 2 / 10 * 9).max(1);
        Self {
            connections: limits.connections.unwrap_or(half).max(1),
            requests: limits.requests.unwrap_or(half).max(1),
            buffered: limits.buffered.unwrap_or_else(|| number((memory / 4).max(LEAST_BUFFERED))),
        }
    }
}

/// The memory that the process may have: what the machine has, or its control group (a container, `MemoryMax=`) lets it.
pub(super) fn memory() -> u64 {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let machine = total(&read("/proc/meminfo")).unwrap_or(UNKNOWN);
    let limits = places(&read("/proc/self/cgroup")).into_iter().filter_map(|place| {
        // Without a limit it says `max`.
        std::fs::read_to_string(place.join("memory.max")).ok()?.trim().parse().ok()
    });
    limits.fold(machine, u64::min)
}

/// The machine's memory, by what `/proc/meminfo` says.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Where the limits of a control group lie, its own and those above it, by what `/proc/self/cgroup` says (version 2).
fn places(group: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let own = group.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let above = Path::new(own).ancestors();
    above
        .filter(|path| path.components().all(|c| matches!(c, std::path::Component::Normal(_))))
        .map(|path| root.join(path))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_leave_files_for_the_servers_and_memory_for_the_rest() {
        let unset = Limits::default();
        let gib = 1 << 30;
        let caps = |connections, requests, buffered| Caps { connections, requests, buffered };
        assert_eq!(Caps::new(&unset, 1024, 4 * gib), caps(459, 459, 1 << 30));
        assert_eq!(Caps::new(&unset, 1, 1), caps(1, 1, 64 << 20));
        assert!(Caps::new(&unset, u64::MAX, gib).connections > 1_000_000_000);
        let set = Limits { connections: Some(7), requests: Some(8), buffered: Some(9), ..unset };
        assert_eq!(Caps::new(&set, 1024, gib), caps(7, 8, 9));
    }

    #[test]
    fn a_control_group_is_looked_at_up_to_its_root() {
        let paths = |text| places(text).iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
        assert_eq!(
            paths("0::/system.slice/starlock.service\n"),
            [
                "/sys/fs/cgroup/system.slice/starlock.service",
                "/sys/fs/cgroup/system.slice",
                "/sys/fs/cgroup/"
            ]
        );
        assert_eq!(paths("0::/\n"), ["/sys/fs/cgroup/"]);
        assert_eq!(paths("0::/../x\n"), ["/sys/fs/cgroup/"], "a namespace's own words lead nowhere else");
        assert_eq!(paths("12:memory:/x\n"), ["/sys/fs/cgroup/"]);
        assert_eq!(total("MemTotal:       16318480 kB\nMemFree: 1 kB\n"), Some(16_318_480 * 1024));
        assert_eq!(total("MemFree: 1 kB\n"), None);
        assert!(memory() > 1 << 20);
    }
}
