//! What a chain starts from: its rules, its validators and, on main, all the money there is.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use topnet_account::{Address, Amount, Hash, PublicKey};
use topnet_channel::TOKENS_PER_VOUCHER_MAX;

use crate::{codec::Writer, transaction::Action};

/// Payouts in one batch, at most.
pub const BATCH_PAYOUTS_MAX: u32 = 1_000;
/// Service chains that one main chain knows, at most.
pub const SERVICES_MAX: usize = 64;
/// Validators of one chain, at most.
pub const VALIDATORS_MAX: usize = 100;
/// Length of a chain's name.
pub const NAME_BYTES_MAX: usize = 32;

/// Fees of the dearest claim that the smallest payout of a claim covers, at least: fees take no
/// more than one part in so many, two in a hundred.
pub const CLAIM_FEES_MIN: u64 = 50;

const DOMAIN: &[u8] = b"topnet/genesis/4";

/// The whole description of a chain. Every validator and light client has the same one; its
/// [`hash`](Self::hash) is the chain's id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Genesis {
    /// `main`, or the service's name: lower-case letters, digits and dashes.
    pub name: String,
    /// 32 random bytes, so that networks with the same keys and numbers are not the same chain
    /// and what is signed for one means nothing on the other.
    pub salt: Hash,
    /// A block follows its parent no sooner than this.
    pub block_interval_ms: u64,
    /// Blocks per epoch. A service cuts a batch at every height that this divides.
    pub epoch_blocks: u64,
    /// Who runs consensus.
    pub validators: Vec<PublicKey>,
    /// The numbers that the rules use.
    #[serde(default)]
    pub rules: Rules,
    /// Main or service.
    pub role: Role,
    /// Balances before the first block: the supply. Empty on a service chain, where money only
    /// comes from main.
    #[serde(default)]
    pub balances: BTreeMap<Address, Amount>,
}

/// Which of the two kinds of chain this is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Role {
    /// Keeps balances, and the escrow of every service.
    Main {
        /// Services that may be funded from the first block on. They are part of the first
        /// block's state, not of the chain's id, because each of them names that id.
        #[serde(default)]
        services: Vec<Counterpart>,
    },
    /// Keeps channels.
    Service {
        /// The main chain that funds it.
        main: Counterpart,
    },
}

/// Another chain, as this one knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counterpart {
    /// Its name, for people.
    pub name: String,
    /// Its id.
    pub genesis: Hash,
    /// Whose certificates prove its blocks.
    pub validators: Vec<PublicKey>,
}

/// The numbers that the rules use. Amounts are nTOP, times are blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// What work costs.
    pub fees: Fees,
    /// Payouts wait on the service until an account has more than this to be sent home.
    pub dust: Amount,
    /// The least that a fund may bring to a service: main lets only so many wait for one
    /// service, so a place among them costs more than its fee.
    pub fund_min: Amount,
    /// The least that a channel may be opened with.
    pub allocation_min: Amount,
    /// A claim that would pay less pays nothing; the payee's close pays any amount. It is at
    /// least [`CLAIM_FEES_MIN`] times the dearest claim's fee, so whoever claims in many small
    /// steps on the payee's behalf spends at most that part of its income.
    pub claim_payout_min: Amount,
    /// The shortest close window.
    pub close_window_min: u32,
    /// The longest close window: a payer's money is never locked longer against its will.
    pub close_window_max: u32,
    /// Payouts in one batch; what is over waits for the next epoch.
    pub batch_payouts_max: u32,
    /// What one service's batches pay out on main in one of main's epochs, at most; what is over
    /// waits on main. Validators of a service who turn thieves get no more away before somebody
    /// sees it.
    pub outflow_max: Amount,
    /// Locked on main by whoever registers a service, so that names and places are not taken
    /// for nothing.
    pub service_deposit: Amount,
    /// Locked on main with each offer, so that whoever fills the market pays for the place.
    pub offer_deposit: Amount,
    /// A service that brings no batch for more than so many blocks of main is dead for good.
    pub service_silence: u64,
    /// A dead service's channels can be claimed on main for so many blocks.
    pub recovery_window: u32,
}

