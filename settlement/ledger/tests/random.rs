//! Random operations on main and a service against an oracle, and the service's death at any point
//! of them.
#![allow(clippy::unwrap_used)]

#[path = "random/oracle.rs"]
mod oracle;
mod support;

use std::collections::{BTreeMap, BTreeSet};

use oracle::{Op, Oracle, Worth};
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
