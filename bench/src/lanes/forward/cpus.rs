//! Who runs where, and how long a CPU was busy.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::param::clock_ticks_per_second;
use rustix::thread::{CpuSet, sched_setaffinity};

/// Where the generator sends, with what the kernel does on its behalf up to the gateway's queue.
pub const GENERATOR_CPU: usize = 0;
/// Where the gateway forwards: our worker, or the kernel.
pub const GATEWAY_CPU: usize = 1;

/// Keeps the calling thread on a CPU.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| {
        format!("cannot run on CPU {cpu}: the lane forward needs CPUs 0 and 1 for itself")
    })
}

/// How long the gateway's CPU was not idle. Adding up its busy columns would miss interrupts that
/// wake it, and a thread's own time misses what the kernel does elsewhere; wall time less idle
/// time misses nothing.
pub struct Busy {
    began: Instant,
    idle_s: f64,
}

impl Busy {
    /// Starts to look.
    pub fn start() -> Result<Busy> {
        Ok(Busy {
            began: Instant::now(),
            idle_s: idle_s()?,
        })
    }

    /// Seconds that the CPU was not idle since.
    pub fn busy_s(&self) -> Result<f64> {
        let idle_s = idle_s()? - self.idle_s;
        Ok((self.began.elapsed().as_secs_f64() - idle_s).max(0.0))
    }
}

fn idle_s() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat").context("/proc/stat cannot be read")?;
    idle_ticks(&stat)
        .map(|ticks| ticks / clock_ticks_per_second() as f64)
        .with_context(|| format!("/proc/stat has no line for CPU {GATEWAY_CPU}"))
}

/// Idle time of the gateway's CPU: the fourth and fifth figure of its line.
fn idle_ticks(stat: &str) -> Option<f64> {
    let name = format!("cpu{GATEWAY_CPU} ");
    let figures = stat.lines().find_map(|line| line.strip_prefix(&name))?;
    let mut figures = figures.split_whitespace().skip(3);
    let mut next = || figures.next()?.parse::<f64>().ok();
    Some(next()? + next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_is_idle_and_waiting_for_disks() {
        let stat = "cpu  9 9 9 9 9\ncpu0 1 2 3 4 5 6\ncpu1 10 20 30 400 5 60 7 8 9 0\n";
        assert_eq!(idle_ticks(stat), Some(405.0));
        assert_eq!(idle_ticks("cpu0 1 2 3 4 5 6\n"), None);
    }
}
