//! A session: one WireGuard peer, its tunnel and the slot that it counts into.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use boringtun::noise::Tunn;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::x25519::{PublicKey, StaticSecret};
use crossbeam::atomic::AtomicCell;
use topnet_account::ChannelId;
use topnet_config::Rates;
use topnet_uapi::IpNetwork;
use topnet_unit::Slot;

use crate::fairness::Share;
use crate::icmp::Budget;
use crate::rate::RateLimit;
use crate::solicited::Solicited;

/// Receiver indices of a session share their upper 24 bits (boringtun keeps eight key pairs).
pub const INDEX_BITS: u32 = 24;
/// Those of them that tell a session's place; the others tell its worker.
const PLACE_BITS: u32 = 20;
/// Workers that an index can name.
pub const WORKERS_MAX: u32 = 1 << (INDEX_BITS - PLACE_BITS);
// What the configuration may say can be named, and each has a ring to hand over.
const _: () = assert!(topnet_config::WORKERS_MAX == WORKERS_MAX);
const _: () = assert!(WORKERS_MAX <= topnet_unit::WORKERS_MAX);
/// Sessions of one worker.
pub const PLACES_MAX: u32 = 1 << PLACE_BITS;

/// One of the workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerNumber(pub u32);

/// A session's worker and its place in that worker's list: the upper bits of its receiver indices,
/// so that whoever receives a message sees whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionIndex(pub u32);

impl SessionIndex {
    /// The session at this place of this worker's list.
    #[must_use]
    pub const fn new(worker: WorkerNumber, place: u32) -> Self {
        Self(worker.0 << PLACE_BITS | place)
    }

    /// The session that a message's receiver index names.
    #[must_use]
    pub const fn of_receiver(receiver: u32) -> Self {
        Self(receiver >> (32 - INDEX_BITS))
    }

    /// Whose session it is.
    #[must_use]
    pub const fn worker(self) -> WorkerNumber {
        WorkerNumber(self.0 >> PLACE_BITS)
    }

    /// Its place in that worker's list.
    #[must_use]
    pub const fn place(self) -> u32 {
        self.0 & (PLACES_MAX - 1)
    }
}

/// What others may read of a session while the worker has it.
#[derive(Debug, Default)]
pub struct SessionCounters {
    /// Billable bytes from the peer.
    pub up_bytes: AtomicU64,
    /// Billable bytes to the peer.
    pub down_bytes: AtomicU64,
    /// Bytes that passed for nothing when the credit was used up, both ways.
    pub given_bytes: AtomicU64,
    /// Written when the peer roams, which is seldom: what it costs then does not matter.
    endpoint: AtomicCell<Option<SocketAddr>>,
    /// Milliseconds from the worker's start to the last completed handshake, plus one; 0: none.
    handshake_ms: AtomicU64,
}

impl SessionCounters {
    /// Where the peer's packets came from last.
    #[must_use]
    pub fn endpoint(&self) -> Option<SocketAddr> {
        self.endpoint.load()
    }

    /// Milliseconds from the worker's start to the last completed handshake.
    #[must_use]
    pub fn handshake_ms(&self) -> Option<u64> {
        self.handshake_ms.load(Ordering::Relaxed).checked_sub(1)
    }

    pub(crate) fn store_endpoint(&self, endpoint: SocketAddr) {
        self.endpoint.store(Some(endpoint));
    }

    pub(crate) fn store_handshake(&self, since_start_ms: u64) {
        self.handshake_ms
            .store(since_start_ms + 1, Ordering::Relaxed);
    }

    /// Adds billable bytes. Only the worker that has the session may call it.
    pub(crate) fn add(counter: &AtomicU64, bytes: usize) {
        // One writer: a plain store, without the bus lock of an atomic addition.
        counter.store(
            counter.load(Ordering::Relaxed) + bytes as u64,
            Ordering::Relaxed,
        );
    }
}

/// Both ends of the way to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// Our address, as the peer knows it.
    pub local: IpAddr,
}

