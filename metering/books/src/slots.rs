//! The books and the data plane: tables that are attached, slots that come and go, usage.

use std::collections::HashSet;

use topnet_account::ChannelId;
use topnet_api::{Assignments, SlotState};
use topnet_channel::SlotUse;
use topnet_unit::{Attachment, BootId, Slot, UnitRecord};
use tracing::{error, info, warn};

use crate::{BOUNDARIES_MAX, Books, Output};

impl Books {
    /// Boot id of the attached data plane.
    pub fn boot(&self) -> Option<BootId> {
        self.attached.as_ref().map(|attached| attached.header.boot)
    }

    /// A data plane's tables. Those of one that ran before are read to their end.
    pub fn handle_attached(&mut self, attachment: Attachment) {
        let boot = attachment.header.boot;
        info!(%boot, slots = attachment.header.slots, "attached to the data plane's tables");
        let dead = self.attached.replace(attachment);
        self.slots.clear();
        let channels: Vec<ChannelId> = self.live.iter().copied().collect();
        for channel in channels {
            let Some(account) = self.accounts.get_mut(&channel) else {
                continue;
            };
            let gone: Vec<SlotUse> = account
                .payee
                .slot_uses()
                .map(|(slot_use, _)| slot_use)
                .collect();
            for slot_use in gone {
                if slot_use.boot == boot {
                    self.slots.insert(slot_use.slot.index, (channel, slot_use));
                    continue;
                }
                // Without its mapping the last durable word is the last word.
                let dead = dead
                    .as_ref()
                    .filter(|dead| dead.header.boot == slot_use.boot);
                let usage_bytes = dead.map_or(0, |dead| {
                    dead.credit.close(slot_use.slot);
                    dead.usage.totals(slot_use.slot.index).bytes
                });
                account.handle_slot_over(slot_use, usage_bytes);
                account.payee.handle_slot_forgotten(slot_use);
                account.urgent = true;
            }
            self.touch(channel);
        }
    }

    /// The slots that the attached data plane has in use. A list of another run is no news.
    pub fn handle_assignments(&mut self, assignments: &Assignments) {
        let Some(attached) = &self.attached else {
            return;
        };
        let (boot, slots) = (attached.header.boot, attached.header.slots);
        if assignments.boot.parse() != Ok(boot) {
            return;
        }
        let mut listed = HashSet::new();
        for assigned in &assignments.slots {
            if !(1..slots).contains(&assigned.slot) {
                error!(
                    slot = assigned.slot,
                    slots, "the data plane names a slot that its tables do not have"
                );
                continue;
            }
            let slot = Slot {
                index: assigned.slot,
                generation: assigned.generation,
            };
            let slot_use = SlotUse { boot, slot };
            listed.insert(slot_use);
            let retired = assigned.state == SlotState::Retired;
            self.handle_assignment(assigned.channel, slot_use, assigned.base_bytes, retired);
        }
        self.forget_unlisted(boot, &listed);
    }

    fn handle_assignment(
        &mut self,
        channel: ChannelId,
        slot_use: SlotUse,
        base_bytes: u64,
        retired: bool,
    ) {
        self.retire_before(slot_use, base_bytes);
        let Some(attached) = &self.attached else {
            return;
        };
        let Some(account) = self.accounts.get_mut(&channel) else {
            // It never had credit, so nothing was counted.
            self.outputs.push_back(if retired {
                Output::Acknowledge(slot_use)
            } else {
                Output::LookUp(channel)
            });
            return;
        };
        let known = account
            .payee
            .slot_uses()
            .any(|(known, _)| known == slot_use);
        if !known {
            if !account.payee.handle_slot(slot_use, base_bytes) {
                warn!(%channel, "the channel has too many slots; this one waits");
                return;
            }
            account.urgent = true;
        }
        self.slots.insert(slot_use.slot.index, (channel, slot_use));
        if retired {
            attached.credit.close(slot_use.slot);
            let usage_bytes = attached.usage.totals(slot_use.slot.index).bytes;
            account.handle_slot_over(slot_use, usage_bytes);
            if !account.acknowledge.contains(&slot_use) {
                account.acknowledge.push(slot_use);
            }
            account.urgent = true;
        }
        if retired || !known {
            self.touch(channel);
        }
    }

