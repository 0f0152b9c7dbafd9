//! Which sessions stand: the desired set, made true step by step.
//!
//! The control thread's own view of what it asked the worker for. It changes only here; the
//! worker's confirmations come in through [`Registry::returned`]. Pure but for the commands
//! that it hands out, which the caller delivers in order.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use topnet_account::ChannelId;
use topnet_api::{ApiError, DesiredSession, DesiredSessions};
use topnet_config::Ipv4Subnet;
use topnet_uapi::{Device, DeviceFull, PublicKey, Set};
use topnet_unit::Slot;

use crate::operators::Operators;
use crate::orders::{Indices, Order};
use crate::session::{Payer, Session, SessionCounters, SessionIndex, SessionPlan, WorkerNumber};
use crate::slots::{AcknowledgeError, Slots, Use};

/// Bounds that a desired set must keep to.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Sessions at once.
    pub sessions_max: u32,
    /// Slots, the unused slot 0 included.
    pub slots_max: u32,
    /// Where inner addresses come from.
    pub inner_subnet: Ipv4Subnet,
    /// The one that is the gateway's.
    pub gateway_inner_address: Ipv4Addr,
    /// The part of them that is for the operator's own peers, if he has any.
    pub unmetered: Option<Ipv4Subnet>,
    /// Workers that sessions are spread over.
    pub workers: u32,
}

/// One standing session.
#[derive(Clone, Debug)]
pub struct Standing {
    /// As it was asked for.
    pub desired: DesiredSession,
    /// Its slot.
    pub slot: Slot,
    /// Its place in the worker.
    pub index: SessionIndex,
    /// Its counts.
    pub counters: Arc<SessionCounters>,
}

/// The sessions and slots of one data plane.
pub struct Registry {
    bounds: Bounds,
    revision: u64,
    slots: Slots,
    standing: HashMap<[u8; 32], Standing>,
    indices: Indices,
    operators: Option<Operators>,
    /// Whose the sessions of each channel are, but for those that found no room there.
    workers: HashMap<ChannelId, WorkerNumber>,
}

/// Why a request about the operator's own peers was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeersRefused {
    /// There are none.
    #[error("there is no section [dataplane.unmetered]")]
    NotConfigured,
    /// A client's key.
    #[error("{0} is the key of a session that a channel pays for; give the peer its own key")]
    Pays(PublicKey),
    /// No room.
    #[error(transparent)]
    Full(#[from] DeviceFull),
}

/// What an installation came to.
#[derive(Debug, Default)]
pub struct Installation {
    /// For the worker, in this order.
    pub orders: Vec<Order>,
    /// Sessions without a place, with the reason.
    pub refused: Vec<([u8; 32], ApiError)>,
}

