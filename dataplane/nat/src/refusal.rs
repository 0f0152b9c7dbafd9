//! Why a packet was not translated. A refused packet is unchanged.

macro_rules! refusals {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// The reason for which a packet was refused. It was not changed by a byte.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Refusal {
            $($(#[$doc])* $variant,)*
        }

        impl Refusal {
            /// Every reason, in counter order.
            pub const ALL: &'static [Refusal] = &[$(Refusal::$variant,)*];

            /// The stable, snake_case name that status and metrics show.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Refusal::$variant => $name,)*
                }
            }
        }
    };
}

refusals! {
    /// Not one complete IPv4 packet, or its transport header is cut short, contradicts itself
    /// or has port zero.
    Malformed => "nat_malformed",
    /// Neither UDP, TCP nor ICMP: nothing to tell subscribers apart by.
    ProtocolUnsupported => "nat_protocol_unsupported",
    /// An ICMP message other than an echo request on its way out, its reply on the way in, or
    /// an error of type 3, 11 or 12.
    IcmpType => "nat_icmp_type",
    /// An ICMP error that is a fragment, whose checksum or whose embedded header's is wrong, or
    /// that embeds too little to tell what it is about.
    IcmpErrorInvalid => "nat_icmp_error_invalid",
    /// An ICMP error about no packet of a flow here.
    IcmpErrorUnmatched => "nat_icmp_error_unmatched",
    /// A TCP packet other than a SYN of a connection that is not known.
    TcpOutOfState => "nat_tcp_out_of_state",
    /// From a subscriber to an address of the pool, and hairpinning is off.
    Hairpin => "nat_hairpin",
    /// Inbound, to an address that is not of the pool.
    NotNatAddress => "nat_not_nat_address",
    /// Inbound and unsolicited: nobody holds the port.
    NoMapping => "nat_no_mapping",
    /// Inbound and unsolicited: somebody holds the port and never called this remote.
    Filtered => "nat_filtered",
    /// A fragment whose first has not been seen.
    FragmentUnknown => "nat_fragment_unknown",
    /// A first fragment that cannot be remembered: the table or the subscriber's share is full.
    FragmentsFull => "nat_fragments_full",
    /// The subscriber table is full.
    SubscribersFull => "nat_subscribers_full",
    /// All of the mapping table is taken but what others are sure of.
    MappingsFull => "nat_mappings_full",
    /// All of the flow table is taken but what others are sure of.
    FlowsFull => "nat_flows_full",
    /// The subscriber has as many mappings as it may have.
    SubscriberMappings => "nat_subscriber_mappings",
    /// The subscriber has as many flows as it may have.
    SubscriberFlows => "nat_subscriber_flows",
    /// The mapping has as many flows as it may have.
    MappingFlows => "nat_mapping_flows",
    /// The subscriber has as many blocks as it may have, and no port of the protocol in them.
    SubscriberPorts => "nat_subscriber_ports",
    /// No block is free: in the pool for a new subscriber, on its own address for a known one,
    /// to which half of an address's blocks are not lent.
    PoolExhausted => "nat_pool_exhausted",
    /// No block can be lent because the log records of others have not been taken.
    EventsFull => "nat_events_full",
}

impl Refusal {
    /// Whether the packet would have passed if there were more room, or less of its subscriber's.
    #[must_use]
    pub const fn is_shortage(self) -> bool {
        match self {
            Self::FragmentsFull
            | Self::SubscribersFull
            | Self::MappingsFull
            | Self::FlowsFull
            | Self::SubscriberMappings
            | Self::SubscriberFlows
            | Self::MappingFlows
            | Self::SubscriberPorts
            | Self::PoolExhausted
            | Self::EventsFull => true,
            Self::Malformed
            | Self::ProtocolUnsupported
            | Self::IcmpType
            | Self::IcmpErrorInvalid
            | Self::IcmpErrorUnmatched
            | Self::TcpOutOfState
            | Self::Hairpin
            | Self::NotNatAddress
            | Self::NoMapping
            | Self::Filtered
            | Self::FragmentUnknown => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_reason_has_its_own_name_and_place() {
        let names: HashSet<_> = Refusal::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), Refusal::ALL.len());
        for (index, reason) in Refusal::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }
}
