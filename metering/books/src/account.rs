//! One channel in the books.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use topnet_account::{Amount, ChannelId, Hash};
use topnet_api::{ChannelState, ChannelView, ClaimBytes};
use topnet_channel::{Meter, Payee, PayeeMessage, PayeeState, RefusalCode, SlotUse};
use topnet_log::{Frontier, Line, log_root};
use topnet_unit::{Attachment, BootId, Slot, UnitCount, units_owed};
use tracing::warn;

use crate::{
    ConnectionId, LogHead, NewLine, Output, PATIENCE_MAX,
    chain::{Clock, Heads, UNHEARD},
    facts::Facts,
};

/// After its credit is closed a worker may be within one burst, and is past it long before this.
const BURST_TIME_MAX: Duration = Duration::from_millis(100);
/// A data plane whose tables are not attached by then is taken for dead, and what is journalled
/// for its last word.
const ATTACH_TIME_MAX: Duration = Duration::from_secs(5);

/// How long a payer who counts less than we do may leave a channel without credit before a unit
/// is written off: long enough for its tokens to arrive.
const STALLED_TIME_MAX: Duration = Duration::from_secs(2);
/// A payer is told at once when this share of its lead has been used up since it was told last;
/// until then what it hears would change nothing that it has to do now.
const TELLING_SHARE: u64 = 8;
/// A channel with less credit than the largest packet stands still.
const PACKET_BYTES_MAX: u64 = 1 << 16;

/// A channel: its payee, and what stands around it.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) payee: Payee,
    pub(super) facts: Facts,
    pub(super) facts_changed: bool,
    /// What could be redeemed although the service died, once the chain has said so.
    pub(super) backed: Option<Amount>,
    pub(super) standing: Standing,
    pub(super) frozen: Option<String>,
    pub(super) connection: Option<ConnectionId>,
    /// The link is to be told where the channel stands.
    pub(super) greet: bool,
    /// On this link, and when.
    pub(super) told: Option<(Meter, Instant)>,
    /// What the payer says that it counted itself, at most.
    pub(super) payer_bytes: u64,
    /// Since when the channel has stood still although its payer is there.
    stalled: Option<Instant>,
    pub(super) log: AccountLog,
    pub(super) refused: Option<RefusalCode>,
    pub(super) patience: Patience,
    pub(super) finish: Finish,
    pub(super) acknowledge: Vec<SlotUse>,
    pub(super) handing: Handing,
    /// Since metering started: units come due only when something counts.
    counted_last: Option<SlotUse>,
    pub(super) touched: bool,
    pub(super) urgent: bool,
}

/// What the chain has said of a channel since metering started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing: it may have been closed while nobody listened.
    Unheard,
    /// It goes on until anybody may close it.
    Open {
        /// From this height on.
        expiry: u64,
    },
    /// It is about to end, and never opens again.
    Closing {
        /// Claims are taken up to this height.
        deadline: u64,
    },
    /// It is over.
    Closed,
}

impl Standing {
    pub(super) fn of(view: &ChannelView) -> Self {
        match view.state {
            ChannelState::Open => Self::Open {
                expiry: view.expiry,
            },
            ChannelState::Closing { deadline } => Self::Closing { deadline },
            ChannelState::Closed => Self::Closed,
        }
    }

    /// Channels only ever go forward: an answer from before changes nothing.
    pub(super) fn hear(&mut self, heard: Self) {
        *self = match (*self, heard) {
            (Self::Closed, _) => Self::Closed,
            (Self::Closing { deadline }, Self::Open { .. } | Self::Unheard) => {
                Self::Closing { deadline }
            }
            (_, heard) => heard,
        };
    }

    /// Why a channel whose payer may close within `close_window_blocks` must not be served, if so.
    fn reason(self, heads: Option<&Heads>, close_window_blocks: u64) -> Option<String> {
        match self {
            Self::Unheard => {
                Some("the chain has not said how the channel stands since metering started".into())
            }
            Self::Open { expiry } => {
                let height = heads?.tips.service_height;
                (height.saturating_add(close_window_blocks / 4) >= expiry).then(|| {
                    format!("anybody may close the channel from block {expiry} on; open another")
                })
            }
            Self::Closing { deadline } => Some(format!(
                "the channel is closing, final at block {deadline}; open another"
            )),
            Self::Closed => Some("the channel is closed on its chain; open another".to_owned()),
        }
    }
}

/// How much of our time a channel's payer may still waste: a link or a refusal is nothing to the
/// payer, and work for us, since its key is known.
#[derive(Debug)]
pub(super) struct Patience {
    left: u32,
    /// It has grown up to then.
    since: Option<Instant>,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            left: PATIENCE_MAX,
            since: None,
        }
    }
}

