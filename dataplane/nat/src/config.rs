//! What can be set, its defaults, and the bounds that standards and memory put to it.

use std::net::Ipv4Addr;

use crate::share;

/// The first port that is lent; those below belong to well-known services.
pub const PORT_MIN: u16 = 1024;
/// Ports of one address that are lent, for each protocol.
pub const PORTS_PER_ADDRESS: u32 = 65_536 - PORT_MIN as u32;
/// A block's ports come in whole words of its bitmaps.
pub const BLOCK_PORTS_STEP: u16 = 64;
/// Most addresses of a pool: each costs 25 kB for its blocks, and more are several workers' work.
pub const ADDRESSES_MAX: usize = 1024;
/// Most blocks that one subscriber may be allowed.
pub const BLOCKS_PER_SUBSCRIBER_MAX: u16 = 1024;
/// Most entries that a table may be allowed: places are numbered in 31 bits, with room for what
/// is no place.
pub const TABLE_ENTRIES_MAX: u32 = 1 << 28;
/// Most memory that room for a flow costs, its places in the indices included. 24 bytes of it are
/// taken at the start and the rest when it is first used.
pub const FLOW_BYTES_MAX: usize = 112;
/// Most memory that room for a mapping costs, 16 bytes of it at the start.
pub const MAPPING_BYTES_MAX: usize = 72;
/// Flows that there is room for by default, for each subscriber that there may be.
const FLOWS_PER_SUBSCRIBER: u32 = 64;
/// The least and the most room for flows by default, powers of two: 117 and 470 MB.
const FLOWS_MAX_DEFAULT: (u32, u32) = (1 << 20, 1 << 22);
/// The most that one subscriber may have by default: a busy household's file sharing.
const FLOWS_PER_SUBSCRIBER_MAX: u32 = 1 << 14;
/// The longest timeout. A snapshot writes what is left of one in 32 bits of milliseconds.
pub const TIMEOUT_MS_MAX: u64 = 7 * 24 * 3600 * 1000;

/// Which remotes may send to a mapping (RFC 4787, section 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filtering {
    /// Whoever knows the port: most transparent.
    EndpointIndependent,
    /// Addresses that the subscriber called from this mapping, from any port of theirs.
    #[default]
    AddressDependent,
    /// Addresses and ports that the subscriber called from this mapping.
    AddressAndPortDependent,
}

/// How long a flow lives without a packet, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// UDP. At least two minutes, five recommended (RFC 4787 REQ-5).
    pub udp_ms: u64,
    /// UDP to port 53, which may be shorter (RFC 4787 REQ-5 a).
    pub udp_dns_ms: u64,
    /// TCP connections that are not open yet, or closed by both ends. At least four minutes
    /// (RFC 5382 REQ-5).
    pub tcp_transitory_ms: u64,
    /// Open TCP connections. At least 2 hours and 4 minutes (RFC 5382 REQ-5).
    pub tcp_established_ms: u64,
    /// TCP connections that the subscriber reset, or that were reset before they were open. An
    /// open one that the remote resets is given the transitory timeout, since anybody could
    /// have sent that (RFC 7857, section 2.2).
    pub tcp_reset_ms: u64,
    /// ICMP queries. At least one minute (RFC 5508 REQ-2).
    pub icmp_ms: u64,
    /// First fragments. 2 to 15 seconds, since no stack waits longer (RFC 791, RFC 4787).
    pub fragment_ms: u64,
    /// How long a block is nobody else's after its last mapping: two minutes (RFC 6888 REQ-8).
    pub block_rest_ms: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            udp_ms: 300_000,
            udp_dns_ms: 30_000,
            tcp_transitory_ms: 240_000,
            tcp_established_ms: (2 * 60 + 4) * 60_000,
            tcp_reset_ms: 10_000,
            icmp_ms: 60_000,
            fragment_ms: 10_000,
            block_rest_ms: 120_000,
        }
    }
}

