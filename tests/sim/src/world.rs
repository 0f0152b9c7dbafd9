//! A world: processes, disks, links and chains, and the steps that chance takes in it.

use std::time::{Duration, Instant};

use topnet_account::{Address, Amount, ChannelId};
use topnet_api::{Assignments, ChainName, ChannelState, ChannelView, FinalClaim};
use topnet_books::{Books, Greeting, Output, Tips, facts::Served};
use topnet_channel::{
    Offer, PROTOCOL_VERSION, PayeeMessage, PayerMessage, PayerTerms, Promise, RefusalCode,
};
use topnet_unit::{BootId, UNIT_BYTES};

use crate::{
    Coverage, Failure, Outcome, Settings,
    check::{Truth, ensure},
    disk::Journal,
    forger::Forger,
    link::Link,
    meter::{COMMIT_INTERVAL_US, Errand, FRESHNESS_INTERVAL_US, Metering, SWEEP_INTERVAL_US},
    plan::{PayeeKind, PayerKind, Plan},
    plane::Plane,
    random::Random,
    trace::Trace,
    wallet::{Ended, Heard, Wallet},
};

const PAYEE: Address = Address([5; 32]);
/// Time of day when a world begins.
const EPOCH_MS: u64 = 1_000_000_000;
const BLOCK_INTERVAL_MS: u64 = 100;
/// The longest burst.
const BURST_US_MAX: u64 = 90_000;
/// Rounds in which everybody is well and talks, before channels are finished.
const HEALTHY_ROUNDS: u32 = 150;
const FINISH_ROUNDS: u32 = 1_000;

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

    // The data plane.

    fn start_plane(&mut self) -> Step {
        if self.plane.is_some() {
            return Ok(());
        }
        self.boots += 1;
        let mut boot = [0; 16];
        boot[..8].copy_from_slice(&self.boots.to_le_bytes());
        let plane = Plane::new(BootId(boot), self.plan.slots, self.plan.ring_records);
        self.plane = Some(plane.map_err(|error| error.to_string())?);
        let boots = self.boots;
        self.note(format_args!("data plane {boots} starts"));
        self.enter();
        Ok(())
    }

    fn enter(&mut self) {
        let Some(plane) = &mut self.plane else { return };
        for (number, channel) in self.channels.iter_mut().enumerate() {
            if channel.wanted
                && let Some((slot_use, base_bytes)) = plane.enter(number)
            {
                channel.truth.handle_use(slot_use, base_bytes);
            }
        }
    }

    fn kill_plane(&mut self) -> Step {
        let Some(plane) = self.plane.take() else {
            return Ok(());
        };
        let boot = plane.boot;
        self.coverage.planes_killed += 1;
        self.note(format_args!("data plane {boot} dies"));
        let held = self
            .metering
            .as_ref()
            .is_some_and(|metering| metering.attached == Some(boot));
        if !held {
            self.strand(|of| of == boot)?;
        }
        Ok(())
    }

    /// Nobody can read the tables of these runs any more.
    fn strand(&mut self, unreachable: impl Fn(BootId) -> bool) -> Step {
        for channel in &mut self.channels {
            let lost_before = channel.truth.lost_bytes;
            channel.truth.handle_stranded(
                self.journal.of(channel.view.id),
                self.plan.offer,
                |slot_use| unreachable(slot_use.boot),
            )?;
            if channel.truth.lost_bytes > lost_before {
                self.coverage.losses += 1;
            }
        }
        Ok(())
    }

    fn burst(&mut self) -> Step {
        let Some(plane) = &mut self.plane else {
            return Ok(());
        };
        let (random, most) = (&mut self.random, self.plan.burst_bytes_max);
        plane.begin(|_| match random.below(8) {
            0 => 0,
            1 => 1,
            2 => UNIT_BYTES,
            _ => random.between(1, most),
        });
        // Sometimes something else happens before the burst is counted.
        if self.random.once_in(4) {
            self.burst_until_us = self.burst_until_us.min(self.now_us + BURST_US_MAX);
            return Ok(());
        }
        self.settle();
        Ok(())
    }

    fn settle(&mut self) {
        self.burst_until_us = u64::MAX;
        let Some(plane) = &mut self.plane else { return };
        for counted in plane.settle(self.now_us * 1000) {
            let channel = &mut self.channels[counted.channel];
            channel
                .truth
                .handle_counted(counted.slot_use, counted.bytes, counted.usage_bytes);
            let lost = u128::from(counted.bytes) * u128::from(channel.loss_ppm) / 1_000_000;
            channel.wallet.handle_seen(counted.bytes - lost as u64);
            let (number, bytes) = (counted.channel, counted.bytes);
            self.trace.note(
                self.now_us,
                format_args!("forwarded {bytes} bytes of channel {number}"),
            );
        }
        plane.confirm();
    }

    fn change_sessions(&mut self) -> Step {
        let number = self.random.index(self.channels.len());
        let wanted = self.channels[number].view.state == ChannelState::Open
            && (self.healthy || !self.random.once_in(3));
        if wanted != self.channels[number].wanted {
            self.channels[number].wanted = wanted;
            self.coverage.slots_changed += 1;
            self.note(format_args!("sessions of channel {number}: {wanted}"));
            if let Some(plane) = &mut self.plane
                && !wanted
            {
                plane.leave(number);
            }
        }
        self.enter();
        Ok(())
    }

    // Metering.

    fn start_metering(&mut self) -> Step {
        if self.metering.is_some() {
            return Ok(());
        }
        let served = Served {
            service: ChainName::vpn(),
            payee: None,
            close_window_blocks_min: 10,
            write_off_units_max: self.plan.write_off_units_max,
        };
        let unit_price = self.plan.price(&mut self.random);
        let offer = Offer {
            unit_price,
            ..self.plan.offer
        };
        let books = Books::restore(served, offer, self.journal.stored())
            .map_err(|(channel, error)| format!("channel {channel}: {error}"))?;
        self.metering = Some(Metering::new(books, self.now_us));
        self.note(format_args!("metering starts and asks {unit_price} a unit"));
        Ok(())
    }

    fn kill_metering(&mut self) -> Step {
        if self.metering.take().is_none() {
            return Ok(());
        }
        self.coverage.meterings_killed += 1;
        self.note(format_args!("metering dies"));
        let survived = self.journal.crash(&mut self.random)?;
        self.synced(&survived)?;
        for link in &mut self.links {
            link.cut(&mut self.random);
            link.to_payee.drop_all();
            link.proving = None;
        }
        let alive = self.plane.as_ref().map(|plane| plane.boot);
        self.strand(|boot| Some(boot) != alive)
    }

    /// One turn of the keeper; it may die at any point between two of its deeds.
    fn turn(&mut self) -> Step {
        let now = self.instant();
        let (now_us, wall_ms) = (self.now_us, self.wall_ms());
        let Some(metering) = &mut self.metering else {
            return Ok(());
        };
        let sweep = now_us >= metering.swept_us + SWEEP_INTERVAL_US;
        if sweep {
            metering.swept_us = now_us;
        }
        metering.books.poll_usage(sweep);
        let freshens = now_us >= metering.freshened_us + FRESHNESS_INTERVAL_US;
        if freshens {
            metering.freshened_us = now_us;
            let before = metering.books.counters().written_off;
            metering.books.poll_freshness(now, wall_ms);
            self.coverage.written_off += metering.books.counters().written_off - before;
        }
        self.check_claims()?;
        let Some(metering) = &mut self.metering else {
            return Ok(());
        };
        let due = now_us >= metering.committed_us + COMMIT_INTERVAL_US;
        let entries = match metering.refused.take() {
            Some(refused) => refused,
            None => metering.books.poll_entries(due, wall_ms),
        };
        let committed = !entries.is_empty();
        if committed || due {
            metering.committed_us = now_us;
        }
        // A disk that refuses has kept none of it, or all.
        if committed && !self.healthy && self.random.once_in(self.plan.trouble.saturating_mul(8)) {
            self.coverage.refused += 1;
            self.note(format_args!("the disk refuses {} channels", entries.len()));
            let Some(metering) = &mut self.metering else {
                return Ok(());
            };
            metering.refused = Some(entries);
            metering.books.handle_uncommitted(now);
            if freshens {
                self.check_frozen()?;
            }
            return self.act();
        }
        if committed {
            for entry in &entries {
                self.trace
                    .bytes(entry.record.as_deref().unwrap_or_default());
            }
            self.note(format_args!("commits {} channels", entries.len()));
            if self.dies() {
                return self.kill_metering();
            }
            self.journal.write(entries);
            // The disk takes its time, and the world does not wait for it.
            if self.random.once_in(4) {
                self.deliver()?;
                self.follow_slots()?;
                self.burst()?;
                if let Some(metering) = &mut self.metering {
                    metering.books.poll_usage(true);
                }
            }
            if self.dies() {
                return self.kill_metering();
            }
            let channels = self.journal.sync()?;
            self.synced(&channels)?;
            if self.dies() {
                return self.kill_metering();
            }
        }
        if let Some(metering) = &mut self.metering {
            metering.books.handle_committed(committed, now);
        }
        if freshens {
            self.check_frozen()?;
        }
        if committed && self.dies() {
            return self.kill_metering();
        }
        self.act()
    }

    /// Who asks for a channel's claim, whenever that is, gets one that rests on what is synced.
    fn check_claims(&mut self) -> Step {
        let Some(metering) = &self.metering else {
            return Ok(());
        };
        if !self.random.once_in(8) {
            return Ok(());
        }
        for (number, channel) in self.channels.iter().enumerate() {
            let Some(claim) = metering.books.final_claim(channel.view.id) else {
                continue;
            };
            let lines = self.journal.lines(channel.view.id);
            let held = channel.truth.check_early(&claim, lines);
            held.map_err(|error| format!("channel {number}: {error}"))?;
        }
        Ok(())
    }

    /// Whether a process dies just now.
    fn dies(&mut self) -> bool {
        !self.healthy && self.random.once_in(self.plan.trouble.saturating_mul(20))
    }

    fn synced(&mut self, channels: &[ChannelId]) -> Step {
        for id in channels {
            let number = self.number(*id).ok_or("a record of no channel")?;
            let Some(stored) = self.journal.of(*id) else {
                continue;
            };
            let truth = &mut self.channels[number].truth;
            truth.handle_synced(stored, self.plan.offer)?;
            let (forgiven, most) = (truth.synced.written_off, self.plan.write_off_units_max);
            ensure(forgiven <= most, || {
                format!("{forgiven} units are written off, at most {most} may be")
            })?;
        }
        Ok(())
    }

    fn act(&mut self) -> Step {
        while let Some(output) = self
            .metering
            .as_mut()
            .and_then(|metering| metering.books.poll_output())
        {
            let Some(metering) = &mut self.metering else {
                break;
            };
            match output {
                Output::Reply(connection, message) => self.reply(connection, message)?,
                Output::End(connection) => {
                    metering.links.retain(|link| *link != connection);
                    self.end_link(connection);
                }
                Output::Acknowledge(slot_use) => metering.errand(Errand::Acknowledge(slot_use)),
                Output::LookUp(channel) => metering.errand(Errand::LookUp(channel)),
                Output::Known(_) => {}
                Output::Forgotten(_) => return Err("a channel is forgotten too soon".to_owned()),
                Output::Finished(channel) => {
                    metering.finished.push(channel);
                    self.finished(channel)?;
                }
            }
        }
        Ok(())
    }

    /// The payee reads no more of this link; what it said before still arrives.
    fn end_link(&mut self, connection: u64) {
        if let Some(link) = self.links.iter_mut().find(|link| link.id == connection) {
            link.to_payer.end();
            link.to_payee.drop_all();
        }
    }

    fn reply(&mut self, connection: u64, message: PayeeMessage) -> Step {
        let Some(position) = self.links.iter().position(|link| link.id == connection) else {
            return Ok(());
        };
        let number = self.links[position].wallet;
        if let PayeeMessage::Meter(meter) = message {
            let synced = self.channels[number].truth.synced;
            let durable = meter.channel_bytes <= synced.channel_bytes
                && meter.owed <= synced.owed
                && meter.accepted <= synced.accepted;
            ensure(durable, || {
                format!("channel {number} is told {meter:?}, synced is {synced:?}")
            })?;
        }
        let message = self.lie(number, message);
        self.trace.note(
            self.now_us,
            format_args!("payee to {number} on {connection}: {message:?}"),
        );
        self.links[position].to_payer.send(
            self.now_us,
            message.to_bytes(),
            self.plan.weather,
            &mut self.random,
        );
        Ok(())
    }

    /// What a lying payee says instead.
    fn lie(&mut self, number: usize, message: PayeeMessage) -> PayeeMessage {
        let channel = &mut self.channels[number];
        if channel.payee_kind == PayeeKind::Honest || self.random.once_in(3) {
            return message;
        }
        match message {
            PayeeMessage::Meter(mut meter) => {
                meter.owed += self.random.below(1_000);
                meter.channel_bytes += self.random.below(1 << 30);
                meter.accepted += self.random.below(1_000);
                PayeeMessage::Meter(meter)
            }
            PayeeMessage::Resume(Some(promise)) => {
                let shown = channel.shown;
                channel.shown = Some(promise);
                PayeeMessage::Resume(shown)
            }
            other => other,
        }
    }

    /// Metering asks the data plane for its slots, and takes its tables if it is another run.
    fn follow_slots(&mut self) -> Step {
        let (Some(plane), Some(metering)) = (&self.plane, &mut self.metering) else {
            return Ok(());
        };
        let ids: Vec<ChannelId> = self.channels.iter().map(|c| c.view.id).collect();
        let assignments = plane.assignments(|number| ids[number]);
        if metering.attached != Some(plane.boot) || self.random.once_in(200) {
            metering.attached = Some(plane.boot);
            let attachment = plane.attach().map_err(|error| error.to_string())?;
            metering.books.handle_attached(attachment);
            // The list may have been asked of the run before.
            let boot = plane.boot.to_string();
            if let Some(older) = self.assignments.take_if(|older| older.boot != boot) {
                metering.books.handle_assignments(&older);
                return Ok(());
            }
        }
        metering.books.handle_assignments(&assignments);
        self.note(format_args!("{assignments:?}"));
        self.assignments = Some(assignments);
        Ok(())
    }

    fn errand(&mut self) -> Step {
        let Some(metering) = &mut self.metering else {
            return Ok(());
        };
        match metering.errands.pop_front() {
            Some(Errand::Acknowledge(slot_use)) => {
                let Some(plane) = &mut self.plane else {
                    return Ok(());
                };
                let heard = plane.boot == slot_use.boot && plane.acknowledge(slot_use.slot);
                // The answer may be lost.
                if heard && (self.healthy || !self.random.once_in(8)) {
                    metering.books.handle_acknowledged(slot_use);
                }
                self.note(format_args!("acknowledges {slot_use:?}: {heard}"));
                self.enter();
            }
            Some(Errand::LookUp(channel)) => self.look_up(channel),
            None => {}
        }
        Ok(())
    }

    // The chains.

    fn watch_chains(&mut self) -> Step {
        if self.settlement_up {
            // The chain's clock is behind by what finality takes.
            self.tip_us = self
                .tip_us
                .max(self.now_us.saturating_sub(self.random.below(200_000)));
        }
        let (up, tip_ms) = (self.settlement_up, EPOCH_MS + self.tip_us / 1000);
        let now = self.instant();
        if let Some(metering) = &mut self.metering
            && up
        {
            let tips = Tips {
                service_height: self.tip_us / 1000 / BLOCK_INTERVAL_MS,
                service_time_ms: tip_ms,
                main_time_ms: tip_ms,
                block_interval_ms: BLOCK_INTERVAL_MS,
            };
            metering.books.handle_payee(PAYEE);
            metering.books.handle_tips(tips, now);
            metering.tips = Some(tips);
            self.note(format_args!("tips at {tip_ms}"));
        }
        Ok(())
    }

    fn watch_channels(&mut self) -> Step {
        let Some(metering) = &self.metering else {
            return Ok(());
        };
        let mut active: Vec<ChannelId> = metering.books.active().collect();
        active.sort_unstable();
        for channel in active {
            self.look_up(channel);
        }
        Ok(())
    }

    /// Metering asks the chain about a channel; of two answers under way the older may come last.
    fn look_up(&mut self, channel: ChannelId) {
        let (now, wall_ms) = (self.instant(), self.wall_ms());
        let (Some(number), true) = (self.number(channel), self.settlement_up) else {
            return;
        };
        let late = !self.healthy && self.random.once_in(10);
        let Some(metering) = &mut self.metering else {
            return;
        };
        let Channel { view, older, .. } = &self.channels[number];
        let mut answers = vec![view.clone()];
        if late {
            answers.push(older.clone());
        }
        for view in answers {
            if metering.books.handle_channel(&view) {
                metering.books.poll_freshness_of(channel, now, wall_ms);
                let closing = view.state != ChannelState::Open;
                *metering.heard.entry(channel).or_default() |= closing;
            }
            self.trace.note(
                self.now_us,
                format_args!(
                    "channel {number} is {:?} with {}",
                    view.state, view.allocation
                ),
            );
        }
    }

    /// Invariant 6: what must not go on has no credit.
    fn check_frozen(&self) -> Step {
        let (Some(metering), Some(plane)) = (&self.metering, &self.plane) else {
            return Ok(());
        };
        if metering.attached != Some(plane.boot) {
            return Ok(());
        }
        for (number, channel) in self.channels.iter().enumerate() {
            let limit_ms = channel.view.close_window * BLOCK_INTERVAL_MS / 4;
            let fresh = metering.tips.is_some_and(|tips| {
                let time_ms = tips.service_time_ms.min(tips.main_time_ms);
                self.wall_ms().saturating_sub(time_ms) <= limit_ms
            });
            let quarter = channel.view.close_window / 4;
            let lasts = metering
                .tips
                .is_some_and(|tips| tips.service_height + quarter < channel.view.expiry);
            let open = lasts && metering.heard.get(&channel.view.id) == Some(&false);
            ensure(fresh && open || plane.open(number).next().is_none(), || {
                format!("channel {number} has credit: fresh {fresh}, heard to be open {open}")
            })?;
        }
        Ok(())
    }

    // The links.

    fn deliver(&mut self) -> Step {
        for position in 0..self.links.len() {
            self.proof_comes(position);
            while self.links[position].proving.is_none()
                && let Some(bytes) = self.links[position].to_payee.receive(self.now_us)
            {
                self.payee_hears(position, &bytes);
            }
            let link = &mut self.links[position];
            if link.to_payee.is_over() && link.greeted && link.proving.is_none() {
                link.greeted = false;
                let id = link.id;
                if let Some(metering) = &mut self.metering {
                    metering.links.retain(|link| *link != id);
                    metering.books.handle_disconnected(id);
                    self.note(format_args!("payee lost link {id}"));
                }
            }
            self.payer_reads(position);
        }
        let channels = &self.channels;
        self.links.retain(|link| {
            let held = channels[link.wallet].wallet.link == Some(link.id);
            held || !link.to_payee.is_over()
        });
        Ok(())
    }

    /// A signature is proved sooner or later, and much may have happened meanwhile.
    fn proof_comes(&mut self, position: usize) {
        let link = &mut self.links[position];
        if link.proving.is_none() || self.random.once_in(2) {
            return;
        }
        if let (Some(unproved), Some(metering)) = (link.proving.take(), &mut self.metering) {
            self.coverage.proved += 1;
            metering.books.handle_proof(link.id, unproved.prove());
        }
    }

    fn payee_hears(&mut self, position: usize, bytes: &[u8]) {
        let Link {
            id,
            wallet: number,
            greeted,
            ..
        } = self.links[position];
        self.trace.bytes(bytes);
        let message = PayerMessage::from_bytes(bytes);
        self.trace.note(
            self.now_us,
            format_args!("{number} to payee on {id}: {message:?}"),
        );
        let answered = match (message, greeted) {
            (Ok(PayerMessage::Hello { version, channel }), false) => {
                self.payee_greets(position, version, channel)
            }
            (Ok(_), false) => Err(RefusalCode::OutOfOrder),
            (Ok(message), true) => {
                if let Some(metering) = &mut self.metering {
                    self.links[position].proving = metering.books.handle_payer(id, &message);
                }
                Ok(())
            }
            (Err(_), _) => Err(RefusalCode::Malformed),
        };
        if let Err(code) = answered {
            let refusal = PayeeMessage::Refused(code).to_bytes();
            let link = &mut self.links[position];
            link.to_payer
                .send(self.now_us, refusal, self.plan.weather, &mut self.random);
            link.to_payer.end();
            link.to_payee.drop_all();
        }
    }

    fn payee_greets(
        &mut self,
        position: usize,
        version: u16,
        channel: ChannelId,
    ) -> Result<(), RefusalCode> {
        if version != PROTOCOL_VERSION {
            return Err(RefusalCode::Version);
        }
        let Link { id, wallet, .. } = self.links[position];
        let key = self.channels[wallet].wallet.secret.public_key();
        for attempt in 0..2 {
            let Some(metering) = &mut self.metering else {
                return Err(RefusalCode::UnknownChannel);
            };
            match metering.books.handle_hello(id, channel, key) {
                Greeting::Welcome => {
                    metering.links.push(id);
                    self.links[position].greeted = true;
                    return Ok(());
                }
                Greeting::Unknown if attempt == 0 => self.look_up(channel),
                Greeting::Unknown | Greeting::WrongKey => break,
            }
        }
        Err(RefusalCode::UnknownChannel)
    }

    fn payer_reads(&mut self, position: usize) {
        let Link { id, wallet, .. } = self.links[position];
        while let Some(bytes) = self.links[position].to_payer.receive(self.now_us) {
            let channel = &mut self.channels[wallet];
            if channel.wallet.link != Some(id) {
                continue;
            }
            if channel.wallet.handle_bytes(&bytes) == Heard::Reconnect {
                self.coverage.refusals += 1;
                self.hang_up(wallet);
            }
        }
        if self.links[position].to_payer.is_over() && self.channels[wallet].wallet.link == Some(id)
        {
            self.hang_up(wallet);
        }
    }

    /// The wallet ends its link and makes another in a while.
    fn hang_up(&mut self, number: usize) {
        let retry_us = if self.healthy {
            1_000
        } else {
            self.random.between(1_000, 1_000_000)
        };
        let wallet = &mut self.channels[number].wallet;
        wallet.retry_at_us = self.now_us + retry_us;
        let Some(id) = wallet.link.take() else { return };
        if let Some(link) = self.links.iter_mut().find(|link| link.id == id) {
            link.cut(&mut self.random);
            link.to_payer.drop_all();
        }
        self.note(format_args!("wallet {number} hangs up {id}"));
    }

    // The wallets.

    fn wallets(&mut self) -> Step {
        for number in 0..self.channels.len() {
            self.wallet(number)?;
        }
        Ok(())
    }

    fn wallet(&mut self, number: usize) -> Step {
        let now_us = self.now_us;
        let wallet = &mut self.channels[number].wallet;
        wallet.count();
        if wallet.ended.is_some() {
            return Ok(());
        }
        if wallet.link.is_none() {
            if now_us < wallet.retry_at_us {
                return Ok(());
            }
            self.connections += 1;
            wallet.link = Some(self.connections);
            let hello = wallet.payer.hello();
            self.links.push(Link::new(self.connections, number));
            for message in hello {
                // It says what is on the disk, whether or not it was said before.
                self.check_released(number, &message)?;
                self.say(number, message);
            }
        }
        while let Some(unsaved) = self.channels[number].wallet.payer.poll_send() {
            let record = unsaved.record().to_vec();
            self.trace.bytes(&record);
            if self.dies() {
                return self.kill_wallet(number);
            }
            self.channels[number].wallet.disk.write(&record);
            if self.dies() {
                return self.kill_wallet(number);
            }
            self.channels[number].wallet.disk.sync();
            if self.dies() {
                return self.kill_wallet(number);
            }
            let message = unsaved.saved().release();
            self.check_released(number, &message)?;
            self.coverage.rolls += u64::from(matches!(message, PayerMessage::Roll(_)));
            self.coverage.tokens += u64::from(matches!(message, PayerMessage::Token(_)));
            self.say(number, message);
        }
        Ok(())
    }

    /// What an honest wallet promises stays within its rules, whatever its payee says.
    fn check_released(&mut self, number: usize, message: &PayerMessage) -> Step {
        let channel = &mut self.channels[number];
        match channel.payer_kind {
            PayerKind::Honest => channel.wallet.check_released(message, &self.plan),
            PayerKind::Forger => Ok(()),
        }
    }

    fn say(&mut self, number: usize, message: PayerMessage) {
        let Some(id) = self.channels[number].wallet.link else {
            return;
        };
        self.trace.note(
            self.now_us,
            format_args!("wallet {number} says on {id}: {message:?}"),
        );
        let bytes = message.to_bytes();
        let channel = &mut self.channels[number];
        if channel.payer_kind == PayerKind::Forger {
            channel.forger.handle_said(&bytes);
        }
        self.say_bytes(number, bytes);
    }

    fn say_bytes(&mut self, number: usize, bytes: Vec<u8>) {
        let id = self.channels[number].wallet.link;
        if let Some(link) = self.links.iter_mut().find(|link| Some(link.id) == id) {
            link.to_payee
                .send(self.now_us, bytes, self.plan.weather, &mut self.random);
        }
    }

    fn kill_wallet(&mut self, number: usize) -> Step {
        self.coverage.wallets_killed += 1;
        self.note(format_args!("wallet {number} dies"));
        self.hang_up(number);
        let wallet = &mut self.channels[number].wallet;
        wallet.disk.crash(&mut self.random);
        wallet.restart();
        Ok(())
    }

    fn forge(&mut self) -> Step {
        let number = self.random.index(self.channels.len());
        let channel = &self.channels[number];
        if channel.payer_kind == PayerKind::Honest || self.healthy {
            return Ok(());
        }
        let wallet = &channel.wallet;
        let promise = wallet.payer.promise();
        for _ in 0..self.random.between(1, 3) {
            let bytes = self.channels[number].forger.forge(
                &self.channels[number].wallet.secret,
                self.channels[number].view.id,
                promise,
                &mut self.random,
            );
            self.coverage.forgeries += 1;
            self.note(format_args!(
                "{number} forges {:?}",
                PayerMessage::from_bytes(&bytes)
            ));
            self.say_bytes(number, bytes);
        }
        Ok(())
    }

    // What goes wrong.

    fn trouble(&mut self) -> Step {
        self.start_plane()?;
        self.start_metering()?;
        self.settlement_up |= self.random.once_in(2);
        if self.plan.trouble == u64::MAX {
            return Ok(());
        }
        let number = self.random.index(self.channels.len());
        if !self.random.once_in(self.plan.trouble) {
            return Ok(());
        }
        match self.random.below(13) {
            12 if self.plan.clock_jumps => {
                self.clock_off_ms = self.random.pick(&[0, -3_600_000, 3_600_000, -500, 500]);
                self.coverage.clocks_set += 1;
                let off_ms = self.clock_off_ms;
                self.note(format_args!("metering's clock is {off_ms} ms off"));
                Ok(())
            }
            0 => self.kill_plane(),
            1 => self.kill_metering(),
            2 => {
                self.kill_plane()?;
                self.start_plane()
            }
            3 => {
                self.kill_metering()?;
                self.start_metering()
            }
            4 => self.kill_wallet(number),
            5 => {
                self.settlement_up = false;
                self.coverage.settlement_down += 1;
                self.note(format_args!("settlement is away"));
                Ok(())
            }
            6 | 7 => {
                self.break_link(number);
                Ok(())
            }
            8 => {
                // An owner who adds a little at a time.
                for _ in 0..self.random.between(1, 3) {
                    self.top_up(number);
                    self.wallet(number)?;
                }
                Ok(())
            }
            9 => self.forget(number),
            10 if self.random.once_in(3) => {
                self.close(number);
                Ok(())
            }
            11 if self.random.once_in(3) => self.ask_finish(number),
            _ => Ok(()),
        }
    }

    fn break_link(&mut self, number: usize) {
        let id = self.channels[number].wallet.link;
        if let Some(link) = self.links.iter_mut().find(|link| Some(link.id) == id) {
            link.cut(&mut self.random);
            self.coverage.links_broken += 1;
            self.note(format_args!("link {id:?} breaks"));
        }
    }

    /// Sometimes the wallet hears of it first, sometimes metering.
    fn top_up(&mut self, number: usize) {
        let channel = &mut self.channels[number];
        if channel.view.state != ChannelState::Open {
            return;
        }
        let units = self.random.pick(&[1, 1, 5, 300]);
        let price = self.plan.offer.unit_price;
        let added = price.checked_mul(units).unwrap_or_default();
        channel.older = channel.view.clone();
        let allocation = channel.view.allocation.checked_add(added);
        channel.view.allocation = allocation.unwrap_or(channel.view.allocation);
        channel.wallet_allocation = channel.view.allocation;
        if self.random.once_in(2) {
            let allocation = channel.wallet_allocation;
            channel.wallet.handle_allocation(allocation);
        }
        self.coverage.top_ups += 1;
        let allocation = channel.view.allocation;
        self.note(format_args!(
            "channel {number} is topped up to {allocation}"
        ));
    }

    /// The wallet's owner makes a backup, brings it back, or loses everything.
    fn forget(&mut self, number: usize) -> Step {
        let wallet = &mut self.channels[number].wallet;
        if !self.plan.forgetful || self.random.once_in(2) {
            wallet.disk.back_up();
            return Ok(());
        }
        self.coverage.forgotten += 1;
        if self.random.once_in(4) {
            wallet.forget();
        } else {
            wallet.disk.restore();
            wallet.restart();
        }
        self.note(format_args!("wallet {number} has an old journal, or none"));
        self.hang_up(number);
        Ok(())
    }

    /// The payer closes the channel on its chain.
    fn close(&mut self, number: usize) {
        let channel = &mut self.channels[number];
        if channel.view.state == ChannelState::Open {
            channel.older = channel.view.clone();
            channel.view.state = ChannelState::Closing { deadline: 1_000 };
            self.coverage.closed += 1;
            self.note(format_args!("channel {number} is closing"));
        }
    }

    // The end.

    fn ask_finish(&mut self, number: usize) -> Step {
        let id = self.channels[number].view.id;
        let Some(metering) = &mut self.metering else {
            return Ok(());
        };
        let known = metering.books.handle_finish(id);
        self.channels[number].finishing |= known;
        self.note(format_args!("channel {number} is to be finished: {known}"));
        Ok(())
    }

    /// A last claim: it rests on what is synced, and there is only one.
    fn finished(&mut self, id: ChannelId) -> Step {
        let (Some(number), Some(metering)) = (self.number(id), &self.metering) else {
            return Err("a channel is finished that nobody opened".to_owned());
        };
        let last = metering
            .books
            .final_claim(id)
            .ok_or("a channel is finished, and nobody knows it")?;
        let stored = self
            .journal
            .of(id)
            .cloned()
            .ok_or("a channel is finished, and no record says so")?;
        let again = self.read_anew(id, stored)?;
        ensure(same(&again, &last), || {
            let (said, synced) = (&last.status, &again.status);
            format!("the last claim rests on more than is synced: {said:?}, synced {synced:?}")
        })?;
        let truth = &mut self.channels[number].truth;
        if let Some(first) = &truth.last {
            ensure(same(first, &last), || {
                format!("two last claims: {:?} and {:?}", first.status, last.status)
            })?;
        }
        self.coverage.finished += 1;
        self.trace.note(
            self.now_us,
            format_args!("channel {number} is finished with {last:?}"),
        );
        self.channels[number].truth.last = Some(last);
        Ok(())
    }

    fn read_anew(&self, id: ChannelId, stored: topnet_books::Stored) -> Result<FinalClaim, String> {
        let served = Served {
            service: ChainName::vpn(),
            payee: Some(PAYEE),
            close_window_blocks_min: 10,
            write_off_units_max: 0,
        };
        let books = Books::restore(served, self.plan.offer, vec![stored])
            .map_err(|(_, error)| error.to_string())?;
        books
            .final_claim(id)
            .ok_or_else(|| "a synced record is no channel".to_owned())
    }

    /// Everybody is well and talks; then what is asked for and paid must pass.
    fn heal(&mut self, step: &mut u32) -> Step {
        self.healthy = true;
        self.plan.weather.chaos = false;
        self.settlement_up = true;
        self.clock_off_ms = 0;
        let expired = self
            .channels
            .iter()
            .filter(|channel| channel.view.expiry < u64::MAX);
        self.coverage.expired += expired.count() as u64;
        self.note(format_args!("everybody is well"));
        for number in 0..self.channels.len() {
            let channel = &mut self.channels[number];
            let allocation = channel.wallet_allocation;
            channel.wallet.handle_allocation(allocation);
            channel.older = channel.view.clone();
            self.break_link(number);
            self.hang_up(number);
            let open = self.channels[number].view.state == ChannelState::Open;
            self.channels[number].wanted |= open;
        }
        let before: Vec<u64> = self
            .channels
            .iter()
            .map(|c| c.truth.forwarded_bytes)
            .collect();
        for _ in 0..HEALTHY_ROUNDS {
            self.round(step, true)?;
        }
        for (number, before_bytes) in before.into_iter().enumerate() {
            self.check_progress(number, before_bytes)?;
        }
        Ok(())
    }

    fn round(&mut self, step: &mut u32, traffic: bool) -> Step {
        *step += 1;
        self.advance(30_000);
        self.start_plane()?;
        self.start_metering()?;
        self.enter();
        self.watch_chains()?;
        self.follow_slots()?;
        if step.is_multiple_of(10) {
            self.watch_channels()?;
        }
        if traffic {
            self.burst()?;
        }
        self.settle();
        self.turn()?;
        self.deliver()?;
        self.wallets()?;
        self.errand()?;
        self.check()
    }

    /// An honest payer with money left is served.
    fn check_progress(&mut self, number: usize, before_bytes: u64) -> Step {
        let channel = &self.channels[number];
        let wallet = &channel.wallet;
        let honest =
            channel.payer_kind == PayerKind::Honest && channel.payee_kind == PayeeKind::Honest;
        if let (true, Some(Ended::Fault(fault))) = (honest, wallet.ended) {
            return Err(format!("an honest wallet gave up: {fault}"));
        }
        let serves = honest
            && channel.view.state == ChannelState::Open
            && channel.view.expiry == u64::MAX
            && !channel.lossy
            && !channel.finishing
            && !wallet.has_forgotten();
        if !serves || self.channels.len() >= self.plan.slots as usize {
            return Ok(());
        }
        let status = wallet.payer.status();
        let accepted = channel.truth.synced.accepted;
        let allocation = wallet.terms.allocation;
        let spent = status.promised.checked_add(self.plan.price_max());
        let used_up = accepted == status.released && spent.is_none_or(|spent| spent > allocation);
        let moved = channel.truth.forwarded_bytes > before_bytes + UNIT_BYTES;
        ensure(moved || used_up, || {
            format!("channel {number} stands still: {accepted} units accepted, {status:?}")
        })
    }

    fn finish_all(&mut self, step: &mut u32) -> Step {
        if self.random.once_in(4) {
            self.kill_metering()?;
            self.start_metering()?;
        }
        for again in [false, true] {
            if again {
                self.kill_metering()?;
                self.start_metering()?;
            }
            self.finish_each(step)?;
        }
        for channel in &self.channels {
            let Some(last) = &channel.truth.last else {
                continue;
            };
            let lines = self.journal.lines(channel.view.id);
            channel.truth.check_last(last, lines)?;
            if channel.payer_kind == PayerKind::Honest {
                channel.check_honest(last, &self.plan)?;
            }
        }
        Ok(())
    }

    fn finish_each(&mut self, step: &mut u32) -> Step {
        for number in 0..self.channels.len() {
            self.ask_finish(number)?;
        }
        for _ in 0..FINISH_ROUNDS {
            if self.is_all_finished() {
                return Ok(());
            }
            // The data plane goes on as far as it is let.
            if self.random.once_in(3) {
                *step += 1;
                self.advance(60_000);
                self.burst()?;
                self.turn()?;
                self.check()?;
            } else {
                self.round(step, true)?;
            }
        }
        Err("finishing does not end".to_owned())
    }

    /// Every channel that metering knows has its last claim.
    fn is_all_finished(&self) -> bool {
        let Some(metering) = &self.metering else {
            return false;
        };
        metering
            .books
            .channels()
            .all(|channel| metering.finished.contains(&channel))
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
