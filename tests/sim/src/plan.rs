//! What kind of world a seed makes.

use topnet_account::Amount;
use topnet_channel::{Offer, PROTOCOL_VERSION};

use crate::{link::Weather, random::Random};

/// How a payer behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PayerKind {
    /// The wallet as it is.
    Honest,
    /// The wallet, with forgeries, replays and equivocations in between.
    Forger,
}

/// How the payee behaves towards one payer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PayeeKind {
    /// The books as they are.
    Honest,
    /// Says that more was used, and hides what it was promised.
    Liar,
}

/// One channel's part of a plan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChannelPlan {
    pub(crate) payer: PayerKind,
    pub(crate) payee: PayeeKind,
    pub(crate) allocation: Amount,
    /// The wallet's own cap.
    pub(crate) window_max: u64,
    /// How much of what is forwarded the payer does not see, in millionths.
    pub(crate) loss_ppm: u64,
    /// That is more than is tolerated, so paying stops sooner or later.
    pub(crate) lossy: bool,
    /// Height from which on anybody may close the channel.
    pub(crate) expiry: u64,
}

/// A world before anything has happened in it.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) offer: Offer,
    pub(crate) weather: Weather,
    pub(crate) channels: Vec<ChannelPlan>,
    pub(crate) steps: u32,
    /// Slots of a data plane, the unused one included.
    pub(crate) slots: u32,
    pub(crate) ring_records: u32,
    /// The most that one burst forwards for one slot.
    pub(crate) burst_bytes_max: u64,
    /// Once in so many chances a process dies, a link breaks, a voucher is lost.
    pub(crate) trouble: u64,
    /// The operator changes the price when metering restarts.
    pub(crate) repriced: bool,
    /// The payer may lose its journal or get an old one back.
    pub(crate) forgetful: bool,
    pub(crate) close_window_blocks: u64,
    /// Units of a channel that the operator forgives.
    pub(crate) write_off_units_max: u64,
    /// Metering's clock is set now and then.
    pub(crate) clock_jumps: bool,
}

/// How far the price rises above the plan's.
const RISE_NTOP_MAX: u64 = 2;

impl Plan {
    /// The price at one start of metering.
    pub(crate) fn price(&self, random: &mut Random) -> Amount {
        let price = self.offer.unit_price;
        if self.repriced {
            let rise = Amount::from_ntop(random.below(RISE_NTOP_MAX + 1));
            price.checked_add(rise).unwrap_or(price)
        } else {
            price
        }
    }

    /// The highest price of a unit.
    pub(crate) fn price_max(&self) -> Amount {
        let rise = if self.repriced { RISE_NTOP_MAX } else { 0 };
        let price = self.offer.unit_price;
        price.checked_add(Amount::from_ntop(rise)).unwrap_or(price)
    }

    /// True if `amount` is what `units` cost, as far as the prices allow to say.
    pub(crate) fn is_price_of(&self, amount: Amount, units: u64) -> bool {
        let least = self.offer.unit_price.checked_mul(units);
        let most = self.price_max().checked_mul(units);
        least.is_some_and(|least| least <= amount) && most.is_some_and(|most| amount <= most)
    }

    pub(crate) fn new(random: &mut Random, chaos: bool) -> Self {
        let unit_price = Amount::from_ntop(random.pick(&[1, 7, 25, 1000]));
        let epsilon_ppm = random.pick(&[0, 5_000]);
        let window_max = random.pick(&[1, 2, 8, 16, 64]);
        let dishonest = random.once_in(3);
        let forgetful = random.once_in(3);
        let channels = (0..random.between(1, 4))
            .map(|_| channel(random, unit_price, epsilon_ppm, dishonest))
            .collect();
        Self {
            offer: Offer {
                version: PROTOCOL_VERSION,
                unit_price,
                epsilon_ppm: epsilon_ppm as u32,
                window_max,
            },
            weather: Weather {
                delay_us_max: random.pick(&[100, 2_000, 40_000, 200_000]),
                chaos,
            },
            channels,
            steps: random.pick(&[300, 600, 1200]),
            slots: random.pick(&[3, 5, 9]),
            ring_records: random.pick(&[1, 4, 64]),
            burst_bytes_max: topnet_unit::UNIT_BYTES * random.pick(&[1, 1, 3, 20]),
            trouble: random.pick(&[1, 3, 12, u64::MAX]),
            repriced: random.once_in(4),
            forgetful,
            close_window_blocks: random.pick(&[20, 40, 600]),
            write_off_units_max: random.pick(&[0, 0, 2]),
            clock_jumps: random.once_in(4),
        }
    }
}

fn channel(
    random: &mut Random,
    unit_price: Amount,
    epsilon_ppm: u64,
    dishonest: bool,
) -> ChannelPlan {
    let units = random.pick(&[1, 3, 40, 300, 900]) + random.below(10);
    let ntop = unit_price.ntop() * units + random.below(unit_price.ntop());
    let forger = dishonest && random.once_in(2);
    let liar = dishonest && !forger && random.once_in(2);
    let lossy = random.once_in(8);
    // What is tolerated is a part of what arrives, so a little less than epsilon may be lost.
    let loss_ppm = if lossy {
        300_000
    } else {
        random.below(epsilon_ppm * 99 / 100 + 1)
    };
    ChannelPlan {
        payer: if forger {
            PayerKind::Forger
        } else {
            PayerKind::Honest
        },
        payee: if liar {
            PayeeKind::Liar
        } else {
            PayeeKind::Honest
        },
        allocation: Amount::from_ntop(ntop),
        window_max: random.pick(&[1, 8, 64]),
        loss_ppm,
        lossy,
        expiry: random.pick(&[u64::MAX, u64::MAX, u64::MAX, 40, 120]),
    }
}
