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
    if_faster_by(|run| time_on(device, run), batch, work, device, kernel, tiles)
}

/// The same, with a run's time as `time` has it.
fn if_faster_by(
    time: impl Fn(&dyn Fn()) -> Option<Duration>,
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
            let faster = fastest(&time, &|| drop(kernel())) < fastest(&time, &|| drop(tiles()));
            found().push(Found { device: device.clone(), batch, work, faster });
            faster
        }
    };
    if faster { kernel() } else { None }
}

/// The shortest of some runs. A device that fails to wait is never the faster.
fn fastest(time: &dyn Fn(&dyn Fn()) -> Option<Duration>, run: &dyn Fn()) -> Duration {
    (0..RUNS).map(|_| time(run).unwrap_or(Duration::MAX)).min().unwrap_or(Duration::MAX)
}

/// How long a device takes for a run; `None` when it fails to wait for it.
fn time_on(device: &Device, run: &dyn Fn()) -> Option<Duration> {
    device.sync().ok()?;
    let start = Instant::now();
    run();
    device.sync().ok()?;
    Some(start.elapsed())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A layer that no other test has.
    fn work(n_heads: usize, t_kv: usize) -> Work {
        Work { n_heads, n_kv_heads: 1, d_head: 1, read_k: 1, read_v: 1, keys_rebuilt: false, t_q: 1, t_kv }
    }

    #[test]
    fn the_faster_way_is_found_once_and_kept() {
        let device = Device::flex();
        // A clock that only the two ways move.
        let now = Cell::new(Duration::ZERO);
        let takes = |ms| {
            now.set(now.get() + Duration::from_millis(ms));
            Tensor::<3>::zeros([1, 1, 1], &device)
        };
        let time = |run: &dyn Fn()| {
            let start = now.get();
            run();
            Some(now.get() - start)
        };
        let choose = |batch, t_kv, kernel: &dyn Fn() -> Option<Tensor<3>>, tiles: &dyn Fn() -> Tensor<3>| {
            if_faster_by(time, batch, work(1001, t_kv), &device, kernel, tiles)
        };
        let runs = Cell::new(0);
        let tiles = |ms| {
            runs.set(runs.get() + 1);
            takes(ms)
        };
        assert!(choose(1, 5, &|| Some(takes(1)), &|| tiles(2)).is_some());
        assert_eq!(runs.get(), 1 + RUNS);
        assert!(choose(1, 8, &|| Some(takes(3)), &|| tiles(0)).is_some());
        assert_eq!(runs.get(), 1 + RUNS, "known");
        assert!(choose(1, 9, &|| Some(takes(2)), &|| tiles(1)).is_none());
        assert!(choose(1, 9, &|| panic!("known to be slower"), &|| tiles(0)).is_none());
        assert!(choose(2, 5, &|| None, &|| panic!("of no use")).is_none());
    }

    #[test]
    fn one_slow_run_of_the_faster_way_does_not_count_against_it() {
        let device = Device::flex();
        let times = [9, 1, 9, 2, 2, 2].map(Duration::from_millis);
        let timed = Cell::new(0);
        let time = |run: &dyn Fn()| {
            run();
            timed.set(timed.get() + 1);
            times.get(timed.get() - 1).copied()
        };
        let one = || Tensor::<3>::zeros([1, 1, 1], &device);
        let found = if_faster_by(time, 1, work(1002, 1), &device, || Some(one()), one);
        assert!(found.is_some());
        assert_eq!(timed.get(), 2 * RUNS);
    }

    #[test]
    fn a_device_that_fails_to_wait_keeps_to_the_tiles() {
        let device = Device::flex();
        let one = || Tensor::<3>::zeros([1, 1, 1], &device);
        assert!(if_faster_by(|_| None, 1, work(1003, 1), &device, || Some(one()), one).is_none());
    }

    #[test]
    fn a_device_is_timed_over_the_run() {
        let ran = Cell::new(false);
        assert!(time_on(&Device::flex(), &|| ran.set(true)).is_some());
        assert!(ran.get());
    }
}
