//! Which sessions may have service: what control decides and must not forget.
//!
//! A pure state machine; [`crate::store`] keeps it on disk. Its [`desired`](SessionBook::desired)
//! set is what the data plane shall have installed, whole, at every revision.
//!
//! | event | a new session | a known session | a channel that is closing |
//! |---|---|---|---|
//! | [`start`](SessionBook::start) | gets an inner address | keeps it | refused: no new use of it |
//! | [`stop`](SessionBook::stop) | nothing to do | is removed | nothing to do |
//! | [`begin_close`](SessionBook::begin_close) | – | is removed | nothing to do |
//! | [`end_close`](SessionBook::end_close) | – | – | is forgotten |

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use serde::{Deserialize, Serialize};
use topnet_account::ChannelId;
use topnet_api::{ApiError, DesiredSession, DesiredSessions, SessionId, SessionRequest};
use topnet_config::Ipv4Subnet;

/// The layout of the stored book.
const VERSION: u32 = 1;

/// Sessions, the last request of each channel, and channels that are being closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionBook {
    version: u32,
    /// Rises whenever the desired set changes.
    revision: u64,
    sessions: BTreeMap<SessionId, Session>,
    /// The last accepted request of each channel that may still make one.
    last_requests: BTreeMap<ChannelId, LastRequest>,
    closing: BTreeSet<ChannelId>,
}

/// A session that may have service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Session {
    /// The channel that pays.
    pub channel: ChannelId,
    /// The client's address in the tunnel.
    pub inner_address: Ipv4Addr,
}

/// What tells a repeated request from an old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LastRequest {
    nonce: u64,
    session: SessionId,
    /// It was a start, not a stop.
    #[serde(default)]
    start: bool,
}

impl LastRequest {
    fn of(request: &SessionRequest, start: bool) -> Self {
        Self {
            nonce: request.nonce,
            session: request.session(),
            start,
        }
    }
}

/// How much of everything there may be, and where addresses come from.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Inner addresses.
    pub inner_subnet: Ipv4Subnet,
    /// The gateway's own.
    pub gateway_address: Ipv4Addr,
    /// Those that are kept for the operator's own peers.
    pub reserved: Option<Ipv4Subnet>,
    /// Sessions in all.
    pub sessions_max: usize,
    /// Sessions of one channel.
    pub sessions_per_channel_max: usize,
}

impl Bounds {
    /// True for an address that a client may have.
    fn is_clients(&self, address: Ipv4Addr) -> bool {
        let reserved = |reserved: Ipv4Subnet| reserved.contains(address);
        self.inner_subnet.contains(address)
            && address != self.gateway_address
            && !self.reserved.is_some_and(reserved)
    }
}

/// Why a request changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// An old request, or one that is not newer than the last.
    #[error("the request's nonce {nonce} is not above the channel's last, {last}")]
    NonceUsed {
        /// The request's.
        nonce: u64,
        /// The last accepted.
        last: u64,
    },
    /// Another channel pays for a session with the same key.
    #[error("the WireGuard key {0} has a session that another channel pays for")]
    KeyInUse(SessionId),
    /// The channel's close was asked for.
    #[error("channel {0} is being closed")]
    Closing(ChannelId),
    /// The channel has as many sessions as it may.
    #[error("channel {channel} has {sessions_max} sessions, which is the most")]
    ChannelFull {
        /// The channel.
        channel: ChannelId,
        /// The bound.
        sessions_max: usize,
    },
    /// The provider has as many sessions as it may, or no inner address is left.
    #[error("the provider has no room for another session")]
    Full,
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let (code, mend) = match &refusal {
            Refusal::NonceUsed { .. } => (
                "nonce_used",
                "sign the request anew with a higher nonce: the time in milliseconds",
            ),
            Refusal::KeyInUse(_) => (
                "wireguard_key_in_use",
                "stop that session first, or make another key with `wg genkey`",
            ),
            Refusal::Closing(_) => ("channel_closing", "open another channel"),
            Refusal::ChannelFull { .. } => (
                "channel_sessions_max",
                "stop a session of the channel, or open another channel",
            ),
            Refusal::Full => ("sessions_max", "try again later, or another provider"),
        };
        Self::new(code, refusal.to_string(), mend)
    }
}

impl Default for SessionBook {
    fn default() -> Self {
        Self {
            version: VERSION,
            revision: 0,
            sessions: BTreeMap::new(),
            last_requests: BTreeMap::new(),
            closing: BTreeSet::new(),
        }
    }
}

