//! How a table is shared out: half of it equally, so that every subscriber has a sure part, and
//! the rest to whoever comes first. However greedy others are, and however many of them, nobody
//! loses the sure part.

/// Places of one table.
#[derive(Debug)]
pub(crate) struct Share {
    /// What every subscriber may have whatever the others have.
    sure: u32,
    /// Places beyond everybody's sure part, and how many of them are taken.
    common_max: u32,
    common: u32,
}

/// The part of a table that each of so many subscribers is sure of.
pub(crate) const fn sure(entries_max: u32, subscribers_max: u32) -> u32 {
    match (entries_max / 2).checked_div(subscribers_max) {
        Some(sure) => sure,
        None => 0,
    }
}

impl Share {
    pub(crate) fn new(entries_max: u32, subscribers_max: u32) -> Self {
        let sure = sure(entries_max, subscribers_max);
        Self {
            sure,
            common_max: entries_max - sure * subscribers_max,
            common: 0,
        }
    }

    /// Whether one who has `held` places may have another.
    pub(crate) fn has_room(&self, held: u32) -> bool {
        held < self.sure || self.common < self.common_max
    }

    /// One who had `held` places has another.
    pub(crate) fn begun(&mut self, held: u32) {
        if held >= self.sure {
            self.common += 1;
        }
    }

    /// One who has `held` places left has given one back.
    pub(crate) fn ended(&mut self, held: u32) {
        if held >= self.sure {
            self.common -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever others took and gave back, everybody gets the sure part, and the table never
        /// has more than fits.
        #[test]
        fn the_sure_part_is_always_there(
            entries_max in 0..60_u32,
            subscribers in 1..8_usize,
            steps in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..200),
        ) {
            let mut share = Share::new(entries_max, subscribers as u32);
            let mut held = vec![0_u32; subscribers];
            for (who, begins) in steps {
                let held = &mut held[who.index(subscribers)];
                if begins && share.has_room(*held) {
                    share.begun(*held);
                    *held += 1;
                } else if !begins && *held > 0 {
                    *held -= 1;
                    share.ended(*held);
                }
            }
            let sure = sure(entries_max, subscribers as u32);
            for held in &mut held {
                while *held < sure {
                    prop_assert!(share.has_room(*held));
                    share.begun(*held);
                    *held += 1;
                }
            }
            prop_assert!(held.iter().sum::<u32>() <= entries_max);
            // And nothing is left over when all is taken.
            while share.has_room(held[0]) {
                share.begun(held[0]);
                held[0] += 1;
            }
            prop_assert_eq!(held.iter().sum::<u32>(), entries_max);
        }
    }
}
