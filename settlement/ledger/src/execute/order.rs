//! Orders of accounts: what their owners want done with their money.

use topnet_account::{Address, Amount, Hash};

use super::{
    Step, Stop, channel, heads, offer,
    step::{minus, plus},
};
use crate::{
    event::Event,
    genesis::{Counterpart, Rules, SERVICES_MAX},
    machine::Key,
    outbox::{FUNDS_OUTSTANDING_MAX, FUNDS_PER_BLOCK_MAX, Fund, OutboxHead},
    refusal::Refusal,
    state::{self, Heads, Record as _, Service},
    transaction::{Action, Open, Order, Sealed, channel_id},
};

pub(super) fn execute(step: &mut Step<'_>, order: &Sealed<Order>) -> Result<(), Stop> {
    let sender = order.account();
    let Order { nonce, ref action } = order.message;
    let fee = step.context().genesis.rules.fees.of(action);
    take_turn(step, &sender, nonce)?;
    match *action {
        Action::Transfer { to, amount } => transfer(step, sender, to, amount, fee),
        Action::Fund {
            service,
            amount,
            beneficiary,
        } => {
            let fund = Fund {
                funder: sender,
                beneficiary,
                amount,
            };
            self::fund(step, service, fund, fee)
        }
        Action::Withdraw { amount } => withdraw(step, sender, amount, fee),
        Action::Open(ref open) => channel::open(step, sender, nonce, open, fee),
        Action::TopUp { channel, amount } => channel::top_up(step, sender, &channel, amount, fee),
        Action::Register(ref service) => register(step, sender, service, fee),
        Action::PublishOffer(ref offer) => offer::publish(step, sender, offer, fee),
        Action::RetractOffer { service } => offer::retract(step, sender, service, fee),
    }
}

/// What an order takes off its account beside the fee, at least.
pub(super) fn cost(rules: &Rules, action: &Action) -> Result<Amount, Refusal> {
    match action {
        Action::Transfer { amount, .. }
        | Action::Fund { amount, .. }
        | Action::Withdraw { amount }
        | Action::TopUp { amount, .. } => Ok(*amount),
        Action::Open(open) => {
            let closing_fee = rules.fees.closing().ok_or(Refusal::Overflow)?;
            plus(open.allocation, closing_fee)
        }
        Action::Register(_) => Ok(rules.service_deposit),
        // A second offer takes no second deposit, and what is retracted brings it.
        Action::PublishOffer(_) | Action::RetractOffer { .. } => Ok(Amount::ZERO),
    }
}

/// Key of the channel that an order would open.
pub(super) fn channel_key(chain: &Hash, payer: &Address, open: &Open, nonce: u64) -> Key {
    state::channel_key(&channel_id(chain, payer, &open.payee, nonce))
}

fn take_turn(step: &mut Step<'_>, sender: &Address, nonce: u64) -> Result<(), Stop> {
    let mut account = step.account(sender)?;
    let (expected, got) = (account.nonce, nonce);
    match got.cmp(&expected) {
        std::cmp::Ordering::Less => return Err(Refusal::NonceBehind { expected, got }.into()),
        std::cmp::Ordering::Greater => return Err(Refusal::NonceAhead { expected, got }.into()),
        std::cmp::Ordering::Equal => {}
    }
    account.nonce = nonce.checked_add(1).ok_or(Refusal::Overflow)?;
    step.write_account(sender, &account);
    Ok(())
}

fn transfer(
    step: &mut Step<'_>,
    from: Address,
    to: Address,
    amount: Amount,
    fee: Amount,
) -> Result<(), Stop> {
    pay(step, &from, amount, fee)?;
    step.receive(&to, amount)?;
    step.tell(Event::Transferred {
        from,
        to,
        amount,
        fee,
    });
    Ok(())
}

