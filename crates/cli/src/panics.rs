//! The one panic that is the user's to mend: a device out of memory.
//!
//! A backend cannot return an error from an operation on tensors. Where its device has no memory left it panics, on its own thread
//! or where the result is read, and what follows from that panics as well.

use std::panic::{set_hook, take_hook};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::UserError;

/// How cubecl, wgpu and CUDA say so.
const WORDS: [&str; 6] = [
    "out of device memory",
    "can't allocate buffer of size",
    "OutOfMemory",
    "BufferTooBig",
    "OUT_OF_MEMORY",
    "Not enough memory left",
];

static LACKED: AtomicBool = AtomicBool::new(false);

/// From now on, a panic for want of device memory, and what follows from it, is not printed but remembered.
pub fn watch() {
    let usual = take_hook();
    set_hook(Box::new(move |panic| {
        if panic.payload_as_str().is_some_and(lacks_memory) {
            LACKED.store(true, Ordering::Relaxed);
        }
        if !LACKED.load(Ordering::Relaxed) {
            usual(panic);
        }
    }));
}

/// What the panics so far mean to the user; `None` if they are bugs of ours.
pub fn meaning() -> Option<UserError> {
    LACKED.load(Ordering::Relaxed).then_some(UserError::DeviceMemory)
}

/// Ends the process with `code` at once, the device's threads first.
///
/// After a failure they may still be giving back what they hold. To return from `main` would unload the driver under them,
/// which was seen to end in a crash (rarely, on Mesa's software Vulkan); a process that is replaced by another has no threads
/// left. Elsewhere than on Unix, and where there is no shell, nothing happens.
pub fn leave(code: u8) {
    #[cfg(unix)]
    {
        use std::os::unix::process::CommandExt;

        // It returns only when it has failed.
        drop(std::process::Command::new("/bin/sh").args(["-c", &format!("exit {code}")]).exec());
    }
}

fn lacks_memory(message: &str) -> bool {
    WORDS.iter().any(|words| message.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn want_of_device_memory_is_told_from_bugs() {
        for message in [
            "An IO error happened: out of device memory allocating 17179869184 bytes",
            "can't allocate buffer of size: 8589934592",
            "CUDA_ERROR_OUT_OF_MEMORY: out of memory",
        ] {
            assert!(lacks_memory(message), "{message}");
        }
        assert!(!lacks_memory("index out of bounds: the len is 3 but the index is 3"));
    }
}
