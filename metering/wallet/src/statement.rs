//! What was used on a channel, what was paid for it and to whom, out of the wallet's own files;
//! what became of it on chain is added by whoever can ask the chain.

use serde::Serialize;
use topnet_account::{Amount, ChannelId};
use topnet_api::{ChannelState, ChannelView};

use crate::{Checkpoint, History, Parties, PayStatus, Receipt, Remembered};

/// A channel's statement. All amounts and counts are exact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Statement {
    /// The channel.
    pub channel: ChannelId,
    /// Whose it is; `None` if the wallet never wrote it down.
    pub parties: Option<Parties>,
    /// From when on, in milliseconds since 1970: the last checkpoint before what was asked for.
    /// `None`: from the channel's beginning.
    pub from_ms: Option<u64>,
    /// When both ends' counts were taken.
    pub until_ms: Option<u64>,
    /// Our count at the tunnel's interface: at most what is billed.
    pub own_bytes_least: u64,
    /// Our higher count: at least what is billed, where WireGuard's transfer could be read.
    pub own_bytes_most: u64,
    /// What the provider said it counted.
    pub metered_bytes: u64,
    /// By how much the provider counted more than our higher count.
    pub metered_above_bytes: u64,
    /// By how much the provider counted less than our lower count.
    pub metered_below_bytes: u64,
    /// Units that the provider said are owed.
    pub owed_units: u64,
    /// Units that we paid for, the window included.
    pub paid_units: u64,
    /// What we promised for them. It costs nothing until it is redeemed.
    pub promised: Amount,
    /// What the chain says of the whole channel; `None` if it could not be asked.
    pub chain: Option<OnChain>,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chain_unknown: Option<String>,
    /// The newest promise, for all that was ever paid on the channel.
    pub receipt: Option<Receipt>,
}

/// A whole channel on its chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OnChain {
    /// Where it is in its life.
    #[serde(flatten)]
    pub state: ChannelState,
    /// The most that could be redeemed.
    pub allocation: Amount,
    /// Redeemed, fees included.
    pub redeemed: Amount,
    /// What came back of the allocation; `None` before the channel is closed.
    pub refund: Option<Amount>,
}

/// What the wallet's files say of one channel.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The channel.
    pub channel: ChannelId,
    /// Its journal.
    pub journal: &'a Remembered,
    /// Its history.
    pub history: &'a History,
    /// How paying stood last and when that was written, in milliseconds since 1970.
    pub status: Option<(&'a PayStatus, u64)>,
}

impl Statement {
    /// The statement from the last checkpoint at or before `since_ms` on, or from the channel's
    /// beginning.
    pub fn of(known: Known<'_>, since_ms: Option<u64>) -> Self {
        let Known {
            channel,
            journal,
            history,
            status,
        } = known;
        let from = since_ms.and_then(|since_ms| history.at(since_ms)).copied();
        let base = from.unwrap_or_default();
        // Both counts of one moment, so that their difference means something.
        let (newest, until_ms) = match (status, history.checkpoints.last()) {
            (Some((status, at_ms)), _) => (status.checkpoint(at_ms), Some(at_ms)),
            (None, Some(last)) => (*last, Some(last.at_ms)),
            (None, None) => (own_alone(journal), None),
        };
        let promise = journal.payer().and_then(|record| record.promise);
        let (paid_units, promised) = promise.map_or((0, Amount::ZERO), |promise| {
            let voucher = &promise.voucher.voucher;
            (
                voucher.units(promise.index).unwrap_or(u64::MAX),
                voucher.redeemable(promise.index).unwrap_or(Amount::MAX),
            )
        });
        let signer = history.parties.as_ref().map(|parties| parties.signer);
        let metered_bytes = newest.metered_bytes.saturating_sub(base.metered_bytes);
        let own_bytes_least = newest.own_bytes_least.saturating_sub(base.own_bytes_least);
        let own_bytes_most = newest.own_bytes_most.saturating_sub(base.own_bytes_most);
        Self {
            channel,
            parties: history.parties.clone(),
            from_ms: from.map(|from| from.at_ms),
            until_ms,
            own_bytes_least,
            own_bytes_most,
            metered_bytes,
            metered_above_bytes: metered_bytes.saturating_sub(own_bytes_most),
            metered_below_bytes: own_bytes_least.saturating_sub(metered_bytes),
            owed_units: newest.owed_units.saturating_sub(base.owed_units),
            paid_units: paid_units.saturating_sub(base.released_units),
            promised: promised.checked_sub(base.promised).unwrap_or(Amount::ZERO),
            chain: None,
            chain_unknown: None,
            receipt: promise
                .zip(signer)
                .map(|(promise, signer)| Receipt::of(&promise, signer)),
        }
    }

