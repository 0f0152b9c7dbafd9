//! Ctrl-C and its kin: everything that waits asks here whether to go on.

use anyhow::{Result, bail};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// How often a wait looks up.
const LOOK: Duration = Duration::from_millis(25);

/// Set once by SIGINT, SIGTERM or SIGHUP. A signal does not end the lab by itself: what waits
/// returns an error, and everything is removed on the way out.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    asked: Arc<AtomicBool>,
}

impl Interrupt {
    /// Catches the signals from now on.
    pub fn listen() -> Result<Interrupt> {
        let interrupt = Interrupt::default();
        let asked = Arc::clone(&interrupt.asked);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        let [mut first, mut second, mut third] = {
            let _inside = runtime.enter();
            [
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
                signal(SignalKind::hangup())?,
            ]
        };
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                runtime.block_on(async {
                    loop {
                        tokio::select! {
                            _ = first.recv() => {}
                            _ = second.recv() => {}
                            _ = third.recv() => {}
                        }
                        if !asked.swap(true, Ordering::Relaxed) {
                            eprintln!("stopping; removing what was made");
                        }
                    }
                });
            })?;
        Ok(interrupt)
    }

    /// An error once a signal came.
    pub fn check(&self) -> Result<()> {
        if self.asked.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        Ok(())
    }

    /// Waits until `done` gives a value; an error after `limit` or a signal.
    pub fn wait<T>(
        &self,
        what: &str,
        limit: Duration,
        mut done: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        loop {
            self.check()?;
            if let Some(value) = done()? {
                return Ok(value);
            }
            if Instant::now() >= deadline {
                bail!("{what}: not after {} s", limit.as_secs());
            }
            sleep(LOOK);
        }
    }

    /// Sleeps, unless a signal comes.
    pub fn sleep(&self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.check()?;
            sleep(LOOK.min(end.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_with_the_value_the_limit_or_the_signal() {
        let interrupt = Interrupt::default();
        let mut left = 3;
        let found = interrupt.wait("countdown", Duration::from_secs(5), || {
            left -= 1;
            Ok((left == 0).then_some("zero"))
        });
        assert_eq!(found.unwrap(), "zero");

        let never = || -> Result<Option<()>> { Ok(None) };
        let late = interrupt.wait("rain", Duration::ZERO, never).unwrap_err();
        assert_eq!(late.to_string(), "rain: not after 0 s");

        interrupt.asked.store(true, Ordering::Relaxed);
        let stopped = interrupt.wait("rain", Duration::from_secs(5), never);
        assert_eq!(stopped.unwrap_err().to_string(), "interrupted");
    }
}
