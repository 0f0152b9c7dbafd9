//! Chains without consensus: blocks are built, replayed, applied and audited on the spot, and
//! headers are certified by the validators' own signatures.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};

use topnet_account::{Address, Amount, ChannelId, Hash, PublicKey, Signature};
use topnet_channel::{Claim, SecretKey, Voucher, verify};
use topnet_ledger::{
    Genesis, Ledger, Transaction,
    conservation::{ServiceTotals, Totals, audit, holds_between},
    event::{Event, decode_events},
    genesis::{Counterpart, Fees, Role, Rules},
    machine::{
        BlockEnv, Executed, FinalHeader, Key, Machine, Missing, Rejection, Signed, Values, Verifier,
    },
    outbox::{Batch, Fund, Import, OutboxEntry},
    state::{self, Account, Channel, Heads, MainLink, Record, Service},
    transaction::{
        Action, Body, ClaimBody, CloseByPayee, CloseByPayer, Message, Open, Order, channel_id,
    },
};

pub const VALIDATOR: u8 = 200;
pub const SERVICE_VALIDATOR: u8 = 201;

pub fn ntop(ntop: u64) -> Amount {
    Amount::from_ntop(ntop)
}

pub fn secret(seed: u8) -> SecretKey {
    SecretKey::from_seed([seed; 32]).unwrap()
}

pub fn address(seed: u8) -> Address {
    secret(seed).address()
}

/// Ring's Ed25519; a header is final when all validators signed it.
#[derive(Clone, Copy, Debug)]
pub struct RingVerifier;

impl Verifier for RingVerifier {
    fn signatures_hold(&self, signed: &[Signed<'_>]) -> bool {
        signed
            .iter()
            .all(|signed| verify(signed.key, signed.bytes, signed.signature))
    }

    fn final_header(
        &self,
        chain: &Hash,
        validators: &[PublicKey],
        proof: &[u8],
    ) -> Option<FinalHeader> {
        let (header, signatures) = proof.split_at_checked(72)?;
        let signed = [chain.as_ref(), header].concat();
        let (signatures, []) = signatures.as_chunks::<64>() else {
            return None;
        };
        let holds = signatures.len() == validators.len()
            && validators
                .iter()
                .zip(signatures)
                .all(|(key, signature)| verify(key, &signed, &Signature(*signature)));
        holds.then(|| FinalHeader {
            height: u64::from_le_bytes(header[..8].try_into().unwrap()),
            outbox: Hash(header[8..40].try_into().unwrap()),
            state_root: Hash(header[40..].try_into().unwrap()),
        })
    }

    fn state_value(&self, root: &Hash, key: &Key, proof: &[u8]) -> Option<Vec<u8>> {
        let (place, rest) = proof.split_at_checked(8)?;
        let place = usize::try_from(u64::from_le_bytes(place.try_into().unwrap())).ok()?;
        let (hashes, value) = {
            let (count, rest) = rest.split_at_checked(8)?;
            let count = usize::try_from(u64::from_le_bytes(count.try_into().unwrap())).ok()?;
            rest.split_at_checked(count.checked_mul(32)?)?
        };
        let own = hashes.get(place.checked_mul(32)?..)?.get(..32)?;
        let holds = digest(hashes) == *root && digest(&entry(key, value)).as_ref() == own;
        holds.then(|| value.to_vec())
    }
}

fn digest(bytes: &[u8]) -> Hash {
    // Any hash that the ledger has will do.
    topnet_ledger::transaction::transaction_id(bytes)
}

fn entry(key: &Key, value: &[u8]) -> Vec<u8> {
    [&[u8::try_from(key.0.len()).unwrap()], &key.0[..], value].concat()
}

/// Hashes of all entries of a state, in order; their hash is the state's root.
fn entry_hashes(state: &BTreeMap<Key, Vec<u8>>) -> Vec<u8> {
    state
        .iter()
        .flat_map(|(key, value)| digest(&entry(key, value)).0)
        .collect()
}

/// One chain.
#[derive(Clone)]
pub struct Chain {
    pub ledger: Ledger<RingVerifier>,
    pub state: BTreeMap<Key, Vec<u8>>,
    pub height: u64,
    pub proposer: Address,
    pub validator: u8,
    /// Commitment of the last block.
    pub outbox: Hash,
    /// All events, by block.
    pub events: Vec<Vec<Event>>,
}

impl Chain {
    pub fn new(genesis: Genesis, validator: u8) -> Self {
        let ledger = Ledger::new(genesis, RingVerifier).unwrap();
        let state = ledger.genesis();
        audit_state(&state);
        Self {
            ledger,
            state,
            height: 0,
            proposer: address(validator),
            validator,
            outbox: Hash::ZERO,
            events: vec![Vec::new()],
        }
    }