/// How many of everything. Nothing is allocated after the start, but what no entry has used yet
/// is not memory that the system has given.
///
/// Half of the mappings and flows are for all subscribers in equal parts
/// ([`sure_flows`](Self::sure_flows)); the rest is for whoever comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Subscribers with at least one block.
    pub subscribers_max: u32,
    /// Blocks of ports that one subscriber may hold.
    pub blocks_per_subscriber_max: u16,
    /// Mappings of all subscribers.
    pub mappings_max: u32,
    /// Mappings of one subscriber. Its blocks bound them too, at three to a port.
    pub mappings_per_subscriber_max: u32,
    /// Flows of all subscribers.
    pub flows_max: u32,
    /// Flows of one subscriber.
    pub flows_per_subscriber_max: u32,
    /// Flows of one mapping.
    pub flows_per_mapping_max: u32,
    /// First fragments that are remembered.
    pub fragments_max: u32,
    /// First fragments that are remembered for one subscriber.
    pub fragments_per_subscriber_max: u32,
}

impl Limits {
    /// The defaults for so many subscribers: room for 64 flows of each, with mappings for half of
    /// them.
    #[must_use]
    pub fn for_subscribers(subscribers_max: u32) -> Self {
        let (least, most) = FLOWS_MAX_DEFAULT;
        let flows_max = subscribers_max
            .saturating_mul(FLOWS_PER_SUBSCRIBER)
            .min(most)
            .next_power_of_two()
            .max(least);
        Self {
            subscribers_max,
            blocks_per_subscriber_max: 8,
            mappings_max: flows_max / 2,
            mappings_per_subscriber_max: FLOWS_PER_SUBSCRIBER_MAX / 2,
            flows_max,
            flows_per_subscriber_max: FLOWS_PER_SUBSCRIBER_MAX,
            flows_per_mapping_max: FLOWS_PER_SUBSCRIBER_MAX / 2,
            fragments_max: 4096,
            fragments_per_subscriber_max: 256,
        }
    }

    /// Flows that every subscriber may have, whatever the others have: an equal part of half of
    /// the table.
    #[must_use]
    pub const fn sure_flows(&self) -> u32 {
        share::sure(self.flows_max, self.subscribers_max)
    }

    /// Mappings that every subscriber may have, likewise.
    #[must_use]
    pub const fn sure_mappings(&self) -> u32 {
        share::sure(self.mappings_max, self.subscribers_max)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::for_subscribers(4096)
    }
}

/// All that a NAT starts from but its seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The public addresses. None may be the host's own: replies must come here.
    pub pool: Vec<Ipv4Addr>,
    /// Ports of a block, a multiple of [`BLOCK_PORTS_STEP`].
    pub block_ports: u16,
    /// Which remotes may send to a mapping.
    pub filtering: Filtering,
    /// True if inbound UDP and ICMP packets keep a flow alive too (RFC 4787 REQ-6 b). Only a
    /// flow that the subscriber opened: nobody else can keep a port occupied.
    pub inbound_refresh: bool,
    /// True if packets between subscribers by way of the pool are translated (RFC 4787 REQ-9).
    pub hairpinning: bool,
    /// How many of everything.
    pub limits: Limits,
    /// How long everything lives.
    pub timeouts: Timeouts,
    /// Which blocks it lends. Several NATs with the same pool must not have the same part.
    pub part: PoolPart,
}

/// A part of the pool's blocks: of every address those whose number leaves `number` when divided by
/// `of`. So whose a port is needs no table, and each part has its share of every address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolPart {
    /// From 0 on.
    pub number: u32,
    /// How many parts there are.
    pub of: u32,
}

impl PoolPart {
    /// All of it.
    pub const WHOLE: Self = Self { number: 0, of: 1 };

    pub(crate) const fn has(self, block_of_address: u32) -> bool {
        block_of_address % self.of == self.number
    }
}

impl Config {
    /// The defaults, with these addresses.
    #[must_use]
    pub fn new(pool: Vec<Ipv4Addr>) -> Self {
        Self {
            pool,
            block_ports: 512,
            filtering: Filtering::default(),
            inbound_refresh: true,
            hairpinning: false,
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            part: PoolPart::WHOLE,
        }
    }

    /// Blocks of one address.
    #[must_use]
    pub fn blocks_per_address(&self) -> u32 {
        PORTS_PER_ADDRESS / u32::from(self.block_ports)
    }

    /// The number of the part, of `of`, that lends `port` of any address. Ports that nobody lends
    /// are the first one's to refuse.
    #[must_use]
    pub fn part_of(&self, port: u16, of: u32) -> u32 {
        let block = u32::from(port.saturating_sub(PORT_MIN)) / u32::from(self.block_ports);
        block % of
    }