impl SessionBook {
    /// Lets the request's key have service. The caller has checked the signature and the
    /// channel. Repeating the last request of a channel gives the same answer.
    pub fn start(&mut self, request: &SessionRequest, bounds: &Bounds) -> Result<Session, Refusal> {
        let (channel, id) = (request.channel, request.session());
        if self.closing.contains(&channel) {
            return Err(Refusal::Closing(channel));
        }
        self.check_nonce(request, true)?;
        let session = match self.sessions.get(&id) {
            Some(session) if session.channel != channel => return Err(Refusal::KeyInUse(id)),
            Some(session) => *session,
            None => {
                let session = Session {
                    channel,
                    inner_address: self.free_address(channel, bounds)?,
                };
                self.sessions.insert(id, session);
                self.revision += 1;
                session
            }
        };
        self.remember(request, true);
        Ok(session)
    }

    /// Takes the request's key its service. The caller has checked the signature. Says whether
    /// there was a session.
    pub fn stop(&mut self, request: &SessionRequest) -> Result<bool, Refusal> {
        self.check_nonce(request, false)?;
        let id = request.session();
        let stopped = match self.sessions.get(&id) {
            Some(session) if session.channel != request.channel => {
                return Err(Refusal::KeyInUse(id));
            }
            Some(_) => {
                self.sessions.remove(&id);
                self.revision += 1;
                true
            }
            None => false,
        };
        self.remember(request, false);
        Ok(stopped)
    }

    /// Ends all sessions of a channel, for good: it is to be closed.
    pub fn begin_close(&mut self, channel: ChannelId) {
        let before = self.sessions.len();
        self.sessions
            .retain(|_, session| session.channel != channel);
        if self.sessions.len() < before {
            self.revision += 1;
        }
        self.closing.insert(channel);
    }

    /// The channel is settled. Nothing can be started with it any more, because the chain knows
    /// it as closed.
    pub fn end_close(&mut self, channel: ChannelId) {
        self.closing.remove(&channel);
        self.last_requests.remove(&channel);
    }

    /// Everything that the data plane shall have installed.
    pub fn desired(&self) -> DesiredSessions {
        let sessions = self.sessions.iter().map(|(id, session)| DesiredSession {
            channel: session.channel,
            wireguard_public_key: id.0.0,
            inner_address: session.inner_address,
        });
        DesiredSessions {
            revision: self.revision,
            sessions: sessions.collect(),
        }
    }

    /// The desired set's revision.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The data plane has seen a higher revision than ours, because our state was put back to an
    /// older one: the next set that it is sent must be newer.
    pub fn rise_above(&mut self, revision: u64) {
        if self.revision <= revision {
            self.revision = revision + 1;
        }
    }

    /// All sessions.
    pub fn sessions(&self) -> impl Iterator<Item = (SessionId, Session)> {
        self.sessions.iter().map(|(id, session)| (*id, *session))
    }

    /// Channels whose close is under way.
    pub fn closing(&self) -> impl Iterator<Item = ChannelId> {
        self.closing.iter().copied()
    }

    /// True if the channel's close is under way.
    pub fn is_closing(&self, channel: &ChannelId) -> bool {
        self.closing.contains(channel)
    }

    /// Drops what the configuration no longer has room for: sessions whose address is not a
    /// client's. Says which.
    pub fn fit(&mut self, bounds: &Bounds) -> Vec<SessionId> {
        let fits = |session: &Session| bounds.is_clients(session.inner_address);
        let dropped: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, session)| !fits(session))
            .map(|(id, _)| *id)
            .collect();
        if !dropped.is_empty() {
            self.sessions.retain(|_, session| fits(session));
            self.revision += 1;
        }
        dropped
    }

    /// `None` if the book was written by a version that this one cannot read.
    pub(crate) fn readable(self) -> Option<Self> {
        (self.version == VERSION).then_some(self)
    }

    /// A request is newer than the last of its channel, or it is the last itself: then whoever
    /// sent it did not get the answer.
    fn check_nonce(&self, request: &SessionRequest, start: bool) -> Result<(), Refusal> {
        let Some(last) = self.last_requests.get(&request.channel) else {
            return Ok(());
        };
        let repeated = LastRequest::of(request, start) == *last;
        if request.nonce > last.nonce || repeated {
            return Ok(());
        }
        Err(Refusal::NonceUsed {
            nonce: request.nonce,
            last: last.nonce,
        })
    }

    fn remember(&mut self, request: &SessionRequest, start: bool) {
        let last = LastRequest::of(request, start);
        self.last_requests.insert(request.channel, last);
    }

    fn free_address(&self, channel: ChannelId, bounds: &Bounds) -> Result<Ipv4Addr, Refusal> {
        let of_channel = self
            .sessions
            .values()
            .filter(|session| session.channel == channel)
            .count();
        if of_channel >= bounds.sessions_per_channel_max {
            let sessions_max = bounds.sessions_per_channel_max;
            return Err(Refusal::ChannelFull {
                channel,
                sessions_max,
            });
        }
        if self.sessions.len() >= bounds.sessions_max {
            return Err(Refusal::Full);
        }
        let used: BTreeSet<Ipv4Addr> = self
            .sessions
            .values()
            .map(|session| session.inner_address)
            .collect();
        bounds
            .inner_subnet
            .hosts()
            .find(|host| bounds.is_clients(*host) && !used.contains(host))
            .ok_or(Refusal::Full)
    }
}

