//! Why a packet was dropped. Every drop has exactly one reason, and every reason a counter.

use std::sync::atomic::{AtomicU64, Ordering};

use topnet_nat::Refusal;

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// The reason for which a packet was not forwarded.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum DropReason {
            $($(#[$doc])* $variant,)*
        }

        impl DropReason {
            /// Every reason, in counter order.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)*];

            /// The stable, snake_case name that status and metrics show.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(DropReason::$variant => $name,)*
                }
            }
        }
    };
}

drop_reasons! {
    /// No frame to write the result into.
    NoBuffer => "no_buffer",
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
    /// Inner destination that belongs to another client.
    BetweenClients => "between_clients",
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
    /// Too short or contradictory for its ports to be translated.
    NatMalformed => "nat_malformed",
    /// Neither UDP, TCP nor ICMP: nothing to tell clients apart by.
    NatProtocolUnsupported => "nat_protocol_unsupported",
    /// An ICMP message that is not translated.
    NatIcmpType => "nat_icmp_type",
    /// An ICMP error that does not say what it is about.
    NatIcmpErrorInvalid => "nat_icmp_error_invalid",
    /// An ICMP error about nothing that a client sent.
    NatIcmpErrorUnmatched => "nat_icmp_error_unmatched",
    /// TCP of a connection that is not known and does not begin.
    NatTcpOutOfState => "nat_tcp_out_of_state",
    /// From a client to a public address of the pool.
    NatHairpin => "nat_hairpin",
    /// For an address that is not of the pool.
    NatNotNatAddress => "nat_not_nat_address",
    /// Unsolicited: no client has the port.
    NatNoMapping => "nat_no_mapping",
    /// Unsolicited: the client that has the port never called the sender.
    NatFiltered => "nat_filtered",
    /// A fragment whose first was not seen.
    NatFragmentUnknown => "nat_fragment_unknown",
    /// No room to remember a first fragment.
    NatFragmentsFull => "nat_fragments_full",
    /// No room for another client with ports.
    NatSubscribersFull => "nat_subscribers_full",
    /// No room for another port that is in use.
    NatMappingsFull => "nat_mappings_full",
    /// No room for another flow.
    NatFlowsFull => "nat_flows_full",
    /// The client has as many ports in use as it may have.
    NatSubscriberMappings => "nat_subscriber_mappings",
    /// The client has as many flows as it may have.
    NatSubscriberFlows => "nat_subscriber_flows",
    /// The port has as many flows as it may have.
    NatMappingFlows => "nat_mapping_flows",
    /// The client has as many blocks of ports as it may have, and none is free in them.
    NatSubscriberPorts => "nat_subscriber_ports",
    /// No block of ports is free.
    NatPoolExhausted => "nat_pool_exhausted",
    /// The log of blocks has not been written for too long.
    NatEventsFull => "nat_events_full",
}

impl From<Refusal> for DropReason {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Malformed => DropReason::NatMalformed,
            Refusal::ProtocolUnsupported => DropReason::NatProtocolUnsupported,
            Refusal::IcmpType => DropReason::NatIcmpType,
            Refusal::IcmpErrorInvalid => DropReason::NatIcmpErrorInvalid,
            Refusal::IcmpErrorUnmatched => DropReason::NatIcmpErrorUnmatched,
            Refusal::TcpOutOfState => DropReason::NatTcpOutOfState,
            Refusal::Hairpin => DropReason::NatHairpin,
            Refusal::NotNatAddress => DropReason::NatNotNatAddress,
            Refusal::NoMapping => DropReason::NatNoMapping,
            Refusal::Filtered => DropReason::NatFiltered,
            Refusal::FragmentUnknown => DropReason::NatFragmentUnknown,
            Refusal::FragmentsFull => DropReason::NatFragmentsFull,
            Refusal::SubscribersFull => DropReason::NatSubscribersFull,
            Refusal::MappingsFull => DropReason::NatMappingsFull,
            Refusal::FlowsFull => DropReason::NatFlowsFull,
            Refusal::SubscriberMappings => DropReason::NatSubscriberMappings,
            Refusal::SubscriberFlows => DropReason::NatSubscriberFlows,
            Refusal::MappingFlows => DropReason::NatMappingFlows,
            Refusal::SubscriberPorts => DropReason::NatSubscriberPorts,
            Refusal::PoolExhausted => DropReason::NatPoolExhausted,
            Refusal::EventsFull => DropReason::NatEventsFull,
        }
    }
}

/// Packets dropped, by reason. One thread writes, anybody reads.
#[derive(Debug)]
pub struct DropCounters {
    packets: Box<[AtomicU64]>,
}

impl Default for DropCounters {
    fn default() -> Self {
        Self {
            packets: DropReason::ALL.iter().map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

impl DropCounters {
    /// Adds packets. Only the thread that owns these counters may call it.
    pub fn add(&self, reason: DropReason, packets: u64) {
        let counter = &self.packets[reason as usize];
        // One writer: a plain store, without the bus lock of an atomic addition.
        counter.store(counter.load(Ordering::Relaxed) + packets, Ordering::Relaxed);
    }

    /// Packets dropped for `reason` since start.
    #[must_use]
    pub fn packets(&self, reason: DropReason) -> u64 {
        self.packets[reason as usize].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn translation_s_reasons_keep_their_names() {
        for refusal in Refusal::ALL {
            assert_eq!(DropReason::from(*refusal).name(), refusal.name());
        }
    }

    #[test]
    fn every_reason_has_its_own_name_and_counter() {
        let names: HashSet<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), DropReason::ALL.len());
        let counters = DropCounters::default();
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            counters.add(*reason, index as u64 + 1);
        }
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(counters.packets(*reason), index as u64 + 1);
        }
    }
}
