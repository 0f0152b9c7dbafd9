//! What is to be done about a held claim, out of what is known of its channel. It knows no chain,
//! clock or disk.
//!
//! Of the window in which a channel that is about to end can still be claimed, a tower leaves
//! so many quarters to others ([`Patience`]) and acts in the rest.
//!
//! | channel | when | unpaid | what |
//! |---|---|---|---|
//! | closed | | | [`Over`](Decision::Over): nothing will be paid any more |
//! | open, closing | | nothing | [`Paid`](Decision::Paid) |
//! | open, closing | within the patience, not due | something | [`Wait`](Decision::Wait) |
//! | open, closing | within the patience, due | a claim's least, or more | [`Claim`](Decision::Claim) |
//! | open, closing | within the patience, due | less | [`Small`](Decision::Small) |
//! | closing | after the patience | something | [`InTime`](Decision::InTime) |
//! | closing | in the last quarter, or past the deadline | something | [`LastChance`](Decision::LastChance) |
//!
//! Past the deadline a channel can still be claimed until somebody finalises it.

use topnet_account::Amount;
use topnet_ledger::{
    Genesis,
    genesis::Role,
    state::{Channel, ChannelState},
};

/// How many parts of a window patience is counted in.
const PARTS: u64 = 4;

/// For how many quarters of the window a tower leaves a channel that is about to end to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience(u64);

impl Patience {
    /// Settlement's own tower: the first quarter is control's, whose close has the last claim.
    pub const OWN: Self = Self(1);
    /// A tower elsewhere: settlement's tower comes first, so that fees are not paid twice.
    pub const ELSEWHERE: Self = Self(2);
}

// Everybody acts before the last quarter.
const _: () = assert!(Patience::OWN.0 < Patience::ELSEWHERE.0 && Patience::ELSEWHERE.0 < PARTS);

/// What is known of a channel that a claim is held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Situation {
    /// Where it is in its life.
    pub state: ChannelState,
    /// Height of its chain.
    pub height: u64,
    /// For how many blocks it can be claimed once it is about to end.
    pub window: u64,
    /// What the claim would still pay.
    pub unpaid: Amount,
    /// The least that a claim pays there.
    pub payout_min: Amount,
    /// The claim has been held for long enough, or is large enough.
    pub is_due: bool,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing, for good: the channel is closed.
    Over,
    /// Nothing, until there is more to bring.
    Paid,
    /// Nothing yet.
    Wait,
    /// It would be time, and the chain pays nothing for so little.
    Small,
    /// Claim; the channel goes on.
    Claim,
    /// The channel is about to end, and nobody has closed it for the payee: claim and tell.
    InTime {
        /// There is enough for a claim.
        pays: bool,
    },
    /// The same, and little time is left. Whoever has the payee's key closes, which pays what is
    /// too little for a claim.
    LastChance {
        /// There is enough for a claim.
        pays: bool,
    },
}

impl Situation {
    /// A channel on the chain of `genesis` at `height`, with a claim that is worth `redeemable`
    /// in all.
    pub fn of(
        genesis: &Genesis,
        channel: &Channel,
        height: u64,
        redeemable: Amount,
        is_due: bool,
    ) -> Self {
        Self {
            state: channel.state,
            height,
            window: match genesis.role {
                Role::Service { .. } => channel.close_window.into(),
                // It was recovered from a dead service.
                Role::Main { .. } => genesis.rules.recovery_window.into(),
            },
            unpaid: redeemable
                .checked_sub(channel.paid)
                .unwrap_or(Amount::ZERO)
                .min(channel.remaining()),
            payout_min: genesis.rules.claim_payout_min,
            is_due,
        }
    }
}

