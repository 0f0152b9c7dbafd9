//! Which channels a tower watches, when it looks at each again, and what it saw last. In memory
//! only, but for where each is: after a start all that is held is looked at anew. Times are of
//! [`crate::uptime_ms`].

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use topnet_account::{Address, Amount, ChannelId, Hash, PublicKey};
use topnet_api::ChainName;

/// Every so many looks the channel that has waited longest comes before those that are about to
/// end.
const TURN: u64 = 4;

/// What never changes of a channel, and where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// The service's chain; main, once it was recovered from a dead service.
    pub chain: ChainName,
    /// That chain's genesis: its name may become another's.
    pub genesis: Hash,
    pub payee: Address,
    pub signer: PublicKey,
}

/// A channel as it was seen last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Watched {
    /// `None` until it was seen.
    pub place: Option<Place>,
    /// Redeemed so far.
    pub paid: Amount,
    /// The last height at which it can surely be claimed, once it is about to end.
    pub deadline: Option<u64>,
    /// About when that is.
    pub deadline_ms: Option<u64>,
    /// The height of its service's chain at which it was first seen to be closed. Main may not
    /// have accepted that yet.
    pub closed: Option<u64>,
    /// It is time to claim, and nobody has yet.
    pub is_due: bool,
    /// What may cost money if nobody does anything.
    pub alarm: Option<String>,
    /// What the claim is worth in all, if it brings less than a claim's least, so that its place
    /// may be another's.
    pub spare: Option<Amount>,
    /// How often it was looked at or claimed in vain since it last went well.
    pub tries: u32,
}

/// All channels that are watched. Those that are looked at just now stand in `channels` alone.
#[derive(Debug, Default)]
pub(crate) struct Register {
    channels: BTreeMap<ChannelId, Watched>,
    /// When each is looked at that is not being looked at; what stands below for another time is
    /// void.
    next: BTreeMap<ChannelId, u64>,
    looks: BTreeSet<(u64, ChannelId)>,
    /// Of these, channels whose look is due: those that are about to end by their deadline, the
    /// others by how long they have waited.
    ending: BTreeSet<(u64, ChannelId)>,
    waiting: BTreeSet<(u64, ChannelId)>,
    /// Looks that were given.
    given: u64,
    /// Channels by whose and where they are.
    counts: BTreeMap<(Address, ChainName), u64>,
    /// Channels that were not seen yet; any of them may be anybody's.
    unseen: u64,
}

impl Register {
    pub(crate) fn get(&self, id: &ChannelId) -> Option<&Watched> {
        self.channels.get(id)
    }

    pub(crate) fn len(&self) -> usize {
        self.channels.len()
    }

    /// Watches a channel that was not seen yet, if it is not watched already.
    pub(crate) fn watch(&mut self, id: ChannelId, look_ms: u64) {
        if self.channels.contains_key(&id) {
            return;
        }
        self.channels.insert(id, Watched::default());
        self.plan(id, look_ms);
        self.unseen += 1;
    }

    /// The same for a channel that was seen before a start.
    pub(crate) fn watch_at(&mut self, id: ChannelId, place: Option<Place>, look_ms: u64) {
        self.watch(id, look_ms);
        if let Some(place) = place {
            self.place(&id, place);
        }
    }

    /// Watches a channel that was just seen, unless its payee has `channels_max` on that chain. Then
    /// gives one whose place it may take, with what that one's claim is worth.
    pub(crate) fn reserve(
        &mut self,
        id: ChannelId,
        place: &Place,
        channels_max: u64,
        look_ms: u64,
    ) -> Result<(), Option<(ChannelId, Amount)>> {
        if self.channels.contains_key(&id) {
            return Ok(());
        }
        let is_beside = |watched: &Watched| {
            let beside = watched.place.as_ref();
            beside.is_some_and(|one| (one.payee, &one.chain) == (place.payee, &place.chain))
        };
        let of_payee = self.counts.get(&(place.payee, place.chain.clone()));
        let taken = of_payee.copied().unwrap_or(0).saturating_add(self.unseen);
        if taken >= channels_max {
            let mut beside = self.channels.iter().filter(|(_, one)| is_beside(one));
            return Err(beside.find_map(|(id, one)| Some((*id, one.spare?))));
        }
        self.watch(id, look_ms);
        self.place(&id, place.clone());
        Ok(())
    }

