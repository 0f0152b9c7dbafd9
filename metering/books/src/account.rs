//! One channel in the books.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use topnet_account::ChannelId;
use topnet_channel::{Meter, Payee, PayeeMessage, PayeeState, RefusalCode, SlotUse};
use topnet_unit::{Attachment, units_owed};
use tracing::warn;

use crate::{ConnectionId, Output, Tips, facts::Facts};

/// After its credit is closed a worker may be within one burst, and is past it long before this.
const BURST_TIME_MAX: Duration = Duration::from_millis(100);
/// A data plane whose tables are not attached by then is taken for dead, and what is journalled
/// for its last word.
const ATTACH_TIME_MAX: Duration = Duration::from_secs(5);

/// A channel: its payee, and what stands around it.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) payee: Payee,
    pub(super) facts: Facts,
    pub(super) facts_changed: bool,
    pub(super) standing: Standing,
    pub(super) frozen: Option<String>,
    pub(super) connection: Option<ConnectionId>,
    /// The link is to be told where the channel stands.
    pub(super) greet: bool,
    pub(super) told: Option<Meter>,
    pub(super) refused: Option<RefusalCode>,
    pub(super) finish: Finish,
    pub(super) acknowledge: Vec<SlotUse>,
    pub(super) touched: bool,
    pub(super) urgent: bool,
}

/// What the chain has said of a channel since metering started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing: it may have been closed while nobody listened.
    Unheard,
    /// It goes on.
    Open,
    /// It does not, and why; it never will again.
    Over(String),
}

impl Standing {
    /// Why the channel must not be served, if so.
    pub(super) fn reason(&self) -> Option<String> {
        match self {
            Self::Unheard => {
                Some("the chain has not said how the channel stands since metering started".into())
            }
            Self::Open => None,
            Self::Over(reason) => Some(reason.clone()),
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

impl Account {
    pub(super) fn new(payee: Payee, facts: Facts, is_new: bool) -> Self {
        let mut account = Self {
            payee,
            facts,
            facts_changed: is_new,
            standing: Standing::Unheard,
            frozen: Standing::Unheard.reason(),
            connection: None,
            greet: false,
            told: None,
            refused: None,
            finish: Finish::NotAsked,
            acknowledge: Vec::new(),
            touched: false,
            urgent: false,
        };
        account.payee.handle_frozen(true);
        account
    }

    /// Something to pay with or to pay for.
    pub(super) fn is_active(&self) -> bool {
        let finished = self.payee.state() == PayeeState::Finished;
        !finished && (self.connection.is_some() || self.payee.slot_uses().next().is_some())
    }

    /// A unit that has come due is worth a commit of its own; bytes within one are not.
    pub(super) fn note_usage(&mut self) {
        let owed = units_owed(self.payee.channel_bytes(), self.payee.written_off());
        self.urgent |= owed > self.payee.meter().owed;
        let unpaid_bytes = self.payee.unpaid_bytes();
        if unpaid_bytes > self.facts.unpaid_bytes_max {
            self.facts.unpaid_bytes_max = unpaid_bytes;
            self.facts_changed = true;
        }
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

    /// Tells the payer and the data plane what has become durable.
    pub(super) fn tell(&mut self, outputs: &mut VecDeque<Output>) {
        outputs.extend(self.acknowledge.drain(..).map(Output::Acknowledge));
        let Some(connection) = self.connection else {
            return;
        };
        let mut say = |message| outputs.push_back(Output::Reply(connection, message));
        if self.greet {
            self.greet = false;
            self.told = None;
            say(PayeeMessage::Offer(self.payee.offer()));
            say(PayeeMessage::Resume(self.payee.promise()));
        }
        let meter = self.payee.meter();
        if self.told != Some(meter) {
            self.told = Some(meter);
            say(PayeeMessage::Meter(meter));
            if self.payee.state() == PayeeState::Finished {
                say(PayeeMessage::Refused(RefusalCode::Finished));
            }
        }
    }

    /// Freezes the channel if it must not go on, and thaws it if it may again. True if that
    /// changed anything.
    pub(super) fn freshen(&mut self, tips: Option<Tips>, wall_ms: u64) -> bool {
        let blocks = self.facts.close_window_blocks;
        let reason = self
            .standing
            .reason()
            .or_else(|| stale(tips, blocks, wall_ms));
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
                    self.payee.handle_usage(slot_use, bytes);
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

/// Why a channel whose payer may close within `close_window_blocks` must not be served: its
/// claims might come too late, and nobody would know.
pub(super) fn stale(tips: Option<Tips>, close_window_blocks: u64, wall_ms: u64) -> Option<String> {
    let Some(tips) = tips else {
        return Some("the chains have not been heard since metering started".to_owned());
    };
    let limit_ms = close_window_blocks.saturating_mul(tips.block_interval_ms) / 4;
    let chains = [
        ("service chain", tips.service_time_ms),
        ("main chain", tips.main_time_ms),
    ];
    chains.into_iter().find_map(|(chain, time_ms)| {
        let age_ms = wall_ms.saturating_sub(time_ms);
        (age_ms > limit_ms).then(|| {
            format!(
                "the {chain}'s newest final header is {age_ms} ms old, more than a quarter of the \
                 close window ({limit_ms} ms); is settlement running?"
            )
        })
    })
}
