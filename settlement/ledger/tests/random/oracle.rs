//! Keeps the same books as main and a service the simplest way: plain integers, no records, no
//! bytes, no fees' fine print beyond the rules.

use std::collections::{BTreeMap, VecDeque};

use topnet_account::ChannelId;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Worth {
    pub(super) base: u64,
    pub(super) price: u64,
    pub(super) index: u16,
}

impl Worth {
    pub(super) fn amount(self) -> u64 {
        self.base + self.price * u64::from(self.index)
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    Transfer {
        from: u8,
        to: u8,
        amount: u64,
    },
    Fund {
        from: u8,
        to: u8,
        amount: u64,
    },
    Withdraw {
        from: u8,
        amount: u64,
    },
    Open {
        payer: u8,
        payee: u8,
        allocation: u64,
        window: u64,
        expiry: u64,
        id: ChannelId,
    },
    TopUp {
        from: u8,
        id: ChannelId,
        amount: u64,
    },
    Claim {
        id: ChannelId,
        worth: Worth,
    },
    CloseByPayee {
        by: u8,
        id: ChannelId,
        worth: Option<Worth>,
    },
    CloseByPayer {
        by: u8,
        id: ChannelId,
    },
    Expire {
        id: ChannelId,
    },
    Finalise {
        id: ChannelId,
    },
    Credit,
    Batch,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ModelChannel {
    pub(super) payer: u8,
    pub(super) payee: u8,
    pub(super) left: u64,
    pub(super) paid: u64,
    pub(super) closing_fee: u64,
    pub(super) window: u64,
    pub(super) expiry: u64,
    /// `Some(None)` is open, `Some(Some(deadline))` closing, `None` closed.
    pub(super) life: Option<Option<u64>>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Oracle {
    pub(super) main: BTreeMap<u8, u64>,
    pub(super) burned: u64,
    pub(super) escrow: u64,
    pub(super) funds: VecDeque<(u8, u64)>,
    pub(super) service: BTreeMap<u8, u64>,
    pub(super) homeward: BTreeMap<u8, u64>,
    pub(super) queue: VecDeque<u8>,
    pub(super) burn: u64,
    pub(super) channels: BTreeMap<ChannelId, ModelChannel>,
    pub(super) batches: VecDeque<(Vec<(u8, u64)>, u64)>,
}

impl Oracle {
    /// Does one operation if the rules allow it.
    pub(super) fn apply(&mut self, op: Op, height: u64, proposer: u8) -> bool {
        let mut after = self.clone();
        let done = after.attempt(op, height, proposer).is_some();
        if done {
            *self = after;
        }
        done
    }

    pub(super) fn attempt(&mut self, op: Op, height: u64, proposer: u8) -> Option<()> {
        match op {
            Op::Transfer { from, to, amount } => {
                self.spend(from, positive(amount)? + 2)?;
                self.fee(2, proposer);
                *self.service.entry(to).or_default() += amount;
            }
            Op::Fund { from, to, amount } => {
                (amount >= 100).then_some(())?;
                let balance = self.main.entry(from).or_default();
                *balance = balance.checked_sub(amount + 3)?;
                self.burned += 1;
                *self.main.entry(proposer).or_default() += 2;
                self.escrow += amount;
                self.funds.push_back((to, amount));
            }
            Op::Withdraw { from, amount } => {
                self.spend(from, 4)?;
                self.fee(4, proposer);
                self.homeward(from, positive(amount)?);
                let homeward = self.homeward[&from];
                (homeward <= self.service[&from] && homeward > 50).then_some(())?;
            }
            Op::Open {
                payer,
                payee,
                allocation,
                window,
                expiry,
                id,
            } => {
                let allowed = allocation >= 1_000 && (2..=100).contains(&window) && expiry > height;
                allowed.then_some(())?;
                self.spend(payer, allocation + 27 + 5)?;
                self.fee(5, proposer);
                let channel = ModelChannel {
                    payer,
                    payee,
                    left: allocation,
                    paid: 0,
                    closing_fee: 27,
                    window,
                    expiry,
                    life: Some(None),
                };
                self.channels.insert(id, channel);
            }
            Op::TopUp { from, id, amount } => {
                let channel = self.channels.get(&id)?;
                (channel.payer == from && channel.life == Some(None)).then_some(())?;
                self.spend(from, positive(amount)? + 6)?;
                self.fee(6, proposer);
                self.channels.get_mut(&id)?.left += amount;
            }
            Op::Claim { id, worth } => {
                let payout = self.payout(&id, worth)?;
                // A proposer takes no claim that pays nothing.
                (payout >= 15_000).then_some(())?;
                self.pay(&id, payout, 10 + u64::from(worth.index), proposer);
            }
            Op::CloseByPayee { by, id, worth } => {
                let channel = self.channels.get(&id)?;
                (channel.payee == by && channel.life.is_some()).then_some(())?;
                if let Some(worth) = worth {
                    let payout = self.payout(&id, worth)?;
                    let fee = payout.min(20 + u64::from(worth.index));
                    self.pay(&id, payout, fee, proposer);
                }
                self.end(&id);
            }
            Op::CloseByPayer { by, id } => {
                (self.channels.get(&id)?.payer == by).then_some(())?;
                self.closing(&id, height, proposer)?;
            }
            Op::Expire { id } => {
                (height >= self.channels.get(&id)?.expiry).then_some(())?;
                self.closing(&id, height, proposer)?;
            }
            Op::Finalise { id } => {
                let channel = self.channels.get_mut(&id)?;
                (height > channel.life??).then_some(())?;
                channel.closing_fee -= 7;
                self.fee(7, proposer);
                self.end(&id);
            }
            Op::Credit => {
                (!self.funds.is_empty()).then_some(())?;
                for (to, amount) in std::mem::take(&mut self.funds) {
                    *self.service.entry(to).or_default() += amount;
                }
            }
            Op::Batch => {
                (!self.batches.is_empty()).then_some(())?;
                for (payouts, burn) in std::mem::take(&mut self.batches) {
                    self.escrow -= burn;
                    self.burned += burn;
                    for (to, amount) in payouts {
                        self.escrow -= amount;
                        *self.main.entry(to).or_default() += amount;
                    }
                }
            }
        }
        Some(())
    }

    pub(super) fn end_service_block(&mut self, height: u64) {
        if !height.is_multiple_of(10) {
            return;
        }
        let mut payouts = Vec::new();
        for _ in 0..self.queue.len().min(16) {
            if payouts.len() == 4 {
                break;
            }
            let account = self.queue.pop_front().unwrap();
            if self.homeward[&account] > 50 {
                let amount = std::mem::take(self.homeward.get_mut(&account).unwrap());
                *self.service.get_mut(&account).unwrap() -= amount;
                payouts.push((account, amount));
            }
        }
        self.batches
            .push_back((payouts, std::mem::take(&mut self.burn)));
    }

    pub(super) fn spend(&mut self, from: u8, amount: u64) -> Option<()> {
        let balance = self.service.entry(from).or_default();
        *balance = balance.checked_sub(amount)?;
        let balance = *balance;
        let homeward = self.homeward.entry(from).or_default();
        *homeward = balance.min(*homeward);
        Some(())
    }

    pub(super) fn fee(&mut self, fee: u64, proposer: u8) {
        self.burn += fee / 2;
        *self.service.entry(proposer).or_default() += fee - fee / 2;
    }

    pub(super) fn homeward(&mut self, account: u8, amount: u64) {
        let homeward = self.homeward.entry(account).or_default();
        *homeward += amount;
        if *homeward > 50 && !self.queue.contains(&account) {
            self.queue.push_back(account);
        }
    }

    pub(super) fn settle(&mut self, account: u8, amount: u64) {
        *self.service.entry(account).or_default() += amount;
        self.homeward(account, amount);
    }

    pub(super) fn payout(&self, id: &ChannelId, worth: Worth) -> Option<u64> {
        let channel = self.channels.get(id)?;
        channel.life?;
        Some(
            worth
                .amount()
                .saturating_sub(channel.paid)
                .min(channel.left),
        )
    }

    pub(super) fn pay(&mut self, id: &ChannelId, payout: u64, fee: u64, proposer: u8) {
        let channel = self.channels.get_mut(id).unwrap();
        channel.paid += payout;
        channel.left -= payout;
        let payee = channel.payee;
        self.settle(payee, payout - fee);
        self.fee(fee, proposer);
    }

    pub(super) fn closing(&mut self, id: &ChannelId, height: u64, proposer: u8) -> Option<()> {
        let channel = self.channels.get_mut(id)?;
        (channel.life == Some(None)).then_some(())?;
        channel.life = Some(Some(height + channel.window));
        channel.closing_fee -= 20;
        self.fee(20, proposer);
        Some(())
    }

    pub(super) fn end(&mut self, id: &ChannelId) {
        let channel = self.channels.get_mut(id).unwrap();
        channel.life = None;
        let refund = std::mem::take(&mut channel.left) + std::mem::take(&mut channel.closing_fee);
        let payer = channel.payer;
        self.settle(payer, refund);
    }
}

pub(super) fn positive(amount: u64) -> Option<u64> {
    (amount > 0).then_some(amount)
}
