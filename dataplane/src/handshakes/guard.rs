//! Who must prove its address before a handshake costs us anything, and how often it may then.
//!
//! The order is that of the costs: the MAC that shows that the sender knows our key, which is one
//! hash; while there are too many handshakes, the MAC with the cookie that only an address's owner
//! was told (WireGuard paper, section 5.4.7); then what the address has left. Only after that a
//! Curve25519 operation is worth it.

use std::net::IpAddr;

use boringtun::noise::TunnResult;
use boringtun::noise::rate_limiter::RateLimiter;

use super::sources::Sources;
use crate::drops::DropReason;
use crate::session::Identity;

/// Bytes of a cookie reply.
pub const COOKIE_BYTES: usize = 64;
/// The time over which messages are counted.
const WINDOW_MS: u64 = 1_000;

/// A handshake message as it arrived.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// Where it came from.
    pub source: IpAddr,
    /// All of it.
    pub message: &'a [u8],
    /// True if so many wait behind it that there is no time to believe addresses.
    pub crowded: bool,
    /// Now, by any clock that only goes forward.
    pub now_ms: u64,
}

/// Why a message goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is dropped.
    Drop(DropReason),
    /// Its sender is to prove its address with this cookie, and to try again.
    Cookie([u8; COOKIE_BYTES]),
}

impl From<DropReason> for Refusal {
    fn from(reason: DropReason) -> Self {
        Self::Drop(reason)
    }
}

/// Guards one thread against handshake messages.
pub struct Guard {
    load: Load,
    sources: Sources,
}

impl Guard {
    /// A guard that believes addresses while there are no more than so many messages a second.
    #[must_use]
    pub fn new(unproven_per_second_max: u32) -> Self {
        Self {
            load: Load {
                high: unproven_per_second_max,
                window: 0,
                count: 0,
                count_before: 0,
            },
            sources: Sources::new(),
        }
    }

    /// Checks an initiation or a response. No secret of ours but cheap hashes is used for it.
    pub fn check(&mut self, identity: &Identity, arrival: &Arrival<'_>) -> Result<(), Refusal> {
        let mut cookie = [0; COOKIE_BYTES];
        let mut verify = |macs: &RateLimiter| match macs.verify_packet(
            Some(arrival.source),
            arrival.message,
            &mut cookie,
        ) {
            Ok(_) => Ok(()),
            Err(TunnResult::WriteToNetwork(_)) => Err(Refusal::Cookie(cookie)),
            Err(_) => Err(DropReason::HandshakeInvalid.into()),
        };
        // Who does not know our key does not make others prove their addresses.
        verify(&identity.first_mac)?;
        if !self.load.count_one(arrival.now_ms) && !arrival.crowded {
            return Ok(());
        }
        verify(&identity.both_macs)?;
        if self.sources.admit(arrival.source, arrival.now_ms) {
            Ok(())
        } else {
            Err(DropReason::HandshakeRate.into())
        }
    }
}

/// Whether there are too many messages. It is high until a whole second was quiet, so that a flood
/// does not have the first moments of each second for itself.
struct Load {
    high: u32,
    window: u64,
    count: u32,
    count_before: u32,
}

impl Load {
    /// Counts a message; true if it is one of too many.
    fn count_one(&mut self, now_ms: u64) -> bool {
        let window = now_ms / WINDOW_MS;
        if window != self.window {
            let follows = window == self.window + 1;
            self.count_before = if follows { self.count } else { 0 };
            self.count = 0;
            self.window = window;
        }
        self.count = self.count.saturating_add(1);
        self.count > self.high || self.count_before > self.high
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_is_high_until_a_second_was_quiet() {
        let mut load = Load {
            high: 10,
            window: 0,
            count: 0,
            count_before: 0,
        };
        let mut high_of =
            |now_ms, messages: usize| (0..messages).filter(|_| load.count_one(now_ms)).count();
        assert_eq!(high_of(0, 10), 0);
        assert_eq!(high_of(999, 5), 5);
        assert_eq!(high_of(1_000, 20), 20, "the second before was loud");
        assert_eq!(high_of(2_000, 10), 10);
        assert_eq!(high_of(3_000, 10), 0);
        assert_eq!(high_of(4_000, 11), 1);
        assert_eq!(high_of(6_000, 1), 0, "nothing came for a second");
    }
}