    pub fn id(&self) -> Hash {
        *self.ledger.chain()
    }

    pub fn env(&self) -> BlockEnv {
        BlockEnv {
            chain: self.id(),
            height: self.height + 1,
            proposer: self.proposer,
        }
    }

    /// Builds a block of the transactions that can stand, replays it, applies it and counts the
    /// money. The rejections are in the outcome.
    pub fn build(&mut self, transactions: Vec<Vec<u8>>) -> Executed {
        let env = self.env();
        let mut values = self.values(self.ledger.reads(&env, &transactions));
        let built = loop {
            match self.ledger.build(&env, transactions.clone(), &values) {
                Ok(built) => break built,
                Err(Missing(keys)) => self.add(&mut values, keys),
            }
        };
        assert!(self.ledger.signatures_hold(&built.included));
        let replayed = self
            .replay(&built.included)
            .expect("what was built can be replayed");
        let without_rejected = Executed {
            rejected: Vec::new(),
            ..built.clone()
        };
        assert_eq!(replayed, without_rejected);
        self.apply(&built);
        built
    }

    /// Executes a given block without applying it.
    pub fn replay(&self, transactions: &[Vec<u8>]) -> Result<Executed, Rejection> {
        let env = self.env();
        // From nothing: every key has to be asked for.
        let mut values = Values::new();
        loop {
            match self.ledger.replay(&env, transactions, &values) {
                Ok(outcome) => return outcome,
                Err(Missing(keys)) => self.add(&mut values, keys),
            }
        }
    }

    pub fn apply(&mut self, executed: &Executed) {
        let mut events = Vec::new();
        for receipt in &executed.receipts {
            events.extend(decode_events(&receipt.events).unwrap());
        }
        events.extend(decode_events(&executed.block_events).unwrap());
        self.events.push(events);
        for (key, value) in &executed.writes {
            assert!(key.0.len() <= state::KEY_BYTES_MAX);
            match value {
                Some(value) => {
                    assert!(value.len() <= state::VALUE_BYTES_MAX);
                    self.state.insert(key.clone(), value.clone());
                }
                None => {
                    self.state.remove(key);
                }
            }
        }
        self.height += 1;
        self.outbox = executed.outbox;
        audit_state(&self.state);
    }

    /// A block of transactions that must all stand; its events.
    pub fn block(&mut self, transactions: &[Transaction]) -> Vec<Event> {
        let bytes = transactions.iter().map(Transaction::to_bytes).collect();
        let executed = self.build(bytes);
        assert_eq!(executed.rejected, [], "all transactions should stand");
        self.events.last().unwrap().clone()
    }

    pub fn empty_blocks(&mut self, count: u64) {
        for _ in 0..count {
            self.block(&[]);
        }
    }

    /// Why the transaction cannot stand in the next block; "ok" if it can.
    pub fn code(&self, transaction: &Transaction) -> &'static str {
        let bytes = transaction.to_bytes();
        self.replay(&[bytes])
            .map_or_else(|rejection| rejection.code, |_| "ok")
    }

