//! How channels stand, and what their last claims are.

use std::ops::Bound;

use topnet_account::{Amount, ChannelId, PublicKey};
use topnet_api::{ChannelStatus, FinalClaim, HeldClaim};
use topnet_channel::PayeeState;
use topnet_unit::units_owed;

use crate::{
    Books, Counters,
    account::{Account, Finish},
};

impl Books {
    /// Closes a channel's credit for good; [`Output::Finished`] follows. False if nobody knows
    /// the channel.
    pub fn handle_finish(&mut self, channel: ChannelId) -> bool {
        let Some(account) = self.accounts.get(&channel) else {
            return false;
        };
        let slot_uses = account.payee.slot_uses();
        let slots: Vec<u32> = slot_uses.map(|(slot_use, _)| slot_use.slot.index).collect();
        // So that the payer hears of the last bytes before it hears that this is the end.
        slots.into_iter().for_each(|index| self.read(index));
        let Some(account) = self.accounts.get_mut(&channel) else {
            return false;
        };
        account.payee.handle_finish();
        if account.finish == Finish::NotAsked || account.finish == Finish::Done {
            account.finish = Finish::Asked;
        }
        account.urgent = true;
        self.touch(channel);
        true
    }

    /// The last claim of a channel: exactly what is owed, under the newest voucher that begins
    /// at or before it.
    pub fn final_claim(&self, channel: ChannelId) -> Option<FinalClaim> {
        let status = self.status(channel)?;
        let account = self.accounts.get(&channel)?;
        let claim = account.claim_bytes();
        Some(FinalClaim { status, claim })
    }

    /// Claims that have grown since they were taken last, those that have waited longest first.
    /// What does not arrive where it is held must be told to
    /// [`handle_claims_lost`](Self::handle_claims_lost).
    pub fn take_claims(&mut self, count: usize) -> Vec<HeldClaim> {
        let count = count.min(self.claims.len());
        let waiting: Vec<ChannelId> = self.claims.drain(..count).collect();
        let take = |channel: ChannelId| {
            let claim = self.accounts.get_mut(&channel)?.take_claim()?;
            Some(HeldClaim { channel, claim })
        };
        waiting.into_iter().filter_map(take).collect()
    }

    /// Claims that were taken did not arrive: they wait again.
    pub fn handle_claims_lost(&mut self, channels: &[ChannelId]) {
        for channel in channels {
            let account = self.accounts.get_mut(channel);
            if account.is_some_and(Account::claim_was_lost) {
                self.claims.push_back(*channel);
            }
        }
    }

    /// Counts since start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Channels that are known.
    pub fn known(&self) -> usize {
        self.accounts.len()
    }

    /// Links with payers.
    pub fn connected(&self) -> usize {
        self.connections.len()
    }

    /// Every channel's signer, who is no stranger.
    pub fn signers(&self) -> impl Iterator<Item = PublicKey> {
        self.accounts.values().map(|account| account.facts.signer)
    }

    /// Up to `count` channels behind `after`, in the order of their ids: those with a link or a
    /// slot, or `all`.
    pub fn page(&self, all: bool, after: Option<ChannelId>, count: usize) -> Vec<ChannelId> {
        let behind = (
            after.map_or(Bound::Unbounded, Bound::Excluded),
            Bound::Unbounded,
        );
        if !all {
            return self.live.range(behind).take(count).copied().collect();
        }
        let is_behind = |channel: &&ChannelId| after.is_none_or(|after| after < **channel);
        let mut page: Vec<ChannelId> = self.accounts.keys().filter(is_behind).copied().collect();
        if page.len() > count {
            page.select_nth_unstable(count);
            page.truncate(count);
        }
        page.sort_unstable();
        page
    }

    /// Bytes forwarded beyond what is paid for, over all channels.
    pub fn unpaid_bytes(&self) -> u64 {
        let accounts = self
            .live
            .iter()
            .filter_map(|channel| self.accounts.get(channel));
        let unpaid = accounts.map(|account| account.payee.unpaid_bytes());
        unpaid.fold(0, u64::saturating_add)
    }

    /// What would be lost if the service died now, over all channels in use.
    pub fn unbacked(&self) -> Amount {
        let live = self.live.iter();
        let accounts = live.filter_map(|channel| self.accounts.get(channel));
        Amount::checked_sum(accounts.map(Account::unbacked)).unwrap_or(Amount::MAX)
    }

    /// Records that wait in the rings of the attached data plane.
    pub fn ring_waiting(&self) -> u64 {
        let rings = self.attached.iter().flat_map(|attached| &attached.rings);
        rings.map(|ring| ring.waiting()).sum()
    }

    /// Every channel.
    pub fn channels(&self) -> impl Iterator<Item = ChannelId> {
        self.accounts.keys().copied()
    }

    /// How a channel stands.
    pub fn status(&self, channel: ChannelId) -> Option<ChannelStatus> {
        let account = self.accounts.get(&channel)?;
        let payee = &account.payee;
        let meter = payee.meter();
        let redeemable = payee.claim().and_then(|claim| claim.redeemable());
        let (state, reason) = match payee.state() {
            PayeeState::Open => ("open", None),
            PayeeState::Frozen => ("frozen", account.frozen.clone()),
            PayeeState::Finished => ("finished", None),
            PayeeState::Broken => (
                "broken",
                Some("its counts contradict themselves".to_owned()),
            ),
        };
        let refused = account
            .refused
            .map(|code| format!("a payment was refused: {code:?}"));
        let seen_less = units_owed(account.payer_bytes, 0) < meter.owed;
        let disagrees = (account.payer_bytes > 0 && seen_less).then(|| {
            let bytes = meter.channel_bytes.saturating_sub(account.payer_bytes);
            format!("the payer has counted {bytes} bytes less than we did")
        });
        Some(ChannelStatus {
            channel,
            metered_bytes: meter.channel_bytes,
            usage_bytes: payee.channel_bytes(),
            owed_units: meter.owed,
            accepted_units: meter.accepted,
            written_off_units: payee.written_off(),
            window_units: meter.accepted.saturating_sub(meter.owed),
            window_units_max: account.facts.window_units_max,
            payer_bytes: account.payer_bytes,
            unpaid_bytes_now: payee.unpaid_bytes(),
            unpaid_bytes: account.facts.unpaid_bytes_max,
            redeemable: redeemable.unwrap_or(Amount::ZERO),
            unbacked: account.unbacked(),
            state: state.to_owned(),
            reason: reason.or(refused).or(disagrees),
            connected: account.connection.is_some(),
        })
    }
}