    /// Adds what the chain says, or why it says nothing.
    pub fn with_chain(mut self, answer: Result<ChannelView, String>) -> Self {
        match answer {
            Ok(view) => {
                let closed = view.state == ChannelState::Closed;
                self.chain = Some(OnChain {
                    state: view.state,
                    allocation: view.allocation,
                    redeemed: view.paid,
                    refund: closed
                        .then(|| view.allocation.checked_sub(view.paid))
                        .flatten(),
                });
            }
            Err(reason) => self.chain_unknown = Some(reason),
        }
        self
    }

    /// The names of [`csv_row`](Self::csv_row)'s fields.
    pub const CSV_HEADER: [&'static str; 25] = [
        "channel",
        "chain",
        "payer",
        "payee",
        "provider",
        "from_ms",
        "until_ms",
        "own_bytes_least",
        "own_bytes_most",
        "metered_bytes",
        "metered_above_bytes",
        "metered_below_bytes",
        "owed_units",
        "paid_units",
        "promised_ntop",
        "state",
        "allocation_ntop",
        "redeemed_ntop",
        "refund_ntop",
        "signer",
        "receipt_voucher",
        "receipt_index",
        "receipt_preimage",
        "receipt_ntop",
        "chain_unknown",
    ];

    /// One row of a table; what is not known is empty.
    pub fn csv_row(&self) -> [String; 25] {
        fn text(value: Option<impl ToString>) -> String {
            value.map(|value| value.to_string()).unwrap_or_default()
        }
        let ntop = |amount: Option<Amount>| text(amount.map(Amount::ntop));
        let (parties, chain, receipt) = (
            self.parties.as_ref(),
            self.chain.as_ref(),
            self.receipt.as_ref(),
        );
        let state = chain.map(|chain| match chain.state {
            ChannelState::Open => "open",
            ChannelState::Closing { .. } => "closing",
            ChannelState::Closed => "closed",
        });
        [
            self.channel.to_string(),
            text(parties.map(|parties| &parties.chain)),
            text(parties.map(|parties| parties.payer)),
            text(parties.map(|parties| parties.payee)),
            text(parties.map(|parties| no_formula(&parties.provider))),
            text(self.from_ms),
            text(self.until_ms),
            self.own_bytes_least.to_string(),
            self.own_bytes_most.to_string(),
            self.metered_bytes.to_string(),
            self.metered_above_bytes.to_string(),
            self.metered_below_bytes.to_string(),
            self.owed_units.to_string(),
            self.paid_units.to_string(),
            self.promised.ntop().to_string(),
            text(state),
            ntop(chain.map(|chain| chain.allocation)),
            ntop(chain.map(|chain| chain.redeemed)),
            ntop(chain.and_then(|chain| chain.refund)),
            text(receipt.map(|receipt| receipt.signer)),
            text(receipt.map(|receipt| &receipt.voucher)),
            text(receipt.map(|receipt| receipt.index)),
            text(receipt.map(|receipt| &receipt.preimage)),
            ntop(receipt.and_then(|receipt| Some(receipt.verify().ok()?.amount))),
            text(self.chain_unknown.as_ref()),
        ]
    }
}

/// Rows as RFC 4180 has them: comma, CRLF, and quotes around what holds either or a quote.
pub fn to_csv<'a>(rows: impl IntoIterator<Item = &'a Statement>) -> String {
    let mut text = csv_line(&Statement::CSV_HEADER);
    for statement in rows {
        text += &csv_line(&statement.csv_row());
    }
    text
}

fn csv_line(fields: &[impl AsRef<str>]) -> String {
    let quoted = |field: &str| match field.contains(['"', ',', '\r', '\n']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.to_owned(),
    };
    let fields: Vec<_> = fields.iter().map(|field| quoted(field.as_ref())).collect();
    fields.join(",") + "\r\n"
}

/// A provider chooses its name; no spreadsheet shall run it.
fn no_formula(name: &str) -> String {
    let runs = name.starts_with(['=', '+', '-', '@', '\t', '\r']);
    format!("{}{name}", if runs { "'" } else { "" })
}

fn own_alone(journal: &Remembered) -> Checkpoint {
    let (least, most) = (journal.own.interface(), journal.own.most());
    Checkpoint {
        own_bytes_least: least.total_bytes().unwrap_or(u64::MAX),
        own_bytes_most: most.total_bytes().unwrap_or(u64::MAX),
        ..Checkpoint::default()
    }
}

