//! The highest rate at which next to nothing is lost, looked for by doubling and halving.
//!
//! A rate that was kept is a lower bound. A rate is an upper bound only if it was lost more than
//! once in a row, because whatever else the machine does can spoil one look.

/// Two bounds this close are one rate.
const CLOSE: f64 = 1.04;
/// How often a rate is lost before it is believed.
const LOST_TIMES: u32 = 2;
/// More looks than this tell nothing more.
const LOOKS_MAX: u32 = 24;
/// Below this, packets a second, nobody would call it a gateway.
const RATE_MIN: f64 = 500.0;

/// What a look at a rate has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It was sent, and nearly all of it arrived.
    Kept,
    /// Too little arrived.
    Lost,
    /// The generator cannot send so fast; what it did send arrived.
    NotOffered,
}

/// The search. Ask [`Search::rate`], try it, [`Search::tell`], until there is no rate to try.
#[derive(Clone, Debug)]
pub struct Search {
    next: f64,
    kept: Option<f64>,
    lost: Option<f64>,
    lost_times: u32,
    looks: u32,
    offered_all: bool,
}

impl Search {
    /// Starts at a rate, in packets a second.
    pub fn from(rate: f64) -> Search {
        Search {
            next: rate.max(RATE_MIN),
            kept: None,
            lost: None,
            lost_times: 0,
            looks: 0,
            offered_all: true,
        }
    }

    /// What to try next; `None` once it is known or was tried too often.
    pub fn rate(&self) -> Option<f64> {
        let close = match (self.kept, self.lost) {
            (Some(kept), Some(lost)) => lost <= kept * CLOSE,
            _ => false,
        };
        let over = close || self.looks >= LOOKS_MAX || self.next < RATE_MIN || !self.offered_all;
        (!over).then_some(self.next)
    }

    /// What came of it.
    pub fn tell(&mut self, seen: Seen) {
        self.looks += 1;
        match seen {
            Seen::Kept => {
                self.kept = Some(self.next);
                self.lost_times = 0;
            }
            Seen::NotOffered => {
                self.kept = Some(self.next);
                self.offered_all = false;
            }
            Seen::Lost => {
                self.lost_times += 1;
                if self.lost_times < LOST_TIMES {
                    return;
                }
                self.lost = Some(self.next);
                self.lost_times = 0;
            }
        }
        self.next = match (self.kept, self.lost) {
            (Some(kept), Some(lost)) => (kept * lost).sqrt(),
            (Some(kept), None) => kept * 2.0,
            (None, _) => self.next / 2.0,
        };
    }

    /// The highest rate that was kept.
    pub fn best(&self) -> Option<f64> {
        self.kept
    }

    /// True if the generator was at its end before the gateway was.
    pub fn is_generators_limit(&self) -> bool {
        !self.offered_all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches a gateway that keeps `capacity`, with a generator that sends `generator` at most.
    fn found(from: f64, capacity: f64, generator: f64, spoiled: &[u32]) -> (Search, u32) {
        let mut search = Search::from(from);
        let mut looks = 0;
        while let Some(rate) = search.rate() {
            looks += 1;
            let seen = if rate.min(generator) > capacity || spoiled.contains(&looks) {
                Seen::Lost
            } else if rate > generator {
                Seen::NotOffered
            } else {
                Seen::Kept
            };
            search.tell(seen);
        }
        (search, looks)
    }

    #[test]
    fn the_rate_is_found_from_below_and_from_above() {
        for (from, capacity, spoiled) in [
            (64e3, 203e3, &[][..]),
            (64e3, 64e3, &[]),
            (64e3, 9e3, &[]),
            (64e3, 1_000e3, &[]),
            // A look that something else spoiled changes nothing.
            (64e3, 203e3, &[1]),
            (64e3, 203e3, &[2, 6]),
        ] {
            let (search, looks) = found(from, capacity, 1e9, spoiled);
            let best = search.best().unwrap();
            assert!(
                best <= capacity && best * CLOSE >= capacity,
                "{best} of {capacity}, spoiled {spoiled:?}"
            );
            assert!(looks <= LOOKS_MAX && !search.is_generators_limit());
        }
    }

    #[test]
    fn a_generator_at_its_end_ends_it() {
        let (search, _) = found(64e3, 1e9, 300e3, &[]);
        assert!(search.is_generators_limit());
        assert_eq!(search.best(), Some(512e3));
    }

    #[test]
    fn a_gateway_that_passes_nothing_ends_it() {
        let (search, looks) = found(64e3, 0.0, 1e9, &[]);
        assert_eq!(search.best(), None);
        assert!(looks <= LOOKS_MAX);
    }
}
