//! What a seed decides: the action of every round, and when it comes.

use std::{fmt, time::Duration};

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use super::Victim;

/// The longest between the traffic's recovery and the next action.
const AFTER_MS_MAX: u64 = 1_500;
const PAUSE_MS_MIN: u64 = 100;
const PAUSE_MS_MAX: u64 = 3_000;
const FULL_MS_MIN: u64 = 500;
const FULL_MS_MAX: u64 = 3_000;

/// Draws from a seed.
#[derive(Debug)]
pub(super) struct Chance(ChaCha8Rng);

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0.next_u64() % bound
    }

    fn millis(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.below(most - least + 1))
    }

    fn victim(&mut self) -> Victim {
        Victim::ALL[self.below(Victim::ALL.len() as u64) as usize]
    }
}

/// What is done in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// kill -9.
    Kill(Victim),
    /// Of two at once.
    KillTwo([Victim; 2]),
    /// SIGSTOP, and SIGCONT after a while.
    Pause(Victim, Duration),
    /// No room on metering's disk for a while.
    FullDisk(Duration),
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(victim) => write!(f, "kill {}", victim.name()),
            Self::KillTwo([one, other]) => write!(f, "kill {} and {}", one.name(), other.name()),
            Self::Pause(victim, time) => {
                write!(f, "pause {} for {} ms", victim.name(), time.as_millis())
            }
            Self::FullDisk(time) => write!(f, "full disk for {} ms", time.as_millis()),
        }
    }
}

/// One round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// How long the traffic flows before.
    pub(super) after: Duration,
    pub(super) action: Action,
}

impl Plan {
    pub(super) fn draw(chance: &mut Chance) -> Self {
        let after = chance.millis(0, AFTER_MS_MAX);
        let action = match chance.below(10) {
            0..=3 => Action::Kill(chance.victim()),
            // The one pair that can lose something comes more often than others.
            4 => Action::KillTwo([Victim::Dataplane, Victim::Metering]),
            5 => {
                let one = chance.below(Victim::ALL.len() as u64);
                let other = one + 1 + chance.below(Victim::ALL.len() as u64 - 1);
                let victim = |place: u64| Victim::ALL[place as usize % Victim::ALL.len()];
                Action::KillTwo([victim(one), victim(other)])
            }
            6..=7 => Action::Pause(chance.victim(), chance.millis(PAUSE_MS_MIN, PAUSE_MS_MAX)),
            _ => Action::FullDisk(chance.millis(FULL_MS_MIN, FULL_MS_MAX)),
        };
        Self { after, action }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plans(seed: u64) -> Vec<Plan> {
        let mut chance = Chance::new(seed);
        (0..100).map(|_| Plan::draw(&mut chance)).collect()
    }

    #[test]
    fn a_seed_decides_every_round_and_nothing_is_left_out() {
        assert_eq!(plans(7), plans(7));
        assert_ne!(plans(7), plans(8));
        let plans = plans(7);
        let has = |what: &dyn Fn(Action) -> bool| plans.iter().any(|plan| what(plan.action));
        for victim in Victim::ALL {
            assert!(has(&|action| action == Action::Kill(victim)));
        }
        assert!(has(&|action| matches!(action, Action::Pause(..))));
        assert!(has(&|action| matches!(action, Action::FullDisk(_))));
        let pairs = plans.iter().filter_map(|plan| match plan.action {
            Action::KillTwo(pair) => Some(pair),
            _ => None,
        });
        for [one, other] in pairs {
            assert_ne!(one, other);
        }
    }
}
