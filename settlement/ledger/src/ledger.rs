//! The ledger of one chain, as consensus runs it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use topnet_account::{Address, ChannelId, Hash, PublicKey};

use crate::{
    codec::Writer,
    conservation::{MainTotals, ServiceTotals, Totals},
    execute::{Block, Context, Stop, check_place, known_reads, own_reads, weigh},
    genesis::{Counterpart, Genesis, GenesisError, Role},
    machine::{
        Admission, BlockEnv, Executed, Key, Machine, Missing, Rejection, Signed, Values, Verifier,
    },
    outbox::{Import, OutboxEntry, OutboxHead},
    refusal::Refusal,
    state::{self, Account, Heads, MainLink, PayoutQueue, Record, Service},
    transaction::{Body, Consent, Recover, Recovery, Transaction, transaction_id},
    walks::Walks,
};

const LANE_DOMAIN: &[u8] = b"topnet/lane/1";

/// The state machine of a main or service chain.
#[derive(Clone, Debug)]
pub struct Ledger<V> {
    genesis: Arc<Genesis>,
    chain: Hash,
    verifier: V,
    walks: Walks,
}

impl<V: Verifier> Ledger<V> {
    /// The ledger of the chain that starts from `genesis`.
    pub fn new(genesis: Genesis, verifier: V) -> Result<Self, GenesisError> {
        genesis.validate()?;
        let chain = genesis.hash();
        Ok(Self {
            genesis: Arc::new(genesis),
            chain,
            verifier,
            walks: Walks::default(),
        })
    }

    /// What the chain started from.
    pub fn description(&self) -> &Genesis {
        &self.genesis
    }

    /// The chain's id.
    pub fn chain(&self) -> &Hash {
        &self.chain
    }

    fn decode(&self, bytes: &[u8]) -> Result<Transaction, Refusal> {
        let transaction = Transaction::from_bytes(bytes)?;
        check_place(&self.genesis, &self.chain, &transaction)?;
        Ok(transaction)
    }

    /// Reads a transaction that somebody submits, and checks its numbers.
    fn read(&self, bytes: &[u8]) -> Result<Transaction, Refusal> {
        let transaction = self.decode(bytes)?;
        match &transaction.body {
            Body::Order(order) if order.message.nonce == u64::MAX => {
                Err(Refusal::NonceLast(u64::MAX))
            }
            _ => Ok(transaction),
        }
    }

    /// Checks consents in one batch.
    fn consents_hold<'a>(&self, consents: impl Iterator<Item = &'a Consent>) -> bool {
        let signed: Vec<Signed<'_>> = consents
            .map(
                |Consent {
                     key,
                     bytes,
                     signature,
                 }| Signed {
                    key,
                    bytes,
                    signature,
                },
            )
            .collect();
        signed.is_empty() || self.verifier.signatures_hold(&signed)
    }

    /// Checks what the state is not needed for, but for the signatures: numbers, tokens, proofs.
    fn check(&self, transaction: &Transaction) -> Result<(), Refusal> {
        let claim = match &transaction.body {
            Body::Claim(claim) => Some(claim),
            Body::CloseByPayee(close) => close.message.claim.as_ref(),
            _ => None,
        };
        if claim.is_some_and(|claim| self.walks.redeemable(&claim.claim).is_none()) {
            return Err(Refusal::TokenFalse);
        }
        match (&transaction.body, &self.genesis.role) {
            (Body::Credit(import), Role::Service { main }) => {
                if import.source != main.genesis {
                    return Err(Refusal::SourceUnknown);
                }
                self.check_import(import, main)
            }
            // Whose certificate proves a batch stands in the state, which `weigh` asks.
            _ => Ok(()),
        }
    }

    /// Those of the `signed` transactions whose consents do not all hold: in one batch if all do,
    /// else half by half, so that a forger makes the others' checks dearer by a factor and no
    /// more.
    fn forged(&self, signed: &[(usize, Vec<Consent>)], forged: &mut BTreeSet<usize>) {
        if self.consents_hold(signed.iter().flat_map(|(_, consents)| consents)) {
            return;
        }
        match signed {
            [] => {}
            [(place, _)] => {
                forged.insert(*place);
            }
            _ => {
                let (front, back) = signed.split_at(signed.len() / 2);
                self.forged(front, forged);
                self.forged(back, forged);
            }
        }
    }

    /// Checks an import's proof and that its entries end where the proved outbox ends.
    /// Validator sets do not change yet, so those of the genesis are the chain's.
    fn check_import<E: OutboxEntry>(
        &self,
        import: &Import<E>,
        source: &Counterpart,
    ) -> Result<(), Refusal> {
        let header = self
            .verifier
            .final_header(&source.genesis, &source.validators, &import.proof);
        let header = header.ok_or(Refusal::ProofFalse)?;
        if import.ends_at(&self.chain, &header) {
            Ok(())
        } else {
            Err(Refusal::OutboxOther)
        }
    }

    /// Runs with what does not change while a block is executed.
    fn run<T>(&self, env: &BlockEnv, values: &Values, run: impl FnOnce(Context<'_>) -> T) -> T {
        assert_eq!(
            env.chain, self.chain,
            "a block of another chain reached this ledger"
        );
        let prove = |chain: &Hash, validators: &[PublicKey], proof: &[u8]| {
            self.verifier.final_header(chain, validators, proof)
        };
        let state_value =
            |root: &Hash, key: &Key, proof: &[u8]| self.verifier.state_value(root, key, proof);
        run(Context {
            genesis: &self.genesis,
            chain: &self.chain,
            env,
            prove: &prove,
            state_value: &state_value,
            worth: &|claim| self.walks.redeemable(claim),
            values,
        })
    }
}

