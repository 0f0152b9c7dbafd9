//! What becomes of a service that main holds dead.
//!
//! Its chain is halted. The state that main accepted last is made anew out of its blocks, and out
//! of it are proved, for whoever asks, the transactions that bring home what is in it. What is
//! this process's own business is done without being asked: the recovery is begun, the funds that
//! were not credited go back, the payee's and the validator's accounts come home, and so do the
//! channels that a claim is held for. On main they are about to end like any other: control closes
//! them with metering's last claim, or else the [tower](crate::tower) makes the one that is held.
//!
//! Everything here is read from main's state, so it may be stopped anywhere and started again.

use std::collections::{BTreeMap, BTreeSet};

use topnet_account::{Address, Amount, ChannelId};
use topnet_api::{ApiError, ChainName, RecoverySubject};
use topnet_chain::Standing;
use topnet_ledger::{
    Transaction,
    machine::Key,
    outbox::Fund,
    state::{
        self, Account, Channel, ChannelState, Heads, Record, Recovered, Service, account_key,
        channel_key,
    },
    transaction::{Body, Recover, Recovery},
};
use topnet_tower::held::Held;
use tracing::{info, warn};

use crate::{
    chains::{Chains, Running, unless_stopped},
    close::unavailable,
    relay::record,
    start::TaskError,
};

/// Recoveries that wait on main at one time, at most.
const WAITING_MAX: usize = 256;

/// What need not be looked at or said again.
#[derive(Default)]
struct Seen {
    /// What is home or never was, by chain: nothing changes that.
    nothing: BTreeSet<(ChainName, String)>,
    /// Why main refused something when it was last said.
    refused: BTreeMap<(ChainName, String), String>,
}

/// Looks after dead services. Clones are the same.
#[derive(Clone)]
pub(crate) struct Rescue {
    pub chains: Chains,
    pub held: Held,
    pub payee: Address,
}

impl Rescue {
    /// Looks whether a service is dead, for good.
    pub(crate) async fn run(self) -> Result<(), TaskError> {
        let mut seen = Seen::default();
        loop {
            tokio::time::sleep(self.chains.look_interval()).await;
            for hosted in self.chains.hosted().into_values() {
                if let Some(running) = hosted.running {
                    unless_stopped(self.look(&running, &mut seen).await)?;
                }
            }
        }
    }

    async fn look(&self, running: &Running, seen: &mut Seen) -> Result<(), TaskError> {
        let service = self.chains.on_main(&running.chain.genesis()).await?;
        let Some(service) = service.filter(|service| self.chains.is_dead(service)) else {
            return Ok(());
        };
        if running.halted {
            return self.bring_home(running, &service, seen).await;
        }
        warn!(chain = %running.name, "main holds this service dead; halting it");
        let frozen = self.chains.freeze(running).await;
        frozen.map_err(|error| TaskError::Start(Box::new(error)))
    }

    /// Does what is next of this process's own business.
    async fn bring_home(
        &self,
        running: &Running,
        service: &Service,
        seen: &mut Seen,
    ) -> Result<(), TaskError> {
        if self.ready(running, service).await?.is_err() {
            return Ok(());
        }
        let mut subjects = Vec::new();
        if service.recovery.is_none() {
            subjects.push(RecoverySubject::Begin);
        } else {
            subjects.extend(self.funds(running, service).await?);
            let validator = self.chains.validator().address();
            subjects.extend([self.payee, validator].map(RecoverySubject::Account));
            subjects.extend(self.channels(running).await?);
        }
        let main = &self.chains.main().chain;
        let mut waiting = 0;
        for subject in subjects {
            if waiting == WAITING_MAX {
                break;
            }
            let what = (running.name.clone(), format!("{subject:?}"));
            if seen.nothing.contains(&what) {
                continue;
            }
            let Ok(transaction) = self.transaction(running, service, &subject).await? else {
                // It is home, or there never was such a thing: both stay so.
                seen.nothing.insert(what);
                continue;
            };
            waiting += 1;
            if matches!(main.standing(&transaction.id()), Standing::Waiting(_)) {
                continue;
            }
            match main.submit(transaction.to_bytes()).await {
                Ok(_) => info!(chain = %running.name, ?subject, "recovering"),
                Err(reason) => {
                    let reason = reason.to_string();
                    if seen.refused.get(&what) != Some(&reason) {
                        warn!(chain = %running.name, ?subject, reason, "cannot be recovered now");
                        seen.refused.insert(what, reason);
                    }
                }
            }
        }
        Ok(())
    }

