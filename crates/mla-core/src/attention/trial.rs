//! Which of two ways is the faster, measured once for each kind of work on the device that does it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor};

use super::cost::Work;

/// Timed runs of each way; the fastest counts.
const RUNS: usize = 3;

/// What was found of a kind of work.
struct Found {
    device: Device,
    batch: usize,
    work: Work,
    /// Whether the kernel was the faster way.
    faster: bool,
}

/// All that was found, for the life of the program.
static FOUND: Mutex<Vec<Found>> = Mutex::new(Vec::new());

/// The kernel's result where the kernel is the faster way for `batch` sequences; `None` where it is not, or does not apply.
///
/// Contexts up to the same power of two count as one.
pub(super) fn if_faster(
    batch: usize,
    work: Work,
    device: &Device,
    kernel: impl Fn() -> Option<Tensor<3>>,
    tiles: impl Fn() -> Tensor<3>,
) -> Option<Tensor<3>> {
    let work = Work { t_kv: work.t_kv.next_power_of_two(), ..work };
    let found = || FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    let is_this = |one: &&Found| (&one.device, one.batch, one.work) == (device, batch, work);
    let known = found().iter().find(is_this).map(|one| one.faster);
    let faster = match known {
        Some(faster) => faster,
        None => {
            // The first run of each compiles it.
            kernel()?;
            tiles();
            let faster = fastest(device, &|| drop(kernel())) < fastest(device, &|| drop(tiles()));
            found().push(Found { device: device.clone(), batch, work, faster });
            faster
        }
    };
    if faster { kernel() } else { None }
}

/// The shortest of some runs. A device that fails to wait is never the faster.
fn fastest(device: &Device, run: &dyn Fn()) -> Duration {
    let timed = |_| {
        device.sync().ok()?;
        let start = Instant::now();
        run();
        device.sync().ok()?;
        Some(start.elapsed())
    };
    (0..RUNS).map(timed).map(|time| time.unwrap_or(Duration::MAX)).min().unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::thread::sleep;

    use super::*;

    #[test]
    fn the_faster_way_is_found_once_and_kept() {
        let device = Device::flex();
        // A layer that no other test has.
        let work = |t_kv| Work {
            n_heads: 1001,
            n_kv_heads: 1,
            d_head: 1,
            read_k: 1,
            read_v: 1,
            keys_rebuilt: false,
            t_q: 1,
            t_kv,
        };
        let result = |pause| {
            sleep(Duration::from_millis(pause));
            Tensor::<3>::zeros([1, 1, 1], &device)
        };
        let runs = Cell::new(0);
        let tiles = |pause| {
            runs.set(runs.get() + 1);
            result(pause)
        };
        assert!(if_faster(1, work(5), &device, || Some(result(0)), || tiles(20)).is_some());
        assert_eq!(runs.get(), 1 + RUNS);
        assert!(if_faster(1, work(8), &device, || Some(result(30)), || tiles(0)).is_some());
        assert_eq!(runs.get(), 1 + RUNS, "known");
        assert!(if_faster(1, work(9), &device, || Some(result(20)), || tiles(0)).is_none());
        assert!(if_faster(1, work(9), &device, || panic!("known to be slower"), || tiles(0)).is_none());
        assert!(if_faster(2, work(5), &device, || None, || panic!("of no use")).is_none());
    }
}
