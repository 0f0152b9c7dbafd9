//! The connection between a payer and the payee.
//!
//! Like a QUIC stream it keeps order and loses nothing while it lasts, and may break at any
//! byte: then a beginning of what was under way still arrives, perhaps long after the next
//! connection was made. In worlds with chaos it also loses, repeats and reorders, because the
//! protocol promises that this changes nothing in the end.

use std::collections::VecDeque;

use topnet_books::ConnectionId;
use topnet_channel::Unproved;

use crate::random::Random;

/// How links behave in one world.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    pub(crate) delay_us_max: u64,
    /// Loses, repeats and reorders.
    pub(crate) chaos: bool,
}

#[derive(Clone, Debug)]
struct Parcel {
    at_us: u64,
    bytes: Vec<u8>,
}

/// One direction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pipe {
    /// In the order of arrival.
    parcels: VecDeque<Parcel>,
    ended: bool,
}

impl Pipe {
    pub(crate) fn send(
        &mut self,
        now_us: u64,
        bytes: Vec<u8>,
        weather: Weather,
        random: &mut Random,
    ) {
        if self.ended {
            return;
        }
        let mut at_us = now_us + random.between(50, weather.delay_us_max);
        if weather.chaos {
            match random.below(20) {
                0 => return,
                1 => at_us += random.below(200_000),
                2 => {
                    let again_us = at_us + random.below(200_000);
                    self.insert(again_us, bytes.clone());
                }
                _ => {}
            }
        } else if let Some(last) = self.parcels.back() {
            at_us = at_us.max(last.at_us);
        }
        self.insert(at_us, bytes);
    }

    fn insert(&mut self, at_us: u64, bytes: Vec<u8>) {
        let place = self.parcels.partition_point(|parcel| parcel.at_us <= at_us);
        self.parcels.insert(place, Parcel { at_us, bytes });
    }

    /// The next message that has arrived.
    pub(crate) fn receive(&mut self, now_us: u64) -> Option<Vec<u8>> {
        let arrived = self
            .parcels
            .front()
            .is_some_and(|first| first.at_us <= now_us);
        let first = arrived.then(|| self.parcels.pop_front())??;
        Some(first.bytes)
    }

    /// Nothing more is sent; what is under way arrives.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    /// Breaks: some of what is under way still arrives, late.
    pub(crate) fn cut(&mut self, random: &mut Random) {
        self.ended = true;
        let kept = random.index(self.parcels.len() + 1);
        self.parcels.truncate(kept);
        let late_us = random.pick(&[0, 1_000, 300_000, 3_000_000]);
        for parcel in &mut self.parcels {
            parcel.at_us += late_us;
        }
    }

    /// Nobody reads any more.
    pub(crate) fn drop_all(&mut self) {
        self.ended = true;
        self.parcels.clear();
    }

    /// The reader has come to the end.
    pub(crate) fn is_over(&self) -> bool {
        self.ended && self.parcels.is_empty()
    }
}

/// A connection.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) id: ConnectionId,
    /// Whose wallet made it.
    pub(crate) wallet: usize,
    pub(crate) to_payee: Pipe,
    pub(crate) to_payer: Pipe,
    /// The payee has read its hello.
    pub(crate) greeted: bool,
    /// A voucher whose signature is being proved; nothing else is read meanwhile.
    pub(crate) proving: Option<Unproved>,
}

impl Link {
    pub(crate) fn new(id: ConnectionId, wallet: usize) -> Self {
        Self {
            id,
            wallet,
            to_payee: Pipe::default(),
            to_payer: Pipe::default(),
            greeted: false,
            proving: None,
        }
    }

    pub(crate) fn cut(&mut self, random: &mut Random) {
        self.to_payee.cut(random);
        self.to_payer.cut(random);
    }
}
