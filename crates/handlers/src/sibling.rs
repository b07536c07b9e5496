//! The folders that stand beside an output while it is written, and those that dead processes left there.
//!
//! A sibling is `.NAME.PID-N.partial`; a folder that is about to be replaced becomes `.NAME.PID-N.replaced`. Each is locked
//! (`flock` on the folder itself) for as long as its process lives, since a process id says nothing across containers: it
//! repeats, and another's process is not to be seen.

use std::ffi::OsStr;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, test_kill_process};

use crate::error::Error;

/// Of a folder that is being written.
const PARTIAL: &str = "partial";
/// Of a folder that was moved aside for another.
pub(crate) const REPLACED: &str = "replaced";
/// Of a folder that is being removed.
pub(crate) const GOING: &str = "going";

/// A new folder beside `NAME`, and its lock. Process ids repeat, so a number makes the name unique.
pub(crate) fn make(parent: &Path, name: &OsStr) -> Result<(PathBuf, Option<File>), Error> {
    for number in 0.. {
        let path =
            parent.join(format!(".{}.{}-{number}.{PARTIAL}", name.to_string_lossy(), std::process::id()));
        match std::fs::create_dir(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
            Err(source) => return Err(Error::Io { action: "create", path, source }),
        }
        // Whoever swept it away in between took it for a dead process's.
        match lock(&path) {
            Lock::Held(file) if path.exists() => return Ok((path, Some(file))),
            Lock::Unknown if path.exists() => return Ok((path, None)),
            Lock::Held(_) | Lock::Unknown | Lock::Others => {}
        }
    }
    unreachable!("numbers do not run out")
}

/// Removes what dead processes left beside `out`. A folder that one of them had moved aside and not yet replaced is put
/// back. What may be another's work is left alone.
pub(crate) fn sweep(parent: &Path, name: &OsStr, out: &Path) {
    // A parent that cannot be read will be an error as soon as something is made there.
    let Ok(entries) = std::fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let file_name = entry.file_name();
        let Some((pid, kind)) = parse(&file_name.to_string_lossy(), &name.to_string_lossy()) else {
            continue;
        };
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !is_folder || is_alive(pid) {
            continue;
        }
        let path = entry.path();
        // Held until it is gone, so that two that sweep do not meet.
        let Lock::Held(_lock) = lock(&path) else { continue };
        let put_back = kind == REPLACED && std::fs::symlink_metadata(out).is_err();
        let swept = match put_back {
            true => std::fs::rename(&path, out),
            false => std::fs::remove_dir_all(&path),
        };
        // It is not what the user asked for, and the next run tries again.
        drop(swept);
    }
}

/// Process id and kind of `.NAME.PID-N.KIND`.
fn parse(file_name: &str, name: &str) -> Option<(i32, &'static str)> {
    let rest = file_name.strip_prefix('.')?.strip_prefix(name)?.strip_prefix('.')?;
    let (numbers, kind) = rest.split_once('.')?;
    let (pid, number) = numbers.split_once('-')?;
    number.parse::<u64>().ok()?;
    let kind = [PARTIAL, REPLACED, GOING].into_iter().find(|known| *known == kind)?;
    Some((pid.parse().ok()?, kind))
}

/// Whether some other process has this id, here. Ours says nothing: it may have been that of a process in a container before.
fn is_alive(pid: i32) -> bool {
    let Some(pid) = Pid::from_raw(pid) else { return false };
    let ours = pid.as_raw_nonzero().get().unsigned_abs() == std::process::id();
    // A process of another user's cannot be signalled and is there all the same.
    !ours && test_kill_process(pid) != Err(rustix::io::Errno::SRCH)
}

/// Who has the lock of a folder.
enum Lock {
    /// We have, until the file is closed.
    Held(File),
    /// Another process has, or the folder is gone.
    Others,
    /// The file system has no locks.
    Unknown,
}

fn lock(folder: &Path) -> Lock {
    let Ok(file) = File::open(folder) else { return Lock::Others };
    match file.try_lock() {
        Ok(()) => Lock::Held(file),
        Err(std::fs::TryLockError::WouldBlock) => Lock::Others,
        Err(std::fs::TryLockError::Error(_)) => Lock::Unknown,
    }
}

