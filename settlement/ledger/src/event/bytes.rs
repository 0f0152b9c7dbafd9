//! An event's bytes: a tag and its fields in their order.

use super::Event;
use crate::{
    codec::{CodecError, Reader, Writer},
    genesis::NAME_BYTES_MAX,
    offer::Offer,
};

impl Event {
    pub(super) fn write(&self, writer: &mut Writer) {
        match self {
            Self::Transferred {
                from,
                to,
                amount,
                fee,
            } => writer
                .u8(1)
                .address(from)
                .address(to)
                .amount(*amount)
                .amount(*fee),
            Self::Funded {
                service,
                seq,
                funder,
                beneficiary,
                amount,
                fee,
            } => {
                writer
                    .u8(2)
                    .raw(service)
                    .u64(*seq)
                    .address(funder)
                    .address(beneficiary);
                writer.amount(*amount).amount(*fee)
            }
            Self::Credited {
                seq,
                beneficiary,
                amount,
            } => writer.u8(3).u64(*seq).address(beneficiary).amount(*amount),
            Self::Withdrawn {
                account,
                amount,
                fee,
            } => writer.u8(4).address(account).amount(*amount).amount(*fee),
            Self::Opened {
                channel,
                payer,
                payee,
                signer,
                allocation,
                closing_fee,
                close_window,
                expiry,
                fee,
            } => {
                writer
                    .u8(5)
                    .raw(channel)
                    .address(payer)
                    .address(payee)
                    .raw(signer);
                writer.amount(*allocation).amount(*closing_fee);
                writer.u32(*close_window).u64(*expiry).amount(*fee)
            }
            Self::ToppedUp {
                channel,
                amount,
                allocation,
                fee,
            } => writer
                .u8(6)
                .raw(channel)
                .amount(*amount)
                .amount(*allocation)
                .amount(*fee),
            Self::Claimed {
                channel,
                seq,
                index,
                units,
                payout,
                paid,
                fee,
                log_root,
            } => {
                writer.u8(7).raw(channel).u32(*seq).u16(*index).u64(*units);
                writer
                    .amount(*payout)
                    .amount(*paid)
                    .amount(*fee)
                    .raw(log_root)
            }
            Self::Closing {
                channel,
                deadline,
                fee,
            } => writer.u8(8).raw(channel).u64(*deadline).amount(*fee),
            Self::Closed {
                channel,
                paid,
                refund,
            } => writer.u8(9).raw(channel).amount(*paid).amount(*refund),
            Self::Finalised {
                channel,
                paid,
                refund,
                fee,
            } => writer
                .u8(10)
                .raw(channel)
                .amount(*paid)
                .amount(*refund)
                .amount(*fee),
            Self::BatchCut {
                seq,
                payouts,
                total,
                burn,
            } => writer
                .u8(11)
                .u64(*seq)
                .u16(*payouts)
                .amount(*total)
                .amount(*burn),
            Self::BatchAccepted {
                service,
                seq,
                height,
                total,
                burn,
            } => writer
                .u8(12)
                .raw(service)
                .u64(*seq)
                .u64(*height)
                .amount(*total)
                .amount(*burn),
            Self::PaidOut {
                service,
                seq,
                account,
                amount,
            } => writer
                .u8(13)
                .raw(service)
                .u64(*seq)
                .address(account)
                .amount(*amount),
            Self::PayoutWaits {
                service,
                seq,
                account,
                amount,
                place,
            } => {
                writer.u8(14).raw(service).u64(*seq).address(account);
                writer.amount(*amount).u64(*place)
            }
            Self::WaitingPaid {
                service,
                place,
                account,
                amount,
                rest,
            } => {
                writer.u8(15).raw(service).u64(*place).address(account);
                writer.amount(*amount).amount(*rest)
            }
            Self::Registered {
                service,
                name,
                owner,
                deposit,
                fee,
            } => {
                writer.u8(16).raw(service).bytes(name.as_bytes());
                writer.address(owner).amount(*deposit).amount(*fee)
            }
            Self::RecoveryBegun {
                service,
                height,
                credited,
                burn,
            } => writer
                .u8(17)
                .raw(service)
                .u64(*height)
                .u64(*credited)
                .amount(*burn),
            Self::AccountRecovered {
                service,
                account,
                amount,
                fee,
            } => writer
                .u8(18)
                .raw(service)
                .address(account)
                .amount(*amount)
                .amount(*fee),
            Self::ChannelRecovered {
                service,
                channel,
                payer,
                payee,
                signer,
                allocation,
                paid,
                closing_fee,
                deadline,
                fee,
            } => {
                writer.u8(19).raw(service).raw(channel);
                writer.address(payer).address(payee).raw(signer);
                writer
                    .amount(*allocation)
                    .amount(*paid)
                    .amount(*closing_fee);
                writer.u64(*deadline).amount(*fee)
            }
            Self::FundReturned {
                service,
                seq,
                funder,
                amount,
                fee,
            } => {
                writer.u8(20).raw(service).u64(*seq).address(funder);
                writer.amount(*amount).amount(*fee)
            }
            Self::Dissolved { service, deposit } => writer.u8(21).raw(service).amount(*deposit),
            Self::OfferPublished {
                provider,
                offer,
                deposit,
                fee,
            } => {
                offer.write(writer.u8(22).address(provider));
                writer.amount(*deposit).amount(*fee)
            }
            Self::OfferRetracted {
                provider,
                service,
                deposit,
                fee,
            } => {
                writer.u8(23).address(provider).raw(service);
                writer.amount(*deposit).amount(*fee)
            }
        };
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(match reader.u8("event")? {
            1 => Self::Transferred {
                from: reader.address("transferred from")?,
                to: reader.address("transferred to")?,
                amount: reader.amount("transferred amount")?,
                fee: reader.amount("transferred fee")?,
            },
            2 => Self::Funded {
                service: reader.hash("funded service")?,
                seq: reader.u64("funded seq")?,
                funder: reader.address("funded funder")?,
                beneficiary: reader.address("funded beneficiary")?,
                amount: reader.amount("funded amount")?,
                fee: reader.amount("funded fee")?,
            },
            3 => Self::Credited {
                seq: reader.u64("credited seq")?,
                beneficiary: reader.address("credited beneficiary")?,
                amount: reader.amount("credited amount")?,
            },
            4 => Self::Withdrawn {
                account: reader.address("withdrawn account")?,
                amount: reader.amount("withdrawn amount")?,
                fee: reader.amount("withdrawn fee")?,
            },
            5 => Self::Opened {
                channel: reader.channel("opened channel")?,
                payer: reader.address("opened payer")?,
                payee: reader.address("opened payee")?,
                signer: reader.key("opened signer")?,
                allocation: reader.amount("opened allocation")?,
                closing_fee: reader.amount("opened closing_fee")?,
                close_window: reader.u32("opened close_window")?,
                expiry: reader.u64("opened expiry")?,
                fee: reader.amount("opened fee")?,
            },
            6 => Self::ToppedUp {
                channel: reader.channel("topped_up channel")?,
                amount: reader.amount("topped_up amount")?,
                allocation: reader.amount("topped_up allocation")?,
                fee: reader.amount("topped_up fee")?,
            },
            7 => Self::Claimed {
                channel: reader.channel("claimed channel")?,
                seq: reader.u32("claimed seq")?,
                index: reader.u16("claimed index")?,
                units: reader.u64("claimed units")?,
                payout: reader.amount("claimed payout")?,
                paid: reader.amount("claimed paid")?,
                fee: reader.amount("claimed fee")?,
                log_root: reader.hash("claimed log_root")?,
            },
            8 => Self::Closing {
                channel: reader.channel("closing channel")?,
                deadline: reader.u64("closing deadline")?,
                fee: reader.amount("closing fee")?,
            },
            9 => Self::Closed {
                channel: reader.channel("closed channel")?,
                paid: reader.amount("closed paid")?,
                refund: reader.amount("closed refund")?,
            },
            10 => Self::Finalised {
                channel: reader.channel("finalised channel")?,
                paid: reader.amount("finalised paid")?,
                refund: reader.amount("finalised refund")?,
                fee: reader.amount("finalised fee")?,
            },
            11 => Self::BatchCut {
                seq: reader.u64("batch_cut seq")?,
                payouts: reader.u16("batch_cut payouts")?,
                total: reader.amount("batch_cut total")?,
                burn: reader.amount("batch_cut burn")?,
            },
            12 => Self::BatchAccepted {
                service: reader.hash("batch_accepted service")?,
                seq: reader.u64("batch_accepted seq")?,
                height: reader.u64("batch_accepted height")?,
                total: reader.amount("batch_accepted total")?,
                burn: reader.amount("batch_accepted burn")?,
            },
            13 => Self::PaidOut {
                service: reader.hash("paid_out service")?,
                seq: reader.u64("paid_out seq")?,
                account: reader.address("paid_out account")?,
                amount: reader.amount("paid_out amount")?,
            },
            14 => Self::PayoutWaits {
                service: reader.hash("payout_waits service")?,
                seq: reader.u64("payout_waits seq")?,
                account: reader.address("payout_waits account")?,
                amount: reader.amount("payout_waits amount")?,
                place: reader.u64("payout_waits place")?,
            },
            15 => Self::WaitingPaid {
                service: reader.hash("waiting_paid service")?,
                place: reader.u64("waiting_paid place")?,
                account: reader.address("waiting_paid account")?,
                amount: reader.amount("waiting_paid amount")?,
                rest: reader.amount("waiting_paid rest")?,
            },
            16 => Self::Registered {
                service: reader.hash("registered service")?,
                name: reader.text(NAME_BYTES_MAX, "registered name")?,
                owner: reader.address("registered owner")?,
                deposit: reader.amount("registered deposit")?,
                fee: reader.amount("registered fee")?,
            },
            17 => Self::RecoveryBegun {
                service: reader.hash("recovery_begun service")?,
                height: reader.u64("recovery_begun height")?,
                credited: reader.u64("recovery_begun credited")?,
                burn: reader.amount("recovery_begun burn")?,
            },
            18 => Self::AccountRecovered {
                service: reader.hash("account_recovered service")?,
                account: reader.address("account_recovered account")?,
                amount: reader.amount("account_recovered amount")?,
                fee: reader.amount("account_recovered fee")?,
            },
            19 => Self::ChannelRecovered {
                service: reader.hash("channel_recovered service")?,
                channel: reader.channel("channel_recovered channel")?,
                payer: reader.address("channel_recovered payer")?,
                payee: reader.address("channel_recovered payee")?,
                signer: reader.key("channel_recovered signer")?,
                allocation: reader.amount("channel_recovered allocation")?,
                paid: reader.amount("channel_recovered paid")?,
                closing_fee: reader.amount("channel_recovered closing_fee")?,
                deadline: reader.u64("channel_recovered deadline")?,
                fee: reader.amount("channel_recovered fee")?,
            },
            20 => Self::FundReturned {
                service: reader.hash("fund_returned service")?,
                seq: reader.u64("fund_returned seq")?,
                funder: reader.address("fund_returned funder")?,
                amount: reader.amount("fund_returned amount")?,
                fee: reader.amount("fund_returned fee")?,
            },
            21 => Self::Dissolved {
                service: reader.hash("dissolved service")?,
                deposit: reader.amount("dissolved deposit")?,
            },
            22 => Self::OfferPublished {
                provider: reader.address("offer_published provider")?,
                offer: Offer::read(reader)?,
                deposit: reader.amount("offer_published deposit")?,
                fee: reader.amount("offer_published fee")?,
            },
            23 => Self::OfferRetracted {
                provider: reader.address("offer_retracted provider")?,
                service: reader.hash("offer_retracted service")?,
                deposit: reader.amount("offer_retracted deposit")?,
                fee: reader.amount("offer_retracted fee")?,
            },
            tag => return Err(CodecError::Tag { what: "event", tag }),
        })
    }
}