impl Patience {
    /// Takes what something has cost. False if there is no patience left for it; then it has to
    /// grow again from nothing. Without a `now` it does not grow.
    pub(super) fn lose(&mut self, cost: u32, now: Option<Instant>) -> bool {
        if let Some(now) = now {
            let since = *self.since.get_or_insert(now);
            let grown = now.saturating_duration_since(since).as_secs();
            let grown = u32::try_from(grown).unwrap_or(u32::MAX);
            self.left = self.left.saturating_add(grown).min(PATIENCE_MAX);
            self.since = Some(since + Duration::from_secs(grown.into()));
        }
        let rest = self.left.checked_sub(cost);
        self.left = rest.unwrap_or(0);
        rest.is_some()
    }
}

/// A channel's part of the service log. What a claim says of it is durable.
#[derive(Debug, Default)]
pub(super) struct AccountLog {
    units: UnitCount,
    tree: Frontier,
    writing: bool,
    durable_root: Hash,
}

impl AccountLog {
    /// The line for everything begun up to `units`; `None` if it all has one.
    fn line(&mut self, mut line: Line) -> Option<NewLine> {
        line.units_before = self.units;
        if line.units <= self.units {
            return None;
        }
        let peak = self.tree.append(&line);
        self.units = line.units;
        self.writing = true;
        Some(NewLine {
            line,
            lines: self.tree.size(),
            peak,
        })
    }

    pub(super) fn handle_durable(&mut self, channel: &ChannelId) {
        if std::mem::take(&mut self.writing) {
            self.durable_root = log_root(channel, self.tree.size(), &self.tree.root());
        }
    }

    /// What goes into a claim.
    pub(super) fn root(&self) -> Hash {
        self.durable_root
    }