    /// The same with a part of the pool, for one of several NATs, and the part's share of the
    /// tables. Subscribers are twice its share, since they are never spread quite evenly.
    #[must_use]
    pub fn with_part(mut self, part: PoolPart) -> Self {
        if part.of > 1 {
            let limits = &mut self.limits;
            let share = |all: u32| all.div_ceil(part.of);
            limits.subscribers_max = limits
                .subscribers_max
                .min(2 * share(limits.subscribers_max));
            limits.mappings_max = share(limits.mappings_max);
            limits.flows_max = share(limits.flows_max);
            limits.fragments_max = share(limits.fragments_max);
            let fragments = &mut limits.fragments_per_subscriber_max;
            *fragments = share(*fragments);
        }
        self.part = part;
        self
    }

    /// The first of what cannot stand.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        self.problems().into_iter().next().map_or(Ok(()), Err)
    }

    /// Everything that cannot stand.
    #[must_use]
    pub fn problems(&self) -> Vec<ConfigError> {
        let ports = self.block_ports;
        let is_size = ports != 0
            && ports.is_multiple_of(BLOCK_PORTS_STEP)
            && u32::from(ports) <= PORTS_PER_ADDRESS;
        let block_ports = (!is_size).then_some(ConfigError::BlockPorts(ports));
        let parts = self.part.of;
        let is_part = self.part.number < parts && (!is_size || parts <= self.blocks_per_address());
        let part = (!is_part).then_some(ConfigError::Part(self.part));
        self.pool_problem()
            .into_iter()
            .chain(block_ports)
            .chain(part)
            .chain(self.limit_problems())
            .chain(self.timeout_problems())
            .collect()
    }

    fn pool_problem(&self) -> Option<ConfigError> {
        if self.pool.is_empty() || self.pool.len() > ADDRESSES_MAX {
            return Some(ConfigError::Addresses(self.pool.len()));
        }
        let mut sorted = self.pool.clone();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Some(ConfigError::AddressTwice(pair[0]));
        }
        let unusable = |address: &&Ipv4Addr| {
            address.octets()[0] == 0 || address.is_loopback() || address.octets()[0] >= 224
        };
        self.pool
            .iter()
            .find(unusable)
            .map(|address| ConfigError::Address(*address))
    }

    fn limit_problems(&self) -> impl Iterator<Item = ConfigError> {
        let limits = &self.limits;
        let blocks = u32::from(limits.blocks_per_subscriber_max);
        let blocks_max = u32::from(BLOCKS_PER_SUBSCRIBER_MAX);
        let own_mappings = limits.mappings_per_subscriber_max;
        let own_flows = limits.flows_per_subscriber_max;
        let own_fragments = limits.fragments_per_subscriber_max;
        [
            ("subscribers_max", limits.subscribers_max, TABLE_ENTRIES_MAX),
            ("blocks_per_subscriber_max", blocks, blocks_max),
            ("mappings_max", limits.mappings_max, TABLE_ENTRIES_MAX),
            ("mappings_per_subscriber_max", own_mappings, u32::MAX),
            ("flows_max", limits.flows_max, TABLE_ENTRIES_MAX),
            ("flows_per_subscriber_max", own_flows, u32::MAX),
            (
                "flows_per_mapping_max",
                limits.flows_per_mapping_max,
                u32::MAX,
            ),
            ("fragments_max", limits.fragments_max, TABLE_ENTRIES_MAX),
            ("fragments_per_subscriber_max", own_fragments, u32::MAX),
        ]
        .into_iter()
        .filter(|(_, value, most)| !(1..=*most).contains(value))
        .map(|(what, value, most)| ConfigError::Limit { what, value, most })
    }

    fn timeout_problems(&self) -> impl Iterator<Item = ConfigError> {
        let timeouts = &self.timeouts;
        let established_ms_min = Timeouts::default().tcp_established_ms;
        let transitory_ms = timeouts.tcp_transitory_ms;
        let established_ms = timeouts.tcp_established_ms;
        let long = TIMEOUT_MS_MAX;
        [
            ("udp_ms", timeouts.udp_ms, 120_000, long),
            ("udp_dns_ms", timeouts.udp_dns_ms, 1000, long),
            ("tcp_transitory_ms", transitory_ms, 240_000, long),
            (
                "tcp_established_ms",
                established_ms,
                established_ms_min,
                long,
            ),
            ("tcp_reset_ms", timeouts.tcp_reset_ms, 1000, long),
            ("icmp_ms", timeouts.icmp_ms, 60_000, long),
            ("fragment_ms", timeouts.fragment_ms, 2000, 15_000),
            ("block_rest_ms", timeouts.block_rest_ms, 0, long),
        ]
        .into_iter()
        .filter(|(_, value_ms, least_ms, most_ms)| !(least_ms..=most_ms).contains(&value_ms))
        .map(|(what, value_ms, least_ms, most_ms)| ConfigError::Timeout {
            what,
            value_ms,
            least_ms,
            most_ms,
        })
    }
}