    /// It is not spare, as it turns out.
    pub(crate) fn is_needed(&mut self, id: &ChannelId) {
        if let Some(watched) = self.channels.get_mut(id) {
            watched.spare = None;
        }
    }

    /// A channel that it is time to look at: the one whose deadline is nearest, and in its turn
    /// the one that has waited longest, so that the end of an open one is seen. Each is given once
    /// until [`Self::looked`] or [`Self::forget`] says what came of it.
    pub(crate) fn take_due(&mut self, now_ms: u64) -> Option<ChannelId> {
        while let Some((look_ms, id)) = self.looks.first().copied()
            && look_ms <= now_ms
        {
            self.looks.remove(&(look_ms, id));
            if self.next.get(&id) != Some(&look_ms) {
                continue;
            }
            match self.channels.get(&id).map(|watched| watched.deadline_ms) {
                Some(Some(deadline_ms)) => self.ending.insert((deadline_ms, id)),
                Some(None) => self.waiting.insert((look_ms, id)),
                None => false,
            };
        }
        let is_turn = self.given.is_multiple_of(TURN);
        let (first, second) = match is_turn {
            true => (&mut self.waiting, &mut self.ending),
            false => (&mut self.ending, &mut self.waiting),
        };
        let mut next = || first.pop_first().or_else(|| second.pop_first());
        while let Some((_, id)) = next() {
            if self.next.remove(&id).is_some() {
                self.given = self.given.wrapping_add(1);
                return Some(id);
            }
        }
        None
    }

    /// When the next look is due, of those that are not due yet.
    pub(crate) fn next_ms(&self) -> Option<u64> {
        self.looks.first().map(|(look_ms, _)| *look_ms)
    }

    /// Notes what was seen, and when to look again.
    pub(crate) fn looked(&mut self, id: &ChannelId, seen: Watched, look_ms: u64) {
        if let Some(place) = seen.place.clone() {
            self.place(id, place);
        }
        if let Some(watched) = self.channels.get_mut(id) {
            let place = watched.place.take();
            *watched = Watched { place, ..seen };
            self.plan(*id, look_ms);
        }
    }

    /// Watches a channel no more.
    pub(crate) fn forget(&mut self, id: &ChannelId) {
        let Some(watched) = self.channels.remove(id) else {
            return;
        };
        self.next.remove(id);
        self.uncount(watched.place);
    }