    pub(super) fn restore(channel: &ChannelId, head: LogHead) -> Self {
        Self {
            units: head.units,
            durable_root: log_root(channel, head.tree.size(), &head.tree.root()),
            tree: head.tree,
            writing: false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finish {
    /// Nobody wants it finished.
    NotAsked,
    /// Credit is to be closed.
    Asked,
    /// Since then: the tables that it is to be closed in are not attached.
    Unattached(Instant),
    /// Credit was closed then.
    Closed(Instant),
    /// The last totals are journalled.
    Done,
}

/// How far the channel's claim was handed to whoever makes it if we cannot.
#[derive(Debug, Default)]
pub(super) struct Handing {
    /// Units that the claim was for which was handed over last.
    units: UnitCount,
    /// It waits to be handed over.
    waits: bool,
}

impl Account {
    pub(super) fn new(payee: Payee, facts: Facts, is_new: bool) -> Self {
        let mut account = Self {
            payee,
            facts,
            facts_changed: is_new,
            backed: None,
            standing: Standing::Unheard,
            frozen: Standing::Unheard.reason(None, 0),
            connection: None,
            greet: false,
            told: None,
            payer_bytes: 0,
            stalled: None,
            log: AccountLog::default(),
            refused: None,
            patience: Patience::default(),
            finish: Finish::NotAsked,
            acknowledge: Vec::new(),
            handing: Handing::default(),
            counted_last: None,
            touched: false,
            urgent: false,
        };
        account.payee.handle_frozen(true);
        account
    }

    /// What is redeemable, and lost if the service died now.
    pub(super) fn unbacked(&self) -> Amount {
        // To say what a claim is worth takes hashes, and mostly all of it is backed.
        let Some(backed) = self.backed.filter(|backed| *backed < self.facts.allocation) else {
            return Amount::ZERO;
        };
        let worth = self.payee.claim().and_then(|claim| claim.redeemable());
        worth
            .and_then(|worth| worth.checked_sub(backed))
            .unwrap_or(Amount::ZERO)
    }

    /// Something to pay with or to pay for.
    pub(super) fn is_active(&self) -> bool {
        self.payee.state() != PayeeState::Finished && self.is_live()
    }

    /// Something can happen to it by itself.
    pub(super) fn is_live(&self) -> bool {
        self.connection.is_some() || self.payee.slot_uses().next().is_some()
    }

    /// The line of the service log for what the record that is being written says is owed.
    pub(super) fn log_units(&mut self, channel: ChannelId, wall_ms: u64) -> Option<NewLine> {
        let none = SlotUse {
            boot: BootId([0; 16]),
            slot: Slot {
                index: 0,
                generation: 0,
            },
        };
        let SlotUse { boot, slot } = self.counted_last.unwrap_or(none);
        self.log.line(Line {
            channel,
            units_before: 0,
            units: self.payee.owed(),
            channel_bytes: self.payee.channel_bytes(),
            time_ms: wall_ms,
            boot,
            slot,
        })
    }

    /// Writes off a unit where the payer is there, counts less than we do, and has left the
    /// channel without credit for so long that it will not pay for the difference. True if it
    /// did: at most `units_max` in the channel's life.
    pub(super) fn forgive(&mut self, now: Instant, units_max: UnitCount) -> bool {
        let left = self
            .payee
            .paid_bytes()
            .saturating_sub(self.payee.channel_bytes());
        let stands_still = self.connection.is_some()
            && self.payee.state() == PayeeState::Open
            && self.payee.is_durable()
            && left < PACKET_BYTES_MAX
            && units_owed(self.payer_bytes, 0) < self.payee.owed()
            && self.payee.written_off() < units_max;
        if !stands_still {
            self.stalled = None;
            return false;
        }
        let since = *self.stalled.get_or_insert(now);
        if now < since + STALLED_TIME_MAX {
            return false;
        }
        self.stalled = None;
        self.payee.handle_write_off(1);
        self.urgent = true;
        true
    }

    /// What a use of a slot has counted in all. True if that is news.
    pub(super) fn handle_usage(&mut self, slot_use: SlotUse, usage_bytes: u64) -> bool {
        self.note_usage(slot_use, |payee| payee.handle_usage(slot_use, usage_bytes))
    }

    /// The last word of a use of a slot.
    pub(super) fn handle_slot_over(&mut self, slot_use: SlotUse, usage_bytes: u64) {
        self.note_usage(slot_use, |payee| {
            payee.handle_slot_over(slot_use, usage_bytes)
        });
    }

    /// Every byte that the books hear of comes by here. A unit that has come due is worth a
    /// commit of its own; bytes within one are not.
    fn note_usage(&mut self, slot_use: SlotUse, hear: impl FnOnce(&mut Payee)) -> bool {
        let before = self.payee.channel_bytes();
        hear(&mut self.payee);
        if self.payee.channel_bytes() == before {
            return false;
        }
        self.counted_last = Some(slot_use);
        let owed = units_owed(self.payee.channel_bytes(), self.payee.written_off());
        self.urgent |= owed > self.payee.meter().owed;
        let unpaid_bytes = self.payee.unpaid_bytes();
        if unpaid_bytes > self.facts.unpaid_bytes_max {
            self.facts.unpaid_bytes_max = unpaid_bytes;
            self.facts_changed = true;
        }
        true
    }

    /// True if its claim has grown and waits to be handed over from now on.
    pub(super) fn claim_begins_to_wait(&mut self) -> bool {
        let grown = self.claimed_units() > self.handing.units;
        grown && !std::mem::replace(&mut self.handing.waits, true)
    }

    /// The claim to be handed over now.
    pub(super) fn take_claim(&mut self) -> Option<ClaimBytes> {
        self.handing = Handing {
            units: self.claimed_units(),
            waits: false,
        };
        self.claim_bytes()
    }

    /// What was taken last has not arrived. True if it waits from now on.
    pub(super) fn claim_was_lost(&mut self) -> bool {
        self.handing.units = 0;
        self.claim_begins_to_wait()
    }

    /// Units that the claim is for.
    fn claimed_units(&self) -> UnitCount {
        let Meter { owed, accepted, .. } = self.payee.meter();
        owed.min(accepted)
    }

    /// The claim for exactly what is owed, as it goes to the ledger.
    pub(super) fn claim_bytes(&self) -> Option<ClaimBytes> {
        self.payee.claim().map(|claim| ClaimBytes {
            voucher: claim.voucher.to_bytes().to_vec(),
            index: claim.index,
            preimage: claim.preimage,
            log_root: self.log.root(),
        })
    }

    pub(super) fn note_window(&mut self) {
        let Meter { owed, accepted, .. } = self.payee.meter();
        let window_units = accepted.saturating_sub(owed);
        if window_units > self.facts.window_units_max {
            self.facts.window_units_max = window_units;
            self.facts_changed = true;
        }
    }

    /// Taking credit away is always right; giving it waits until everything is on disk, the
    /// slot itself included.
    pub(super) fn apply_credit(&mut self, attached: Option<&Attachment>) {
        let Some(attached) = attached else { return };
        let durable = self.payee.is_durable();
        for (slot_use, grant) in self.payee.grants() {
            if slot_use.boot != attached.header.boot {
                continue;
            }
            match grant {
                Some(grant) if durable => attached.credit.grant(slot_use.slot, grant),
                Some(_) => {}
                None => attached.credit.close(slot_use.slot),
            }
        }
    }

    /// Tells the payer and the data plane what has become durable; the payer what is not urgent
    /// no sooner than `interval` after it was told last. True if all is told.
    pub(super) fn tell(
        &mut self,
        now: Instant,
        interval: Duration,
        outputs: &mut VecDeque<Output>,
    ) -> bool {
        outputs.extend(self.acknowledge.drain(..).map(Output::Acknowledge));
        let Some(connection) = self.connection else {
            return true;
        };
        let mut say = |message| outputs.push_back(Output::Reply(connection, message));
        if std::mem::take(&mut self.greet) {
            self.told = None;
            say(PayeeMessage::Offer(self.payee.offer()));
            say(PayeeMessage::Resume(self.payee.promise()));
        }
        let meter = self.payee.meter();
        if let Some((told, at)) = self.told {
            if told == meter {
                return true;
            }
            if !self.is_urgent_to_tell(&meter, &told) && now < at + interval {
                return false;
            }
        }
        self.told = Some((meter, now));
        say(PayeeMessage::Meter(meter));
        if self.payee.state() == PayeeState::Finished {
            say(PayeeMessage::Refused(RefusalCode::Finished));
        }
        true
    }

    /// A message for each unit would cost more than to count the unit and to be paid for it.
    fn is_urgent_to_tell(&self, meter: &Meter, told: &Meter) -> bool {
        let lead = meter.accepted.saturating_sub(meter.owed);
        let step = (lead / TELLING_SHARE).max(1);
        meter.owed.saturating_sub(told.owed) >= step || self.payee.state() == PayeeState::Finished
    }

    /// Freezes the channel if it must not go on, and thaws it if it may again. True if that
    /// changed anything.
    pub(super) fn freshen(&mut self, heads: Option<&Heads>, clock: Clock) -> bool {
        let blocks = self.facts.close_window_blocks;
        let reason = self.standing.reason(heads, blocks).or_else(|| match heads {
            Some(heads) => heads.stale(blocks, clock),
            None => Some(UNHEARD.to_owned()),
        });
        let changed = reason.is_some() != self.frozen.is_some();
        if changed {
            self.payee.handle_frozen(reason.is_some());
            // Credit comes back with the next commit; taking it away waits for none.
            self.urgent = true;
        }
        self.frozen = reason;
        changed
    }

    /// One step towards the last claim. True while there is more to do.
    pub(super) fn finish(
        &mut self,
        attached: Option<&Attachment>,
        channel: ChannelId,
        now: Instant,
        outputs: &mut VecDeque<Output>,
    ) -> bool {
        let counting: Vec<SlotUse> = self
            .payee
            .slot_uses()
            .filter(|(_, over)| !over)
            .map(|(slot_use, _)| slot_use)
            .collect();
        let boot = attached.map(|attached| attached.header.boot);
        let is_attached = counting.iter().all(|slot_use| Some(slot_use.boot) == boot);
        let closed = match self.finish {
            Finish::NotAsked | Finish::Done => return false,
            // It still spends what an earlier run of ours granted.
            Finish::Asked if !is_attached => {
                self.finish = Finish::Unattached(now);
                return true;
            }
            Finish::Unattached(since) if !is_attached && now < since + ATTACH_TIME_MAX => {
                return true;
            }
            // `apply_credit` has just closed it.
            Finish::Asked | Finish::Unattached(_) => {
                self.finish = Finish::Closed(now);
                if let Some(connection) = self.connection {
                    let refusal = PayeeMessage::Refused(RefusalCode::Finished);
                    outputs.push_back(Output::Reply(connection, refusal));
                }
                now
            }
            Finish::Closed(closed) => closed,
        };
        if !counting.is_empty() {
            if now < closed + BURST_TIME_MAX {
                return true;
            }
            let of_boot = |slot_use: &SlotUse| attached.filter(|a| a.header.boot == slot_use.boot);
            for slot_use in counting {
                if let Some(attached) = of_boot(&slot_use) {
                    let bytes = attached.usage.totals(slot_use.slot.index).bytes;
                    self.handle_usage(slot_use, bytes);
                } else {
                    warn!(%channel, ?slot_use, "its tables are gone: what it counted last is not claimed");
                }
            }
        }
        if !self.payee.is_durable() {
            return true;
        }
        self.finish = Finish::Done;
        outputs.push_back(Output::Finished(channel));
        false
    }
}