/// The addresses of a prefix such as 192.0.2.0/28, the first and the last included: an address
/// that no interface has needs no network and no broadcast.
pub fn prefix_addresses(first: Ipv4Addr, bits: u8) -> Result<Vec<Ipv4Addr>, ConfigError> {
    let prefix = || ConfigError::Prefix { first, bits };
    let host_bits = 32_u32.checked_sub(u32::from(bits)).ok_or_else(prefix)?;
    let count = 1_u64 << host_bits;
    let first_number = u32::from(first);
    if count > ADDRESSES_MAX as u64 || u64::from(first_number) % count != 0 {
        return Err(prefix());
    }
    Ok((0..count as u32)
        .map(|nth| Ipv4Addr::from(first_number + nth))
        .collect())
}

/// A configuration that cannot stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` {}: {}", self.field(), self.what(), self.mend())]
pub enum ConfigError {
    /// No address, or too many.
    Addresses(usize),
    /// The same address again.
    AddressTwice(Ipv4Addr),
    /// An address that no packet comes back to.
    Address(Ipv4Addr),
    /// A prefix that is none, or too wide.
    Prefix {
        /// As given.
        first: Ipv4Addr,
        /// As given.
        bits: u8,
    },
    /// Not a usable size.
    BlockPorts(u16),
    /// No part, or more parts than an address has blocks.
    Part(PoolPart),
    /// A limit out of bounds.
    Limit {
        /// Which.
        what: &'static str,
        /// As given.
        value: u32,
        /// The most that can be.
        most: u32,
    },
    /// A timeout that breaks a standard.
    Timeout {
        /// Which.
        what: &'static str,
        /// As given.
        value_ms: u64,
        /// The least that the standard allows.
        least_ms: u64,
        /// The most that can be.
        most_ms: u64,
    },
}

