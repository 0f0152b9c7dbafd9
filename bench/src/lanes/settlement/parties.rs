//! Who has money and channels on the measured chain. Everything follows from numbers, so that
//! the chain's state and the transactions on it can be made apart.

use anyhow::Result;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use topnet_account::{Address, Amount, ChannelId, Hash, PublicKey};
use topnet_channel::{Claim, SecretKey, TOKENS_PER_VOUCHER_MAX, Voucher};
use topnet_ledger::{
    Transaction,
    state::{Account, Channel, ChannelState},
    transaction::{Action, Body, ClaimBody, CloseByPayee, Message as _, Open, Order},
};

/// Accounts that sign something.
pub const PAYERS: u64 = 10_000;
/// Accounts that are paid.
pub const PAYEES: u64 = 100;
/// What an account has at first, in nTOP.
pub const BALANCE: Amount = Amount::from_ntop(1_000_000_000_000);
/// What a channel may pay, in nTOP.
pub const ALLOCATION: Amount = Amount::from_ntop(1_000_000_000);
/// Set aside for the channel's end.
pub const CLOSING_FEE: Amount = Amount::from_ntop(30_000);
/// A unit's price, in nTOP: about that of the examples.
const UNIT_PRICE: Amount = Amount::from_ntop(24_000);
/// Units before the claimed voucher, 2 GiB of them: any claim is worth its fee.
pub const UNITS_BEFORE: u64 = 4_096;
const CLOSE_WINDOW: u32 = 600;
const EXPIRY: u64 = 1 << 40;

/// Keys of those who sign.
pub struct Parties {
    payers: Vec<SecretKey>,
    payees: Vec<SecretKey>,
}

impl Parties {
    /// The same each time.
    pub fn new() -> Result<Parties> {
        let keys = |kind: u8, count: u64| {
            let key = |number: u64| {
                let mut seed = [kind; 32];
                seed[..8].copy_from_slice(&number.to_le_bytes());
                SecretKey::from_seed(seed)
            };
            (0..count).map(key).collect::<Result<Vec<_>, _>>()
        };
        Ok(Parties {
            payers: keys(1, PAYERS)?,
            payees: keys(2, PAYEES)?,
        })
    }

    /// Account `number` and what it has; whoever signs comes first.
    pub fn account(&self, number: u64) -> (Address, Account) {
        let account = Account {
            balance: BALANCE,
            ..Account::default()
        };
        let signer = match number.checked_sub(PAYERS) {
            None => Some(self.payer(number)),
            Some(payee) if payee < PAYEES => Some(self.payee(payee)),
            Some(_) => None,
        };
        let address = signer.map(SecretKey::address);
        (
            address.unwrap_or_else(|| Address(scattered(3, number))),
            account,
        )
    }

    /// Channel `number` as it was opened.
    pub fn channel(&self, number: u64) -> (ChannelId, Channel) {
        let payer = self.payer(number);
        let channel = Channel {
            payer: payer.address(),
            payee: self.payee(number).address(),
            signer: payer.public_key(),
            allocation: ALLOCATION,
            paid: Amount::ZERO,
            closing_fee: CLOSING_FEE,
            close_window: CLOSE_WINDOW,
            expiry: EXPIRY,
            log_root: Hash::ZERO,
            state: ChannelState::Open,
        };
        (channel_of(number), channel)
    }

    /// A payee's close of channel `number` whose claim has token `index`.
    pub fn close(&self, chain: &Hash, number: u64, index: u16) -> Transaction {
        let close = CloseByPayee {
            channel: channel_of(number),
            claim: Some(self.claim_body(number, index)),
        };
        close.sign(chain, self.payee(number))
    }

    /// A claim on channel `number` with token `index`.
    pub fn claim(&self, chain: &Hash, number: u64, index: u16) -> Transaction {
        Transaction {
            chain: *chain,
            body: Body::Claim(self.claim_body(number, index)),
        }
    }

    /// The payers' order `number`: each has its turn.
    pub fn open(&self, chain: &Hash, number: u64) -> Transaction {
        let open = Open {
            payee: self.payee(number).address(),
            allocation: ALLOCATION,
            signer: self.payer(number).public_key(),
            close_window: CLOSE_WINDOW,
            expiry: EXPIRY,
        };
        self.order(chain, number, Action::Open(open))
    }

    /// The payers' order `number`: each has its turn.
    pub fn transfer(&self, chain: &Hash, number: u64) -> Transaction {
        let (to, amount) = (self.payer(number + 1).address(), Amount::from_ntop(1));
        self.order(chain, number, Action::Transfer { to, amount })
    }

    fn order(&self, chain: &Hash, number: u64, action: Action) -> Transaction {
        let nonce = number / PAYERS;
        Order { nonce, action }.sign(chain, self.payer(number))
    }

    fn claim_body(&self, number: u64, index: u16) -> ClaimBody {
        let signer = self.payer(number);
        let mut voucher = Voucher {
            channel: channel_of(number),
            seq: 17,
            cumulative_amount: UNIT_PRICE.checked_mul(UNITS_BEFORE).unwrap_or(Amount::ZERO),
            cumulative_units: UNITS_BEFORE,
            unit_price: UNIT_PRICE,
            tokens: TOKENS_PER_VOUCHER_MAX,
            root: [0; 32],
        };
        let tokens = voucher.chain(signer);
        voucher.root = tokens.root();
        let claim = Claim {
            voucher: voucher.sign(signer),
            index,
            preimage: tokens.preimage(index).unwrap_or_default(),
        };
        ClaimBody {
            signer: signer.public_key(),
            claim,
            log_root: Hash(scattered(4, number)),
        }
    }

    fn payer(&self, number: u64) -> &SecretKey {
        &self.payers[(number % PAYERS) as usize]
    }

    fn payee(&self, number: u64) -> &SecretKey {
        &self.payees[(number % PAYEES) as usize]
    }

    /// Whose certificates would prove main's blocks, if there were a main chain.
    pub fn validator(&self) -> &SecretKey {
        &self.payees[0]
    }

    /// The validator's key.
    pub fn validator_key(&self) -> PublicKey {
        self.validator().public_key()
    }
}

fn channel_of(number: u64) -> ChannelId {
    ChannelId(scattered(5, number))
}

/// As evenly spread as hashes are.
fn scattered(kind: u64, number: u64) -> [u8; 32] {
    StdRng::seed_from_u64(kind << 56 | number).random()
}