#[cfg(test)]
mod tests {
    use topnet_api::WireguardPublicKey;

    use super::*;

    fn bounds() -> Bounds {
        Bounds {
            inner_subnet: "10.78.0.0/29".parse().unwrap(),
            gateway_address: Ipv4Addr::new(10, 78, 0, 1),
            reserved: None,
            sessions_max: 4,
            sessions_per_channel_max: 2,
        }
    }

    fn request(channel: u8, key: u8, nonce: u64) -> SessionRequest {
        SessionRequest::unsigned(
            ChannelId([channel; 32]),
            WireguardPublicKey([key; 32]),
            nonce,
        )
    }

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 78, 0, last)
    }

    #[test]
    fn sessions_have_different_addresses_and_never_the_gateways() {
        let mut book = SessionBook::default();
        for (channel, key, last) in [(1, 1, 2), (1, 2, 3), (2, 3, 4)] {
            let session = book
                .start(&request(channel, key, u64::from(key)), &bounds())
                .unwrap();
            assert_eq!(session.inner_address, address(last));
        }
        assert_eq!(book.revision(), 3);
        assert_eq!(book.desired().sessions.len(), 3);
        // An address that was given back is given out again.
        assert_eq!(book.stop(&request(1, 1, 9)), Ok(true));
        let session = book.start(&request(2, 4, 9), &bounds()).unwrap();
        assert_eq!(session.inner_address, address(2));
    }

    #[test]
    fn a_request_seen_twice_changes_nothing_and_an_old_one_is_refused() {
        let mut book = SessionBook::default();
        let start = request(1, 1, 10);
        let session = book.start(&start, &bounds()).unwrap();
        let after = book.clone();
        assert_eq!(book.start(&start, &bounds()), Ok(session));
        assert_eq!(book, after);

        assert_eq!(book.stop(&request(1, 1, 11)), Ok(true));
        let stopped = book.clone();
        assert_eq!(
            book.start(&start, &bounds()),
            Err(Refusal::NonceUsed {
                nonce: 10,
                last: 11
            })
        );
        assert_eq!(
            book.start(&request(1, 2, 11), &bounds()),
            Err(Refusal::NonceUsed {
                nonce: 11,
                last: 11
            })
        );
        assert_eq!(book, stopped);
    }

    #[test]
    fn bounds_hold() {
        let mut book = SessionBook::default();
        book.start(&request(1, 1, 1), &bounds()).unwrap();
        book.start(&request(1, 2, 2), &bounds()).unwrap();
        let full = book.start(&request(1, 3, 3), &bounds());
        let channel = ChannelId([1; 32]);
        assert_eq!(
            full,
            Err(Refusal::ChannelFull {
                channel,
                sessions_max: 2
            })
        );
        book.start(&request(2, 3, 3), &bounds()).unwrap();
        book.start(&request(2, 4, 4), &bounds()).unwrap();
        assert_eq!(book.start(&request(3, 5, 5), &bounds()), Err(Refusal::Full));
        let taken = book.start(&request(3, 1, 5), &bounds());
        assert_eq!(taken, Err(Refusal::KeyInUse(request(3, 1, 5).session())));
        assert_eq!(
            book.stop(&request(3, 1, 5)),
            Err(Refusal::KeyInUse(request(3, 1, 5).session()))
        );
    }

    #[test]
    fn a_closing_channel_loses_its_sessions_and_gets_no_more() {
        let mut book = SessionBook::default();
        let channel = ChannelId([1; 32]);
        book.start(&request(1, 1, 1), &bounds()).unwrap();
        book.start(&request(2, 2, 1), &bounds()).unwrap();
        book.begin_close(channel);
        assert_eq!(book.revision(), 3);
        book.begin_close(channel);
        assert_eq!(book.revision(), 3);
        assert_eq!(
            book.start(&request(1, 1, 2), &bounds()),
            Err(Refusal::Closing(channel))
        );
        assert_eq!(book.desired().sessions.len(), 1);
        book.end_close(channel);
        assert_eq!(book.closing().count(), 0);
    }

    #[test]
    fn sessions_outside_a_new_subnet_are_dropped() {
        let mut book = SessionBook::default();
        book.start(&request(1, 1, 1), &bounds()).unwrap();
        let id = request(1, 1, 1).session();
        assert!(book.fit(&bounds()).is_empty());
        let moved = Bounds {
            gateway_address: address(2),
            ..bounds()
        };
        assert_eq!(book.fit(&moved), [id]);
        assert_eq!(book.revision(), 2);
    }

    #[test]
    fn revision_rises_above_what_the_data_plane_has_seen() {
        let mut book = SessionBook::default();
        book.rise_above(7);
        assert_eq!(book.revision(), 8);
        book.rise_above(3);
        assert_eq!(book.revision(), 8);
    }
}