/// Where our address is left to the kernel.
#[must_use]
pub const fn unspecified(remote: SocketAddr) -> IpAddr {
    match remote {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

/// What a session is made from.
#[derive(Clone, Debug)]
pub struct SessionPlan {
    /// Its place.
    pub index: SessionIndex,
    /// The peer's public key.
    pub public_key: [u8; 32],
    /// Who pays; `None` for the operator's own peers.
    pub payer: Option<Payer>,
    /// What the peer may send from, and what is sent to it.
    pub addresses: Addresses,
    /// What both ends know besides their keys.
    pub preshared_key: Option<[u8; 32]>,
    /// Seconds between keepalives; 0 is off.
    pub persistent_keepalive_s: u16,
    /// Where the peer is expected until it is heard.
    pub endpoint: Option<SocketAddr>,
}

impl SessionPlan {
    /// The plan of a client that pays.
    #[must_use]
    pub fn of_client(
        index: SessionIndex,
        public_key: [u8; 32],
        payer: Payer,
        inner_address: Ipv4Addr,
    ) -> Self {
        Self {
            index,
            public_key,
            payer: Some(payer),
            addresses: Addresses::Client(inner_address),
            preshared_key: None,
            persistent_keepalive_s: 0,
            endpoint: None,
        }
    }

    /// Where its packets count, if they do.
    #[must_use]
    pub fn slot(&self) -> Option<Slot> {
        self.payer.map(|payer| payer.slot)
    }
}

/// Who pays for a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payer {
    /// The channel.
    pub channel: ChannelId,
    /// Where its packets count.
    pub slot: Slot,
}

/// Inner addresses of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// One IPv4 address of the inner network, and with it the IPv6 address of the same host
    /// number.
    Client(Ipv4Addr),
    /// Networks, of either version. They may change while the session stands.
    Networks(Vec<IpNetwork>),
}

impl Addresses {
    /// All of them as networks.
    #[must_use]
    pub fn networks(&self) -> Vec<IpNetwork> {
        match self {
            Self::Client(address) => vec![IpNetwork::host((*address).into())],
            Self::Networks(networks) => networks.clone(),
        }
    }
}

/// Limits of one session; no limit where there is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionRates {
    /// From the client.
    pub up: Option<RateLimit>,
    /// To the client.
    pub down: Option<RateLimit>,
    /// Both ways when the credit is used up; without it nothing passes then.
    pub unpaid: Option<RateLimit>,
}

impl SessionRates {
    /// As configured.
    #[must_use]
    pub fn of(rates: &Rates) -> Self {
        Self {
            up: rates.up_bits_per_s.map(RateLimit::new),
            down: rates.down_bits_per_s.map(RateLimit::new),
            unpaid: rates.unpaid_bits_per_s.map(RateLimit::new),
        }
    }

    /// Takes other limits. What was used of the old ones is used of the new ones too: nobody gets a
    /// burst by a change.
    pub fn change(&mut self, new: &Self) {
        let ways = [
            (&mut self.up, new.up),
            (&mut self.down, new.down),
            (&mut self.unpaid, new.unpaid),
        ];
        for (limit, new) in ways {
            *limit = new.map(|new| limit.map_or(new, |old| old.at_rate_of(&new)));
        }
    }
}

/// What is different about a peer's networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkChange {
    /// It has these no more.
    pub removed: Vec<IpNetwork>,
    /// It has these now. Whoever had one has lost it before.
    pub added: Vec<IpNetwork>,
}

impl NetworkChange {
    /// Changes a peer's list of networks.
    pub fn apply(&self, networks: &mut Vec<IpNetwork>) {
        let removed: HashSet<&IpNetwork> = self.removed.iter().collect();
        networks.retain(|network| !removed.contains(network));
        networks.extend(&self.added);
    }
}

