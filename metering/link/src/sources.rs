//! How many handshakes one source may make.
//!
//! A handshake costs the listener a key exchange and two signatures before it knows who is there,
//! so each source has an allowance of them that grows again with time (a token bucket). Whoever
//! turns out to be welcome has its handshake back: a source may be a NAT with thousands of payers
//! behind it. A source is only as good as its address, which anybody can write into a datagram:
//! the second half of an allowance is for addresses that have answered, and while many handshakes
//! are under way in all, every address must answer first.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Handshakes that a source may make at once.
pub(crate) const HANDSHAKES_PER_SOURCE_MAX: u32 = 256;

/// After this time a source has one more: 32 a second.
pub(crate) const HANDSHAKE_INTERVAL: Duration = Duration::from_nanos(31_250_000);

/// While so many handshakes are under way in all, an address must answer a retry packet
/// (RFC 9000, 8.1.2) before it gets one: one more round trip, and invented addresses cost no
/// cryptography but the packet's own.
pub(crate) const HANDSHAKES_UNVALIDATED_MAX: usize = 64;

/// Sources are looked through for those that owe nothing when there are so many, or twice as
/// many as were left the last time.
const SOURCES_MIN: usize = 1_024;

/// An IPv4 address, or the 64 bits of an IPv6 address that a site is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    V4([u8; 4]),
    V6([u8; 8]),
}

impl Source {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.octets()),
            IpAddr::V6(address) => {
                let [site @ .., _, _, _, _, _, _, _, _] = address.octets();
                Self::V6(site)
            }
        }
    }
}

/// What all sources have made of their allowances.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources(Arc<Mutex<Ledger>>);

#[derive(Debug, Default)]
struct Ledger {
    /// When a source's allowance will be whole again; those whose is are left out.
    whole_at: HashMap<Source, Instant>,
    /// As many sources as are worth another look.
    look_through_at: usize,
    under_way: usize,
}

/// What comes of an address that wants a handshake.
#[derive(Debug)]
pub(crate) enum Entry {
    /// It gets one.
    Enter(Handshake, Charge),
    /// It must answer a retry packet first.
    AnswerFirst,
    /// It has had too many.
    TooMany,
}

/// A handshake that is under way until this is dropped.
#[derive(Debug)]
pub(crate) struct Handshake(Sources);

/// What a handshake has cost its source.
#[derive(Debug)]
pub(crate) struct Charge {
    sources: Sources,
    source: Source,
}

impl Sources {
    /// What `address` gets at `now`. `validated` tells that it has answered a retry packet.
    pub(crate) fn enter(&self, address: IpAddr, validated: bool, now: Instant) -> Entry {
        let source = Source::of(address);
        let mut ledger = self.lock();
        if ledger.whole_at.len() >= ledger.look_through_at {
            ledger.whole_at.retain(|_, whole_at| *whole_at > now);
            ledger.look_through_at = SOURCES_MIN.max(2 * ledger.whole_at.len());
        }
        let whole_at = ledger
            .whole_at
            .get(&source)
            .copied()
            .unwrap_or(now)
            .max(now);
        let owed = whole_at + HANDSHAKE_INTERVAL - now;
        if owed > HANDSHAKE_INTERVAL * HANDSHAKES_PER_SOURCE_MAX {
            return Entry::TooMany;
        }
        let is_busy = ledger.under_way >= HANDSHAKES_UNVALIDATED_MAX
            || owed > HANDSHAKE_INTERVAL * (HANDSHAKES_PER_SOURCE_MAX / 2);
        if is_busy && !validated {
            return Entry::AnswerFirst;
        }
        ledger
            .whole_at
            .insert(source, whole_at + HANDSHAKE_INTERVAL);
        ledger.under_way += 1;
        drop(ledger);
        let sources = self.clone();
        Entry::Enter(Handshake(self.clone()), Charge { sources, source })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.0.lock().under_way -= 1;
    }
}