#[cfg(test)]
mod tests {
    use topnet_account::{Address, PublicKey};
    use topnet_api::ChainName;

    use super::*;
    use crate::{Counted, OwnCount};

    const CHANNEL: ChannelId = ChannelId([9; 32]);

    fn checkpoint(at_ms: u64) -> Checkpoint {
        Checkpoint {
            at_ms,
            own_bytes_least: 90 * at_ms,
            own_bytes_most: 100 * at_ms,
            metered_bytes: 101 * at_ms,
            released_units: at_ms,
            accepted_units: at_ms,
            owed_units: at_ms,
            promised: Amount::from_ntop(7 * at_ms),
        }
    }

    fn history(provider: &str) -> History {
        History {
            parties: Some(Parties {
                channel: CHANNEL,
                chain: "vpn".to_owned(),
                payer: Address([2; 32]),
                payee: Address([1; 32]),
                provider: provider.to_owned(),
                signer: PublicKey([3; 32]),
                allocation: Amount::from_ntop(1_000_000),
            }),
            checkpoints: vec![checkpoint(10), checkpoint(30)],
        }
    }

    fn statement(history: &History, since_ms: Option<u64>) -> Statement {
        let mut journal = Remembered::default();
        journal.own = OwnCount::of(Counted {
            up_bytes: 5,
            down_bytes: 6,
        });
        let known = Known {
            channel: CHANNEL,
            journal: &journal,
            history,
            status: None,
        };
        Statement::of(known, since_ms)
    }

    fn view(state: ChannelState) -> ChannelView {
        ChannelView {
            id: CHANNEL,
            chain: ChainName::vpn(),
            payer: Address([2; 32]),
            payee: Address([1; 32]),
            signer: PublicKey([3; 32]),
            allocation: Amount::from_ntop(1_000_000),
            backed: Amount::from_ntop(1_000_000),
            paid: Amount::from_ntop(210),
            close_window: 6_000,
            expiry: 1_000_000,
            state,
        }
    }

    #[test]
    fn a_statement_is_the_difference_from_the_checkpoint_before() {
        let cases = [
            (None, None, 2_700, 3_000, 3_030, 30, 30),
            (Some(9), None, 2_700, 3_000, 3_030, 30, 30),
            (Some(20), Some(10), 1_800, 2_000, 2_020, 20, 20),
            (Some(99), Some(30), 0, 0, 0, 0, 0),
        ];
        for (since, from, least, most, metered, above, owed) in cases {
            let statement = statement(&history("One"), since);
            assert_eq!(statement.from_ms, from, "{since:?}");
            assert_eq!(statement.own_bytes_least, least);
            assert_eq!(statement.own_bytes_most, most);
            assert_eq!(statement.metered_bytes, metered);
            assert_eq!(statement.metered_above_bytes, above);
            assert_eq!(statement.metered_below_bytes, 0);
            assert_eq!(statement.owed_units, owed);
        }
        let alone = statement(&History::default(), None);
        assert_eq!((alone.own_bytes_least, alone.metered_bytes), (11, 0));
        assert_eq!((alone.until_ms, alone.parties), (None, None));
    }

    #[test]
    fn the_chain_says_what_was_redeemed_and_a_closed_channel_what_came_back() {
        let statement = statement(&history("One"), None);
        let open = statement.clone().with_chain(Ok(view(ChannelState::Open)));
        let closed = statement.clone().with_chain(Ok(view(ChannelState::Closed)));
        let refund = |statement: Statement| statement.chain.unwrap().refund;
        assert_eq!(refund(open), None);
        assert_eq!(refund(closed), Some(Amount::from_ntop(999_790)));
        let offline = statement.with_chain(Err("nobody answers".to_owned()));
        assert_eq!(offline.chain, None);
        assert_eq!(offline.chain_unknown.as_deref(), Some("nobody answers"));
    }

    #[test]
    fn csv_is_rfc_4180s_and_runs_nothing() {
        let name = "=A1, \"the\" provider\r\n";
        let row = statement(&history(name), None).with_chain(Err("a, b".to_owned()));
        let text = to_csv([&row]);
        let (header, rest) = text.split_once("\r\n").unwrap();
        assert_eq!(header.split(',').count(), Statement::CSV_HEADER.len());
        assert!(
            rest.contains(",\"'=A1, \"\"the\"\" provider\r\n\","),
            "{rest}"
        );
        assert!(rest.ends_with(",\"a, b\"\r\n"), "{rest}");
        assert!(rest.contains(",2700,3000,3030,30,0,30,"), "{rest}");
    }
}
