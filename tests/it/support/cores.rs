//! Which cores a thread has, and when.

use super::process::output;

/// The cores that this thread may use, in two halves, as `taskset` writes them. `None` if there is only one.
pub(crate) fn halves() -> Option<[String; 2]> {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    let cores: Vec<u32> = list.trim().split(',').flat_map(range).collect();
    let join = |cores: &[u32]| cores.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let (one, other) = cores.split_at(cores.len() / 2);
    (!one.is_empty()).then(|| [join(one), join(other)])
}

fn range(text: &str) -> std::ops::RangeInclusive<u32> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    first.parse().unwrap()..=last.parse().unwrap()
}

/// The calling thread, and what it starts from now on, keeps to these.
pub(crate) fn keep_to(cores: &str) {
    output("taskset", &["--cpu-list", "--pid", cores, &this_thread()]);
}

/// Threads that `start` starts run whenever they want to. It takes CAP_SYS_NICE. That others step back is not enough: the kernel
/// lets them have a whole slice of some milliseconds when somebody else has just had more than his share.
pub(crate) fn before_all_others<T>(start: impl FnOnce() -> T) -> T {
    output("chrt", &["--fifo", "--pid", "1", &this_thread()]);
    let started = start();
    output("chrt", &["--other", "--pid", "0", &this_thread()]);
    started
}

/// The calling thread runs only while nobody else wants its core.
pub(crate) fn only_when_idle() {
    output("chrt", &["--idle", "--pid", "0", &this_thread()]);
}

fn this_thread() -> String {
    let thread = std::fs::read_link("/proc/thread-self").unwrap();
    thread.file_name().unwrap().to_str().unwrap().to_owned()
}