    /// Priority of an admitted transaction by the state, or why it may not wait.
    pub fn weigh(&self, transaction: &Transaction) -> Result<u64, &'static str> {
        let (height, bytes) = (self.height + 1, transaction.to_bytes());
        let mut values = Values::new();
        loop {
            match self.ledger.weigh(height, &bytes, &values) {
                Ok(outcome) => return outcome.map_err(|rejection| rejection.code),
                Err(Missing(keys)) => self.add(&mut values, keys),
            }
        }
    }

    fn values(&self, keys: Vec<Key>) -> Values {
        let mut values = Values::new();
        self.add(&mut values, keys);
        values
    }

    fn add(&self, values: &mut Values, keys: Vec<Key>) {
        let asked: BTreeSet<_> = keys.iter().collect();
        assert_eq!(asked.len(), keys.len(), "a key is asked for twice");
        for key in keys {
            let value = self.state.get(&key).cloned();
            let before = values.insert(key, value);
            assert_eq!(before, None, "a key is asked for that was given");
        }
    }

    pub fn record<R: Record>(&self, key: &Key) -> Option<R> {
        self.state
            .get(key)
            .map(|value| R::from_bytes(value).unwrap())
    }

    pub fn account(&self, address: &Address) -> Account {
        self.record(&state::account_key(address))
            .unwrap_or_default()
    }

    pub fn balance(&self, seed: u8) -> u64 {
        self.account(&address(seed)).balance.ntop()
    }

    pub fn channel(&self, id: &ChannelId) -> Channel {
        self.record(&state::channel_key(id)).unwrap()
    }

    pub fn heads(&self) -> Heads {
        self.record(&state::heads_key()).unwrap()
    }

    pub fn totals(&self) -> Totals {
        self.record(&state::totals_key()).unwrap()
    }

    pub fn service_totals(&self) -> ServiceTotals {
        match self.totals() {
            Totals::Service(totals) => totals,
            Totals::Main(_) => panic!("not a service"),
        }
    }

    pub fn link(&self) -> MainLink {
        self.record(&state::main_link_key()).unwrap()
    }

    pub fn service(&self, id: &Hash) -> Service {
        self.record(&state::service_key(id)).unwrap()
    }

    pub fn state_root(&self) -> Hash {
        digest(&entry_hashes(&self.state))
    }

    /// A proof of the value under `key` against the state's root.
    pub fn state_proof(&self, key: &Key) -> Vec<u8> {
        let place = self.state.keys().position(|known| known == key).unwrap() as u64;
        let hashes = entry_hashes(&self.state);
        let mut proof = place.to_le_bytes().to_vec();
        proof.extend((hashes.len() as u64 / 32).to_le_bytes());
        proof.extend(hashes);
        proof.extend(&self.state[key]);
        proof
    }

    /// A proof that the last block is final, signed by `validators`.
    pub fn proof(&self, validators: &[u8]) -> Vec<u8> {
        let mut header = self.height.to_le_bytes().to_vec();
        header.extend(self.outbox.as_ref());
        header.extend(self.state_root().as_ref());
        let signed = [self.id().as_ref(), &header].concat();
        for validator in validators {
            header.extend(secret(*validator).sign(&signed).as_ref());
        }
        header
    }

    /// The entries for `destination` from `first` on, with the last block's proof.
    pub fn import<E: OutboxEntry>(&self, destination: &Hash, first: u64) -> Option<Import<E>> {
        let heads = self.heads();
        let next = heads.to(destination).unwrap().next;
        let entries: Vec<E> = (first..next)
            .map(|seq| {
                E::from_bytes(&self.state[&state::outbox_entry_key(destination, seq)]).unwrap()
            })
            .collect();
        (!entries.is_empty()).then(|| Import {
            source: self.id(),
            first,
            entries,
            heads: heads.0,
            proof: self.proof(&[self.validator]),
        })
    }

    // What people ask for.

    pub fn order(&self, seed: u8, action: Action) -> Transaction {
        let nonce = self.account(&address(seed)).nonce;
        self.order_with(seed, nonce, action)
    }

    pub fn order_with(&self, seed: u8, nonce: u64, action: Action) -> Transaction {
        Order { nonce, action }.sign(&self.id(), &secret(seed))
    }

    pub fn transfer(&self, seed: u8, to: u8, amount: u64) -> Transaction {
        let (to, amount) = (address(to), ntop(amount));
        self.order(seed, Action::Transfer { to, amount })
    }

    pub fn terms(&self, payee: u8, signer: u8, allocation: u64) -> Open {
        Open {
            payee: address(payee),
            allocation: ntop(allocation),
            signer: secret(signer).public_key(),
            close_window: 5,
            expiry: self.height + 1_000,
        }
    }

    /// A channel from `payer`, who also signs vouchers, to `payee`.
    pub fn open(&self, payer: u8, payee: u8, allocation: u64) -> (Transaction, ChannelId) {
        let open = self.terms(payee, payer, allocation);
        let nonce = self.account(&address(payer)).nonce;
        let id = channel_id(&self.id(), &address(payer), &open.payee, nonce);
        (self.order(payer, Action::Open(open)), id)
    }

    pub fn claim(&self, body: ClaimBody) -> Transaction {
        Transaction {
            chain: self.id(),
            body: Body::Claim(body),
        }
    }

    pub fn close_by_payee(&self, seed: u8, close: CloseByPayee) -> Transaction {
        close.sign(&self.id(), &secret(seed))
    }

    pub fn close_by_payer(&self, seed: u8, channel: ChannelId) -> Transaction {
        CloseByPayer { channel }.sign(&self.id(), &secret(seed))
    }

    pub fn expire(&self, channel: ChannelId) -> Transaction {
        Transaction {
            chain: self.id(),
            body: Body::Expire(channel),
        }
    }

    pub fn finalise(&self, channel: ChannelId) -> Transaction {
        Transaction {
            chain: self.id(),
            body: Body::Finalise(channel),
        }
    }
}