/// A session as the worker has it.
pub struct Session {
    /// What it was made from.
    pub plan: SessionPlan,
    /// The protocol's state.
    pub tunnel: Tunn,
    /// True while the tunnel has keys to send with. boringtun keeps packets of its own accord
    /// while it has none; we never give it one then, so its queue stays empty.
    pub established: bool,
    /// Where authenticated packets came from last.
    pub endpoint: Option<Endpoint>,
    /// True if the peer is to be greeted: it was here before and may still use keys that are
    /// gone, and would notice only after 15 seconds.
    pub resume: bool,
    /// For others to read.
    pub counters: Arc<SessionCounters>,
    /// When something was sent to the peer last, by the monotonic clock.
    pub sent_ms: u64,
    /// How fast it may go.
    pub rates: SessionRates,
    /// What it has had of the worker's time.
    pub share: Share,
    /// Whom a client has sent to over IPv6; `None` where nobody is kept from it.
    pub solicited: Option<Box<Solicited>>,
    /// How often it is said that its packets go no further.
    pub answers: Budget,
}

/// The gateway's WireGuard identity.
pub struct Identity {
    /// Never leaves the process.
    pub private: StaticSecret,
    /// Its public half.
    pub public: PublicKey,
    /// Looks at a handshake message's first MAC only: its sender knows our key.
    pub first_mac: Arc<RateLimiter>,
    /// Looks at both: its sender has the cookie of its address too, or is told it.
    pub both_macs: RateLimiter,
}

/// boringtun counts messages, and looks at the second MAC when there were too many. Who counts
/// here is [`crate::handshakes::guard`]; to boringtun there are never too many, or always.
const NEVER: u64 = u64::MAX;
const ALWAYS: u64 = 0;

impl Identity {
    /// An identity with this private key.
    #[must_use]
    pub fn new(private: [u8; 32]) -> Self {
        let private = StaticSecret::from(private);
        let public = PublicKey::from(&private);
        Self {
            first_mac: Arc::new(RateLimiter::new(&public, NEVER)),
            both_macs: RateLimiter::new(&public, ALWAYS),
            private,
            public,
        }
    }
}

impl Session {
    /// A session without keys yet. Costs a Curve25519 operation: not for the worker's thread.
    #[must_use]
    pub fn new(identity: &Identity, plan: SessionPlan) -> Self {
        let tunnel = Tunn::new(
            identity.private.clone(),
            PublicKey::from(plan.public_key),
            plan.preshared_key,
            // Ours: boringtun cannot change it, and gives up where nobody answers.
            None,
            plan.index.0,
            Some(Arc::clone(&identity.first_mac)),
        );
        let expected = |remote| Endpoint {
            remote,
            local: unspecified(remote),
        };
        Self {
            endpoint: plan.endpoint.map(expected),
            plan,
            tunnel,
            established: false,
            resume: false,
            counters: Arc::default(),
            sent_ms: 0,
            rates: SessionRates::default(),
            share: Share::default(),
            solicited: None,
            answers: Budget::default(),
        }
    }

    /// Says where the peer was when it was last heard: it is greeted there.
    pub fn resume_at(&mut self, endpoint: Endpoint) {
        self.endpoint = Some(endpoint);
        self.resume = true;
    }

    /// Notes where an authenticated packet came from: peers may roam.
    pub fn heard_from(&mut self, endpoint: Endpoint) {
        if self.endpoint != Some(endpoint) {
            self.endpoint = Some(endpoint);
            self.counters.store_endpoint(endpoint.remote);
        }
    }

    /// True if the peer has been sent nothing for as long as it may.
    #[must_use]
    pub fn is_keepalive_due(&self, now_ms: u64) -> bool {
        let seconds = u64::from(self.plan.persistent_keepalive_s);
        seconds > 0 && now_ms >= self.sent_ms.saturating_add(seconds * 1_000)
    }

    /// Asks the tunnel whether it has keys to send with. Reads a clock: not for every packet.
    pub fn refresh_established(&mut self) {
        self.established = self.tunnel.time_since_last_handshake().is_some();
    }
}
