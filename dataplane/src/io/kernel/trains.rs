//! Messages to peers, gathered into trains that one system call sends (UDP GSO).
//!
//! A train is for one peer: messages of one length, of which only the last may be shorter. A
//! few are open at once, one a peer, so that packets of many peers in turn still travel in
//! trains. A message that does not fit its peer's train sends that train first: no message
//! overtakes another of the same peer.

use crate::session::Endpoint;

/// Peers whose trains are open at once.
const TRAINS_MAX: usize = 16;
/// Bytes of a train, at most: what a UDP datagram can hold, over IPv4 and IPv6.
const TRAIN_BYTES_MAX: usize = 65_507;
/// Room that is left for the next message: one with a packet of a jumbo frame.
pub(super) const MESSAGE_BYTES_MAX: usize = 9_216;

/// A full or finished train.
pub(super) struct Train<'a> {
    /// Where to.
    pub(super) endpoint: Endpoint,
    /// Its messages, one after the other.
    pub(super) bytes: &'a [u8],
    /// The length of each but the last.
    pub(super) message_bytes: usize,
}

struct Open {
    endpoint: Option<Endpoint>,
    buffer: Box<[u8]>,
    bytes: usize,
    message_bytes: usize,
    messages: usize,
    /// True after a shorter message: nothing may follow.
    closed: bool,
}

impl Open {
    fn is_for(&self, endpoint: &Endpoint) -> bool {
        self.endpoint.as_ref() == Some(endpoint)
    }

    /// True if a message of `bytes` may be the next.
    fn takes(&self, bytes: usize, messages_max: usize) -> bool {
        self.messages == 0
            || (!self.closed
                && bytes <= self.message_bytes
                && self.messages < messages_max
                && self.bytes + bytes <= TRAIN_BYTES_MAX)
    }

    /// Notes a message that stands at the train's end.
    fn append(&mut self, endpoint: Endpoint, bytes: usize) {
        if self.messages == 0 {
            self.endpoint = Some(endpoint);
            self.message_bytes = bytes;
        }
        self.closed = bytes < self.message_bytes;
        self.bytes += bytes;
        self.messages += 1;
    }

    fn send(&mut self, send: &mut impl FnMut(Train<'_>)) {
        if let Some(endpoint) = self.endpoint.take() {
            send(Train {
                endpoint,
                bytes: &self.buffer[..self.bytes],
                message_bytes: self.message_bytes,
            });
        }
        self.bytes = 0;
        self.messages = 0;
        self.closed = false;
    }
}

/// All open trains.
pub(super) struct Trains {
    open: Vec<Open>,
    /// The train at whose end the next message is written.
    current: usize,
    messages_max: usize,
}

impl Trains {
    /// No trains yet; each takes `messages_max` messages.
    pub(super) fn new(messages_max: usize) -> Self {
        let open = || Open {
            endpoint: None,
            buffer: vec![0; TRAIN_BYTES_MAX + MESSAGE_BYTES_MAX].into(),
            bytes: 0,
            message_bytes: 0,
            messages: 0,
            closed: false,
        };
        Self {
            open: (0..TRAINS_MAX).map(|_| open()).collect(),
            current: 0,
            messages_max,
        }
    }

    /// Where the next message is to be written, before it is [`added`](Self::add).
    pub(super) fn room(&mut self) -> &mut [u8] {
        let open = &mut self.open[self.current];
        // A train ends at `TRAIN_BYTES_MAX`, and behind it is room for one more message.
        &mut open.buffer[open.bytes..][..MESSAGE_BYTES_MAX]
    }

    /// The first `bytes` of the [`room`](Self::room) are a message to `endpoint`. What has to
    /// leave before it is given to `send`.
    pub(super) fn add(
        &mut self,
        endpoint: Endpoint,
        bytes: usize,
        mut send: impl FnMut(Train<'_>),
    ) {
        let (from, written) = (self.current, self.open[self.current].bytes);
        let theirs = self.open.iter().position(|open| open.is_for(&endpoint));
        let target = theirs
            .or_else(|| self.open.iter().position(|open| open.messages == 0))
            // All are somebody else's: the one after the last in use leaves.
            .unwrap_or((from + 1) % TRAINS_MAX);
        let fits = theirs.is_some() || self.open[target].messages == 0;
        if !fits || !self.open[target].takes(bytes, self.messages_max) {
            self.open[target].send(&mut send);
        }
        let at = self.open[target].bytes;
        if target == from {
            // The message moves to the front if its train has just left.
            self.open[target]
                .buffer
                .copy_within(written..written + bytes, at);
        } else if let Ok([source, destination]) = self.open.get_disjoint_mut([from, target]) {
            destination.buffer[at..at + bytes]
                .copy_from_slice(&source.buffer[written..written + bytes]);
        }
        self.open[target].append(endpoint, bytes);
        self.current = target;
    }

    /// Gives every open train to `send`.
    pub(super) fn send_all(&mut self, mut send: impl FnMut(Train<'_>)) {
        for open in &mut self.open {
            open.send(&mut send);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn endpoint(port: u16) -> Endpoint {
        Endpoint {
            remote: ([192, 0, 2, 1], port).into(),
            local: [192, 0, 2, 2].into(),
        }
    }

    proptest! {
        #[test]
        fn every_message_leaves_once_and_in_its_peers_order(
            messages in prop::collection::vec(
                (0u16..24, prop::sample::select(vec![32usize, 48, 1_452, 1_480])),
                0..400,
            ),
            messages_max in 1usize..64,
        ) {
            let mut trains = Trains::new(messages_max);
            let mut sent: HashMap<u16, Vec<Vec<u8>>> = HashMap::new();
            let mut wanted: HashMap<u16, Vec<Vec<u8>>> = HashMap::new();
            let mut count = 0;
            {
                let mut send = |train: Train<'_>| {
                    let messages = train.bytes.chunks(train.message_bytes);
                    count += messages.len();
                    assert!(messages.len() <= messages_max);
                    assert!(train.bytes.len() <= TRAIN_BYTES_MAX);
                    let peer = sent.entry(train.endpoint.remote.port()).or_default();
                    peer.extend(messages.map(<[u8]>::to_vec));
                };
                for (number, (peer, bytes)) in messages.iter().enumerate() {
                    let message: Vec<u8> = (0..*bytes).map(|i| (i + number) as u8).collect();
                    trains.room()[..*bytes].copy_from_slice(&message);
                    wanted.entry(*peer).or_default().push(message);
                    trains.add(endpoint(*peer), *bytes, &mut send);
                }
                trains.send_all(&mut send);
            }
            prop_assert_eq!(count, messages.len());
            prop_assert_eq!(sent, wanted);
        }
    }

    #[test]
    fn equal_messages_of_one_peer_travel_together() {
        let mut trains = Trains::new(64);
        let mut lengths = Vec::new();
        let mut add = |trains: &mut Trains, peer: u16, bytes: usize| {
            trains.add(endpoint(peer), bytes, |train| {
                lengths.push((train.endpoint.remote.port(), train.bytes.len()));
            });
        };
        for _ in 0..3 {
            add(&mut trains, 1, 100);
            add(&mut trains, 2, 100);
        }
        // A shorter one is the last of its train, and a longer one begins another.
        add(&mut trains, 1, 60);
        add(&mut trains, 1, 100);
        trains.send_all(|train| lengths.push((train.endpoint.remote.port(), train.bytes.len())));
        assert_eq!(lengths, [(1, 360), (1, 100), (2, 300)]);
    }
}
