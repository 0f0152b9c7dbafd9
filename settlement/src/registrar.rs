//! Sees that main knows the services that were created here.
//!
//! A registration is an order of the payee's account. Which ones are wanted stands on disk, and
//! whether one has happened stands in main's state, so it is submitted until it is there and never
//! twice.

use std::sync::Arc;

use topnet_account::{Amount, Hash};
use topnet_api::{ApiError, ChainName, NewService};
use topnet_chain::{Chain, Standing};
use topnet_channel::SecretKey;
use topnet_ledger::{
    Genesis, Transaction,
    genesis::Role,
    state::{Account, account_key, name_key},
    transaction::{Action, Message as _, Order},
};
use tracing::info;

use crate::{
    chains::Chains, close::unavailable, relay::record, services::ServiceRecord, start::TaskError,
};

/// Registers services. Clones are the same.
#[derive(Clone)]
pub(crate) struct Registrar {
    pub chains: Chains,
    pub payee: Arc<SecretKey>,
}

impl Registrar {
    /// Makes a service chain, runs it, and sees to its registration. Repeating it for a chain that
    /// is there changes nothing.
    pub(crate) async fn create(&self, new: NewService) -> Result<(), ApiError> {
        if self.chains.hosted().contains_key(&new.chain) {
            return Ok(());
        }
        let main = &self.chains.main().genesis;
        let genesis = Genesis {
            name: new.chain.0.clone(),
            salt: Hash(rand::random()),
            block_interval_ms: new.block_interval_ms.unwrap_or(main.block_interval_ms),
            epoch_blocks: new.epoch_blocks.unwrap_or(main.epoch_blocks),
            validators: vec![self.chains.validator().public_key()],
            rules: main.rules.clone(),
            role: Role::Service {
                main: main.counterpart(),
            },
            balances: std::collections::BTreeMap::new(),
        };
        genesis.validate().map_err(|error| {
            ApiError::new(
                "chain_invalid",
                error.to_string(),
                "choose another name or number",
            )
        })?;
        self.can_register(&new.chain).await?;
        let record = ServiceRecord {
            genesis,
            stopped: false,
            register: true,
        };
        self.chains.host(record).await.map_err(unavailable)
    }

    /// Refuses what could not be registered, before there is a chain.
    async fn can_register(&self, name: &ChainName) -> Result<(), ApiError> {
        let main = self.chains.main();
        let taken = record::<Hash>(&main.chain, name_key(&name.0)).await;
        if let Some(other) = taken.map_err(unavailable)? {
            return Err(ApiError::new(
                "name_taken",
                format!("service {other} has the name `{name}` on main"),
                "choose another name",
            ));
        }
        let payee = self.payee.address();
        let account = record::<Account>(&main.chain, account_key(&payee)).await;
        let has = account.map_err(unavailable)?.unwrap_or_default().balance;
        let rules = &main.genesis.rules;
        let needs = rules.service_deposit.checked_add(rules.fees.register);
        if needs.is_none_or(|needs| has < needs) {
            let needs = needs.unwrap_or(Amount::from_ntop(u64::MAX));
            return Err(ApiError::new(
                "balance_short",
                format!(
                    "registering a service takes {needs}, and the payee's account on main has {has}"
                ),
                format!("send {payee} the rest: `topnet wallet transfer`"),
            ));
        }
        Ok(())
    }

    /// Submits what is wanted and not there, for good.
    pub(crate) async fn run(self) -> Result<(), TaskError> {
        loop {
            for (name, hosted) in self.chains.hosted() {
                if hosted.record.register && !hosted.record.stopped {
                    self.register(&name, &hosted.record.genesis).await?;
                }
            }
            tokio::time::sleep(self.chains.look_interval()).await;
        }
    }

    async fn register(&self, name: &ChainName, genesis: &Genesis) -> Result<(), TaskError> {
        if self.chains.on_main(&genesis.hash()).await?.is_some() {
            info!(chain = %name, "main knows the service");
            self.chains.note_problem(name, None);
            let noted = self.chains.intend(name, |record| record.register = false);
            noted.map_err(|error| TaskError::Start(Box::new(error)))?;
            return Ok(());
        }
        let main = &self.chains.main().chain;
        let action = Action::Register(genesis.counterpart());
        let order = next_order(main, &self.payee, action).await?;
        if matches!(main.standing(&order.id()), Standing::Waiting(_)) {
            return Ok(());
        }
        let problem = main.submit(order.to_bytes()).await.err();
        self.chains
            .note_problem(name, problem.map(|reason| reason.to_string()));
        Ok(())
    }
}

/// What an account wants done next on a chain.
pub(crate) async fn next_order(
    chain: &Chain,
    owner: &SecretKey,
    action: Action,
) -> Result<Transaction, TaskError> {
    let account = record::<Account>(chain, account_key(&owner.address())).await?;
    let order = Order {
        nonce: account.unwrap_or_default().nonce,
        action,
    };
    Ok(order.sign(&chain.genesis(), owner))
}
