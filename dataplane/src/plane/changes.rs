//! What the control side changes about the plane between two bursts: sessions, whose addresses are,
//! and the interface itself.

use std::net::SocketAddr;
use std::sync::Arc;

use topnet_nat::Subscriber;
use topnet_uapi::IpNetwork;

use super::Plane;
use crate::accounting::Gate;
use crate::capture::Tap;
use crate::handshakes::Notice;
use crate::nat_log::Holder;
use crate::owners::Owners;
use crate::session::{
    Addresses, Endpoint, Identity, NetworkChange, Session, SessionIndex, SessionRates, unspecified,
};

impl<G: Gate> Plane<G> {
    /// Installs a session at its index, which is free.
    pub fn install(&mut self, session: Box<Session>) {
        let index = session.plan.index;
        let installed = Notice::Installed(session.plan.public_key, index);
        let addresses = session.plan.addresses.clone();
        self.sessions.put(session);
        self.fairness.reserve(self.sessions.places());
        self.screening.tell(self.sessions.own(), installed);
        self.change_owners(
            || addresses.networks(),
            |owners| owners.add(index, &addresses),
        );
    }

    /// Removes a session; nothing counts into its slot on its behalf any more.
    pub fn remove(&mut self, index: SessionIndex) -> Option<Box<Session>> {
        let session = self.sessions.take(index)?;
        let removed = Notice::Removed(session.plan.public_key, index);
        self.screening.tell(self.sessions.own(), removed);
        let addresses = &session.plan.addresses;
        self.change_owners(
            || addresses.networks(),
            |owners| owners.remove(index, addresses),
        );
        Some(session)
    }

    /// Changes the networks of an unmetered peer; no key is lost by it.
    pub fn change_networks(&mut self, index: SessionIndex, change: &NetworkChange) {
        let Some(session) = self.sessions.get_mut(index) else {
            return;
        };
        let Addresses::Networks(networks) = &mut session.plan.addresses else {
            return;
        };
        change.apply(networks);
        self.note_networks(index, change);
    }

    /// Another worker's session has these addresses from now on: what comes for them is passed there.
    pub fn note_owner(&mut self, index: SessionIndex, addresses: &Addresses) {
        self.change_owners(
            || addresses.networks(),
            |owners| owners.add(index, addresses),
        );
    }

    /// Another worker's session is gone.
    pub fn forget_owner(&mut self, index: SessionIndex, addresses: &Addresses) {
        self.change_owners(
            || addresses.networks(),
            |owners| owners.remove(index, addresses),
        );
    }

    /// The networks of a session, this worker's or another's, are others.
    pub fn note_networks(&mut self, index: SessionIndex, change: &NetworkChange) {
        let changed = || [&change.removed[..], &change.added].concat();
        self.change_owners(changed, |owners| {
            for network in &change.removed {
                owners.remove_network(network, index);
            }
            for network in &change.added {
                owners.add_network(network, index);
            }
        });
    }

    /// Sends to the peer there, until it is heard from elsewhere.
    pub fn change_endpoint(&mut self, index: SessionIndex, remote: SocketAddr) {
        if let Some(session) = self.sessions.get_mut(index) {
            session.heard_from(Endpoint {
                remote,
                local: unspecified(remote),
            });
        }
    }

    /// Sends something to the peer at least so often, in seconds; 0 is not at all.
    pub fn change_keepalive(&mut self, index: SessionIndex, seconds: u16) {
        if let Some(session) = self.sessions.get_mut(index) {
            session.plan.persistent_keepalive_s = seconds;
        }
    }

    /// The interface has another key; sessions of the old one are to be removed.
    pub fn replace_identity(&mut self, identity: Arc<Identity>) {
        self.identity = Arc::clone(&identity);
        let own = self.sessions.own();
        self.screening.tell(own, Notice::Identity(identity));
    }

    /// The interface's largest packet is another.
    pub fn change_inner_mtu(&mut self, bytes: usize) {
        self.config.inner_mtu = bytes;
    }

    /// Copies inner packets there from now on, if anywhere; gives back where they were copied to.
    pub fn change_tap(&mut self, tap: Option<Arc<Tap>>) -> Option<Arc<Tap>> {
        std::mem::replace(&mut self.tap, tap)
    }

    /// Sessions that somebody pays for go so fast from now on.
    pub fn change_rates(&mut self, rates: &SessionRates) {
        for session in self.sessions.all_mut() {
            if session.plan.payer.is_some() {
                session.rates.change(rates);
            }
        }
    }

    /// Changes whose the addresses of `networks` are. What an address had under public addresses is
    /// not the next owner's; what it had in the last run, its owner of then has again.
    fn change_owners(
        &mut self,
        networks: impl FnOnce() -> Vec<IpNetwork>,
        change: impl FnOnce(&mut Owners),
    ) {
        if self.translation.is_none() {
            return change(&mut self.owners);
        }
        let mut hosts: Vec<u32> = networks()
            .iter()
            .flat_map(|network| self.owners.hosts(network))
            .collect();
        hosts.sort_unstable();
        hosts.dedup();
        let owner = |owners: &Owners, host: &u32| owners.of_host(*host);
        let before: Vec<_> = hosts.iter().map(|host| owner(&self.owners, host)).collect();
        change(&mut self.owners);
        for (host, before) in hosts.into_iter().zip(before) {
            let now = owner(&self.owners, &host);
            let holder = self.holder(Subscriber(host)).map(Holder::of);
            let Some(translation) = self.translation.as_mut().filter(|_| now != before) else {
                continue;
            };
            if before.is_some() {
                translation.remove(self.now_ms, host);
            }
            if let Some(holder) = holder {
                translation.install(self.now_ms, host, holder);
            }
        }
    }
}