/// Fees of the transactions, in nTOP. Half of each, rounded down, is burned; the proposer has
/// the rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fees {
    /// Paid by the sender.
    pub transfer: Amount,
    /// Paid by the sender, on main.
    pub fund: Amount,
    /// Paid by the account, on the service.
    pub withdraw: Amount,
    /// Paid by the payer beside allocation and closing fee.
    pub open: Amount,
    /// Paid by the payer.
    pub top_up: Amount,
    /// Out of the payout.
    pub claim: Amount,
    /// Added to a claim's or payee's close's fee for each hash of its token.
    pub claim_per_hash: Amount,
    /// By the payee: out of the payout, at most all of it. By others: out of the closing fee.
    pub close: Amount,
    /// Out of the closing fee.
    pub finalise: Amount,
    /// Paid by the sender, on main.
    pub register: Amount,
    /// Paid by the provider, on main, to publish an offer or to retract it.
    pub offer: Amount,
    /// Out of what is recovered, at most all of it.
    pub recover: Amount,
}

impl Fees {
    /// Everything for nothing.
    pub const FREE: Self = Self {
        transfer: Amount::ZERO,
        fund: Amount::ZERO,
        withdraw: Amount::ZERO,
        open: Amount::ZERO,
        top_up: Amount::ZERO,
        claim: Amount::ZERO,
        claim_per_hash: Amount::ZERO,
        close: Amount::ZERO,
        finalise: Amount::ZERO,
        register: Amount::ZERO,
        offer: Amount::ZERO,
        recover: Amount::ZERO,
    };

    /// Fee of an order.
    pub const fn of(&self, action: &Action) -> Amount {
        match action {
            Action::Transfer { .. } => self.transfer,
            Action::Fund { .. } => self.fund,
            Action::Withdraw { .. } => self.withdraw,
            Action::Open(_) => self.open,
            Action::TopUp { .. } => self.top_up,
            Action::Register(_) => self.register,
            Action::PublishOffer(_) | Action::RetractOffer { .. } => self.offer,
        }
    }

    /// Fee of a claim with token `index`, or `None` if it cannot be named.
    pub fn claim_with(&self, index: u16) -> Option<Amount> {
        self.claim
            .checked_add(self.claim_per_hash.checked_mul(index.into())?)
    }

    /// Fee of a payee's close whose claim has token `index`, or `None` if it cannot be named.
    pub fn close_with(&self, index: u16) -> Option<Amount> {
        self.close
            .checked_add(self.claim_per_hash.checked_mul(index.into())?)
    }

    /// What `open` sets aside beside the allocation for a close without the payee, or `None` if
    /// it cannot be named.
    pub fn closing(&self) -> Option<Amount> {
        self.close.checked_add(self.finalise)
    }
}

impl Default for Fees {
    /// About one unit's price at the design's example rates.
    fn default() -> Self {
        Self {
            transfer: Amount::from_ntop(10_000),
            fund: Amount::from_ntop(10_000),
            withdraw: Amount::from_ntop(10_000),
            open: Amount::from_ntop(20_000),
            top_up: Amount::from_ntop(10_000),
            claim: Amount::from_ntop(20_000),
            claim_per_hash: Amount::from_ntop(100),
            close: Amount::from_ntop(20_000),
            finalise: Amount::from_ntop(10_000),
            register: Amount::from_ntop(1_000_000),
            offer: Amount::from_ntop(20_000),
            recover: Amount::from_ntop(20_000),
        }
    }
}

