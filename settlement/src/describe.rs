//! Events in a line each, for people.

use topnet_ledger::event::Event;

/// What happened, in one line.
pub(crate) fn describe(event: &Event) -> String {
    match event {
        Event::Transferred {
            from,
            to,
            amount,
            fee,
        } => {
            format!("transferred {amount} from {from} to {to}, fee {fee}")
        }
        Event::Funded {
            service,
            seq,
            funder,
            beneficiary,
            amount,
            fee,
        } => format!(
            "locked {amount} of {funder} for {beneficiary} on service {service} as fund {seq}, \
             fee {fee}"
        ),
        Event::Credited {
            seq,
            beneficiary,
            amount,
        } => {
            format!("credited {amount} to {beneficiary} from fund {seq}")
        }
        Event::Withdrawn {
            account,
            amount,
            fee,
        } => {
            format!("marked {amount} of {account} to go home, fee {fee}")
        }
        Event::Opened {
            channel,
            payer,
            payee,
            allocation,
            close_window,
            expiry,
            fee,
            ..
        } => {
            format!(
                "opened channel {channel} from {payer} to {payee} with {allocation}, close \
                 window {close_window} blocks, expiry at {expiry}, fee {fee}"
            )
        }
        Event::ToppedUp {
            channel,
            amount,
            allocation,
            fee,
        } => {
            format!("topped channel {channel} up by {amount} to {allocation}, fee {fee}")
        }
        Event::Claimed {
            channel,
            seq,
            index,
            units,
            payout,
            paid,
            fee,
            ..
        } => format!(
            "claimed channel {channel} with voucher {seq}, token {index}: {units} units, paid \
             {payout} of which fee {fee}, {paid} in all"
        ),
        Event::Closing {
            channel,
            deadline,
            fee,
        } => {
            format!("closing channel {channel}, claims until block {deadline}, fee {fee}")
        }
        Event::Closed {
            channel,
            paid,
            refund,
        } => {
            format!("closed channel {channel}: paid {paid}, returned {refund}")
        }
        Event::Finalised {
            channel,
            paid,
            refund,
            fee,
        } => {
            format!("finalised channel {channel}: paid {paid}, returned {refund}, fee {fee}")
        }
        Event::BatchCut {
            seq,
            payouts,
            total,
            burn,
        } => {
            format!("cut batch {seq}: {payouts} payouts, {total} in all, {burn} burned")
        }
        Event::BatchAccepted {
            service,
            seq,
            height,
            total,
            burn,
        } => format!(
            "accepted batch {seq} of service {service}, cut at {height}: {total} in all, {burn} \
             burned"
        ),
        Event::PayoutWaits {
            service,
            seq,
            account,
            amount,
            place,
        } => format!(
            "let {amount} to {account} from batch {seq} of service {service} wait at place {place}"
        ),
        Event::WaitingPaid {
            service,
            place,
            account,
            amount,
            rest,
        } => format!(
            "paid {amount} to {account} that waited at place {place} of service {service}, {rest} \
             still waits"
        ),
        Event::Registered {
            service,
            name,
            owner,
            deposit,
            fee,
        } => format!(
            "registered service {service} as `{name}` for {owner}, deposit {deposit}, fee {fee}"
        ),
        Event::RecoveryBegun {
            service,
            height,
            credited,
            burn,
        } => format!(
            "began to recover dead service {service} as of its block {height}, {credited} funds \
             credited, {burn} burned"
        ),
        Event::AccountRecovered {
            service,
            account,
            amount,
            fee,
        } => format!("recovered {amount} of {account} from service {service}, fee {fee}"),
        Event::ChannelRecovered {
            service,
            channel,
            allocation,
            paid,
            deadline,
            fee,
            ..
        } => format!(
            "recovered channel {channel} from service {service} with {allocation} of which {paid} \
             was paid, claims until block {deadline}, fee {fee}"
        ),
        Event::FundReturned {
            service,
            seq,
            funder,
            amount,
            fee,
        } => format!(
            "returned {amount} to {funder} that service {service} had not credited (fund {seq}), \
             fee {fee}"
        ),
        Event::Dissolved { service, deposit } => {
            format!("dissolved service {service}, returned the deposit of {deposit}")
        }
        Event::OfferPublished {
            provider,
            offer,
            deposit,
            fee,
        } => format!(
            "{provider} offers service {} at {} a unit, deposit {deposit}, fee {fee}",
            offer.service, offer.unit_price
        ),
        Event::OfferRetracted {
            provider,
            service,
            deposit,
            fee,
        } => format!(
            "{provider} no longer offers service {service}, returned the deposit of {deposit}, \
             fee {fee}"
        ),
        Event::PaidOut {
            service,
            seq,
            account,
            amount,
        } => {
            format!("paid {amount} to {account} from batch {seq} of service {service}")
        }
    }
}
