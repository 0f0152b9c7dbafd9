//! What is taken out of a dead service, and the end of it.
//!
//! Main knows the root of the service's state as of the newest block whose batch it accepted.
//! In that state nothing waits to be sent home, because an import ends where the proved outbox
//! ends. So what main has in escrow for the service is exactly what that state holds (balances,
//! channels, burn that no batch has reported) and the funds that it has not credited. Once all
//! of it is taken the escrow is empty, and the service's place and deposit are free.

use topnet_account::{Address, Amount, ChannelId, Hash};

use super::{Step, Stop, heads, step::minus};
use crate::{
    conservation::Totals,
    event::Event,
    machine::Key,
    outbox::Fund,
    refusal::Refusal,
    state::{
        self, Account, Channel, ChannelState, Heads, MainLink, Record, Recovered, RecoveryBegun,
        Service,
    },
    transaction::{Recover, Recovery},
};

pub(super) fn recover(step: &mut Step<'_>, recover: &Recover) -> Result<(), Stop> {
    let id = recover.service;
    let key = state::service_key(&id);
    let mut service: Service = step.read(&key)?.ok_or(Refusal::ServiceUnknown(id))?;
    let from = service.dead_from(&step.context().genesis.rules);
    if step.height() < from {
        return Err(Refusal::ServiceAlive { from }.into());
    }
    let mut dead = Dead {
        step,
        recover,
        service: &mut service,
    };
    match &recover.claim {
        Recovery::Begin { link, totals } => dead.begin(link, totals)?,
        Recovery::Account { account, proof } => dead.account(account, proof)?,
        Recovery::Channel { channel, proof } => dead.channel(channel, proof)?,
        Recovery::Fund { seq } => dead.fund(*seq)?,
    }
    dissolve_if_empty(step, &id, &mut service)?;
    step.write(key, &service);
    Ok(())
}

/// Gives back the name, the place and the deposit of a service in recovery once it holds nothing
/// any more.
pub(super) fn dissolve_if_empty(
    step: &mut Step<'_>,
    id: &Hash,
    service: &mut Service,
) -> Result<(), Stop> {
    let is_empty = service.escrow.is_zero() && service.waiting_amount.is_zero();
    let Heads(mut all) = heads(step)?;
    let places = all.len();
    all.retain(|head| head.destination != *id);
    if service.recovery.is_none() || !is_empty || all.len() == places {
        return Ok(());
    }
    step.write(state::heads_key(), &Heads(all));
    let deposit = std::mem::take(&mut service.deposit);
    if let Some(owner) = service.owner.filter(|_| !deposit.is_zero()) {
        step.receive(&owner, deposit)?;
    }
    step.delete(state::name_key(&service.name));
    step.tell(Event::Dissolved {
        service: *id,
        deposit,
    });
    Ok(())
}

struct Dead<'s, 'a, 'r> {
    step: &'s mut Step<'a>,
    recover: &'r Recover,
    service: &'s mut Service,
}