impl Registry {
    /// A registry without sessions.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        let indices = Indices::new(bounds.sessions_max, bounds.workers);
        Self {
            revision: 0,
            slots: Slots::new(bounds.slots_max),
            standing: HashMap::new(),
            operators: bounds.unmetered.map(|_| Operators::new(indices.free())),
            indices,
            bounds,
            workers: HashMap::new(),
        }
    }

    /// Peers with these keys are best given to these workers.
    #[must_use]
    pub fn awaiting(mut self, awaited: HashMap<[u8; 32], WorkerNumber>) -> Self {
        self.indices = self.indices.awaiting(awaited);
        self
    }

    /// The last revision that was installed.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// All standing sessions.
    pub fn standing(&self) -> impl Iterator<Item = &Standing> {
        self.standing.values()
    }

    /// All slots in use.
    pub fn slots_in_use(&self) -> impl Iterator<Item = Use> + '_ {
        self.slots.in_use()
    }

    /// Metering has journalled a generation's last totals.
    pub fn acknowledge(&mut self, index: u32, generation: u32) -> Result<(), AcknowledgeError> {
        self.slots.acknowledge(index, generation)
    }

    /// The operator's own peers, if they are configured.
    #[must_use]
    pub const fn operators(&self) -> Option<&Operators> {
        self.operators.as_ref()
    }

    /// What a request about the operator's own peers would make of them.
    pub fn preview(&self, set: &Set) -> Result<Device, PeersRefused> {
        let operators = self.operators.as_ref().ok_or(PeersRefused::NotConfigured)?;
        for peer in &set.peers {
            if !peer.remove && self.standing.contains_key(&peer.public_key.0) {
                return Err(PeersRefused::Pays(peer.public_key));
            }
        }
        Ok(operators.preview(set, &self.indices)?.0)
    }

    /// Does what a request about them says. It was [previewed](Self::preview) just now.
    pub fn apply(&mut self, set: &Set) -> Result<Vec<Order>, PeersRefused> {
        let operators = self.operators.as_mut().ok_or(PeersRefused::NotConfigured)?;
        Ok(operators.apply(set, &mut self.indices)?.orders)
    }

    /// True if there is a session for this key, whoever pays for it.
    #[must_use]
    pub fn has_peer(&self, key: &[u8; 32]) -> bool {
        self.standing.contains_key(key) || self.is_operators(key)
    }

    fn is_operators(&self, key: &[u8; 32]) -> bool {
        let operators = self.operators.as_ref();
        operators.is_some_and(|operators| operators.standing(&PublicKey(*key)).is_some())
    }

    /// Makes `desired` the set that stands. `usage_bytes` tells a slot's usage.
    pub fn install(
        &mut self,
        desired: &DesiredSessions,
        usage_bytes: impl Fn(u32) -> u64,
    ) -> Result<Installation, ApiError> {
        if desired.revision < self.revision {
            return Err(ApiError::new(
                "revision_is_older",
                format!(
                    "revision {} is older than {}",
                    desired.revision, self.revision
                ),
                "read the current set and send a newer one",
            ));
        }
        let mut installation = Installation::default();
        let wanted = self.admissible(desired, &mut installation);
        self.remove_unwanted(&wanted, &mut installation);
        for session in &desired.sessions {
            let key = session.wireguard_public_key;
            let new = wanted.get(&key) == Some(&session) && !self.standing.contains_key(&key);
            if new && let Err(error) = self.add(session, &usage_bytes, &mut installation) {
                installation.refused.push((key, error));
            }
        }
        self.revision = desired.revision;
        Ok(installation)
    }

    /// A session came back from the worker.
    pub fn returned(&mut self, session: &Session) {
        if let Some(slot) = session.plan.slot() {
            self.slots.leave(slot);
        }
        self.indices.give_back(session.plan.index);
    }

    /// The sessions that may stand, by key; the others are refused with a reason.
    fn admissible<'a>(
        &self,
        desired: &'a DesiredSessions,
        installation: &mut Installation,
    ) -> HashMap<[u8; 32], &'a DesiredSession> {
        let mut wanted: HashMap<[u8; 32], &DesiredSession> = HashMap::new();
        let mut addresses = HashSet::new();
        for session in &desired.sessions {
            let key = session.wireguard_public_key;
            let address = session.inner_address;
            let subnet = self.bounds.inner_subnet;
            let reserved = self.bounds.unmetered;
            let error = if !subnet.contains(address)
                || address == self.bounds.gateway_inner_address
                || reserved.is_some_and(|reserved| reserved.contains(address))
            {
                Some(ApiError::new(
                    "address_not_usable",
                    format!("inner address {address} is not a client's address of {subnet}"),
                    "choose another address",
                ))
            } else if self.is_operators(&key) {
                Some(ApiError::new(
                    "peer_unmetered",
                    "the peer's key is an unmetered peer's",
                    "give the session its own key, or remove the peer: `topnet vpn remove`",
                ))
            } else if wanted.contains_key(&key) {
                Some(ApiError::new(
                    "peer_twice",
                    "the peer's key is in the set twice",
                    "give each session its own key",
                ))
            } else if !addresses.insert(address) {
                Some(ApiError::new(
                    "address_twice",
                    format!("inner address {address} is in the set twice"),
                    "give each session its own address",
                ))
            } else {
                None
            };
            match error {
                Some(error) => installation.refused.push((key, error)),
                None => drop(wanted.insert(key, session)),
            }
        }
        wanted
    }

    /// Orders everything away that is not exactly as it is wanted.
    fn remove_unwanted(
        &mut self,
        wanted: &HashMap<[u8; 32], &DesiredSession>,
        installation: &mut Installation,
    ) {
        let stays = |standing: &Standing| {
            wanted.get(&standing.desired.wireguard_public_key) == Some(&&standing.desired)
        };
        let leaving: Vec<[u8; 32]> = self
            .standing
            .iter()
            .filter(|(_, standing)| !stays(standing))
            .map(|(key, _)| *key)
            .collect();
        for key in leaving {
            if let Some(standing) = self.standing.remove(&key) {
                installation.orders.push(Order::Remove(standing.index));
            }
        }
        let channels: HashSet<ChannelId> = wanted.values().map(|session| session.channel).collect();
        self.slots
            .drain_unwanted(|channel| channels.contains(channel));
        self.workers.retain(|channel, _| channels.contains(channel));
    }

    fn add(
        &mut self,
        session: &DesiredSession,
        usage_bytes: impl FnOnce(u32) -> u64,
        installation: &mut Installation,
    ) -> Result<(), ApiError> {
        let later = "it is tried again with the next installation";
        // A channel's sessions go to one worker, so that its limit is looked at by one.
        let worker = self.workers.get(&session.channel).copied();
        let Some(index) = self.indices.take(&session.wireguard_public_key, worker) else {
            let what = format!("all {} sessions are taken", self.bounds.sessions_max);
            return Err(ApiError::new("no_free_session", what, later));
        };
        let Some(slot) = self.slots.enter(session.channel, usage_bytes) else {
            self.indices.give_back(index);
            let what = format!("all {} slots are taken", self.bounds.slots_max - 1);
            return Err(ApiError::new("no_free_slot", what, later));
        };
        let counters = Arc::<SessionCounters>::default();
        let channel = session.channel;
        self.workers.entry(channel).or_insert(index.worker());
        let plan = SessionPlan::of_client(
            index,
            session.wireguard_public_key,
            Payer { channel, slot },
            session.inner_address,
        );
        installation
            .orders
            .push(Order::Install(plan, Arc::clone(&counters)));
        let standing = Standing {
            desired: session.clone(),
            slot,
            index,
            counters,
        };
        self.standing.insert(session.wireguard_public_key, standing);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Identity;
    use crate::slots::Phase;

    fn registry() -> Registry {
        Registry::new(Bounds {
            sessions_max: 3,
            slots_max: 3,
            inner_subnet: "10.78.0.0/16".parse().unwrap(),
            gateway_inner_address: Ipv4Addr::new(10, 78, 0, 1),
            unmetered: None,
            workers: 1,
        })
    }

    fn session(channel: u8, key: u8, host: u8) -> DesiredSession {
        DesiredSession {
            channel: ChannelId([channel; 32]),
            wireguard_public_key: [key; 32],
            inner_address: Ipv4Addr::new(10, 78, 0, host),
        }
    }

    fn desired(revision: u64, sessions: &[DesiredSession]) -> DesiredSessions {
        DesiredSessions {
            revision,
            sessions: sessions.to_vec(),
        }
    }

    /// Installs, and does at once what the worker would.
    fn install(registry: &mut Registry, set: &DesiredSessions) -> (Vec<String>, Vec<String>) {
        let installation = registry.install(set, |_| 5).unwrap();
        let mut orders = Vec::new();
        for order in installation.orders {
            orders.push(match order {
                Order::Install(plan, _) => format!("+{}", plan.public_key[0]),
                Order::Remove(index) => format!("-{}", index.0),
                other => panic!("{other:?}"),
            });
        }
        let refused = installation
            .refused
            .into_iter()
            .map(|(_, error)| error.code)
            .collect();
        (orders, refused)
    }

    fn give_back(registry: &mut Registry, index: u32, slot: Slot) {
        let channel = ChannelId([1; 32]);
        let (index, payer) = (SessionIndex(index), Payer { channel, slot });
        let plan = SessionPlan::of_client(index, [0; 32], payer, Ipv4Addr::UNSPECIFIED);
        registry.returned(&Session::new(&Identity::new([7; 32]), plan));
    }

    #[test]
    fn sessions_of_a_channel_go_to_one_worker_and_who_is_awaited_to_his() {
        let bounds = Bounds {
            workers: 3,
            sessions_max: 9,
            slots_max: 9,
            ..registry().bounds
        };
        let awaited = [([3; 32], WorkerNumber(2)), ([4; 32], WorkerNumber(2))].into();
        let mut registry = Registry::new(bounds).awaiting(awaited);
        let sessions = [(1, 1), (1, 2), (2, 3), (1, 4), (3, 5), (3, 6)];
        let sessions = sessions.map(|(channel, key)| session(channel, key, key + 1));
        install(&mut registry, &desired(1, &sessions));
        let worker = |key: u8| registry.standing[&[key; 32]].index.worker().0;
        let of_channels = [1, 2, 3, 4, 5, 6].map(worker);
        assert_eq!(of_channels, [0, 0, 2, 0, 1, 1]);
    }

    #[test]
    fn installing_twice_changes_nothing() {
        let mut registry = registry();
        let set = desired(1, &[session(1, 1, 2), session(1, 2, 3), session(2, 3, 4)]);
        assert_eq!(install(&mut registry, &set).0, ["+1", "+2", "+3"]);
        assert_eq!(install(&mut registry, &set).0, [""; 0]);
        let slots: HashSet<u32> = registry.standing().map(|s| s.slot.index).collect();
        assert_eq!(slots.len(), 2, "sessions of a channel share its slot");
        let older = registry.install(&desired(0, &[]), |_| 0).unwrap_err();
        assert_eq!(older.code, "revision_is_older");
    }

    #[test]
    fn what_cannot_stand_is_refused_and_the_rest_stands() {
        let mut registry = registry();
        let set = desired(
            1,
            &[
                session(1, 1, 2),
                session(1, 1, 3),
                session(1, 2, 2),
                session(1, 3, 1),
                DesiredSession {
                    inner_address: Ipv4Addr::new(10, 79, 0, 2),
                    ..session(1, 4, 0)
                },
            ],
        );
        let (orders, refused) = install(&mut registry, &set);
        assert_eq!(orders, ["+1"]);
        let codes = [
            "peer_twice",
            "address_twice",
            "address_not_usable",
            "address_not_usable",
        ];
        assert_eq!(refused, codes);
        let crowd: Vec<_> = (1..=4).map(|n| session(n, n, n + 1)).collect();
        let (orders, refused) = install(&mut registry, &desired(2, &crowd));
        assert_eq!(orders, ["+2"]);
        assert_eq!(refused, ["no_free_slot", "no_free_slot"]);
        let crowd: Vec<_> = (1..=4).map(|n| session(1, n, n + 1)).collect();
        let (_, refused) = install(&mut registry, &desired(3, &crowd));
        assert_eq!(refused, ["no_free_session", "no_free_session"]);
    }

    #[test]
    fn a_channel_that_returns_gets_another_slot() {
        let mut registry = registry();
        install(&mut registry, &desired(1, &[session(1, 1, 2)]));
        let first = registry
            .standing()
            .next()
            .map(|s| (s.slot, s.index))
            .unwrap();
        assert_eq!(
            install(&mut registry, &desired(2, &[])).0,
            [format!("-{}", first.1.0)]
        );
        let phase =
            |registry: &Registry| registry.slots_in_use().map(|u| u.phase).collect::<Vec<_>>();
        assert_eq!(phase(&registry), [Phase::Draining]);
        install(&mut registry, &desired(3, &[session(1, 1, 2)]));
        let second = registry.standing().next().map(|s| s.slot).unwrap();
        assert_ne!(first.0.index, second.index);
        give_back(&mut registry, first.1.0, first.0);
        assert_eq!(phase(&registry), [Phase::Retired, Phase::Live]);
        assert!(
            registry
                .acknowledge(first.0.index, first.0.generation)
                .is_ok()
        );
        assert_eq!(phase(&registry), [Phase::Live]);
    }
}
