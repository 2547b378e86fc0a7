//! How many jobs go to a queue, moment by moment: the relay puts several into a message only where they come by the thousand a second.
//!
//! A queue that was idle and gets many jobs at once is not meant: they may take long, and who has one in hand keeps it from others.

use std::time::Duration;

use tokio::time::Instant;

const MOMENTS_A_SECOND: usize = 4;
const MOMENT: Duration = Duration::from_millis(1000 / MOMENTS_A_SECOND as u64);

/// Of one queue.
#[derive(Debug)]
pub struct Throughput {
    /// When the present moment began.
    began: Instant,
    /// What went in it, in the one before, and in the one before that.
    went: [usize; 3],
}

impl Throughput {
    /// Nothing went so far.
    pub const fn since(now: Instant) -> Self {
        Self {
            began: now,
            went: [0; 3],
        }
    }

    /// So many jobs go now.
    pub fn add(&mut self, jobs: usize, now: Instant) {
        while now >= self.began + MOMENT && self.went != [0; 3] {
            self.went.rotate_right(1);
            self.went[0] = 0;
            self.began += MOMENT;
        }
        if self.went == [0; 3] {
            self.began = now;
        }
        self.went[0] += jobs;
    }

    /// Jobs a second that went in each of the last two whole moments, at least.
    pub fn sustained(&self) -> usize {
        self.went[1].min(self.went[2]) * MOMENTS_A_SECOND
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_counts_and_what_comes_at_once_does_not() {
        let start = Instant::now();
        let mut throughput = Throughput::since(start);
        throughput.add(5_000, start);
        throughput.add(5_000, start + MOMENT);
        assert_eq!(throughput.sustained(), 0, "a burst across two moments");
        for moment in 2..20 {
            throughput.add(300 + moment as usize, start + MOMENT * moment);
        }
        assert_eq!(throughput.sustained(), 4 * (300 + 17));
        throughput.add(300, start + MOMENT * 22);
        assert_eq!(throughput.sustained(), 0, "there was a pause");
        throughput.add(300, start + MOMENT * 4000);
        throughput.add(300, start + MOMENT * 4001);
        throughput.add(300, start + MOMENT * 4002);
        assert_eq!(throughput.sustained(), 4 * 300);
    }
}