/// Locks a folder that is to be moved aside; where that is not to be had, it is moved all the same.
pub(crate) fn hold(folder: &Path) -> Option<File> {
    match lock(folder) {
        Lock::Held(file) => Some(file),
        Lock::Others | Lock::Unknown => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No process has it: ids end at 2²² on Linux and below on other systems.
    const DEAD: i32 = i32::MAX;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).expect("a folder");
        let mut names: Vec<String> =
            entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_name_says_whose_it_is_and_other_names_say_nothing() {
        assert_eq!(parse(".out.17-0.partial", "out"), Some((17, PARTIAL)));
        assert_eq!(parse(".out.17-3.replaced", "out"), Some((17, REPLACED)));
        assert_eq!(parse(".a.b.17-3.partial", "a.b"), Some((17, PARTIAL)));
        for other in [
            ".out.17-0",
            "out.17-0.partial",
            ".out2.17-0.partial",
            ".out.x-0.partial",
            ".out.17.partial",
            ".out.17-0.partial.gz",
            ".out.other.17-0.partial",
            "..partial",
        ] {
            assert_eq!(parse(other, "out"), None, "{other}");
        }
    }

    #[test]
    fn what_the_dead_left_is_swept_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (parent, out) = (folder.path(), folder.path().join("out"));
        let ours = std::process::id();
        let make = |name: String| {
            let path = parent.join(name);
            std::fs::create_dir(&path).expect("a folder");
            std::fs::write(path.join("config.json"), "{}").expect("a file");
            path
        };
        // Of the init process, which lives; of another output; no folder; and locked, as by a process of another container.
        let kept = [".out.1-0.partial".to_owned(), format!(".other.{DEAD}-0.partial")];
        kept.iter().for_each(|name| drop(make(name.clone())));
        std::fs::write(parent.join(format!(".out.{DEAD}-9.partial")), "a file").expect("a file");
        let locked = [format!(".out.{DEAD}-1.partial"), format!(".out.{ours}-1.partial")];
        let locks = locked.clone().map(|name| hold(&make(name)).expect("a lock"));
        make(format!(".out.{DEAD}-0.partial"));
        make(format!(".out.{ours}-0.partial"));
        make(format!(".out.{DEAD}-0.replaced"));
        std::fs::create_dir(&out).expect("it was replaced already");

        sweep(parent, OsStr::new("out"), &out);
        let mut expected = vec!["out".to_owned(), format!(".out.{DEAD}-9.partial")];
        expected.extend(kept.iter().chain(&locked).cloned());
        expected.sort();
        assert_eq!(names(parent), expected);
        assert_eq!(names(&out), [""; 0], "what is there is what replaced it");

        drop(locks);
        sweep(parent, OsStr::new("out"), &out);
        assert!(names(parent).iter().all(|name| !locked.contains(name)), "their processes are gone");
    }

    #[test]
    fn a_folder_that_was_moved_aside_and_never_replaced_is_put_back() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let out = folder.path().join("out");
        let aside = folder.path().join(format!(".out.{DEAD}-0.{REPLACED}"));
        std::fs::create_dir(&aside).expect("a folder");
        std::fs::write(aside.join("config.json"), "{}").expect("a file");
        sweep(folder.path(), OsStr::new("out"), &out);
        assert_eq!((names(folder.path()), names(&out)), (vec!["out".into()], vec!["config.json".into()]));
    }

    #[test]
    fn a_new_sibling_is_locked_for_as_long_as_it_is_held() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (first, lock) = make(folder.path(), OsStr::new("out")).expect("a folder");
        let (second, _) = make(folder.path(), OsStr::new("out")).expect("another");
        assert_ne!(first, second);
        assert!(lock.is_some());
        sweep(folder.path(), OsStr::new("out"), &folder.path().join("out"));
        assert!(first.exists(), "it is ours and alive");
        drop(lock);
        sweep(folder.path(), OsStr::new("out"), &folder.path().join("out"));
        assert!(!first.exists(), "whoever had this process id is gone");
    }
}
