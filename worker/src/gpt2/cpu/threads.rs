//! The threads that share a step: the pool's (crate `rayon`), kept awake from one operation to the next.
//!
//! A step hands work over some fifty times, and a thread that fell asleep in between takes as long to wake as a small
//! operation takes. Must never keep a thread awake without a step, nor wait for one.

use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rayon::Yield;

/// How often a thread looks for work in vain before it goes to sleep though the step goes on: some 200 µs.
///
/// More than the parts of a step take that one thread computes alone. Two steps at once whose threads wait for
/// each other's are held up so long at most.
const LOOKS: u32 = 3000;

/// Looks in vain before others may have the core: there may be more threads than cores.
const LOOKS_AT_ONCE: u32 = 64;

/// A step of fewer multiplications has ended before it is worth while that another thread wakes for it.
const ALONE: usize = 1 << 22;

/// Fewer values are copied or normalized before another thread has taken them.
const WORTH_A_TASK: usize = 8192;

/// Computes a step on a thread of the pool, while its other threads look for work without falling asleep. A very small one
/// is computed where it is called.
pub(super) fn share<T: Send>(multiplications: usize, step: impl FnOnce() -> T + Send) -> T {
    if multiplications < ALONE {
        return step();
    }
    // Work from outside the pool is handed over and waited for at each operation: the step goes inside as a whole.
    rayon::scope(|_| {
        if rayon::current_num_threads() == 1 {
            return step();
        }
        let running = Running::default();
        let (ended, here) = (running.ended.clone(), rayon::current_thread_index());
        rayon::spawn_broadcast(move |thread| {
            if Some(thread.index()) != here {
                stay_awake(&ended);
            }
        });
        step()
    })
}

/// The least length of a task of things, so many of which are worth a hand-over. Outside the pool nothing is handed over: each operation
/// would be waited for by itself.
pub(super) fn task(things: usize) -> usize {
    if rayon::current_thread_index().is_some() {
        things
    } else {
        usize::MAX
    }
}

/// The same for things that copy or normalize so many `values` each.
pub(super) fn task_of(values: usize) -> usize {
    task(WORTH_A_TASK / values + 1)
}

/// A step until it is dropped, be it by a panic.
#[derive(Default)]
struct Running {
    ended: Arc<AtomicBool>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// Does what work there is on this thread of a pool.
fn stay_awake(ended: &AtomicBool) {
    let mut in_vain = 0;
    while in_vain < LOOKS && !ended.load(Ordering::Relaxed) {
        if rayon::yield_now() == Some(Yield::Executed) {
            in_vain = 0;
            continue;
        }
        in_vain += 1;
        if in_vain.is_multiple_of(LOOKS_AT_ONCE) {
            thread::yield_now();
        } else {
            spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use rayon::ThreadPool;
    use rayon::prelude::*;

    use super::*;

    fn pool(threads: usize) -> ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    /// Many operations that threads share, one after another.
    fn step() -> u32 {
        let operation = |last: u32, _| (0..64_u32).into_par_iter().with_max_len(1).sum::<u32>() + last;
        (0..50).fold(0, operation)
    }

    #[test]
    fn a_step_is_computed_on_one_thread_of_the_pool() {
        for threads in [1, 2, 9] {
            let pool = pool(threads);
            let (inside, sum) = pool.install(|| share(ALONE, || (rayon::current_thread_index(), step())));
            assert!(inside.is_some());
            assert_eq!(sum, 50 * 2016);
        }
        // From outside any pool as well, unless it is a very small one.
        assert!(share(ALONE, rayon::current_thread_index).is_some());
        assert!(share(ALONE - 1, rayon::current_thread_index).is_none());
    }

    #[test]
    fn a_very_small_step_hands_nothing_over() {
        let here = thread::current().id();
        let by = |things: usize| {
            let threads = (0..64).into_par_iter().with_min_len(task(things));
            threads.map(|_| thread::current().id()).collect::<Vec<_>>()
        };
        assert!(share(ALONE - 1, || by(1)).iter().all(|one| *one == here));
        assert!(share(ALONE, || by(1)).iter().all(|one| *one != here));
        assert_eq!(pool(2).install(|| (task(7), task_of(2 * WORTH_A_TASK))), (7, 1));
    }

    #[test]
    fn a_thread_that_finds_no_work_does_not_wait_for_the_step() {
        pool(2).install(|| stay_awake(&AtomicBool::new(false)));
    }

    #[test]
    fn steps_that_share_their_threads_all_end() {
        let pool = pool(2);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        assert_eq!(pool.install(|| share(ALONE, step)), 50 * 2016);
                    }
                });
            }
        });
    }

    #[test]
    fn a_step_that_panics_has_ended() {
        let running = Running::default();
        let ended = running.ended.clone();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _running = running;
            panic!("a bad row");
        }));
        assert!(panicked.is_err() && ended.load(Ordering::Relaxed));
        let pool = pool(2);
        assert!(
            catch_unwind(AssertUnwindSafe(
                || pool.install(|| share(ALONE, || panic!("a bad row")))
            ))
            .is_err()
        );
        assert_eq!(pool.install(|| share(ALONE, step)), 50 * 2016);
    }
}
