//! Memory that the machine still has available, within the limits of this process's control groups.

use std::fs::read_to_string;
use std::path::Path;

/// Bytes that could be committed without anybody being killed for them, as far as the system tells.
pub fn bytes() -> Option<u64> {
    let machine = read_to_string("/proc/meminfo").ok();
    let machine = machine.and_then(|text| field(&text, "MemAvailable:").map(|kib| kib * 1024));
    machine.into_iter().chain(group()).min()
}

/// The least that any of the control groups (version 2) leaves.
fn group() -> Option<u64> {
    let groups = read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let own = Path::new("/sys/fs/cgroup").join(path);
    own.ancestors()
        .take_while(|group| group.starts_with("/sys/fs/cgroup"))
        .filter_map(left)
        .min()
}

fn left(group: &Path) -> Option<u64> {
    let number = |name| read_to_string(group.join(name)).ok()?.trim().parse().ok();
    let (most, used): (u64, u64) = (number("memory.max")?, number("memory.current")?);
    let stat = read_to_string(group.join("memory.stat")).unwrap_or_default();
    let cached = field(&stat, "inactive_file ").unwrap_or(0);
    Some(most.saturating_sub(used.saturating_sub(cached)))
}

/// The number after a name at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_read_by_its_name() {
        let text = "MemFree:  7 kB\nMemAvailable:   123 kB\n";
        assert_eq!(field(text, "MemAvailable:"), Some(123));
        assert_eq!(field("inactive_file 5\n", "inactive_file "), Some(5));
        assert_eq!(field(text, "Swap:"), None);
    }

    #[test]
    fn the_machine_has_some_memory() {
        assert!(bytes().is_some_and(|bytes| bytes > 0));
    }
}