    /// Funds that the accepted state has not credited and that are not home.
    async fn funds(
        &self,
        running: &Running,
        service: &Service,
    ) -> Result<Vec<RecoverySubject>, TaskError> {
        let main = &self.chains.main().chain;
        let id = running.chain.genesis();
        let heads: Option<Heads> = record(main, state::heads_key()).await?;
        let next = heads.as_ref().and_then(|heads| heads.to(&id));
        let next = next.map_or(0, |head| head.next);
        let first = service.recovery.map_or(next, |begun| begun.credited);
        let key = |seq| state::outbox_entry_key(&id, seq);
        let found = main.read((first..next).map(key).collect()).await?;
        let is_there = |seq: &u64| matches!(found.values.get(&key(*seq)), Some(Some(_)));
        let funds = (first..next).filter(is_there);
        Ok(funds.map(RecoverySubject::Fund).collect())
    }

    /// Channels on the dead chain that a claim is held for.
    async fn channels(&self, running: &Running) -> Result<Vec<RecoverySubject>, TaskError> {
        let mut channels = Vec::new();
        let mut after = None;
        loop {
            let page = self.held.channels(after.as_ref())?;
            let Some(last) = page.last() else {
                return Ok(channels);
            };
            after = Some(*last);
            for id in page {
                let home = self.chains.index().channel(&id)?;
                if home.is_some_and(|home| home.chain == running.name)
                    && self.is_owed(running, &id).await?
                {
                    channels.push(RecoverySubject::Channel(id));
                }
            }
        }
    }

    /// True if what is held of a channel is worth more than what was paid.
    async fn is_owed(&self, running: &Running, id: &ChannelId) -> Result<bool, TaskError> {
        let Some(held) = self.held.get(id)? else {
            return Ok(false);
        };
        let channel: Option<Channel> = record(&running.chain, channel_key(id)).await?;
        // What the chain did after the state that counts is void, so a channel that is closed
        // here may be open there.
        Ok(channel.is_some_and(|channel| {
            channel.state == ChannelState::Closed || held.redeemable > channel.paid
        }))
    }

    /// The transaction that brings something home, for anybody to submit on main.
    pub(crate) async fn prove(
        &self,
        running: &Running,
        subject: &RecoverySubject,
    ) -> Result<Transaction, ApiError> {
        let id = running.chain.genesis();
        let service = self.chains.on_main(&id).await.map_err(unavailable)?;
        let service = service.filter(|service| self.chains.is_dead(service));
        let Some(service) = service.filter(|_| running.halted) else {
            return Err(ApiError::new(
                "service_alive",
                format!("service `{}` is alive", running.name),
                "use its chain: close the channel, withdraw the balance",
            ));
        };
        let ready = self.ready(running, &service).await;
        ready.map_err(unavailable)??;
        let made = self.transaction(running, &service, subject).await;
        made.map_err(unavailable)?
    }

    /// Refuses while the accepted state is in the making.
    async fn ready(
        &self,
        running: &Running,
        service: &Service,
    ) -> Result<Result<(), ApiError>, TaskError> {
        if service.height == 0 {
            return Ok(Ok(()));
        }
        let past = self.chains.accepted_state(running, service.height).await?;
        let (reached, height) = (past.reached(), past.height());
        Ok(if reached == height {
            Ok(())
        } else {
            Err(ApiError::new(
                "recovery_prepares",
                format!(
                    "the state of `{}` that main accepted last is being made anew: block {reached} \
                     of {height}",
                    running.name
                ),
                "ask again in a while",
            ))
        })
    }