impl ConfigError {
    /// The field that it is about, of [`Config`], [`Limits`] or [`Timeouts`].
    #[must_use]
    pub const fn field(&self) -> &'static str {
        match self {
            Self::Addresses(_) | Self::AddressTwice(_) | Self::Address(_) | Self::Prefix { .. } => {
                "pool"
            }
            Self::BlockPorts(_) => "block_ports",
            Self::Part(_) => "part",
            Self::Limit { what, .. } | Self::Timeout { what, .. } => what,
        }
    }

    /// What is wrong with it.
    #[must_use]
    pub fn what(&self) -> String {
        match self {
            Self::Addresses(count) => format!("has {count} addresses"),
            Self::AddressTwice(address) => format!("has {address} twice"),
            Self::Address(address) => format!("has {address}, which is no unicast address"),
            Self::Prefix { first, bits } => {
                format!(
                    "is {first}/{bits}, which is no prefix of at most {ADDRESSES_MAX} addresses"
                )
            }
            Self::BlockPorts(ports) => format!("is {ports}, which is no size of a block"),
            Self::Part(part) => format!(
                "is {} of {}, and an address has not a block for each",
                part.number, part.of
            ),
            Self::Limit { value, .. } => format!("is {value}, which is out of range"),
            Self::Timeout { value_ms, .. } => format!("is {value_ms}, which is out of range"),
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn mend(&self) -> String {
        match self {
            Self::Addresses(_) => format!("give it 1 to {ADDRESSES_MAX}"),
            Self::AddressTwice(_) => "name it once".to_owned(),
            Self::Address(_) => "take it out".to_owned(),
            Self::Prefix { .. } => {
                "begin at its first address, or choose a longer prefix".to_owned()
            }
            Self::BlockPorts(_) => {
                format!("choose a multiple of {BLOCK_PORTS_STEP} up to {PORTS_PER_ADDRESS}")
            }
            Self::Part(_) => "choose fewer parts, or smaller blocks".to_owned(),
            Self::Limit { most, .. } => format!("choose 1 to {most}"),
            Self::Timeout {
                least_ms, most_ms, ..
            } => format!("choose {least_ms} to {most_ms} milliseconds"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    #[test]
    fn what_cannot_stand_is_named() {
        let good = Config::new(vec![ADDRESS]);
        assert_eq!(good.check(), Ok(()));
        type Damage = (&'static str, fn(&mut Config));
        let cases: [Damage; 12] = [
            ("`part` is 2 of 2", |c| {
                c.part = PoolPart { number: 2, of: 2 }
            }),
            ("`part` is 0 of 127", |c| {
                c.part = PoolPart { number: 0, of: 127 }
            }),
            ("`pool` has 0 addresses", |c| c.pool.clear()),
            ("`pool` has 192.0.2.1 twice", |c| c.pool.push(ADDRESS)),
            ("`pool` has 127.0.0.1", |c| c.pool[0] = Ipv4Addr::LOCALHOST),
            ("`pool` has 224.0.0.1", |c| {
                c.pool[0] = [224, 0, 0, 1].into()
            }),
            ("`block_ports` is 100", |c| c.block_ports = 100),
            ("`block_ports` is 65472", |c| c.block_ports = 65_472),
            ("`flows_max` is 0", |c| c.limits.flows_max = 0),
            ("`blocks_per_subscriber_max` is 1025", |c| {
                c.limits.blocks_per_subscriber_max = 1025;
            }),
            ("`udp_ms` is 119999", |c| c.timeouts.udp_ms = 119_999),
            ("`fragment_ms` is 15001", |c| {
                c.timeouts.fragment_ms = 15_001;
            }),
        ];
        for (what, damage) in cases {
            let mut bad = good.clone();
            damage(&mut bad);
            let error = bad.check().unwrap_err().to_string();
            assert!(error.starts_with(what), "{error}");
        }
    }

    #[test]
    fn the_defaults_leave_room_for_everybody_and_can_stand() {
        for subscribers_max in [0, 1, 2, 255, 65_536, 1 << 20, u32::MAX] {
            let mut config = Config::new(vec![ADDRESS]);
            config.limits = Limits::for_subscribers(subscribers_max);
            let limits = &config.limits;
            let case = format!("{limits:?}");
            if (1..=1 << 20).contains(&subscribers_max) {
                assert_eq!(config.problems(), [], "{case}");
                assert!(
                    limits.sure_flows() >= 2 && limits.sure_mappings() >= 1,
                    "{case}"
                );
                let greedy = limits.flows_max / 2 / limits.flows_per_subscriber_max;
                assert!(greedy >= 32, "{case}");
            }
        }
        let limits = Limits::for_subscribers(65_536);
        assert_eq!((limits.flows_max, limits.mappings_max), (1 << 22, 1 << 21));
        assert_eq!((limits.sure_flows(), limits.sure_mappings()), (32, 16));
        assert_eq!(limits.flows_per_subscriber_max, 16_384);
    }

    #[test]
    fn parts_share_every_address_and_the_tables() {
        let whole = Config::new(vec![ADDRESS]);
        let parts = [0, 1, 2].map(|number| whole.clone().with_part(PoolPart { number, of: 3 }));
        for part in &parts {
            assert_eq!(part.problems(), []);
            assert_eq!(part.limits.flows_max, whole.limits.flows_max.div_ceil(3));
        }
        let mut ports = [0u32; 3];
        for port in 0..=u16::MAX {
            let of = whole.part_of(port, 3) as usize;
            ports[of] += 1;
            let same_block = u32::from(port.saturating_sub(PORT_MIN)) / 512;
            assert!(parts[of].part.has(same_block), "{port}");
        }
        // 127 blocks, and what is below the first.
        assert!(
            ports
                .iter()
                .all(|ports| (42 * 512..44 * 512 + 1024).contains(ports)),
            "{ports:?}"
        );
        assert_eq!(whole.clone().with_part(PoolPart::WHOLE), whole);
    }

    #[test]
    fn a_prefix_is_its_addresses() {
        let pool = prefix_addresses([192, 0, 2, 8].into(), 30).unwrap();
        let ends = [8, 9, 10, 11].map(|last| Ipv4Addr::new(192, 0, 2, last));
        assert_eq!(pool, ends);
        for (first, bits) in [([192, 0, 2, 9], 30), ([10, 0, 0, 0], 8), ([0, 0, 0, 0], 33)] {
            assert!(prefix_addresses(first.into(), bits).is_err(), "{bits}");
        }
    }
}
