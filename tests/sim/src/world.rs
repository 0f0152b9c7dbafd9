//! A world: processes, disks, links and chains, and the steps that chance takes in it.
//!
//! | what | file |
//! |---|---|
//! | the data plane forwards, dies, comes back | `planes` |
//! | metering's turns and deaths | `keeper` |
//! | what the chains say | `chains` |
//! | what is under way between wallets and metering | `links` |
//! | wallets, honest and forging | `wallets` |
//! | what goes wrong | `troubles` |
//! | everybody is well, and all must add up | `ending` |

mod chains;
mod ending;
mod keeper;
mod links;
mod planes;
mod troubles;
mod wallets;

use std::time::{Duration, Instant};

use topnet_account::{Address, Amount, ChannelId};
use topnet_api::{Assignments, ChainName, ChannelState, ChannelView, FinalClaim};
use topnet_channel::{PayerTerms, Promise};

use crate::{
    Coverage, Failure, Outcome, Settings,
    check::{Truth, ensure},
    disk::Journal,
    forger::Forger,
    link::Link,
    meter::Metering,
    plan::{PayeeKind, PayerKind, Plan},
    plane::Plane,
    random::Random,
    trace::Trace,
    wallet::Wallet,
};

const PAYEE: Address = Address([5; 32]);
/// Time of day when a world begins.
const EPOCH_MS: u64 = 1_000_000_000;

/// One channel, from all sides.
struct Channel {
    wallet: Wallet,
    forger: Forger,
    truth: Truth,
    /// As the chain has it, and as it had it before.
    view: ChannelView,
    older: ChannelView,
    /// The wallet hears of a top-up at another time than metering.
    wallet_allocation: Amount,
    payer_kind: PayerKind,
    payee_kind: PayeeKind,
    loss_ppm: u64,
    /// More is lost than is tolerated.
    lossy: bool,
    /// Sessions that use it.
    wanted: bool,
    /// The operator has asked for its last claim.
    finishing: bool,
    /// A promise that a lying payee shows instead of the newest.
    shown: Option<Promise>,
    /// Metering has heard a height at which it must not serve the channel any more.
    neared_expiry: bool,
}

pub(crate) struct World {
    plan: Plan,
    random: Random,
    trace: Trace,
    now_us: u64,
    base: Instant,
    channels: Vec<Channel>,
    links: Vec<Link>,
    connections: u64,
    plane: Option<Plane>,
    boots: u64,
    /// When a burst that is under way is over at the latest.
    burst_until_us: u64,
    metering: Option<Metering>,
    /// The list of slots that metering had last.
    assignments: Option<Assignments>,
    journal: Journal,
    settlement_up: bool,
    tip_us: u64,
    /// How far metering's clock is off.
    clock_off_ms: i64,
    healthy: bool,
    coverage: Coverage,
}

type Step = Result<(), String>;

impl World {
    pub(crate) fn run(seed: u64, settings: Settings) -> Result<Outcome, Failure> {
        let mut world = Self::new(seed, settings);
        let mut step = 0;
        let result = world.live(&mut step);
        let hash = world.trace.hash();
        match result {
            Ok(()) => Ok(Outcome {
                hash,
                coverage: world.coverage,
            }),
            Err(invariant) => Err(Failure {
                seed,
                step,
                invariant,
                hash,
            }),
        }
    }

