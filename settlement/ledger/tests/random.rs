//! Random operations on main and a service against an oracle that keeps the same books the
//! simplest way: plain integers, no records, no bytes, no fees' fine print beyond the rules.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use support::{Chain, SERVICE_VALIDATOR, VALIDATOR, World, address, claim_body, ntop, rules};
use topnet_account::ChannelId;
use topnet_ledger::{
    Transaction,
    conservation::Totals,
    outbox::Fund,
    state::{self, Channel, ChannelState, Service},
    transaction::{Action, Body, CloseByPayee, Open, Recover, Recovery, channel_id},
};

const ACTORS: u64 = 5;
const SEEDS: u64 = 12;
const BLOCKS: u64 = 250;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    fn actor(&mut self) -> u8 {
        1 + self.below(ACTORS) as u8
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Worth {
    base: u64,
    price: u64,
    index: u16,
}

impl Worth {
    fn amount(self) -> u64 {
        self.base + self.price * u64::from(self.index)
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
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
struct ModelChannel {
    payer: u8,
    payee: u8,
    left: u64,
    paid: u64,
    closing_fee: u64,
    window: u64,
    expiry: u64,
    /// `Some(None)` is open, `Some(Some(deadline))` closing, `None` closed.
    life: Option<Option<u64>>,
}

#[derive(Clone, Debug, Default)]
struct Oracle {
    main: BTreeMap<u8, u64>,
    burned: u64,
    escrow: u64,
    funds: VecDeque<(u8, u64)>,
    service: BTreeMap<u8, u64>,
    homeward: BTreeMap<u8, u64>,
    queue: VecDeque<u8>,
    burn: u64,
    channels: BTreeMap<ChannelId, ModelChannel>,
    batches: VecDeque<(Vec<(u8, u64)>, u64)>,
}

impl Oracle {
    /// Does one operation if the rules allow it.
    fn apply(&mut self, op: Op, height: u64, proposer: u8) -> bool {
        let mut after = self.clone();
        let done = after.attempt(op, height, proposer).is_some();
        if done {
            *self = after;
        }
        done
    }

    fn attempt(&mut self, op: Op, height: u64, proposer: u8) -> Option<()> {
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

    fn end_service_block(&mut self, height: u64) {
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

    fn spend(&mut self, from: u8, amount: u64) -> Option<()> {
        let balance = self.service.entry(from).or_default();
        *balance = balance.checked_sub(amount)?;
        let balance = *balance;
        let homeward = self.homeward.entry(from).or_default();
        *homeward = balance.min(*homeward);
        Some(())
    }

    fn fee(&mut self, fee: u64, proposer: u8) {
        self.burn += fee / 2;
        *self.service.entry(proposer).or_default() += fee - fee / 2;
    }

    fn homeward(&mut self, account: u8, amount: u64) {
        let homeward = self.homeward.entry(account).or_default();
        *homeward += amount;
        if *homeward > 50 && !self.queue.contains(&account) {
            self.queue.push_back(account);
        }
    }

    fn settle(&mut self, account: u8, amount: u64) {
        *self.service.entry(account).or_default() += amount;
        self.homeward(account, amount);
    }

    fn payout(&self, id: &ChannelId, worth: Worth) -> Option<u64> {
        let channel = self.channels.get(id)?;
        channel.life?;
        Some(
            worth
                .amount()
                .saturating_sub(channel.paid)
                .min(channel.left),
        )
    }

    fn pay(&mut self, id: &ChannelId, payout: u64, fee: u64, proposer: u8) {
        let channel = self.channels.get_mut(id).unwrap();
        channel.paid += payout;
        channel.left -= payout;
        let payee = channel.payee;
        self.settle(payee, payout - fee);
        self.fee(fee, proposer);
    }

    fn closing(&mut self, id: &ChannelId, height: u64, proposer: u8) -> Option<()> {
        let channel = self.channels.get_mut(id)?;
        (channel.life == Some(None)).then_some(())?;
        channel.life = Some(Some(height + channel.window));
        channel.closing_fee -= 20;
        self.fee(20, proposer);
        Some(())
    }

    fn end(&mut self, id: &ChannelId) {
        let channel = self.channels.get_mut(id).unwrap();
        channel.life = None;
        let refund = std::mem::take(&mut channel.left) + std::mem::take(&mut channel.closing_fee);
        let payer = channel.payer;
        self.settle(payer, refund);
    }
}

fn positive(amount: u64) -> Option<u64> {
    (amount > 0).then_some(amount)
}

/// The chains beside their oracle.
struct Race {
    random: Random,
    world: World,
    oracle: Oracle,
    /// Payers of all channels that somebody tried to open.
    opened: Vec<(ChannelId, u8)>,
    /// The service as of the batch that main accepted last.
    accepted: Option<Chain>,
    stood: u64,
}

impl Race {
    fn new(seed: u64) -> Self {
        let balances: Vec<_> = (1..=ACTORS).map(|actor| (actor as u8, 5_000_000)).collect();
        let oracle = Oracle {
            main: balances.iter().copied().collect(),
            ..Oracle::default()
        };
        let world = World::new(&rules(), &balances);
        Self {
            random: Random(seed),
            world,
            oracle,
            opened: Vec::new(),
            accepted: None,
            stood: 0,
        }
    }

    fn op_on_service(&mut self, nonces: &mut BTreeMap<u8, u64>) -> Option<(Op, Transaction)> {
        let service = &self.world.service;
        let random = &mut self.random;
        let mut order = |seed: u8, action: Action| {
            let nonce = nonces
                .entry(seed)
                .or_insert_with(|| service.account(&address(seed)).nonce);
            *nonce += 1;
            service.order_with(seed, *nonce - 1, action)
        };
        let from = random.actor();
        let amount = match random.below(8) {
            0 => 0,
            1 => service.balance(from),
            2 => random.below(60),
            _ => random.below(250_000),
        };
        let (id, payer) = match self.opened.len() as u64 {
            0 => (ChannelId([0; 32]), 1),
            // Mostly the newest, which are more likely to live.
            count => {
                let back = random
                    .below(count)
                    .min(random.below(count))
                    .min(random.below(count));
                self.opened[(count - 1 - back) as usize]
            }
        };
        let mut worth = || Worth {
            base: random.below(300_000),
            price: random.below(2_000),
            index: random.below(257) as u16,
        };
        let worths = [worth(), worth()];
        Some(match random.below(14) {
            0 => (Op::Credit, self.world.credit()?),
            1 => {
                let to = random.actor();
                let action = Action::Transfer {
                    to: address(to),
                    amount: ntop(amount),
                };
                (Op::Transfer { from, to, amount }, order(from, action))
            }
            2 => {
                let action = Action::Withdraw {
                    amount: ntop(amount),
                };
                (Op::Withdraw { from, amount }, order(from, action))
            }
            3..=5 => {
                let (payee, allocation) = (random.actor(), 900 + random.below(450_000));
                let (window, expiry) = (1 + random.below(8), service.height + random.below(30));
                let open = Open {
                    close_window: window as u32,
                    expiry,
                    ..service.terms(payee, from, allocation)
                };
                let opens = order(from, Action::Open(open));
                let nonce = nonces[&from] - 1;
                let id = channel_id(&service.id(), &address(from), &address(payee), nonce);
                self.opened.push((id, from));
                (
                    Op::Open {
                        payer: from,
                        payee,
                        allocation,
                        window,
                        expiry,
                        id,
                    },
                    opens,
                )
            }
            6 => {
                let action = Action::TopUp {
                    channel: id,
                    amount: ntop(amount),
                };
                (
                    Op::TopUp {
                        from: payer,
                        id,
                        amount,
                    },
                    order(payer, action),
                )
            }
            7..=9 => {
                let worth = worths[0];
                let body = claim_body(payer, id, worth.base, worth.price, worth.index);
                (Op::Claim { id, worth }, service.claim(body))
            }
            10 => {
                let payee = self.oracle.channels.get(&id).map(|channel| channel.payee);
                let by = payee.filter(|_| random.below(4) > 0).unwrap_or(from);
                let worth = (random.below(2) == 0).then_some(worths[1]);
                let claim = worth.map(|w| claim_body(payer, id, w.base, w.price, w.index));
                let close = CloseByPayee { channel: id, claim };
                (
                    Op::CloseByPayee { by, id, worth },
                    service.close_by_payee(by, close),
                )
            }
            11 => {
                let by = if random.below(4) > 0 { payer } else { from };
                (Op::CloseByPayer { by, id }, service.close_by_payer(by, id))
            }
            12 => (Op::Expire { id }, service.expire(id)),
            _ => (Op::Finalise { id }, service.finalise(id)),
        })
    }

    fn op_on_main(&mut self, nonces: &mut BTreeMap<u8, u64>) -> Option<(Op, Transaction)> {
        if self.random.below(4) == 0 {
            return Some((Op::Batch, self.world.batch()?));
        }
        let main = &self.world.main;
        let (from, to) = (self.random.actor(), self.random.actor());
        let amount = match self.random.below(8) {
            0 => self.random.below(200),
            _ => self.random.below(1_000_000),
        };
        let (service, beneficiary) = (self.world.service.id(), address(to));
        let nonce = nonces
            .entry(from)
            .or_insert_with(|| main.account(&address(from)).nonce);
        *nonce += 1;
        let action = Action::Fund {
            service,
            amount: ntop(amount),
            beneficiary,
        };
        Some((
            Op::Fund { from, to, amount },
            main.order_with(from, *nonce - 1, action),
        ))
    }

    fn block(&mut self) {
        let on_main = self.random.below(3) == 0;
        let count = if self.random.below(2) == 0 {
            1
        } else {
            self.random.below(8)
        };
        let proposer = self.random.actor();
        let mut nonces = BTreeMap::new();
        let mut ops = BTreeMap::new();
        let mut candidates = Vec::new();
        for _ in 0..count {
            let op = match on_main {
                true => self.op_on_main(&mut nonces),
                false => self.op_on_service(&mut nonces),
            };
            if let Some((op, transaction)) = op {
                candidates.push(transaction.to_bytes());
                ops.insert(transaction.to_bytes(), op);
            }
        }
        let chain: &mut Chain = match on_main {
            true => &mut self.world.main,
            false => &mut self.world.service,
        };
        chain.proposer = address(proposer);
        let built = chain.build(candidates.clone());
        let height = chain.height;
        for bytes in &built.included {
            let op = ops[bytes];
            assert!(
                self.oracle.apply(op, height, proposer),
                "should be refused: {op:?}"
            );
            self.stood += 1;
            if let Op::Batch = op {
                self.accepted = Some(self.world.service.clone());
            }
        }
        if let [(bytes, rejection)] = &built.rejected[..]
            && candidates.len() == 1
        {
            let op = ops[bytes];
            assert!(
                !self.oracle.apply(op, height, proposer),
                "{rejection}: {op:?}"
            );
        }
        if !on_main {
            self.oracle.end_service_block(height);
        }
        self.compare();
    }

    fn compare(&self) {
        let Self { world, oracle, .. } = self;
        for actor in 1..=ACTORS as u8 {
            let model = |accounts: &BTreeMap<u8, u64>| accounts.get(&actor).copied().unwrap_or(0);
            assert_eq!(world.main.balance(actor), model(&oracle.main));
            assert_eq!(world.service.balance(actor), model(&oracle.service));
            let account = world.service.account(&address(actor));
            assert_eq!(account.homeward, ntop(model(&oracle.homeward)));
            assert_eq!(account.queued, oracle.queue.contains(&actor));
        }
        for (id, model) in &oracle.channels {
            let channel = world.service.channel(id);
            let life = match channel.state {
                ChannelState::Open => Some(None),
                ChannelState::Closing { deadline } => Some(Some(deadline)),
                ChannelState::Closed => None,
            };
            assert_eq!(
                (channel.remaining(), channel.paid, channel.closing_fee, life),
                (
                    ntop(model.left),
                    ntop(model.paid),
                    ntop(model.closing_fee),
                    model.life
                ),
            );
        }
        let record = world.main.service(&world.service.id());
        assert_eq!(record.escrow, ntop(oracle.escrow));
        let Totals::Main(totals) = world.main.totals() else {
            panic!()
        };
        assert_eq!(totals.burned, u128::from(oracle.burned));
        assert_eq!(totals.supply, u128::from(5_000_000 * ACTORS));
        assert_eq!(world.service.service_totals().burn, u128::from(oracle.burn));
        world.check();
    }

    /// Ends every channel and brings all that is marked home.
    fn wind_up(&mut self) {
        let ids: Vec<_> = self.oracle.channels.keys().copied().collect();
        for finalise in [false, true] {
            // Above every expiry and deadline.
            for _ in 0..40 {
                self.service_block(&[]);
            }
            for id in ids.iter().copied() {
                let ends = match finalise {
                    false => (Op::Expire { id }, self.world.service.expire(id)),
                    true => (Op::Finalise { id }, self.world.service.finalise(id)),
                };
                self.service_block(&[ends]);
            }
        }
        while !self.oracle.queue.is_empty() || !self.world.service.height.is_multiple_of(10) {
            self.service_block(&[]);
        }
        if let Some(batch) = self.world.batch() {
            self.world.main.block(&[batch]);
            assert!(self.oracle.apply(Op::Batch, self.world.main.height, 1));
        }
        self.compare();
        let totals = self.world.service.service_totals();
        assert_eq!((totals.allocations, totals.burn), (0, 0));
    }

    /// The service falls silent, and everybody takes out what the accepted state says is his.
    fn die(&self) {
        let mut main = self.world.main.clone();
        main.proposer = address(VALIDATOR);
        let id = self.world.service.id();
        let funds = main.heads().to(&id).map_or(0, |head| head.next);
        let credited = self.accepted.as_ref().map_or(0, |a| a.link().inbox.next);
        let mut claims = Vec::new();
        let mut expected = BTreeMap::new();
        let mut channels = Vec::new();
        let start = self.accepted.as_ref().map(|accepted| Recovery::Begin {
            link: accepted.state_proof(&state::main_link_key()),
            totals: accepted.state_proof(&state::totals_key()),
        });
        claims.push(start.unwrap_or(Recovery::Begin {
            link: Vec::new(),
            totals: Vec::new(),
        }));
        for seq in credited..funds {
            let fund: Fund = main.record(&state::outbox_entry_key(&id, seq)).unwrap();
            *expected.entry(fund.funder).or_insert(0) += fund.amount.ntop() - 9;
            claims.push(Recovery::Fund { seq });
        }
        for actor in (1..=ACTORS as u8).chain([SERVICE_VALIDATOR]) {
            let account = address(actor);
            let Some(accepted) = &self.accepted else {
                continue;
            };
            let balance = accepted.balance(actor);
            if balance > 0 {
                *expected.entry(account).or_insert(0) += balance - balance.min(9);
                let proof = accepted.state_proof(&state::account_key(&account));
                claims.push(Recovery::Account { account, proof });
            }
        }
        // An id is tried again when its order was refused.
        let opened: BTreeSet<_> = self.opened.iter().map(|(id, _)| id).collect();
        for channel in opened {
            let key = state::channel_key(channel);
            let found = self
                .accepted
                .as_ref()
                .and_then(|a| a.record::<Channel>(&key));
            let Some(found) = found.filter(|found| found.held() > 0) else {
                continue;
            };
            // The fees of recovery and finalisation come out of the closing fee.
            let closing = found.closing_fee.ntop().saturating_sub(9).saturating_sub(7);
            *expected.entry(found.payer).or_insert(0) += found.remaining().ntop() + closing;
            let proof = self.accepted.as_ref().unwrap().state_proof(&key);
            channels.push(*channel);
            let channel = *channel;
            claims.push(Recovery::Channel { channel, proof });
        }
        let record: Service = main.service(&id);
        main.empty_blocks(record.dead_from(&rules()) - 1 - main.height);
        let before: BTreeMap<_, _> = expected
            .keys()
            .map(|account| (*account, main.account(account).balance.ntop()))
            .collect();
        let chain = main.id();
        for claim in claims {
            let body = Body::Recover(Recover { service: id, claim });
            main.block(&[Transaction { chain, body }]);
        }
        main.empty_blocks(8);
        for channel in channels {
            let finalise = main.finalise(channel);
            main.block(&[finalise]);
        }
        for (account, gain) in expected {
            let now = main.account(&account).balance.ntop();
            assert_eq!(now, before[&account] + gain, "{account}");
        }
        let Totals::Main(totals) = main.totals() else {
            panic!()
        };
        assert_eq!((totals.services, totals.allocations), (0, 0));
        assert_eq!(totals.balances + totals.burned, totals.supply);
    }

    fn service_block(&mut self, ops: &[(Op, Transaction)]) {
        let service = &mut self.world.service;
        service.proposer = address(1);
        let built = service.build(
            ops.iter()
                .map(|(_, transaction)| transaction.to_bytes())
                .collect(),
        );
        let height = service.height;
        for (op, transaction) in ops {
            let included = built.included.contains(&transaction.to_bytes());
            assert_eq!(self.oracle.apply(*op, height, 1), included, "{op:?}");
        }
        self.oracle.end_service_block(height);
    }
}

#[test]
fn the_ledger_agrees_with_the_oracle() {
    let mut stood = 0;
    for seed in 0..SEEDS {
        let mut race = Race::new(seed);
        for block in 0..BLOCKS {
            race.block();
            if block % 25 == 0 {
                race.die();
            }
        }
        race.wind_up();
        stood += race.stood;
    }
    // A race in which everything is refused would prove nothing.
    assert!(stood > SEEDS * BLOCKS / 2, "only {stood} operations stood");
}
