//! What WireGuard's own tools see: `wg`, `wg-quick` and what is built on them.

pub mod gateway;
pub mod socket;
pub mod standalone;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use topnet_uapi::Traffic;

use crate::session::SessionCounters;

/// When a worker started, by the clock on the wall: its counters tell handshakes from then on.
#[derive(Clone, Copy, Debug)]
struct Since(Option<Duration>);

impl Since {
    /// Looked up once, so that a handshake does not seem to move when the clock is read again.
    fn new(started: Instant) -> Self {
        let at = SystemTime::now().checked_sub(started.elapsed());
        Self(at.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok()))
    }

    /// What a peer's counters say to the tools.
    fn traffic(self, counters: &SessionCounters) -> Traffic {
        let handshake = counters.handshake_ms().map(Duration::from_millis);
        Traffic {
            last_handshake: self.0.zip(handshake).map(|(start, after)| start + after),
            tx_bytes: counters.down_bytes.load(Ordering::Relaxed),
            rx_bytes: counters.up_bytes.load(Ordering::Relaxed),
        }
    }
}