fn fund(step: &mut Step<'_>, service: Hash, fund: Fund, fee: Amount) -> Result<(), Stop> {
    let fund_min = step.context().genesis.rules.fund_min;
    if fund.amount < fund_min {
        return Err(Refusal::FundSmall(fund_min).into());
    }
    let key = state::service_key(&service);
    let mut record: Service = step.read(&key)?.ok_or(Refusal::ServiceUnknown(service))?;
    if record.is_dead(&step.context().genesis.rules, step.height()) {
        return Err(Refusal::ServiceDead(service).into());
    }
    let (Heads(mut all), before) = (
        heads(step)?,
        step.read_before_block::<Heads>(&state::heads_key())?,
    );
    let head = all.iter_mut().find(|head| head.destination == service);
    let head = head.ok_or(Refusal::ServiceUnknown(service))?;
    let waiting = head.next.saturating_sub(record.credited);
    if waiting >= FUNDS_OUTSTANDING_MAX {
        return Err(Refusal::ServiceBehind(waiting).into());
    }
    let first_of_block = before
        .as_ref()
        .and_then(|heads| heads.to(&service))
        .map_or(0, |h| h.next);
    if head.next.saturating_sub(first_of_block) >= FUNDS_PER_BLOCK_MAX {
        return Err(Refusal::BlockFull.into());
    }

    pay(step, &fund.funder, fund.amount, fee)?;
    record.escrow = plus(record.escrow, fund.amount)?;
    record.funded = record
        .funded
        .checked_add(fund.amount.ntop().into())
        .ok_or(Refusal::Overflow)?;
    step.write(key, &record);

    let (seq, entry) = (head.next, fund.to_bytes());
    *head = head.push(&entry).ok_or(Refusal::Overflow)?;
    step.write_bytes(state::outbox_entry_key(&service, seq), entry);
    step.write(state::heads_key(), &Heads(all));
    let Fund {
        funder,
        beneficiary,
        amount,
    } = fund;
    step.tell(Event::Funded {
        service,
        seq,
        funder,
        beneficiary,
        amount,
        fee,
    });
    Ok(())
}

fn withdraw(
    step: &mut Step<'_>,
    account: Address,
    amount: Amount,
    fee: Amount,
) -> Result<(), Stop> {
    let dust = step.context().genesis.rules.dust;
    if amount.is_zero() {
        return Err(Refusal::AmountZero.into());
    }
    step.spend(&account, fee)?;
    step.charge(fee)?;
    if step.mark_homeward(&account, amount)? <= dust {
        return Err(Refusal::Dust(dust).into());
    }
    step.tell(Event::Withdrawn {
        account,
        amount,
        fee,
    });
    Ok(())
}

fn register(
    step: &mut Step<'_>,
    owner: Address,
    service: &Counterpart,
    fee: Amount,
) -> Result<(), Stop> {
    let context = step.context();
    let own = &context.genesis.name;
    if !service.is_valid() || service.genesis == *context.chain || service.name == *own {
        return Err(Refusal::ServiceInvalid.into());
    }
    let (key, name) = (
        state::service_key(&service.genesis),
        state::name_key(&service.name),
    );
    // A dead one's record stays, so that what was recovered of it is not recovered again.
    if step.read::<Service>(&key)?.is_some() {
        return Err(Refusal::ServiceKnown.into());
    }
    if let Some(other) = step.read::<Hash>(&name)? {
        return Err(Refusal::NameTaken(other).into());
    }
    let Heads(mut all) = heads(step)?;
    if all.len() >= SERVICES_MAX {
        return Err(Refusal::ServicesFull.into());
    }
    all.push(OutboxHead::empty(service.genesis));

    let deposit = context.genesis.rules.service_deposit;
    let all_paid = plus(deposit, fee)?;
    step.spend(&owner, all_paid)?;
    step.charge(fee)?;
    let mut record = Service::registered(service, context.chain, step.height());
    record.owner = Some(owner);
    record.deposit = deposit;
    step.write(key, &record);
    step.write(name, &service.genesis);
    step.write(state::heads_key(), &Heads(all));
    step.tell(Event::Registered {
        service: service.genesis,
        name: service.name.clone(),
        owner,
        deposit,
        fee,
    });
    Ok(())
}

/// Takes an amount and a fee off an account and spends the fee. The caller puts the amount
/// where it belongs.
pub(super) fn pay(
    step: &mut Step<'_>,
    from: &Address,
    amount: Amount,
    fee: Amount,
) -> Result<(), Stop> {
    if amount.is_zero() {
        return Err(Refusal::AmountZero.into());
    }
    let all = plus(amount, fee)?;
    step.spend(from, all)?;
    step.charge(minus(all, amount)?)
}