    async fn transaction(
        &self,
        running: &Running,
        service: &Service,
        subject: &RecoverySubject,
    ) -> Result<Result<Transaction, ApiError>, TaskError> {
        let main = &self.chains.main().chain;
        let id = running.chain.genesis();
        let is_home = match subject {
            RecoverySubject::Begin => service.recovery.is_some(),
            RecoverySubject::Fund(seq) => {
                let key = state::outbox_entry_key(&id, *seq);
                record::<Fund>(main, key).await?.is_none()
            }
            RecoverySubject::Account(account) => {
                let key = state::recovered_key(&id, account);
                record::<Recovered>(main, key).await?.is_some()
            }
            RecoverySubject::Channel(channel) => record::<Channel>(main, channel_key(channel))
                .await?
                .is_some(),
        };
        if is_home {
            return Ok(Err(ApiError::new(
                "recovered",
                "it was recovered before",
                "look at the account or channel on main",
            )));
        }
        let claim = match subject {
            RecoverySubject::Fund(seq) => Some(Recovery::Fund { seq: *seq }),
            RecoverySubject::Begin => self.begin(running, service).await?,
            RecoverySubject::Account(account) => {
                let proved = self.proved(running, service, &account_key(account)).await?;
                let worth =
                    |proof: &Vec<u8>| value::<Account>(proof, service, account_key(account));
                let proof = proved
                    .filter(|proof| worth(proof).is_some_and(|found| found.balance > Amount::ZERO));
                proof.map(|proof| Recovery::Account {
                    account: *account,
                    proof,
                })
            }
            RecoverySubject::Channel(channel) => {
                let key = channel_key(channel);
                let proved = self.proved(running, service, &key).await?;
                let held = |proof: &Vec<u8>| value::<Channel>(proof, service, key.clone());
                let proof =
                    proved.filter(|proof| held(proof).is_some_and(|found| found.held() > 0));
                proof.map(|proof| Recovery::Channel {
                    channel: *channel,
                    proof,
                })
            }
        };
        let nothing = || {
            ApiError::new(
                "nothing_to_recover",
                format!(
                    "the state of `{}` that main accepted last has no money there",
                    running.name
                ),
                "check the name; what came after that state is void",
            )
        };
        Ok(claim.ok_or_else(nothing).map(|claim| Transaction {
            chain: main.genesis(),
            body: Body::Recover(Recover { service: id, claim }),
        }))
    }

    async fn begin(
        &self,
        running: &Running,
        service: &Service,
    ) -> Result<Option<Recovery>, TaskError> {
        if service.height == 0 {
            let (link, totals) = (Vec::new(), Vec::new());
            return Ok(Some(Recovery::Begin { link, totals }));
        }
        let link = self
            .proved(running, service, &state::main_link_key())
            .await?;
        let totals = self.proved(running, service, &state::totals_key()).await?;
        Ok(link
            .zip(totals)
            .map(|(link, totals)| Recovery::Begin { link, totals }))
    }

    /// What stood under a key in the state that main accepted last, with its proof.
    async fn proved(
        &self,
        running: &Running,
        service: &Service,
        key: &Key,
    ) -> Result<Option<Vec<u8>>, TaskError> {
        if service.height == 0 {
            return Ok(None);
        }
        let past = self.chains.accepted_state(running, service.height).await?;
        Ok(past.prove(key).await?)
    }
}

/// What a proof shows.
fn value<R: Record>(proof: &[u8], service: &Service, key: Key) -> Option<R> {
    use topnet_ledger::machine::Verifier as _;
    let value = topnet_chain::EngineVerifier.state_value(&service.state_root, &key, proof)?;
    R::from_bytes(&value).ok()
}