impl Charge {
    /// Gives it back.
    pub(crate) fn refund(self) {
        let mut ledger = self.sources.lock();
        if let Some(whole_at) = ledger.whole_at.get_mut(&self.source)
            && let Some(earlier) = whole_at.checked_sub(HANDSHAKE_INTERVAL)
        {
            *whole_at = earlier;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        sources: Sources,
        now: Instant,
    }

    impl World {
        fn new() -> Self {
            Self {
                sources: Sources::default(),
                now: Instant::now(),
            }
        }

        fn ask(&self, address: &str, validated: bool) -> Entry {
            let address = address.parse().unwrap();
            self.sources.enter(address, validated, self.now)
        }

        /// The charge of a handshake that is over at once.
        fn enter(&self, address: &str) -> Option<Charge> {
            match self.ask(address, true) {
                Entry::Enter(_, charge) => Some(charge),
                Entry::AnswerFirst | Entry::TooMany => None,
            }
        }
    }

    #[test]
    fn a_source_has_its_allowance_and_others_theirs_and_it_grows_again() {
        let mut world = World::new();
        for _ in 0..HANDSHAKES_PER_SOURCE_MAX {
            assert!(world.enter("192.0.2.1").is_some());
        }
        assert!(matches!(world.ask("192.0.2.1", true), Entry::TooMany));
        // The same address, as a socket for both families shows it.
        assert!(world.enter("::ffff:192.0.2.1").is_none());
        assert!(world.enter("192.0.2.2").is_some());
        world.now += HANDSHAKE_INTERVAL;
        assert!(world.enter("192.0.2.1").is_some());
        assert!(world.enter("192.0.2.1").is_none());
        world.now += HANDSHAKE_INTERVAL * HANDSHAKES_PER_SOURCE_MAX * 2;
        for _ in 0..HANDSHAKES_PER_SOURCE_MAX {
            assert!(world.enter("192.0.2.1").is_some(), "no more than whole");
        }
        assert!(world.enter("192.0.2.1").is_none());

        // A site's addresses are one source.
        for number in 0..HANDSHAKES_PER_SOURCE_MAX {
            assert!(world.enter(&format!("2001:db8::{number:x}")).is_some());
        }
        assert!(world.enter("2001:db8::ffff:1").is_none());
        assert!(world.enter("2001:db8:0:1::1").is_some());
    }

    #[test]
    fn who_is_welcome_costs_its_source_nothing() {
        let world = World::new();
        for _ in 0..10 * HANDSHAKES_PER_SOURCE_MAX {
            world.enter("192.0.2.1").unwrap().refund();
        }
        for _ in 0..HANDSHAKES_PER_SOURCE_MAX {
            assert!(world.enter("192.0.2.1").is_some(), "nor is it given more");
        }
        assert!(world.enter("192.0.2.1").is_none());
    }

    #[test]
    fn an_invented_address_takes_no_more_than_half_of_what_its_owner_has() {
        let world = World::new();
        let mut taken = 0;
        while let Entry::Enter(..) = world.ask("192.0.2.1", false) {
            taken += 1;
        }
        assert_eq!(taken, HANDSHAKES_PER_SOURCE_MAX / 2);
        assert!(matches!(world.ask("192.0.2.1", false), Entry::AnswerFirst));
        assert!(world.enter("192.0.2.1").is_some());
    }

    #[test]
    fn while_many_are_under_way_everybody_answers_first() {
        let world = World::new();
        let mut under_way: Vec<Entry> = (0..HANDSHAKES_UNVALIDATED_MAX)
            .map(|number| world.ask(&format!("192.0.2.{number}"), false))
            .collect();
        assert!(
            under_way
                .iter()
                .all(|entry| matches!(entry, Entry::Enter(..)))
        );
        let other = "198.51.100.1";
        assert!(matches!(world.ask(other, false), Entry::AnswerFirst));
        assert!(matches!(world.ask(other, true), Entry::Enter(..)));
        under_way.pop();
        assert!(matches!(world.ask(other, false), Entry::Enter(..)));
    }

    #[test]
    fn sources_that_owe_nothing_are_forgotten() {
        let mut world = World::new();
        for number in 0..4 * SOURCES_MIN {
            let [_, .., high, low] = number.to_be_bytes();
            assert!(world.enter(&format!("10.0.{high}.{low}")).is_some());
            world.now += HANDSHAKE_INTERVAL;
        }
        assert!(world.sources.lock().whole_at.len() <= SOURCES_MIN);
    }
}