impl Default for Rules {
    /// Close windows between a minute and a week of the default block interval; a service is dead
    /// after a week, and its channels can be claimed for a day.
    fn default() -> Self {
        Self {
            fees: Fees::default(),
            dust: Amount::from_ntop(50_000),
            fund_min: Amount::from_ntop(1_000_000),
            allocation_min: Amount::from_ntop(1_000_000),
            claim_payout_min: Amount::from_ntop(2_500_000),
            close_window_min: 600,
            close_window_max: 6_048_000,
            batch_payouts_max: BATCH_PAYOUTS_MAX,
            outflow_max: Amount::from_ntop(1_000_000_000_000_000),
            service_deposit: Amount::from_ntop(100_000_000_000),
            offer_deposit: Amount::from_ntop(1_000_000_000),
            service_silence: 6_048_000,
            recovery_window: 864_000,
        }
    }
}

/// A genesis that no chain can start from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("genesis of `{chain}`: {field}: {problem}")]
pub struct GenesisError {
    /// The chain's name.
    pub chain: String,
    /// Which field.
    pub field: &'static str,
    /// What is wrong with it and the mend.
    pub problem: String,
}

impl Genesis {
    /// The chain's id: SHA-256 over everything here but main's list of services.
    pub fn hash(&self) -> Hash {
        let mut writer = Writer::in_domain(DOMAIN);
        writer
            .bytes(self.name.as_bytes())
            .raw(self.salt)
            .u64(self.block_interval_ms)
            .u64(self.epoch_blocks);
        write_keys(&mut writer, &self.validators);
        self.rules.write(&mut writer);
        match &self.role {
            Role::Main { .. } => {
                writer.u8(0);
            }
            Role::Service { main } => {
                writer.u8(1).bytes(main.name.as_bytes()).raw(main.genesis);
                write_keys(&mut writer, &main.validators);
            }
        }
        writer.u64(self.balances.len() as u64);
        for (address, amount) in &self.balances {
            writer.address(address).amount(*amount);
        }
        writer.sha256()
    }

    /// All money there is, or `None` if it cannot be named.
    pub fn supply(&self) -> Option<Amount> {
        Amount::checked_sum(self.balances.values().copied())
    }

    /// This chain, as others should know it.
    pub fn counterpart(&self) -> Counterpart {
        Counterpart {
            name: self.name.clone(),
            genesis: self.hash(),
            validators: self.validators.clone(),
        }
    }

    /// Checks that a chain can start from this and keep its rules.
    pub fn validate(&self) -> Result<(), GenesisError> {
        let wrong = |field, problem: &str| {
            Err(GenesisError {
                chain: self.name.clone(),
                field,
                problem: problem.to_owned(),
            })
        };
        if !is_name(&self.name) {
            return wrong("name", "use 1 to 32 lower-case letters, digits and dashes");
        }
        if self.block_interval_ms == 0 {
            return wrong("block_interval_ms", "must be at least 1");
        }
        if self.epoch_blocks == 0 {
            return wrong("epoch_blocks", "must be at least 1");
        }
        if !is_validator_set(&self.validators) {
            return wrong("validators", "name 1 to 100 different public keys");
        }
        if let Err((field, problem)) = self.rules.validate() {
            return wrong(field, problem);
        }
        if self.supply().is_none() {
            return wrong("balances", "add up to more than 2^64 - 1 nTOP");
        }
        match &self.role {
            Role::Main { services } => {
                let ids: BTreeSet<_> = services.iter().map(|service| service.genesis).collect();
                let names: BTreeSet<_> = services.iter().map(|service| &service.name).collect();
                let own = self.hash();
                if services.len() > SERVICES_MAX {
                    return wrong("role.main.services", "at most 64 services");
                }
                if ids.len() < services.len() || names.len() < services.len() {
                    return wrong(
                        "role.main.services",
                        "a name or a genesis hash occurs twice",
                    );
                }
                if !services
                    .iter()
                    .all(|service| service.is_valid() && service.genesis != own)
                {
                    return wrong(
                        "role.main.services",
                        "each needs a name, its own genesis hash and 1 to 100 different validators",
                    );
                }
            }
            Role::Service { main } => {
                if !main.is_valid() {
                    return wrong(
                        "role.service.main",
                        "needs a name, main's genesis hash and 1 to 100 different validators",
                    );
                }
                if !self.balances.is_empty() {
                    return wrong(
                        "balances",
                        "money comes to a service from main: remove them",
                    );
                }
            }
        }
        Ok(())
    }
}

