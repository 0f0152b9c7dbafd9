//! Who gets the worker's time when there is not enough for all.
//!
//! What arrives faster than it can be sealed or opened is lost in queues before the worker, everybody's
//! alike: who sends little loses the same part as who sends without end. To drop a packet costs a
//! tenth of what it costs to carry it. So while the worker does not keep up, whoever takes more than
//! an equal share is dropped beyond a *level*, the queues run empty, and those below it lose nothing.
//!
//! Everybody has a bucket that holds several turns' worth of the level, so that a train of packets from
//! who sends little on the whole passes. Every few turns the level is looked at: while the queues were
//! hardly ever found empty it falls, otherwise it rises, slowly, until it is nobody's
//! any more. It never falls below half of what the worker has been seen to carry, shared out alike:
//! when even dropping takes more time than there is, nobody is served better by carrying less. Where
//! one session has the worker for itself there is no level.
//!
//! A message counts for its session only if it comes from where the peer was heard last. What
//! comes from elsewhere counts for a share that all such messages have together, so that nobody takes
//! another's by writing its receiver index on his own. Whatever else arrives, nobody's or refused
//! before it takes anybody's time (what no client asked for), cannot be held back: where there is more
//! of it than of packets that are carried there is no level, since it would shut sessions out for what
//! they do not do.
//!
//! What is another worker's session's is counted before it is passed on, and held to that worker's
//! level as well as to the own one, so that one session's packets do not fill the other's inbox.

use crate::session::SessionIndex;

/// Length of a turn: a part of the time in which a queue of a few thousand packets fills.
const TURN_NS: u64 = 500_000;
/// Turns after which the level is looked at.
const TURNS_PER_LOOK: u32 = 8;
/// What a bucket holds, in turns.
const BUCKET_TURNS: u64 = 8;
/// How long a session is somebody to be fair to after it was heard.
const COMPANY_NS: u64 = 1_000_000_000;
/// What a packet costs beside its bytes, in bytes.
const PACKET_COST: u64 = 512;
/// Looks at the queues that leave something there, for one that does not, where the worker does not
/// keep up.
const FULL_LOOKS: u32 = 8;
/// Parts by which the level falls and rises.
const FALL: u64 = 8;
const RISE: u64 = 64;
/// Part of the capacity that a turn with a level forgets: half of it in some seconds.
const FORGET: u64 = 8_192;
/// Shares of other workers' sessions.
const PASSED_SHARES: usize = 4_096;
/// What passing a packet on costs, as a part of carrying it.
const PASSED_PART: u64 = 4;
/// Part of what was carried that the level begins with.
const BEGIN: (u64, u64) = (15, 16);

/// What one session has brought.
#[derive(Clone, Copy, Debug, Default)]
pub struct Share {
    turn: u32,
    /// In this turn.
    offered: u64,
    /// What was carried and is not forgotten yet.
    bucket: u64,
}

/// Shares out one worker's time.
#[derive(Debug)]
pub struct Fairness {
    turn: u32,
    began_ns: u64,
    active: Vec<Active>,
    /// Of other workers' sessions; several may have the same one. None where there is one worker.
    passed: Box<[Share]>,
    /// Of whoever cannot be told.
    others: Share,
    loads: Vec<u64>,
    /// Carried in this turn.
    served: u64,
    /// Since the level was looked at last: looks at the queues that left something, and those that
    /// did not, and whether the level kept anything out.
    full_looks: u32,
    empty_looks: u32,
    limited: bool,
    /// Since then: packets that were carried, and those that are nobody's.
    carried: u32,
    strays: u32,
    /// Packets that were somebody's, whatever became of them.
    counted: u64,
    /// What each may have carried in a turn.
    level: Option<u64>,
    /// The most that was carried in a turn, lately.
    capacity: u64,
    /// Until when there are several to be fair to.
    company_until_ns: u64,
}

impl Default for Fairness {
    fn default() -> Self {
        Self {
            // No share is of this turn yet.
            turn: 1,
            began_ns: 0,
            active: Vec::new(),
            passed: Box::default(),
            others: Share::default(),
            loads: Vec::new(),
            served: 0,
            full_looks: 0,
            empty_looks: 0,
            limited: false,
            carried: 0,
            strays: 0,
            counted: 0,
            level: None,
            capacity: 0,
            company_until_ns: 0,
        }
    }
}

