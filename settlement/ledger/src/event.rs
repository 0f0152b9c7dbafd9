//! What a chain tells its readers: the typed content of
//! [`Receipt::events`](crate::machine::Receipt::events) and
//! [`Executed::block_events`](crate::machine::Executed::block_events).
//!
//! An index that reads every event in order knows every amount without looking at the state.

mod bytes;

use topnet_account::{Address, Amount, ChannelId, Hash, PublicKey};

use crate::{
    codec::{CodecError, Reader, Writer},
    offer::Offer,
};

/// Events of one transaction or block, at most; an import brings the most.
const EVENTS_MAX: usize = u16::MAX as usize;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Money moved between two accounts.
    Transferred {
        /// Who paid.
        from: Address,
        /// Who received.
        to: Address,
        /// How much was received.
        amount: Amount,
        /// Paid by the sender beside it.
        fee: Amount,
    },
    /// Main locked money for a service.
    Funded {
        /// The service chain.
        service: Hash,
        /// Number of the entry in main's outbox to the service.
        seq: u64,
        /// Who paid.
        funder: Address,
        /// Whose balance on the service it becomes.
        beneficiary: Address,
        /// How much.
        amount: Amount,
        /// Paid by the funder beside it.
        fee: Amount,
    },
    /// A service credited what main had locked.
    Credited {
        /// Number of the entry in main's outbox.
        seq: u64,
        /// Who received it.
        beneficiary: Address,
        /// How much.
        amount: Amount,
    },
    /// An account asked for money to be sent home.
    Withdrawn {
        /// The account.
        account: Address,
        /// How much was marked.
        amount: Amount,
        /// Paid by the account beside it.
        fee: Amount,
    },
    /// A channel was opened.
    Opened {
        /// The channel.
        channel: ChannelId,
        /// Who pays.
        payer: Address,
        /// Who is paid.
        payee: Address,
        /// Whose vouchers count.
        signer: PublicKey,
        /// The most that can be redeemed.
        allocation: Amount,
        /// Set aside beside it.
        closing_fee: Amount,
        /// In blocks.
        close_window: u32,
        /// Height from which anybody may close.
        expiry: u64,
        /// Paid by the payer beside both.
        fee: Amount,
    },
    /// A channel's allocation grew.
    ToppedUp {
        /// The channel.
        channel: ChannelId,
        /// By how much.
        amount: Amount,
        /// To how much.
        allocation: Amount,
        /// Paid by the payer beside it.
        fee: Amount,
    },
    /// A voucher was redeemed, by a claim or in a payee's close.
    Claimed {
        /// The channel.
        channel: ChannelId,
        /// Sequence number of the voucher.
        seq: u32,
        /// Place of the token.
        index: u16,
        /// Units that voucher and token pay for in all.
        units: u64,
        /// What left the allocation now; zero if it was too little or nothing.
        payout: Amount,
        /// What has left the allocation in all.
        paid: Amount,
        /// Taken out of the payout; the payee's balance rose by the difference.
        fee: Amount,
        /// Root of the detailed log.
        log_root: Hash,
    },
    /// A channel's close window has begun.
    Closing {
        /// The channel.
        channel: ChannelId,
        /// Last height that keeps it from being finalised.
        deadline: u64,
        /// Taken out of the closing fee.
        fee: Amount,
    },
    /// A channel was closed by its payee. A fee is in the `Claimed` before it.
    Closed {
        /// The channel.
        channel: ChannelId,
        /// What left the allocation in all.
        paid: Amount,
        /// What returned to the payer: rest of the allocation and closing fee.
        refund: Amount,
    },
    /// A channel was closed after its deadline.
    Finalised {
        /// The channel.
        channel: ChannelId,
        /// What left the allocation in all.
        paid: Amount,
        /// What returned to the payer: rest of the allocation and closing fee.
        refund: Amount,
        /// Taken out of the closing fee.
        fee: Amount,
    },
    /// A service cut an epoch's batch.
    BatchCut {
        /// Number of the batch.
        seq: u64,
        /// Number of payouts in it.
        payouts: u16,
        /// All that leaves the service, burn included.
        total: Amount,
        /// The burn.
        burn: Amount,
    },
    /// Main accepted a service's batch.
    BatchAccepted {
        /// The service chain.
        service: Hash,
        /// Number of the batch.
        seq: u64,
        /// Height of the service's block that cut it.
        height: u64,
        /// All that left the escrow, burn included.
        total: Amount,
        /// The burn.
        burn: Amount,
    },
    /// A batch brought an account money home.
    PaidOut {
        /// The service chain.
        service: Hash,
        /// Number of the batch.
        seq: u64,
        /// The account.
        account: Address,
        /// How much.
        amount: Amount,
    },
    /// A payout of a batch waits, because the service has paid out enough in this epoch.
    PayoutWaits {
        /// The service chain.
        service: Hash,
        /// Number of the batch.
        seq: u64,
        /// The account.
        account: Address,
        /// How much.
        amount: Amount,
        /// Its place among those that wait.
        place: u64,
    },
    /// A payout that waited was paid, or a part of it.
    WaitingPaid {
        /// The service chain.
        service: Hash,
        /// Its place.
        place: u64,
        /// The account.
        account: Address,
        /// How much.
        amount: Amount,
        /// What still waits of it.
        rest: Amount,
    },
    /// Main knows a new service.
    Registered {
        /// The service chain.
        service: Hash,
        /// Its name.
        name: String,
        /// Who has the deposit back.
        owner: Address,
        /// What the owner has locked.
        deposit: Amount,
        /// Paid by the owner beside it.
        fee: Amount,
    },
    /// A service is dead and what is in it can be recovered.
    RecoveryBegun {
        /// The service chain.
        service: Hash,
        /// Height of the service's block whose state counts; zero if there is none.
        height: u64,
        /// How many of main's funds that state has credited.
        credited: u64,
        /// What it had burned and not reported; now burned here.
        burn: Amount,
    },
    /// An account's balance on a dead service came back.
    AccountRecovered {
        /// The service chain.
        service: Hash,
        /// The account, there and here.
        account: Address,
        /// Its balance there.
        amount: Amount,
        /// Taken out of it.
        fee: Amount,
    },
    /// A dead service's channel goes on here, closing.
    ChannelRecovered {
        /// The service chain.
        service: Hash,
        /// The channel.
        channel: ChannelId,
        /// Who pays.
        payer: Address,
        /// Who is paid.
        payee: Address,
        /// Whose vouchers count.
        signer: PublicKey,
        /// The most that can be redeemed.
        allocation: Amount,
        /// What left the allocation before.
        paid: Amount,
        /// What is left for closing it.
        closing_fee: Amount,
        /// Last height of main that keeps it from being finalised.
        deadline: u64,
        /// Taken out of the closing fee.
        fee: Amount,
    },
    /// A fund that a dead service had not credited came back.
    FundReturned {
        /// The service chain.
        service: Hash,
        /// Number of the fund.
        seq: u64,
        /// Who had paid it.
        funder: Address,
        /// How much it was.
        amount: Amount,
        /// Taken out of it.
        fee: Amount,
    },
    /// Nothing is left in a dead service.
    Dissolved {
        /// The service chain.
        service: Hash,
        /// What its owner has back.
        deposit: Amount,
    },
    /// A provider offers something, in the place of what it offered for the service before.
    OfferPublished {
        /// Who.
        provider: Address,
        /// What.
        offer: Offer,
        /// What the provider has locked.
        deposit: Amount,
        /// Paid by the provider beside it.
        fee: Amount,
    },
    /// A provider has taken its offer away.
    OfferRetracted {
        /// Who.
        provider: Address,
        /// The service chain that it was for.
        service: Hash,
        /// What the provider has back.
        deposit: Amount,
        /// Taken off the provider's account.
        fee: Amount,
    },
}

/// Encodes the events of one transaction or block.
pub fn encode_events(events: &[Event]) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.list(events, |writer, event| event.write(writer));
    writer.into_bytes()
}

/// Reads [`encode_events`].
pub fn decode_events(bytes: &[u8]) -> Result<Vec<Event>, CodecError> {
    Reader::all(bytes, |reader| {
        reader.list(EVENTS_MAX, "events", Event::read)
    })
}