/// See the table above.
pub fn decide(situation: &Situation, patience: Patience) -> Decision {
    let Situation {
        state,
        height,
        window,
        unpaid,
        payout_min,
        is_due,
    } = *situation;
    if state == ChannelState::Closed {
        return Decision::Over;
    }
    if unpaid == Amount::ZERO {
        return Decision::Paid;
    }
    let pays = unpaid >= payout_min;
    if let ChannelState::Closing { deadline } = state {
        let part = window / PARTS;
        let begun = deadline.saturating_sub(window);
        if height.saturating_add(part) >= deadline {
            return Decision::LastChance { pays };
        }
        if height >= begun.saturating_add(part.saturating_mul(patience.0)) {
            return Decision::InTime { pays };
        }
    }
    match (is_due, pays) {
        (false, _) => Decision::Wait,
        (true, true) => Decision::Claim,
        (true, false) => Decision::Small,
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Decision::{Claim, InTime, LastChance, Over, Paid, Small, Wait},
        *,
    };

    const OPEN: ChannelState = ChannelState::Open;
    /// Closed by its payer at 1,000, to be claimed until 1,040.
    const CLOSING: ChannelState = ChannelState::Closing { deadline: 1_040 };
    const CLOSED: ChannelState = ChannelState::Closed;
    const WINDOW: u64 = 40;
    const MIN: u64 = 50;

    fn check(
        (state, height, unpaid, is_due): (ChannelState, u64, u64, bool),
        own: Decision,
        elsewhere: Decision,
    ) {
        let situation = Situation {
            state,
            height,
            window: WINDOW,
            unpaid: Amount::from_ntop(unpaid),
            payout_min: Amount::from_ntop(MIN),
            is_due,
        };
        assert_eq!(decide(&situation, Patience::OWN), own, "{situation:?}");
        assert_eq!(
            decide(&situation, Patience::ELSEWHERE),
            elsewhere,
            "{situation:?}"
        );
    }

    #[test]
    fn every_line_of_the_table_and_each_side_of_each_boundary() {
        let pays = true;
        let little = false;
        let (in_time, last) = (InTime { pays }, LastChance { pays });
        for (situation, own, elsewhere) in [
            // Nothing that is closed or paid is looked at any more.
            ((CLOSED, 1_041, 90, true), Over, Over),
            ((CLOSED, 1_041, 0, true), Over, Over),
            ((OPEN, 900, 0, true), Paid, Paid),
            ((CLOSING, 1_039, 0, true), Paid, Paid),
            // An open channel waits until it is due, and then for enough.
            ((OPEN, 900, 90, false), Wait, Wait),
            ((OPEN, 900, MIN - 1, true), Small, Small),
            ((OPEN, 900, MIN, true), Claim, Claim),
            // A channel that is about to end does the same within the patience.
            ((CLOSING, 1_000, 90, false), Wait, Wait),
            ((CLOSING, 1_009, 90, false), Wait, Wait),
            ((CLOSING, 1_009, MIN, true), Claim, Claim),
            ((CLOSING, 1_009, MIN - 1, true), Small, Small),
            // Settlement's own tower acts after a quarter, one elsewhere after a half, due or not.
            ((CLOSING, 1_010, 90, false), in_time, Wait),
            ((CLOSING, 1_010, 90, true), in_time, Claim),
            ((CLOSING, 1_019, 90, false), in_time, Wait),
            ((CLOSING, 1_020, 90, false), in_time, in_time),
            ((CLOSING, 1_029, 90, false), in_time, in_time),
            (
                (CLOSING, 1_020, MIN - 1, false),
                InTime { pays: little },
                InTime { pays: little },
            ),
            // The last quarter, the deadline and beyond.
            ((CLOSING, 1_030, 90, false), last, last),
            ((CLOSING, 1_040, MIN, false), last, last),
            ((CLOSING, 1_041, MIN, true), last, last),
            ((CLOSING, u64::MAX, 90, false), last, last),
            (
                (CLOSING, 1_030, 1, true),
                LastChance { pays: little },
                LastChance { pays: little },
            ),
        ] {
            check(situation, own, elsewhere);
        }
    }

    /// A window without quarters, or one that began before the chain, is no reason to wait.
    #[test]
    fn windows_of_any_length_are_acted_in() {
        for (deadline, window, height) in [(3, 3, 0), (2, 1, 1), (0, 0, 0), (5, u64::MAX, 4)] {
            let situation = Situation {
                state: ChannelState::Closing { deadline },
                height,
                window,
                unpaid: Amount::from_ntop(90),
                payout_min: Amount::from_ntop(MIN),
                is_due: false,
            };
            let decision = decide(&situation, Patience::ELSEWHERE);
            assert!(
                matches!(decision, InTime { pays: true } | LastChance { pays: true }),
                "{situation:?}: {decision:?}"
            );
        }
    }
}