/// A claim worth `base + index × price` on a channel whose signer is `signer`.
pub fn claim_body(signer: u8, channel: ChannelId, base: u64, price: u64, index: u16) -> ClaimBody {
    let secret = secret(signer);
    let voucher = Voucher {
        channel,
        seq: 1,
        cumulative_amount: ntop(base),
        cumulative_units: 0,
        unit_price: ntop(price),
        tokens: 256,
        root: [0; 32],
    };
    let preimage = voucher.chain(&secret).preimage(index).unwrap();
    let voucher = voucher.sign(&secret);
    ClaimBody {
        signer: secret.public_key(),
        claim: Claim {
            voucher,
            index,
            preimage,
        },
        log_root: Hash::ZERO,
    }
}

/// A claim worth `amount`, by the voucher alone.
pub fn claim_worth(signer: u8, channel: ChannelId, amount: u64) -> ClaimBody {
    claim_body(signer, channel, amount, 1, 0)
}

fn audit_state(state: &BTreeMap<Key, Vec<u8>>) {
    audit(state.iter().map(|(key, value)| (key, value.as_slice()))).unwrap();
}

/// Main and one service, and the relays between them.
#[derive(Clone)]
pub struct World {
    pub main: Chain,
    pub service: Chain,
}

/// Small round numbers, so that cases can be worked out by head.
pub fn rules() -> Rules {
    Rules {
        fees: Fees {
            transfer: ntop(2),
            fund: ntop(3),
            withdraw: ntop(4),
            open: ntop(5),
            top_up: ntop(6),
            claim: ntop(10),
            claim_per_hash: ntop(1),
            close: ntop(20),
            finalise: ntop(7),
            register: ntop(8),
            offer: ntop(11),
            recover: ntop(9),
        },
        dust: ntop(50),
        fund_min: ntop(100),
        allocation_min: ntop(1_000),
        claim_payout_min: ntop(15_000),
        close_window_min: 2,
        close_window_max: 100,
        batch_payouts_max: 4,
        outflow_max: ntop(1_000_000_000),
        service_deposit: ntop(3_000),
        offer_deposit: ntop(700),
        service_silence: 200,
        recovery_window: 8,
    }
}