    fn new(seed: u64, settings: Settings) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::new(&mut random, settings.datagram_chaos);
        let mut trace = Trace::new(settings.trace);
        trace.note(0, format_args!("seed {seed}: {plan:?}"));
        let channels = plan.channels.clone();
        let channels = (0_u8..)
            .zip(channels)
            .map(|(number, channel)| Channel::new(number, &channel, &plan))
            .collect();
        let mut world = Self {
            plan,
            random,
            trace,
            now_us: 0,
            base: Instant::now(),
            channels,
            links: Vec::new(),
            connections: 0,
            plane: None,
            boots: 0,
            burst_until_us: u64::MAX,
            metering: None,
            assignments: None,
            journal: Journal::default(),
            settlement_up: true,
            tip_us: 0,
            clock_off_ms: 0,
            healthy: false,
            coverage: Coverage::default(),
        };
        for channel in &mut world.channels {
            channel.wanted = true;
        }
        world
    }

    fn live(&mut self, step: &mut u32) -> Step {
        self.start_plane()?;
        self.start_metering()?;
        for _ in 0..self.plan.steps {
            *step += 1;
            let passed_us = self.random.pick(&[100, 1_000, 3_000, 10_000, 60_000]);
            self.advance(passed_us);
            self.step()?;
            self.check()?;
        }
        self.heal(step)?;
        self.finish_all(step)
    }

    fn step(&mut self) -> Step {
        match self.random.below(32) {
            0..6 => self.burst(),
            6..13 => self.turn(),
            13..19 => self.deliver(),
            19..23 => self.wallets(),
            23..25 => self.follow_slots(),
            25 => self.errand(),
            26 => self.watch_chains(),
            27 => self.watch_channels(),
            28 => self.change_sessions(),
            29 => self.forge(),
            _ => self.trouble(),
        }
    }

    /// Time passes; no burst takes longer than the books wait for one.
    fn advance(&mut self, passed_us: u64) {
        let until_us = self.now_us + passed_us;
        if self.burst_until_us < until_us {
            self.now_us = self.now_us.max(self.burst_until_us);
            self.settle();
        }
        self.now_us = until_us;
    }

    fn note(&mut self, event: std::fmt::Arguments<'_>) {
        self.trace.note(self.now_us, event);
    }

    /// The time of day by metering's clock.
    fn wall_ms(&self) -> u64 {
        (EPOCH_MS + self.now_us / 1000).saturating_add_signed(self.clock_off_ms)
    }

    fn instant(&self) -> Instant {
        self.base + Duration::from_micros(self.now_us)
    }

    fn number(&self, channel: ChannelId) -> Option<usize> {
        self.channels
            .iter()
            .position(|candidate| candidate.view.id == channel)
    }

    /// What holds after every step.
    fn check(&self) -> Step {
        for (number, channel) in self.channels.iter().enumerate() {
            let room_bytes = match &self.plane {
                Some(plane) => plane.room_bytes(number),
                None => 0,
            };
            let truth = &channel.truth;
            let open = self.plane.iter().flat_map(|plane| plane.open(number));
            let held = truth
                .check_credit(room_bytes)
                .and_then(|()| truth.check_open(open));
            held.map_err(|error| format!("channel {number}: {error}"))?;
        }
        Ok(())
    }
}

impl Channel {
    fn new(number: u8, plan: &crate::plan::ChannelPlan, world: &Plan) -> Self {
        let id = ChannelId([number + 1; 32]);
        let terms = PayerTerms {
            channel: id,
            allocation: plan.allocation,
            unit_price_max: world.price_max(),
            window_max: plan.window_max,
        };
        let wallet = Wallet::new([number + 100; 32], terms);
        let view = ChannelView {
            id,
            chain: ChainName::vpn(),
            payer: Address([2; 32]),
            payee: PAYEE,
            signer: wallet.secret.public_key(),
            allocation: plan.allocation,
            backed: plan.allocation,
            paid: Amount::ZERO,
            close_window: world.close_window_blocks,
            expiry: plan.expiry,
            state: ChannelState::Open,
        };
        Self {
            wallet,
            forger: Forger::default(),
            truth: Truth::default(),
            older: view.clone(),
            view,
            wallet_allocation: plan.allocation,
            payer_kind: plan.payer,
            payee_kind: plan.payee,
            loss_ppm: plan.loss_ppm,
            lossy: plan.lossy,
            wanted: false,
            finishing: false,
            shown: None,
            neared_expiry: false,
        }
    }

    /// An honest payer pays what it used at the price that was offered, and its window.
    fn check_honest(&self, last: &FinalClaim, world: &Plan) -> Step {
        let status = &last.status;
        let (owed, accepted) = (status.owed_units, status.accepted_units);
        ensure(world.is_price_of(status.redeemable, owed), || {
            format!("{owed} units are redeemed for {}", status.redeemable)
        })?;
        ensure(status.redeemable <= self.view.allocation, || {
            format!("{} of {} redeemed", status.redeemable, self.view.allocation)
        })?;
        let released = self.wallet.released_units_max;
        ensure(accepted <= released, || {
            format!("accepted {accepted}, released {released}")
        })?;
        let window_max = world.offer.window_max.min(self.wallet.terms.window_max);
        ensure(
            self.payee_kind == PayeeKind::Liar || released <= owed + window_max,
            || format!("released {released}, owed {owed}, window {window_max}"),
        )
    }
}

fn same(one: &FinalClaim, other: &FinalClaim) -> bool {
    let totals = |last: &FinalClaim| {
        let status = &last.status;
        (
            status.metered_bytes,
            status.owed_units,
            status.accepted_units,
            status.redeemable,
        )
    };
    totals(one) == totals(other) && one.claim == other.claim
}
