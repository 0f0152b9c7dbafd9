//! What consensus needs from a state machine, and what the machine needs from it.
//!
//! Consensus owns order, storage and certificates; the machine owns meaning. The
//! machine never reads storage itself: it names the keys that it may need, is handed
//! their values, and returns the writes. So it stays a pure function of its inputs,
//! whatever database stands below it.

use std::collections::{BTreeMap, HashMap};

use topnet_account::{Address, Hash, PublicKey, Signature};

/// An order waits for those before it if its nonce is fewer than this many above the account's
/// next one.
pub const NONCES_AHEAD_MAX: u64 = 64;

/// A key of the state. Storage may hash it; the machine never depends on its order there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub Vec<u8>);

/// What a block's execution may know besides its transactions and the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockEnv {
    /// Hash of the chain's genesis: its name in everything that is signed.
    pub chain: Hash,
    /// This block's height; the clock of every rule about money.
    pub height: u64,
    /// Who is paid the proposer's half of the fees.
    pub proposer: Address,
}

/// Values of the keys that were asked for; `None` where the state holds nothing.
pub type Values = HashMap<Key, Option<Vec<u8>>>;

/// Execution needs the values of these keys, which were not among those given.
/// Nothing has happened; add them and execute again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing(pub Vec<Key>);

/// Why a transaction cannot stand in a block; a code for programs, a text for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {text}")]
pub struct Rejection {
    /// Stable, snake_case.
    pub code: &'static str,
    /// What is wrong and the mend.
    pub text: String,
}

impl Rejection {
    /// True if the same bytes may stand in a later block without anybody's doing: keep the
    /// transaction. Otherwise drop it and tell whoever sent it.
    pub fn is_temporary(&self) -> bool {
        matches!(self.code, "nonce_ahead" | "block_full" | "service_behind")
    }
}

/// What one transaction did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Hash over the transaction's bytes.
    pub id: Hash,
    /// What a reader of the chain is told happened, in the machine's own encoding.
    pub events: Vec<u8>,
}

/// What a list of transactions did to the state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Executed {
    /// The transactions that stand in the block, in the order of execution.
    pub included: Vec<Vec<u8>>,
    /// One receipt for each of them.
    pub receipts: Vec<Receipt>,
    /// Those that cannot stand in this block, and why; empty when an existing block is executed.
    pub rejected: Vec<(Vec<u8>, Rejection)>,
    /// What the block did that no single transaction did, such as cutting an epoch's batch;
    /// encoded like [`Receipt::events`].
    pub block_events: Vec<u8>,
    /// New values; `None` deletes.
    pub writes: BTreeMap<Key, Option<Vec<u8>>>,
    /// What the block's header commits to for other chains to check.
    pub outbox: Hash,
}

/// What the mempool keeps beside a transaction's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Hash over the transaction's bytes.
    pub id: Hash,
    /// What the per-account limit counts against: the account, or, where a transaction belongs
    /// to a channel and anybody may bring it, the channel's id in an address's clothes. `None`
    /// for transactions that are free because only a certificate can bring them.
    pub sender: Option<Address>,
    /// The sender's nonce: transactions of one sender are proposed in its order. Transactions of
    /// a channel have 0, so that the one that is worth most waits alone.
    pub nonce: u64,
    /// Keys that weighing it will surely need, beside those that every block does.
    pub reads: Vec<Key>,
}

/// A deterministic state machine under consensus.
///
/// For a block that somebody else built, call [`signatures_hold`](Self::signatures_hold) and
/// [`replay`](Self::replay). For one's own, pass what [`admit`](Self::admit) let in and
/// [`weigh`](Self::weigh) found good to [`build`](Self::build). Execution itself does not look at signatures again.
pub trait Machine: Clone + Send + Sync + 'static {
    /// The state before the first block.
    fn genesis(&self) -> BTreeMap<Key, Vec<u8>>;

    /// The id of the transaction that these bytes are, or would be: a hash over them.
    fn id(&self, transaction: &[u8]) -> Hash;

    /// Checks what can be checked without state: shape, sizes, chain, signatures, proofs.
    fn admit(&self, transaction: &[u8]) -> Result<Admission, Rejection>;

    /// The same for many, each on its own; cheaper than one after the other, where that can be.
    fn admit_many(&self, transactions: &[&[u8]]) -> Vec<Result<Admission, Rejection>> {
        transactions.iter().map(|bytes| self.admit(bytes)).collect()
    }

    /// Checks an admitted transaction against the state before the block at `height`, and gives
    /// its priority: higher goes first when a block has no room for all, and stays when the
    /// mempool has none. It rests on money that the state has, never on what the transaction
    /// says of itself, so it cannot be had for nothing.
    fn weigh(
        &self,
        height: u64,
        transaction: &[u8],
        values: &Values,
    ) -> Result<Result<u64, Rejection>, Missing>;

    /// Checks all signatures of a block's transactions at once.
    fn signatures_hold(&self, transactions: &[Vec<u8>]) -> bool;

    /// Keys that executing these transactions will surely need. A guess that is too small
    /// costs another round ([`Missing`]), never correctness.
    fn reads(&self, env: &BlockEnv, transactions: &[Vec<u8>]) -> Vec<Key>;

    /// Builds a block: executes those of `candidates` that can stand, in the machine's own
    /// order, and says of the rest why not.
    fn build(
        &self,
        env: &BlockEnv,
        candidates: Vec<Vec<u8>>,
        values: &Values,
    ) -> Result<Executed, Missing>;

    /// Executes a block that somebody built: every transaction must be able to stand, in
    /// exactly this order. `Ok(Err(_))` means that the block is invalid for good.
    fn replay(
        &self,
        env: &BlockEnv,
        transactions: &[Vec<u8>],
        values: &Values,
    ) -> Result<Result<Executed, Rejection>, Missing>;
}

/// One signature to check.
#[derive(Clone, Copy, Debug)]
pub struct Signed<'a> {
    /// Who signed.
    pub key: &'a PublicKey,
    /// The signed bytes, whole: a length byte, the domain, then the message.
    pub bytes: &'a [u8],
    /// The signature.
    pub signature: &'a Signature,
}

/// A block of another chain that was proved to be final.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinalHeader {
    /// Height of the block.
    pub height: u64,
    /// [`Executed::outbox`] of the block.
    pub outbox: Hash,
    /// Root of the state after the block.
    pub state_root: Hash,
}

/// The chain engine's cryptography, as the machine sees it. Consensus, mempool and light
/// clients use one implementation, so that no two of them ever disagree.
pub trait Verifier: Clone + Send + Sync + 'static {
    /// True if every signature holds (ZIP-215 rules).
    fn signatures_hold(&self, signed: &[Signed<'_>]) -> bool;

    /// The header that `proof` shows to be finalised by `validators` on the chain whose genesis
    /// hashes to `chain`; `None` if it shows no such thing.
    fn final_header(
        &self,
        chain: &Hash,
        validators: &[PublicKey],
        proof: &[u8],
    ) -> Option<FinalHeader>;

    /// The value that `proof` shows to stand under `key` in a state with this root; `None` if it
    /// shows no such thing.
    fn state_value(&self, root: &Hash, key: &Key, proof: &[u8]) -> Option<Vec<u8>>;
}
