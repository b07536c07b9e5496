//! The pool of threads in which everything runs.

use crate::error::UserError;

/// Bytes of stack of each thread, what a system gives a program's first one.
const STACK: usize = 8 << 20;

/// Runs `work` on a thread of a pool of `threads`, or of as many as there are processors.
///
/// A product of a decoding step takes some tens of microseconds, and begun from outside the pool it would wait about as long
/// again for a thread of the pool to wake up.
///
/// # Errors
/// When there cannot be so many threads.
pub fn in_pool<R: Send>(threads: Option<usize>, work: impl FnOnce() -> R + Send) -> Result<R, UserError> {
    let wrong = |expected: String| {
        let found = threads.unwrap_or_default().to_string();
        UserError::Flag { flag: "--threads", found, expected }
    };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads.unwrap_or_default())
        .stack_size(STACK)
        .build_global();
    match (pool, threads) {
        (Err(error), Some(_)) => Err(wrong(format!("fewer: {error}"))),
        // A program of the user's may have built the pool as it likes it.
        (Ok(()) | Err(_), _) => Ok(rayon::scope(|_| work())),
    }
}