impl Counterpart {
    /// True if it has a name that a chain can have, and a set of validators.
    pub(crate) fn is_valid(&self) -> bool {
        is_name(&self.name) && is_validator_set(&self.validators)
    }
}

impl Rules {
    fn validate(&self) -> Result<(), (&'static str, &'static str)> {
        let fees = &self.fees;
        let claim_fee_max = fees.claim_with(TOKENS_PER_VOUCHER_MAX);
        let (Some(payout_min), Some(_), Some(_)) = (
            claim_fee_max.and_then(|fee| fee.checked_mul(CLAIM_FEES_MIN)),
            fees.close_with(TOKENS_PER_VOUCHER_MAX),
            fees.closing(),
        ) else {
            return Err(("rules.fees", "add up to more than 2^64 - 1 nTOP"));
        };
        if self.claim_payout_min < payout_min {
            return Err((
                "rules.claim_payout_min",
                "must be 50 times the dearest claim: fees.claim + 256 × fees.claim_per_hash",
            ));
        }
        if [self.claim_payout_min, self.allocation_min, self.fund_min].contains(&Amount::ZERO) {
            return Err((
                "rules",
                "claim_payout_min, allocation_min and fund_min must be at least 1",
            ));
        }
        if self.close_window_min == 0 || self.close_window_min > self.close_window_max {
            return Err((
                "rules.close_window_min",
                "must be at least 1 and at most close_window_max",
            ));
        }
        if !(1..=BATCH_PAYOUTS_MAX).contains(&self.batch_payouts_max) {
            return Err(("rules.batch_payouts_max", "must be 1 to 1,000"));
        }
        if self.outflow_max.is_zero() || self.service_silence == 0 || self.recovery_window == 0 {
            return Err((
                "rules",
                "outflow_max, service_silence and recovery_window must be at least 1",
            ));
        }
        Ok(())
    }

    fn write(&self, writer: &mut Writer) {
        // Taken apart, so that a new field cannot be forgotten here.
        let Self {
            fees,
            dust,
            fund_min,
            allocation_min,
            claim_payout_min,
            close_window_min,
            close_window_max,
            batch_payouts_max,
            outflow_max,
            service_deposit,
            offer_deposit,
            service_silence,
            recovery_window,
        } = self;
        let Fees {
            transfer,
            fund,
            withdraw,
            open,
            top_up,
            claim,
            claim_per_hash,
            close,
            finalise,
            register,
            offer,
            recover,
        } = fees;
        for amount in [
            transfer,
            fund,
            withdraw,
            open,
            top_up,
            claim,
            claim_per_hash,
            close,
            finalise,
            register,
            offer,
            recover,
            dust,
            fund_min,
            allocation_min,
            claim_payout_min,
            outflow_max,
            service_deposit,
            offer_deposit,
        ] {
            writer.amount(*amount);
        }
        writer
            .u32(*close_window_min)
            .u32(*close_window_max)
            .u32(*batch_payouts_max)
            .u64(*service_silence)
            .u32(*recovery_window);
    }
}

fn write_keys(writer: &mut Writer, keys: &[PublicKey]) {
    writer.list(keys, |writer, key| {
        writer.raw(key);
    });
}

fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed)
}

fn is_validator_set(validators: &[PublicKey]) -> bool {
    let different: BTreeSet<_> = validators.iter().collect();
    (1..=VALIDATORS_MAX).contains(&validators.len()) && different.len() == validators.len()
}