    /// How many are due, and how many have an alarm.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let (mut due, mut alarms) = (0, 0);
        for watched in self.channels.values() {
            due += u64::from(watched.is_due);
            alarms += u64::from(watched.alarm.is_some());
        }
        (due, alarms)
    }

    fn plan(&mut self, id: ChannelId, look_ms: u64) {
        self.next.insert(id, look_ms);
        self.looks.insert((look_ms, id));
    }

    fn place(&mut self, id: &ChannelId, place: Place) {
        let Some(watched) = self.channels.get_mut(id) else {
            return;
        };
        if watched.place.as_ref() == Some(&place) {
            return;
        }
        let before = watched.place.replace(place.clone());
        self.uncount(before);
        *self.counts.entry((place.payee, place.chain)).or_default() += 1;
    }

    fn uncount(&mut self, place: Option<Place>) {
        let Some(Place { payee, chain, .. }) = place else {
            self.unseen = self.unseen.saturating_sub(1);
            return;
        };
        let key = (payee, chain);
        if let Some(count) = self.counts.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> ChannelId {
        ChannelId([number; 32])
    }

    fn place(payee: u8) -> Place {
        Place {
            chain: ChainName::vpn(),
            genesis: Hash([9; 32]),
            payee: Address([payee; 32]),
            signer: PublicKey([1; 32]),
        }
    }

    #[test]
    fn a_channel_is_looked_at_when_it_is_due_and_by_one_at_a_time() {
        let mut register = Register::default();
        register.watch(id(1), 10);
        register.watch(id(2), 5);
        register.watch(id(2), 1);
        assert_eq!(register.next_ms(), Some(5));
        assert_eq!(register.take_due(4), None);
        assert_eq!(register.take_due(10), Some(id(2)));
        assert_eq!(register.take_due(10), Some(id(1)));
        assert_eq!(register.take_due(u64::MAX), None);
        register.watch(id(1), 0);
        assert_eq!(register.take_due(u64::MAX), None, "it is being looked at");

        let seen = Watched {
            alarm: Some("late".to_owned()),
            ..Watched::default()
        };
        register.looked(&id(1), seen.clone(), 20);
        assert_eq!(register.counts(), (0, 1));
        register.forget(&id(2));
        register.looked(&id(2), seen, 20);
        assert_eq!(register.take_due(20), Some(id(1)));
        assert_eq!(register.take_due(20), None, "the other is forgotten");
        assert_eq!(register.len(), 1);
    }

    #[test]
    fn the_nearest_deadline_comes_first_and_nobody_waits_for_ever() {
        let mut register = Register::default();
        for number in 1..=8 {
            register.watch(id(number), 0);
            assert_eq!(register.take_due(0), Some(id(number)));
            let ending = Watched {
                deadline_ms: (number > 4).then(|| 100 - u64::from(number)),
                ..Watched::default()
            };
            register.looked(&id(number), ending, u64::from(number));
        }
        let given: Vec<ChannelId> = std::iter::from_fn(|| register.take_due(8)).collect();
        let expected = [1, 8, 7, 6, 2, 5, 3, 4];
        assert_eq!(given, expected.map(id));
    }

    #[test]
    fn a_payee_has_so_many_places_on_each_chain_and_those_unseen_count_for_all() {
        let mut register = Register::default();
        register.watch(id(1), 0);
        assert_eq!(register.reserve(id(2), &place(7), 2, 0), Ok(()));
        // It has its place.
        assert_eq!(register.reserve(id(2), &place(7), 2, 0), Ok(()));
        assert_eq!(register.reserve(id(3), &place(7), 2, 0), Err(None));
        assert_eq!(register.reserve(id(4), &place(8), 2, 0), Ok(()));
        // The first turns out to be another's.
        let seen = Watched {
            place: Some(place(8)),
            ..Watched::default()
        };
        register.looked(&id(1), seen, 9);
        assert_eq!(register.reserve(id(3), &place(7), 2, 0), Ok(()));
        assert_eq!(register.reserve(id(5), &place(8), 2, 0), Err(None));
        // One that has gone to main leaves its place to another.
        let on_main = Place {
            chain: ChainName::main(),
            ..place(8)
        };
        let seen = Watched {
            place: Some(on_main),
            ..Watched::default()
        };
        register.looked(&id(1), seen, 9);
        assert_eq!(register.reserve(id(5), &place(8), 2, 0), Ok(()));
        register.forget(&id(5));
        assert_eq!(register.reserve(id(6), &place(8), 2, 0), Ok(()));
    }

    #[test]
    fn a_place_that_brings_nothing_more_is_the_next_ones() {
        let mut register = Register::default();
        let worth = Amount::from_ntop(5);
        let spare = |payee| Watched {
            place: Some(place(payee)),
            spare: Some(worth),
            ..Watched::default()
        };
        assert_eq!(register.reserve(id(1), &place(7), 1, 0), Ok(()));
        assert_eq!(register.reserve(id(2), &place(8), 1, 0), Ok(()));
        register.looked(&id(2), spare(8), 9);
        let reserved = register.reserve(id(3), &place(7), 1, 0);
        assert_eq!(reserved, Err(None), "the spare one is another's");
        register.looked(&id(1), spare(7), 9);
        let reserved = register.reserve(id(3), &place(7), 1, 0);
        assert_eq!(reserved, Err(Some((id(1), worth))));
        register.is_needed(&id(1));
        assert_eq!(register.reserve(id(3), &place(7), 1, 0), Err(None));
        register.forget(&id(1));
        assert_eq!(register.reserve(id(3), &place(7), 1, 0), Ok(()));
        // It comes back, and is looked at once though it was to be looked at before.
        register.watch(id(1), 9);
        let given: Vec<ChannelId> = std::iter::from_fn(|| register.take_due(9)).collect();
        assert_eq!(given.iter().filter(|given| **given == id(1)).count(), 1);
    }
}
