//! Who runs on which CPU, and how long a CPU was busy.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::param::clock_ticks_per_second;
use rustix::thread::{CpuSet, sched_setaffinity};

/// Keeps the calling thread, and the threads and processes that it starts, on a CPU.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| {
        format!(
            "cannot run on CPU {cpu}: the lanes forward and vpn need CPUs 0 and 1 to themselves"
        )
    })
}

/// How long a CPU was not idle. Adding up its busy columns would miss interrupts that wake it, and
/// a thread's own time misses what the kernel does elsewhere; wall time less idle time misses
/// nothing.
pub struct Busy {
    cpu: usize,
    began: Instant,
    idle_s: f64,
}

impl Busy {
    /// Starts to look.
    pub fn start(cpu: usize) -> Result<Busy> {
        Ok(Busy {
            cpu,
            began: Instant::now(),
            idle_s: idle_s(cpu)?,
        })
    }

    /// Seconds that the CPU was not idle since.
    pub fn busy_s(&self) -> Result<f64> {
        let idle_s = idle_s(self.cpu)? - self.idle_s;
        Ok((self.began.elapsed().as_secs_f64() - idle_s).max(0.0))
    }
}

fn idle_s(cpu: usize) -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat").context("/proc/stat cannot be read")?;
    idle_ticks(&stat, cpu)
        .map(|ticks| ticks / clock_ticks_per_second() as f64)
        .with_context(|| format!("/proc/stat has no line for CPU {cpu}"))
}

/// Idle time of a CPU: the fourth and fifth figure of its line.
fn idle_ticks(stat: &str, cpu: usize) -> Option<f64> {
    let name = format!("cpu{cpu} ");
    let figures = stat.lines().find_map(|line| line.strip_prefix(&name))?;
    let mut figures = figures.split_whitespace().skip(3);
    let mut next = || figures.next()?.parse::<f64>().ok();
    Some(next()? + next()?)
}

/// CPU time of another process so far, all of its threads, in seconds.
pub fn process_cpu_s(pid: u32) -> Result<f64> {
    let tasks = format!("/proc/{pid}/task");
    let mut ns = 0;
    for task in fs::read_dir(&tasks).with_context(|| format!("cannot look into {tasks}"))? {
        // A thread may have ended since; what it took is then missing, which is little.
        let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        ns += running_ns(&text).unwrap_or_default();
    }
    Ok(ns as f64 / 1e9)
}

/// The first figure of `schedstat`; the others are the time that it waited, and how often it ran.
fn running_ns(schedstat: &str) -> Option<u64> {
    schedstat.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_is_idle_and_waiting_for_disks() {
        let stat = "cpu  9 9 9 9 9\ncpu0 1 2 3 4 5 6\ncpu1 10 20 30 400 5 60 7 8 9 0\n";
        assert_eq!(idle_ticks(stat, 1), Some(405.0));
        assert_eq!(idle_ticks(stat, 0), Some(9.0));
        assert_eq!(idle_ticks(stat, 2), None);
        assert_eq!(idle_ticks("cpu1 1 2 3 4\n", 1), None);
    }

    #[test]
    fn a_threads_running_time_is_the_first_figure() {
        for (text, expected) in [
            ("123456789 55 7\n", Some(123_456_789)),
            ("", None),
            ("x 1 2\n", None),
        ] {
            assert_eq!(running_ns(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_process_that_computes_takes_time() {
        let before = process_cpu_s(std::process::id()).unwrap();
        let began = Instant::now();
        while began.elapsed().as_millis() < 30 {
            std::hint::spin_loop();
        }
        assert!(process_cpu_s(std::process::id()).unwrap() > before);
    }
}
