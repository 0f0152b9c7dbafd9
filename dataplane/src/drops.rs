//! Why a packet was dropped. Every drop has exactly one reason, and every reason a counter.

use std::sync::atomic::{AtomicU64, Ordering};

use topnet_nat::Refusal;

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// The reason for which a packet was not forwarded.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum DropReason {
            $($(#[$doc])* $variant,)*
            /// Its addresses could not be translated.
            Nat(Refusal),
        }

        /// Where the counter of each reason of our own is; the translation's come after them.
        enum Place {
            $($variant,)*
            Nat,
        }

        /// The reasons of our own.
        const OWN: &[DropReason] = &[$(DropReason::$variant,)*];

        impl DropReason {
            /// The stable, snake_case name that status and metrics show.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(DropReason::$variant => $name,)*
                    DropReason::Nat(refusal) => refusal.name(),
                }
            }

            /// Where its counter is.
            const fn place(self) -> usize {
                match self {
                    $(DropReason::$variant => Place::$variant as usize,)*
                    DropReason::Nat(refusal) => Place::Nat as usize + refusal as usize,
                }
            }
        }
    };
}

drop_reasons! {
    /// No frame to write the result into.
    NoBuffer => "no_buffer",
    /// There is not enough time for all, and its session has had an equal part.
    FairShare => "fair_share",
    /// It belongs to another worker's session, and that one has more waiting than it can do.
    WorkerQueueFull => "worker_queue_full",
    /// An Ethernet frame that is not for this interface's address.
    NotOurMac => "not_our_mac",
    /// Outer headers too short, contradictory or with a wrong checksum.
    OuterMalformed => "outer_malformed",
    /// Neither WireGuard for the gateway nor return traffic for the inner subnet.
    NotSteered => "not_steered",
    /// Not a WireGuard message: wrong type or length.
    NotWireGuard => "not_wireguard",
    /// A message that came from inside a tunnel, or to an inner address: what is sealed for such a
    /// peer would come back to be sealed again, and be billed to whoever has the address.
    EndpointInside => "endpoint_inside",
    /// A handshake whose MAC does not fit our key, that does not decrypt, or that was seen before.
    HandshakeInvalid => "handshake_invalid",
    /// More handshakes than one source, or one peer, may begin.
    HandshakeRate => "handshake_rate",
    /// No room for another handshake to wait.
    HandshakeQueueFull => "handshake_queue_full",
    /// A handshake from a peer that has no session here.
    PeerUnknown => "peer_unknown",
    /// A message for a receiver index that no session has.
    SessionUnknown => "session_unknown",
    /// A data packet that does not decrypt, or whose keys expired.
    Undecryptable => "undecryptable",
    /// A data packet seen before, or too old to tell.
    Replayed => "replayed",
    /// Inner packet that is not IPv4, is too short, contradicts itself or has a wrong checksum.
    InnerMalformed => "inner_malformed",
    /// Inner source address that is not the peer's.
    SourceNotAllowed => "source_not_allowed",
    /// Inner destination that belongs to the gateway itself.
    ToGateway => "to_gateway",
    /// Inner destination that belongs to another client, whom nobody said it may reach.
    BetweenClients => "between_clients",
    /// A private network beyond the uplink, which nobody said may be reached.
    PrivateNetwork => "private_network",
    /// Faster than the session may go.
    RateExceeded => "rate_exceeded",
    /// For a client that has not sent to where it comes from.
    Unsolicited => "unsolicited",
    /// Inner packet larger than the tunnel's MTU.
    TooLarge => "too_large",
    /// Its time to live ran out here.
    TtlExceeded => "ttl_exceeded",
    /// Return traffic for an inner address that no session has.
    NoSession => "no_session",
    /// Return traffic for a peer without a completed handshake.
    NoTunnel => "no_tunnel",
    /// The kernel's tables have no route, or one that refuses.
    NoRoute => "no_route",
    /// The route leads out of an interface that is not one of ours.
    NotOurInterface => "not_our_interface",
    /// The next hop's hardware address is not known yet.
    NeighbourUnresolved => "neighbour_unresolved",
    /// The slot has no credit of this generation.
    CreditClosed => "credit_closed",
    /// The packet does not fit under the slot's limit.
    CreditExhausted => "credit_exhausted",
}

const REASONS: usize = OWN.len() + Refusal::ALL.len();

const ALL: [DropReason; REASONS] = {
    let mut all = [DropReason::NoBuffer; REASONS];
    let mut at = 0;
    while at < REASONS {
        all[at] = match at.checked_sub(OWN.len()) {
            None => OWN[at],
            Some(nth) => DropReason::Nat(Refusal::ALL[nth]),
        };
        at += 1;
    }
    all
};

impl DropReason {
    /// Every reason, in counter order.
    pub const ALL: &'static [DropReason] = &ALL;
}

impl From<Refusal> for DropReason {
    fn from(refusal: Refusal) -> Self {
        DropReason::Nat(refusal)
    }
}

/// Packets dropped, by reason. One thread writes, anybody reads.
#[derive(Debug)]
pub struct DropCounters {
    packets: [AtomicU64; REASONS],
}

impl Default for DropCounters {
    fn default() -> Self {
        Self {
            packets: [const { AtomicU64::new(0) }; REASONS],
        }
    }
}

impl DropCounters {
    /// Adds packets. Only the thread that owns these counters may call it.
    pub fn add(&self, reason: DropReason, packets: u64) {
        let counter = &self.packets[reason.place()];
        // One writer: a plain store, without the bus lock of an atomic addition.
        counter.store(counter.load(Ordering::Relaxed) + packets, Ordering::Relaxed);
    }

    /// Packets dropped for `reason` since start.
    #[must_use]
    pub fn packets(&self, reason: DropReason) -> u64 {
        self.packets[reason.place()].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_reason_has_its_own_name_and_counter() {
        let names: HashSet<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), DropReason::ALL.len());
        let refused = |refusal: &Refusal| names.contains(refusal.name());
        assert!(Refusal::ALL.iter().all(refused));
        let counters = DropCounters::default();
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason.place(), index);
            counters.add(*reason, index as u64 + 1);
        }
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(counters.packets(*reason), index as u64 + 1);
        }
    }
}