pub fn main_genesis(rules: &Rules, balances: &[(u8, u64)]) -> Genesis {
    Genesis {
        name: "main".to_owned(),
        salt: Hash([0x5a; 32]),
        block_interval_ms: 100,
        epoch_blocks: 10,
        validators: vec![secret(VALIDATOR).public_key()],
        rules: rules.clone(),
        role: Role::Main {
            services: Vec::new(),
        },
        balances: balances
            .iter()
            .map(|(seed, amount)| (address(*seed), ntop(*amount)))
            .collect(),
    }
}

pub fn service_genesis(rules: &Rules, name: &str, main: Counterpart) -> Genesis {
    Genesis {
        name: name.to_owned(),
        salt: Hash([0x5b; 32]),
        block_interval_ms: 100,
        epoch_blocks: 10,
        validators: vec![secret(SERVICE_VALIDATOR).public_key()],
        rules: rules.clone(),
        role: Role::Service { main },
        balances: BTreeMap::new(),
    }
}

impl World {
    pub fn new(rules: &Rules, balances: &[(u8, u64)]) -> Self {
        Self::with_epoch(10, rules, balances)
    }

    pub fn with_epoch(epoch_blocks: u64, rules: &Rules, balances: &[(u8, u64)]) -> Self {
        let mut main = main_genesis(rules, balances);
        let mut service = service_genesis(rules, "vpn", main.counterpart());
        service.epoch_blocks = epoch_blocks;
        main.role = Role::Main {
            services: vec![service.counterpart()],
        };
        Self {
            main: Chain::new(main, VALIDATOR),
            service: Chain::new(service, SERVICE_VALIDATOR),
        }
    }

    pub fn fund(&self, seed: u8, amount: u64) -> Transaction {
        let (service, beneficiary) = (self.service.id(), address(seed));
        self.main.order(
            seed,
            Action::Fund {
                service,
                amount: ntop(amount),
                beneficiary,
            },
        )
    }

    /// What waits on main for the service.
    pub fn credit(&self) -> Option<Transaction> {
        let first = self.service.link().inbox.next;
        let import = self.main.import::<Fund>(&self.service.id(), first)?;
        Some(Transaction {
            chain: self.service.id(),
            body: Body::Credit(import),
        })
    }

    /// What waits on the service for main.
    pub fn batch(&self) -> Option<Transaction> {
        let first = self.main.service(&self.service.id()).inbox.next;
        let import = self.service.import::<Batch>(&self.main.id(), first)?;
        Some(Transaction {
            chain: self.main.id(),
            body: Body::Batch(import),
        })
    }

    /// Funds accounts on the service.
    pub fn funded(mut self, funds: &[(u8, u64)]) -> Self {
        for (seed, amount) in funds {
            let fund = self.fund(*seed, *amount);
            self.main.block(&[fund]);
        }
        let credit = self.credit().unwrap();
        self.service.block(&[credit]);
        self.check();
        self
    }

    /// Goes on to the service's next epoch and brings its batches to main.
    pub fn settle(&mut self) {
        let epoch = self.service.ledger.description().epoch_blocks;
        self.service
            .empty_blocks(epoch - self.service.height % epoch);
        if let Some(batch) = self.batch() {
            self.main.block(&[batch]);
        }
        self.check();
    }

    pub fn check(&self) {
        let record = self.main.service(&self.service.id());
        let totals = self.service.service_totals();
        assert!(holds_between(&record, &totals), "{record:?} {totals:?}");
    }
}