impl Dead<'_, '_, '_> {
    fn begin(&mut self, link: &[u8], totals: &[u8]) -> Result<(), Stop> {
        if self.service.recovery.is_some() {
            return Err(Refusal::RecoveryBegun.into());
        }
        let (credited, burn) = if self.service.height == 0 {
            (0, Amount::ZERO)
        } else {
            let link: MainLink = self.proved(&state::main_link_key(), link)?;
            let Totals::Service(totals) = self.proved(&state::totals_key(), totals)? else {
                return Err(Refusal::ProofFalse.into());
            };
            let burn = u64::try_from(totals.burn).map_err(|_| Refusal::Overflow)?;
            (link.inbox.next, Amount::from_ntop(burn))
        };
        self.release(burn)?;
        self.step.burn(burn)?;
        self.service.recovery = Some(RecoveryBegun { credited });
        self.step.tell(Event::RecoveryBegun {
            service: self.recover.service,
            height: self.service.height,
            credited,
            burn,
        });
        Ok(())
    }

    fn account(&mut self, account: &Address, proof: &[u8]) -> Result<(), Stop> {
        self.must_have_begun()?;
        let service = self.recover.service;
        let key = state::recovered_key(&service, account);
        if self.step.read::<Recovered>(&key)?.is_some() {
            return Err(Refusal::Recovered.into());
        }
        self.step.need([state::account_key(account)])?;
        let found: Account = self.proved(&state::account_key(account), proof)?;
        let amount = found.balance;
        let fee = self.pay(account, amount)?;
        self.step.write(key, &Recovered { amount });
        self.step.tell(Event::AccountRecovered {
            service,
            account: *account,
            amount,
            fee,
        });
        Ok(())
    }

    fn channel(&mut self, id: &ChannelId, proof: &[u8]) -> Result<(), Stop> {
        self.must_have_begun()?;
        let key = state::channel_key(id);
        if self.step.read::<Channel>(&key)?.is_some() {
            return Err(Refusal::Recovered.into());
        }
        let mut channel: Channel = self.proved(&key, proof)?;
        let held = u64::try_from(channel.held()).map_err(|_| Refusal::Overflow)?;
        if channel.state == ChannelState::Closed || held == 0 {
            return Err(Refusal::ChannelClosed.into());
        }
        self.release(Amount::from_ntop(held))?;
        let rules = &self.step.context().genesis.rules;
        let window = u64::from(rules.recovery_window);
        let height = self.step.height();
        let deadline = height.checked_add(window).ok_or(Refusal::Overflow)?;
        let fee = rules.fees.recover.min(channel.closing_fee);
        channel.closing_fee = minus(channel.closing_fee, fee)?;
        self.step.charge(fee)?;
        channel.state = ChannelState::Closing { deadline };
        self.step.write(key, &channel);
        self.step.tell(Event::ChannelRecovered {
            service: self.recover.service,
            channel: *id,
            payer: channel.payer,
            payee: channel.payee,
            signer: channel.signer,
            allocation: channel.allocation,
            paid: channel.paid,
            closing_fee: channel.closing_fee,
            deadline,
            fee,
        });
        Ok(())
    }

    fn fund(&mut self, seq: u64) -> Result<(), Stop> {
        let RecoveryBegun { credited } = self.must_have_begun()?;
        if seq < credited {
            return Err(Refusal::FundCredited.into());
        }
        let service = self.recover.service;
        let key = state::outbox_entry_key(&service, seq);
        // It is taken away once it is paid back, so there is none that was.
        let fund: Option<Fund> = self.step.read(&key)?;
        let fund = fund.ok_or(Refusal::Recovered)?;
        self.step.delete(key);
        let fee = self.pay(&fund.funder, fund.amount)?;
        self.step.tell(Event::FundReturned {
            service,
            seq,
            funder: fund.funder,
            amount: fund.amount,
            fee,
        });
        Ok(())
    }

    fn must_have_begun(&self) -> Result<RecoveryBegun, Refusal> {
        self.service.recovery.ok_or(Refusal::RecoveryNotBegun)
    }

    /// A record of the service's last accepted state.
    fn proved<R: Record>(&self, key: &Key, proof: &[u8]) -> Result<R, Refusal> {
        let root = &self.service.state_root;
        let value = (self.step.context().state_value)(root, key, proof);
        R::from_bytes(&value.ok_or(Refusal::StateProofFalse)?).map_err(|_| Refusal::StateProofFalse)
    }

    /// Takes money out of the escrow. The caller puts it where it belongs.
    fn release(&mut self, amount: Amount) -> Result<(), Refusal> {
        let escrow = self.service.escrow;
        let short = Refusal::EscrowShort {
            total: amount,
            escrow,
        };
        self.service.escrow = escrow.checked_sub(amount).ok_or(short)?;
        Ok(())
    }

    /// Pays money out of the escrow to an account, less the fee, which is given.
    fn pay(&mut self, account: &Address, amount: Amount) -> Result<Amount, Stop> {
        if amount.is_zero() {
            return Err(Refusal::AmountZero.into());
        }
        self.release(amount)?;
        let fee = self.step.context().genesis.rules.fees.recover.min(amount);
        self.step.receive(account, minus(amount, fee)?)?;
        self.step.charge(fee)?;
        Ok(fee)
    }
}
