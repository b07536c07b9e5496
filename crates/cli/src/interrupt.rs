//! Ctrl-C and SIGTERM: what is unfinished goes before the process does.
//!
//! The temporary file of a conversion has no name, and a run's snapshots are renamed into place when they are whole; only
//! folders that are being made would stay.

use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

static ENDING: AtomicBool = AtomicBool::new(false);

/// What shells add to the number of the signal that ended a program.
const OF_SIGNALS: i32 = 128;

/// From now on SIGINT and SIGTERM end the process as they did before, with exit code 130 or 143, and leave no unfinished folder.
///
/// SIGHUP is left as it is: `nohup` has it ignored.
pub fn watch() {
    // Where signals cannot be watched they end the process at once, and the next run removes what it leaves.
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM]) else { return };
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            ENDING.store(true, Ordering::SeqCst);
            handlers::remove_unfinished();
            let code = OF_SIGNALS + signal;
            crate::panics::leave(code as u8);
            std::process::exit(code);
        }
    });
}

/// Whether a signal is ending the process. Then this does not return: what fails meanwhile fails for that, and is not told.
pub fn wait_if_ending() {
    while ENDING.load(Ordering::SeqCst) {
        std::thread::park();
    }
}