impl Share {
    /// Forgets what earlier turns gave time for.
    fn catch_up(&mut self, turn: u32, level: Option<u64>) {
        let turns = u64::from(turn.wrapping_sub(self.turn));
        let given = level.map_or(u64::MAX, |level| level.saturating_mul(turns));
        *self = Self {
            turn,
            offered: 0,
            bucket: self.bucket.saturating_sub(given),
        };
    }
}

/// Whose share something counts for.
pub enum Counted<'a> {
    /// The session's at this place.
    Session(u32, &'a mut Share),
    /// Nobody's in particular.
    Unproven,
    /// That of another worker's session, which is held to this level there.
    Passed(SessionIndex, Option<u64>),
}

/// Who brought something in this turn.
#[derive(Clone, Copy, Debug)]
enum Active {
    /// A session, by its place.
    Own(u32),
    /// Another worker's sessions, by their place among the shares.
    Passed(u32),
}

impl Fairness {
    /// With room for so many sessions. If there are other workers, what is passed to them is counted.
    #[must_use]
    pub fn for_sessions(sessions: usize, others: bool) -> Self {
        let shares = if others { PASSED_SHARES } else { 0 };
        let mut fairness = Self {
            passed: vec![Share::default(); shares].into(),
            ..Self::default()
        };
        fairness.reserve(sessions);
        fairness
    }

    /// Makes room for so many sessions, so that nothing is allocated later.
    pub fn reserve(&mut self, sessions: usize) {
        let most = sessions + self.passed.len() + 1;
        let missing = |has: usize| most.saturating_sub(has);
        self.loads.reserve(missing(self.loads.len()));
        self.active.reserve(missing(self.active.len()));
    }

    /// True if a packet may be worked on.
    pub fn admits(&mut self, counted: Counted<'_>, bytes: usize) -> bool {
        let (turn, level) = (self.turn, self.level);
        self.counted += 1;
        let (share, level, part) = match counted {
            Counted::Session(place, share) => {
                if share.turn != turn {
                    share.catch_up(turn, level);
                    self.active.push(Active::Own(place));
                }
                (share, level, 1)
            }
            Counted::Passed(index, theirs) => {
                let place = index.0 as usize % self.passed.len().max(1);
                let level = [level, theirs].into_iter().flatten().min();
                let Some(share) = self.passed.get_mut(place) else {
                    return true;
                };
                if share.turn != turn {
                    share.catch_up(turn, level);
                    self.active.push(Active::Passed(place as u32));
                }
                (share, level, PASSED_PART)
            }
            Counted::Unproven => {
                if self.others.turn != turn {
                    self.others.catch_up(turn, level);
                }
                (&mut self.others, level, 1)
            }
        };
        let cost = bytes as u64 + PACKET_COST;
        share.offered += cost / part;
        let full = |level: u64| share.bucket + cost > level.saturating_mul(BUCKET_TURNS);
        // One packet always passes, however many there are that share.
        if share.bucket > 0 && level.is_some_and(full) {
            self.limited = true;
            return false;
        }
        share.bucket += cost;
        self.served += cost / part;
        self.carried += 1;
        true
    }

    /// True if not even the first of a train of packets would be admitted: then it need not be cut.
    pub fn sheds(&mut self, place: u32, share: &mut Share, bytes: usize, packets: u64) -> bool {
        if share.turn != self.turn {
            share.catch_up(self.turn, self.level);
            self.active.push(Active::Own(place));
        }
        let cost = bytes as u64 + PACKET_COST;
        let full = |level: u64| share.bucket + cost > level.saturating_mul(BUCKET_TURNS);
        let sheds = share.bucket > 0 && self.level.is_some_and(full);
        if sheds {
            share.offered += packets * cost;
            self.limited = true;
        }
        sheds
    }

    /// A packet that was admitted took little time after all.
    pub const fn take_back(&mut self, bytes: usize) {
        self.served = self.served.saturating_sub(bytes as u64 + PACKET_COST);
    }

