//! Keeps a payer within what the wallet's limits permit.
//!
//! The payer's state machine knows how far it *would* go: what both ends have counted, and the
//! window on top. Here it is told of less, so that it goes exactly as far as it may.

use topnet_channel::{Meter, Offer, window_units};
use topnet_unit::UnitCount;

/// What bounds a payer's promises, limits aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reach {
    /// Units that both ends have counted.
    pub(crate) agreed: UnitCount,
    /// The furthest ahead that both ends allow.
    pub(crate) window_max: UnitCount,
}

impl Reach {
    /// Units that the payer would release in all.
    pub(crate) fn target(&self) -> UnitCount {
        self.agreed
            .saturating_add(window_units(self.agreed, self.window_max))
    }

    /// `offer` and `meter` as the payer must hear them so that it releases `permitted` units in
    /// all and no more; `None` if it must not speak, because it always releases one.
    pub(crate) fn hold_back(
        &self,
        permitted: UnitCount,
        mut offer: Offer,
        mut meter: Meter,
    ) -> Option<(Offer, Meter)> {
        if self.target() > permitted {
            meter.owed = self.agreed.min(permitted.checked_sub(1)?);
            offer.window_max = self.window_max.min(permitted - meter.owed);
        }
        Some((offer, meter))
    }
}

#[cfg(test)]
mod tests {
    use topnet_account::{Amount, ChannelId};
    use topnet_channel::{PROTOCOL_VERSION, PayeeMessage, Payer, PayerTerms, SecretKey};
    use topnet_unit::UNIT_BYTES;

    use super::*;

    const PRICE: Amount = Amount::from_ntop(7);

    fn offer() -> Offer {
        Offer {
            version: PROTOCOL_VERSION,
            unit_price: PRICE,
            epsilon_ppm: 0,
            window_max: 64,
        }
    }

    /// Units that a payer releases that has seen `agreed` units.
    fn released(agreed: UnitCount, offer: Offer, meter: Meter) -> UnitCount {
        let terms = PayerTerms {
            channel: ChannelId([9; 32]),
            allocation: Amount::MAX,
            unit_price_max: PRICE,
            window_max: 32,
        };
        let secret = SecretKey::from_seed([3; 32]).unwrap();
        let mut payer = Payer::new(secret, terms, None);
        let _ = payer.hello();
        payer.handle_own_bytes(agreed * UNIT_BYTES);
        for message in [
            PayeeMessage::Offer(offer),
            PayeeMessage::Resume(None),
            PayeeMessage::Meter(meter),
        ] {
            payer.handle_message(&message).unwrap();
        }
        while let Some(unsaved) = payer.poll_send() {
            let _ = unsaved.saved();
        }
        payer.status().released
    }

    #[test]
    fn the_payer_goes_exactly_as_far_as_it_may() {
        for agreed in 0..100 {
            let reach = Reach {
                agreed,
                window_max: 32,
            };
            let meter = Meter {
                owed: agreed,
                ..Meter::default()
            };
            assert_eq!(released(agreed, offer(), meter), reach.target());
            assert_eq!(reach.hold_back(0, offer(), meter), None);
            for permitted in 1..140 {
                let (offer, meter) = reach.hold_back(permitted, offer(), meter).unwrap();
                let expected = permitted.min(reach.target());
                assert_eq!(
                    released(agreed, offer, meter),
                    expected,
                    "{agreed} {permitted}"
                );
            }
        }
    }
}
