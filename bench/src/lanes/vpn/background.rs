//! A thread that works beside a measurement.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Result, anyhow};

/// Work that is done again and again until it is to end. It ends when this is dropped.
pub struct Background {
    name: &'static str,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Background {
    /// Starts a thread for `work`, which is to return often, and fails if it is over for good.
    pub fn start(
        name: &'static str,
        mut work: impl FnMut() -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let ended = Arc::<AtomicBool>::default();
        let told = Arc::clone(&ended);
        let thread = thread::Builder::new().name(name.to_owned());
        let thread = thread.spawn(move || {
            while !told.load(Ordering::Relaxed) {
                work()?;
            }
            Ok(())
        })?;
        Ok(Self {
            name,
            ended,
            thread: Some(thread),
        })
    }

    /// Ends it, and says if it had ended by itself.
    pub fn finish(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.ended.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        let name = self.name;
        thread.join().map_err(|_| anyhow!("the {name} panicked"))?
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Whoever wanted to know how it ended has asked.
        let _ = self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn it_works_until_it_is_to_end_and_tells_what_ended_it() {
        let turns = Arc::<AtomicU32>::default();
        let counted = Arc::clone(&turns);
        let work = Background::start("counter", move || {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        let work = work.unwrap();
        while turns.load(Ordering::Relaxed) < 3 {
            thread::yield_now();
        }
        work.finish().unwrap();
        let failing = Background::start("failing", || Err(anyhow!("over"))).unwrap();
        thread::sleep(std::time::Duration::from_millis(10));
        assert_eq!(failing.finish().unwrap_err().to_string(), "over");
    }
}