    /// Packets that were counted for somebody since the start.
    #[must_use]
    pub const fn counted(&self) -> u64 {
        self.counted
    }

    /// A packet came that counts for no session.
    pub const fn note_stray(&mut self) {
        self.strays += 1;
    }

    #[cfg(test)]
    pub(crate) const fn strays(&self) -> u32 {
        self.strays
    }

    /// What each may have carried in a turn, if that is limited.
    #[must_use]
    pub const fn level(&self) -> Option<u64> {
        self.level
    }

    /// Says whether a look at the queues left something there.
    pub fn looked(&mut self, left_something: bool) {
        if left_something {
            self.full_looks += 1;
        } else {
            self.empty_looks += 1;
        }
    }

    /// True if a turn is over by now.
    #[must_use]
    pub const fn is_over(&self, now_ns: u64) -> bool {
        now_ns >= self.began_ns + TURN_NS
    }

    /// Begins another turn. `share_of` tells a place's share.
    pub fn end_turn<'a>(&mut self, now_ns: u64, share_of: impl Fn(u32) -> Option<&'a Share>) {
        let others = self.others.turn == self.turn && self.others.offered > 0;
        if self.active.len() + usize::from(others) > 1 {
            self.company_until_ns = now_ns + COMPANY_NS;
        }
        self.capacity = match self.level {
            None => self.served.max(self.capacity - self.capacity / RISE),
            // Slowly: what the level keeps out is not what cannot be carried.
            Some(_) => self.served.max(self.capacity - self.capacity / FORGET),
        };
        if self.turn.is_multiple_of(TURNS_PER_LOOK) {
            let keeps_up = self.full_looks <= FULL_LOOKS * self.empty_looks;
            let for_nothing = self.strays > self.carried;
            self.level = if now_ns > self.company_until_ns || for_nothing {
                None
            } else if keeps_up {
                let level = self.level.filter(|_| self.limited);
                level.map(|level| level + level.div_ceil(RISE))
            } else {
                self.loads.clear();
                let shares = self.active.iter().filter_map(|active| match active {
                    Active::Own(place) => share_of(*place),
                    Active::Passed(place) => self.passed.get(*place as usize),
                });
                self.loads.extend(shares.map(|share| share.offered));
                if others {
                    self.loads.push(self.others.offered);
                }
                self.loads.sort_unstable();
                self.lower()
            };
            self.full_looks = 0;
            self.empty_looks = 0;
            self.limited = false;
            self.carried = 0;
            self.strays = 0;
        }
        self.turn = self.turn.wrapping_add(1);
        self.began_ns = now_ns;
        self.active.clear();
        self.served = 0;
    }

    /// A lower level, for what was brought in this turn.
    fn lower(&self) -> Option<u64> {
        match self.level {
            // Not what this turn came to: it may have been cut short.
            None => level_of(self.capacity * BEGIN.0 / BEGIN.1, &self.loads),
            Some(level) => {
                // Where all that was brought fits into half, it is not what takes the time.
                let least = level_of(self.capacity / 2, &self.loads)?;
                Some((level - level / FALL).max(least))
            }
        }
    }
}

