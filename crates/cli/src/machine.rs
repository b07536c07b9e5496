//! What the machine has left: memory, as the system and the control groups of this process have it, and disk.
//!
//! A container's limit is a control group's. The system knows nothing of it when it tells what memory is available, and
//! kills whoever goes beyond.

use std::path::{Path, PathBuf};

/// Memory that could be had without swapping and without being killed for it; `None` where the system does not tell.
pub fn memory_available() -> Option<u64> {
    memory_under(Path::new("/"))
}

/// Room on the disk of a folder; `None` where the system does not tell.
pub fn disk_available(folder: &Path) -> Option<u64> {
    let existing = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    let stat = rustix::fs::statvfs(existing).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// The least of what the system has and what each control group leaves, with `/proc` and `/sys` under `root`.
fn memory_under(root: &Path) -> Option<u64> {
    let groups = groups(root);
    system(root).into_iter().chain(groups.iter().filter_map(Group::left)).min()
}

fn system(root: &Path) -> Option<u64> {
    let info = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// One control group of memory.
struct Group {
    folder: PathBuf,
    files: &'static Files,
}

/// How a version of control groups names its files.
struct Files {
    limit: &'static str,
    used: &'static str,
    /// Lines of `memory.stat`: pages of files, which are given up before anybody is killed.
    cached: [&'static str; 2],
}

const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    cached: ["total_inactive_file", "total_active_file"],
};
const V2: Files =
    Files { limit: "memory.max", used: "memory.current", cached: ["inactive_file", "active_file"] };

/// The groups of this process, and those that they are in: each has a limit of its own.
fn groups(root: &Path) -> Vec<Group> {
    let own = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let of_line = |line: &str| {
        // `0::/path` is of version 2, `4:memory:/path` of version 1.
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let (mounts, files) = match controllers {
            "" => (["sys/fs/cgroup", "sys/fs/cgroup/unified"], &V2),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (["sys/fs/cgroup/memory", "sys/fs/cgroup"], &V1)
            }
            _ => return None,
        };
        let below = path.trim_start_matches('/').to_owned();
        let group = move |mount: &str, below: &Path| Group { folder: root.join(mount).join(below), files };
        // In a container the mount may be its own group, whatever the path says: the empty path is the last ancestor.
        let of_mount =
            move |mount| Path::new(&below).ancestors().map(|below| group(mount, below)).collect::<Vec<_>>();
        Some(mounts.into_iter().flat_map(of_mount).collect::<Vec<_>>())
    };
    own.lines().filter_map(of_line).flatten().collect()
}

impl Group {
    /// What it leaves; `None` without a limit.
    fn left(&self) -> Option<u64> {
        let number = |name: &str| std::fs::read_to_string(self.folder.join(name)).ok()?.trim().parse().ok();
        // Version 2 says `max` where there is none; version 1 a number that no machine has.
        let limit: u64 = number(self.files.limit)?;
        let used: u64 = number(self.files.used)?;
        let stat = std::fs::read_to_string(self.folder.join("memory.stat")).unwrap_or_default();
        let cached: u64 = stat
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter(|(name, _)| self.files.cached.contains(name))
            .filter_map(|(_, bytes)| bytes.trim().parse::<u64>().ok())
            .fold(0, u64::saturating_add);
        Some(limit.saturating_sub(used.saturating_sub(cached)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A system with 1000 MiB available, and files of its `/proc` and `/sys`.
    fn system_of(cgroup: &str, files: &[(&str, String)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a temporary folder");
        let kib = 1000 * MIB / 1024;
        let meminfo = format!("MemTotal: 99999999 kB\nMemAvailable:   {kib} kB\n");
        let own = [("proc/meminfo", meminfo), ("proc/self/cgroup", cgroup.to_owned())];
        for (name, text) in own.iter().chain(files) {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            std::fs::write(path, text).expect("a file");
        }
        root
    }

    fn mib(bytes: u64) -> String {
        format!("{}\n", bytes * MIB)
    }

    fn left(cgroup: &str, files: &[(&str, String)]) -> Option<u64> {
        memory_under(system_of(cgroup, files).path()).map(|bytes| bytes / MIB)
    }

    #[test]
    fn without_control_groups_it_is_what_the_system_has() {
        assert_eq!(left("", &[]), Some(1000));
        assert_eq!(left("0::/\n", &[]), Some(1000));
        assert_eq!(memory_under(Path::new("/nowhere")), None);
    }

    #[test]
    fn a_limit_of_version_2_counts_less_what_is_used_and_files_can_be_given_up() {
        let stat = format!("anon 7\ninactive_file {}\nactive_file {}\n", 100 * MIB, 50 * MIB);
        let group = |max: String, stat: &str| {
            let files = [
                ("sys/fs/cgroup/a/b/memory.max", max),
                ("sys/fs/cgroup/a/b/memory.current", mib(300)),
                ("sys/fs/cgroup/a/b/memory.stat", stat.to_owned()),
            ];
            left("0::/a/b\n", &files)
        };
        assert_eq!(group(mib(512), ""), Some(212));
        assert_eq!(group(mib(512), &stat), Some(362));
        assert_eq!(group(mib(200), ""), Some(0), "over its limit already");
        assert_eq!(group(mib(5000), ""), Some(1000), "the system has less");
        assert_eq!(group("max\n".into(), ""), Some(1000));
    }

    #[test]
    fn an_ancestors_limit_counts_too() {
        let files = [
            ("sys/fs/cgroup/a/b/memory.max", "max\n".into()),
            ("sys/fs/cgroup/a/b/memory.current", mib(10)),
            ("sys/fs/cgroup/a/memory.max", mib(400)),
            ("sys/fs/cgroup/a/memory.current", mib(100)),
        ];
        assert_eq!(left("0::/a/b\n", &files), Some(300));
    }

    #[test]
    fn a_container_sees_its_own_group_as_the_mount() {
        let files = [("sys/fs/cgroup/memory.max", mib(256)), ("sys/fs/cgroup/memory.current", mib(56))];
        assert_eq!(left("0::/\n", &files), Some(200));
        assert_eq!(left("0::/../../system.slice/docker-1.scope\n", &files), Some(200));
    }

    #[test]
    fn a_limit_of_version_1_counts_beside_an_empty_version_2() {
        let files = |limit: u64| {
            [
                ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", format!("{limit}\n")),
                ("sys/fs/cgroup/memory/a/memory.usage_in_bytes", mib(300)),
                (
                    "sys/fs/cgroup/memory/a/memory.stat",
                    format!("inactive_file 1\ntotal_inactive_file {}\ntotal_active_file 0\n", 100 * MIB),
                ),
            ]
        };
        let cgroup = "5:cpu,cpuacct:/a\n4:memory:/a\n0::/\n";
        assert_eq!(left(cgroup, &files(512 * MIB)), Some(312));
        assert_eq!(left(cgroup, &files(9_223_372_036_854_771_712)), Some(1000), "no limit");
    }

    #[test]
    fn the_system_tells_what_there_is() {
        // Linux tells; what the tests themselves need is there.
        let told = cfg!(target_os = "linux");
        assert_eq!(memory_available().map(|bytes| bytes > MIB), told.then_some(true));
        let disk = disk_available(&std::env::temp_dir().join("not/yet")).expect("Unix tells");
        let parent = disk_available(&std::env::temp_dir()).expect("Unix tells");
        assert!(disk > 0 && parent > 0);
        assert_eq!(disk_available(Path::new("\0")), disk_available(Path::new(".")));
    }
}