impl<V: Verifier> Machine for Ledger<V> {
    fn genesis(&self) -> BTreeMap<Key, Vec<u8>> {
        let mut state = BTreeMap::new();
        for (address, balance) in &self.genesis.balances {
            let account = Account {
                balance: *balance,
                ..Account::default()
            };
            if account != Account::default() {
                state.insert(state::account_key(address), account.to_bytes());
            }
        }
        let (totals, heads) = match &self.genesis.role {
            Role::Main { services } => {
                for service in services {
                    let record = Service::registered(service, &self.chain, 0);
                    let (key, name) = (
                        state::service_key(&service.genesis),
                        state::name_key(&service.name),
                    );
                    state.insert(key, record.to_bytes());
                    state.insert(name, service.genesis.to_bytes());
                }
                let heads = services
                    .iter()
                    .map(|service| OutboxHead::empty(service.genesis))
                    .collect();
                let supply = self
                    .genesis
                    .supply()
                    .map_or(0, |supply| supply.ntop().into());
                let totals = MainTotals {
                    supply,
                    balances: supply,
                    ..MainTotals::default()
                };
                (Totals::Main(totals), Heads(heads))
            }
            Role::Service { main } => {
                let link = MainLink {
                    validators: main.validators.clone(),
                    inbox: OutboxHead::empty(self.chain),
                };
                state.insert(state::main_link_key(), link.to_bytes());
                state.insert(state::payout_queue_key(), PayoutQueue::default().to_bytes());
                let heads = Heads(vec![OutboxHead::empty(main.genesis)]);
                (Totals::Service(ServiceTotals::default()), heads)
            }
        };
        state.insert(state::totals_key(), totals.to_bytes());
        state.insert(state::heads_key(), heads.to_bytes());
        state
    }

    fn id(&self, bytes: &[u8]) -> Hash {
        transaction_id(bytes)
    }

    fn admit(&self, bytes: &[u8]) -> Result<Admission, Rejection> {
        let mut admissions = self.admit_many(&[bytes]);
        admissions.pop().expect("one answer for each question")
    }

    fn admit_many(&self, transactions: &[&[u8]]) -> Vec<Result<Admission, Rejection>> {
        let decoded: Vec<Result<Transaction, Refusal>> =
            transactions.iter().map(|bytes| self.read(bytes)).collect();
        let signed: Vec<(usize, Vec<Consent>)> = decoded
            .iter()
            .enumerate()
            .filter_map(|(place, decoded)| {
                let (transaction, bytes) = (decoded.as_ref().ok()?, transactions[place]);
                Some((place, transaction.consents_in(bytes)))
            })
            .collect();
        let mut forged = BTreeSet::new();
        self.forged(&signed, &mut forged);
        let admit = |(place, decoded): (usize, Result<Transaction, Refusal>)| {
            let transaction = decoded?;
            // A signature costs less than a long walk along the token chain.
            if forged.contains(&place) {
                return Err(Refusal::SignatureFalse);
            }
            self.check(&transaction)?;
            Ok(admission(&transaction, transactions[place]))
        };
        let admissions = decoded.into_iter().enumerate().map(admit);
        admissions
            .map(|admission| admission.map_err(Rejection::from))
            .collect()
    }

    fn weigh(
        &self,
        height: u64,
        bytes: &[u8],
        values: &Values,
    ) -> Result<Result<u64, Rejection>, Missing> {
        let transaction = match self.decode(bytes) {
            Ok(transaction) => transaction,
            Err(refusal) => return Ok(Err(refusal.into())),
        };
        let env = BlockEnv {
            chain: self.chain,
            height,
            // Who will propose is not known, and the fee is his whoever he is.
            proposer: Address([0; 32]),
        };
        match self.run(&env, values, |context| weigh(context, &transaction)) {
            Ok(priority) => Ok(Ok(priority)),
            Err(Stop::Refused(refusal)) => Ok(Err(refusal.into())),
            Err(Stop::Missing(keys)) => Err(Missing(keys)),
        }
    }

    fn signatures_hold(&self, transactions: &[Vec<u8>]) -> bool {
        let mut consents = Vec::with_capacity(transactions.len());
        for bytes in transactions {
            let Ok(transaction) = Transaction::from_bytes(bytes) else {
                return false;
            };
            consents.extend(transaction.consents_in(bytes));
        }
        self.consents_hold(consents.iter())
    }