    /// Another use of the same slot is over, and was acknowledged: its bytes end where those of
    /// `slot_use` begin.
    fn retire_before(&mut self, slot_use: SlotUse, base_bytes: u64) {
        let Some(&(channel, before)) = self.slots.get(&slot_use.slot.index) else {
            return;
        };
        if before == slot_use {
            return;
        }
        if let Some(account) = self.accounts.get_mut(&channel) {
            account.handle_slot_over(before, base_bytes);
        }
        self.handle_acknowledged(before);
    }

    /// What the data plane does not name any more has been acknowledged, perhaps by a run of
    /// ours that did not live to hear it.
    fn forget_unlisted(&mut self, boot: BootId, listed: &HashSet<SlotUse>) {
        let unlisted: Vec<(ChannelId, SlotUse)> = self
            .slots
            .values()
            .copied()
            .filter(|(_, slot_use)| !listed.contains(slot_use))
            .collect();
        for (channel, slot_use) in unlisted {
            debug_assert_eq!(slot_use.boot, boot);
            let Some(attached) = &self.attached else {
                return;
            };
            if let Some(account) = self.accounts.get_mut(&channel) {
                let usage_bytes = attached.usage.totals(slot_use.slot.index).bytes;
                let over = account
                    .payee
                    .slot_uses()
                    .any(|(known, over)| known == slot_use && over);
                if !over {
                    warn!(%channel, ?slot_use, "the data plane forgot a slot before it was acknowledged");
                    attached.credit.close(slot_use.slot);
                    account.handle_slot_over(slot_use, usage_bytes);
                }
            }
            self.handle_acknowledged(slot_use);
        }
    }

    /// The data plane has heard that the last totals are journalled.
    pub fn handle_acknowledged(&mut self, slot_use: SlotUse) {
        let index = slot_use.slot.index;
        let Some(&(channel, current)) = self.slots.get(&index) else {
            return;
        };
        if current != slot_use {
            return;
        }
        self.slots.remove(&index);
        if let Some(account) = self.accounts.get_mut(&channel) {
            account.payee.handle_slot_forgotten(slot_use);
            account.acknowledge.retain(|waiting| *waiting != slot_use);
            self.touch(channel);
        }
    }

    /// Reads what was counted: where a record says that it is worth looking, or everywhere.
    /// Gives the number of records.
    pub fn poll_usage(&mut self, everywhere: bool) -> u64 {
        let Some(attached) = &mut self.attached else {
            return 0;
        };
        let mut seen = std::mem::take(&mut self.seen);
        let mut records = 0;
        for ring in &mut attached.rings {
            let take = |record: UnitRecord| {
                seen.push(record.slot.index);
                if self.boundaries.len() < BOUNDARIES_MAX {
                    self.boundaries.push(record.time_ns);
                }
            };
            match ring.drain(take) {
                Ok(drained) => records += drained,
                Err(corrupt) => {
                    warn!(%corrupt, "unit records were skipped; the tables have it all")
                }
            }
        }
        self.counters.records += records;
        if everywhere {
            seen.clear();
            seen.extend(self.slots.keys());
        }
        for index in seen.drain(..) {
            self.read(index);
        }
        self.seen = seen;
        records
    }

    pub(super) fn read(&mut self, index: u32) {
        let (Some(attached), Some(&(channel, slot_use))) = (&self.attached, self.slots.get(&index))
        else {
            return;
        };
        let Some(account) = self.accounts.get_mut(&channel) else {
            return;
        };
        if account.handle_usage(slot_use, attached.usage.totals(index).bytes) {
            self.touch(channel);
        }
    }
}