/// The level at which loads, sorted, come to `capacity` when what is above it is cut off. `None` if
/// all of them fit.
fn level_of(capacity: u64, loads: &[u64]) -> Option<u64> {
    let mut left = capacity;
    for (at, load) in loads.iter().enumerate() {
        let level = left / (loads.len() - at) as u64;
        if *load > level {
            return Some(level);
        }
        left -= load;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// What carrying and dropping a packet of 1,400 bytes takes.
    const CARRY_NS: u64 = 1_000;
    const DROP_NS: u64 = 100;
    const BYTES: usize = 1_400;
    const QUEUE: usize = 2_048;
    const BURST: usize = 64;
    const MEASURED_MS: u64 = 500;

    /// A worker behind a queue, and peers that send at even intervals, in packets a millisecond.
    struct World {
        fairness: Fairness,
        shares: Vec<Share>,
        now_ns: u64,
        queue: VecDeque<usize>,
        /// When each peer's next packet arrives, and how far they are apart.
        next: Vec<(u64, u64)>,
        /// The first of them that are nobody's, and what it takes to see that.
        junk: Option<(usize, u64)>,
        sent: Vec<u64>,
        carried: Vec<u64>,
        is_fair: bool,
    }

    impl World {
        fn new(packets_per_ms: &[f64], is_fair: bool) -> Self {
            let apart = |rate: &f64| (1_000_000.0 / rate) as u64;
            let peers = packets_per_ms.len();
            let fairness = Fairness::for_sessions(peers, false);
            Self {
                fairness,
                shares: vec![Share::default(); peers],
                now_ns: 0,
                queue: VecDeque::new(),
                next: packets_per_ms.iter().map(|rate| (0, apart(rate))).collect(),
                junk: None,
                sent: vec![0; peers],
                carried: vec![0; peers],
                is_fair,
            }
        }

        fn arrive(&mut self) {
            loop {
                let earliest = (0..self.next.len()).min_by_key(|peer| self.next[*peer].0);
                let Some(peer) = earliest.filter(|peer| self.next[*peer].0 <= self.now_ns) else {
                    return;
                };
                self.next[peer].0 += self.next[peer].1;
                self.sent[peer] += 1;
                if self.queue.len() < QUEUE {
                    self.queue.push_back(peer);
                }
            }
        }

        fn run(&mut self, milliseconds: u64) {
            let end_ns = self.now_ns + milliseconds * 1_000_000;
            while self.now_ns < end_ns {
                self.arrive();
                if self.fairness.is_over(self.now_ns) {
                    let shares = &self.shares;
                    let share = |place: u32| shares.get(place as usize);
                    self.fairness.end_turn(self.now_ns, share);
                }
                let burst = self.queue.len().min(BURST);
                for _ in 0..burst {
                    let peer = self.queue.pop_front().unwrap();
                    if let Some((first, takes_ns)) = self.junk
                        && peer >= first
                    {
                        self.now_ns += takes_ns;
                        self.fairness.note_stray();
                        continue;
                    }
                    let counted = Counted::Session(peer as u32, &mut self.shares[peer]);
                    if self.fairness.admits(counted, BYTES) || !self.is_fair {
                        self.now_ns += CARRY_NS;
                        self.carried[peer] += 1;
                    } else {
                        self.now_ns += DROP_NS;
                    }
                }
                self.fairness.looked(burst == BURST);
                self.now_ns += 200;
            }
        }

        /// What came of the packets from now on, after a while to settle.
        fn shares(mut self) -> (Vec<f64>, f64) {
            self.run(200);
            let (sent, carried) = (self.sent.clone(), self.carried.clone());
            self.run(MEASURED_MS);
            let part = |peer: usize| {
                let sent = self.sent[peer] - sent[peer];
                (self.carried[peer] - carried[peer]) as f64 / sent as f64
            };
            let total: u64 = self.carried.iter().sum::<u64>() - carried.iter().sum::<u64>();
            let of_capacity = (total * CARRY_NS) as f64 / (MEASURED_MS * 1_000_000) as f64;
            ((0..self.sent.len()).map(part).collect(), of_capacity)
        }
    }

    #[test]
    fn who_sends_little_loses_nothing_beside_one_without_measure() {
        for flood in [1_500.0, 2_000.0, 4_000.0] {
            let rates = [flood, 10.0, 0.1, 50.0];
            let (unfair, _) = World::new(&rates, false).shares();
            assert!(
                unfair[1] < 0.75,
                "{flood}: it is a test of nothing: {unfair:?}"
            );
            let (fair, used) = World::new(&rates, true).shares();
            for peer in 1..rates.len() {
                assert!(fair[peer] > 0.97, "{flood}: {fair:?}");
            }
            // What is dropped costs a tenth of what could have been carried in that time.
            let possible = (1_000.0 - flood / 10.0) / 900.0;
            assert!(used > 0.85 * possible, "{flood}: {used} of {possible}");
        }
    }

    #[test]
    fn two_without_measure_get_equal_parts() {
        let (fair, _) = World::new(&[3_000.0, 1_500.0, 20.0], true).shares();
        let carried = (fair[0] * 3_000.0, fair[1] * 1_500.0);
        let ratio = carried.0 / carried.1;
        assert!((0.9..1.1).contains(&ratio), "{carried:?}");
        assert!(fair[2] > 0.97, "{fair:?}");
    }

    #[test]
    fn nobody_is_held_back_where_there_is_time_for_all() {
        let (fair, _) = World::new(&[700.0, 100.0, 100.0, 0.5], true).shares();
        assert!(fair.iter().all(|part| *part > 0.999), "{fair:?}");
    }

    #[test]
    fn who_is_alone_has_all_of_it() {
        let (_, unfair) = World::new(&[3_000.0], false).shares();
        let (_, fair) = World::new(&[3_000.0], true).shares();
        assert!((fair - unfair).abs() < 0.001, "{fair} {unfair}");
    }

    /// When even dropping takes all the time, half of what could be carried still is.
    #[test]
    fn a_flood_beyond_all_measure_does_not_end_all_service() {
        let (_, used) = World::new(&[30_000.0, 10.0], true).shares();
        assert!(used > 0.4, "{used}");
    }

    /// What is nobody's cannot be held back, and nobody is to be shut out for it.
    #[test]
    fn nobody_is_shut_out_for_what_is_nobody_s() {
        let run = |is_fair| {
            let mut world = World::new(&[300.0, 100.0, 5.0, 4_000.0], is_fair);
            world.junk = Some((3, 700));
            world.shares()
        };
        let ((unfair, _), (fair, _)) = (run(false), run(true));
        for peer in 0..3 {
            assert!(fair[peer] > 0.4 * unfair[peer], "{fair:?} {unfair:?}");
        }
        assert!(fair[2] > 0.9 * unfair[2], "{fair:?} {unfair:?}");
    }

    #[test]
    fn many_that_send_alike_share_alike() {
        let (fair, used) = World::new(&[20.0; 100], true).shares();
        let (least, most) = fair.iter().fold((1f64, 0f64), |(least, most), part| {
            (least.min(*part), most.max(*part))
        });
        assert!(most - least < 0.1, "{least} to {most}");
        assert!(used > 0.8, "{used}");
    }

    #[test]
    fn levels_cut_off_the_highest() {
        assert_eq!(level_of(10, &[1, 2, 3]), None);
        assert_eq!(level_of(10, &[1, 2, 30]), Some(7));
        assert_eq!(level_of(10, &[1, 20, 30]), Some(4));
        assert_eq!(level_of(0, &[1]), Some(0));
        assert_eq!(level_of(5, &[]), None);
    }

    #[test]
    fn who_cannot_be_told_shares_with_others_like_him() {
        let mut fairness = Fairness::for_sessions(1, false);
        let mut share = Share::default();
        // A bucket for three.
        fairness.level = Some((3 * (PACKET_COST + 100)).div_ceil(BUCKET_TURNS));
        let unproven = |fairness: &mut Fairness| fairness.admits(Counted::Unproven, 100);
        let passed = (0..10).filter(|_| unproven(&mut fairness)).count();
        assert_eq!(passed, 3);
        assert!(fairness.admits(Counted::Session(0, &mut share), 100));
    }

    #[test]
    fn what_is_passed_on_is_held_to_both_levels() {
        let passed = |own: Option<u64>, theirs: Option<u64>| {
            let mut fairness = Fairness::for_sessions(0, true);
            fairness.level = own;
            let mut pass = |index| fairness.admits(Counted::Passed(index, theirs), 100);
            let passed = (0..100).filter(|_| pass(SessionIndex(1 << 20 | 3))).count();
            assert!(pass(SessionIndex(1 << 20 | 4)), "another session's");
            passed
        };
        let level = |packets: u64| Some((packets * (PACKET_COST + 100)).div_ceil(BUCKET_TURNS));
        assert_eq!(passed(None, None), 100);
        assert_eq!(passed(level(9), None), 9);
        assert_eq!(passed(None, level(5)), 5);
        assert_eq!(passed(level(9), level(5)), 5);
    }
}