    fn reads(&self, env: &BlockEnv, transactions: &[Vec<u8>]) -> Vec<Key> {
        let transactions: Vec<Transaction> = transactions
            .iter()
            .filter_map(|bytes| self.decode(bytes).ok())
            .collect();
        known_reads(&self.genesis, env, &transactions)
    }

    fn build(
        &self,
        env: &BlockEnv,
        candidates: Vec<Vec<u8>>,
        values: &Values,
    ) -> Result<Executed, Missing> {
        self.run(env, values, |context| {
            let mut block = Block::new(context);
            let mut decoded = Vec::with_capacity(candidates.len());
            for bytes in candidates {
                match self.decode(&bytes) {
                    Ok(transaction) => decoded.push((transaction, bytes)),
                    Err(refusal) => block.reject(bytes, refusal.into()),
                }
            }
            for (transaction, bytes) in arrange(decoded) {
                if let Err(refusal) = block.transact(&transaction, &bytes, true) {
                    block.reject(bytes, refusal.into());
                }
            }
            block.finish()
        })
    }

    fn replay(
        &self,
        env: &BlockEnv,
        transactions: &[Vec<u8>],
        values: &Values,
    ) -> Result<Result<Executed, Rejection>, Missing> {
        self.run(env, values, |context| {
            let mut block = Block::new(context);
            let mut class = None;
            for bytes in transactions {
                let outcome = self.decode(bytes).and_then(|transaction| {
                    let own = Some(transaction.body.class());
                    if own < class {
                        return Err(Refusal::ClassOrder);
                    }
                    class = own;
                    block.transact(&transaction, bytes, false)
                });
                match outcome {
                    Ok(()) => {}
                    // It may only look refused for want of what is missing.
                    Err(_) if block.is_guess() => {}
                    Err(refusal) => return Ok(Err(refusal.into())),
                }
            }
            block.finish().map(Ok)
        })
    }
}

/// Puts candidates into the order of a block: by class, otherwise as they came, but each
/// account's orders by nonce in the places that the account has.
fn arrange(mut candidates: Vec<(Transaction, Vec<u8>)>) -> Vec<(Transaction, Vec<u8>)> {
    candidates.sort_by_key(|(transaction, _)| transaction.body.class());
    let mut orders: BTreeMap<Address, Vec<(u64, usize)>> = BTreeMap::new();
    for (place, (transaction, _)) in candidates.iter().enumerate() {
        if let Body::Order(order) = &transaction.body {
            orders
                .entry(order.account())
                .or_default()
                .push((order.message.nonce, place));
        }
    }
    // For each place, where its candidate stands now.
    let mut from: Vec<usize> = (0..candidates.len()).collect();
    for own in orders.into_values() {
        let mut by_nonce = own.clone();
        by_nonce.sort_unstable();
        for ((_, place), (_, stands)) in own.into_iter().zip(by_nonce) {
            from[place] = stands;
        }
    }
    let mut candidates: Vec<_> = candidates.into_iter().map(Some).collect();
    from.into_iter()
        .filter_map(|place| candidates[place].take())
        .collect()
}

/// Where a transaction stands in the mempool. Of the claims and closes of one channel and key
/// one waits at a time, the one that is worth most.
fn admission(transaction: &Transaction, bytes: &[u8]) -> Admission {
    let of_channel = |kind: u8, channel: &ChannelId, key: Option<&PublicKey>| {
        (Some(lane(kind, channel, key)), 0)
    };
    let (sender, nonce) = match &transaction.body {
        Body::Credit(_) | Body::Batch(_) => (None, 0),
        Body::Recover(recover) => (Some(recovery_lane(recover)), 0),
        Body::Order(order) => (Some(order.account()), order.message.nonce),
        Body::Claim(claim) => of_channel(0, &claim.channel(), Some(&claim.signer)),
        Body::CloseByPayee(close) => of_channel(1, &close.message.channel, Some(&close.key)),
        Body::CloseByPayer(close) => of_channel(2, &close.message.channel, Some(&close.key)),
        Body::Expire(channel) => of_channel(3, channel, None),
        Body::Finalise(channel) => of_channel(4, channel, None),
    };
    Admission {
        id: transaction_id(bytes),
        sender,
        nonce,
        reads: own_reads(transaction),
    }
}

/// What the mempool counts a channel's transactions against: kind, channel and the key that
/// signed, so that nobody can fill another's lane.
fn lane(kind: u8, channel: &ChannelId, key: Option<&PublicKey>) -> Address {
    let mut writer = Writer::in_domain(LANE_DOMAIN);
    writer.u8(kind).raw(channel);
    if let Some(key) = key {
        writer.raw(key);
    }
    Address(writer.sha256().0)
}

/// The same for what is taken out of a dead service: each thing has a lane of its own.
fn recovery_lane(recover: &Recover) -> Address {
    let mut writer = Writer::in_domain(LANE_DOMAIN);
    writer.u8(5).raw(recover.service);
    match (&recover.claim, recover.subject()) {
        (Recovery::Fund { seq }, _) => writer.u64(*seq),
        (_, subject) => writer.raw(subject.map_or_else(Vec::new, |key| key.0)),
    };
    Address(writer.sha256().0)
}
