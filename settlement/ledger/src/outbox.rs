//! What one chain tells another, and how the other knows it is true.
//!
//! A chain keeps one outbox per destination: entries numbered from 0, and a hash chain over
//! them, `root' = SHA-256(domain ‖ root ‖ seq ‖ entry)`, that starts from zero. Each block's
//! header commits to the next number and the root of every destination. The receiver keeps the
//! last number and root that it took; given the entries from there on, it walks the hash chain
//! and must arrive at what a final header of the sender commits to.

use std::fmt::Debug;

use topnet_account::{Address, Amount, Hash};

use crate::{
    codec::{CodecError, Reader, Writer},
    genesis::{BATCH_PAYOUTS_MAX, SERVICES_MAX},
    machine::FinalHeader,
    state::Record,
};

const ENTRY_DOMAIN: &[u8] = b"topnet/entry/1";
const OUTBOX_DOMAIN: &[u8] = b"topnet/outbox/1";

/// Funds that one block of main lets in for one service. Fewer than fit one import, so some
/// header always ends where an import may end.
pub const FUNDS_PER_BLOCK_MAX: u64 = 256;
/// Funds that main lets wait for one service's acknowledgement.
pub const FUNDS_OUTSTANDING_MAX: u64 = 4_096;
/// Length of a finality proof, at most.
pub const PROOF_BYTES_MAX: usize = 32 * 1024;

/// Something that an outbox carries.
pub trait OutboxEntry: Record + Clone + Debug + PartialEq + Eq {
    /// Entries in one import, at most.
    const IMPORT_MAX: usize;
}

/// From main to a service: money locked in the service's escrow, to be credited there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fund {
    /// Who paid, and is paid back should the service die before it credits.
    pub funder: Address,
    /// Whose balance on the service it becomes.
    pub beneficiary: Address,
    /// How much.
    pub amount: Amount,
}

/// From a service to main: what an epoch sends home.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Height of the service's block that cut it.
    pub height: u64,
    /// How many of main's funds the service has credited so far.
    pub credited: u64,
    /// Fees burned on the service since the last batch; they leave the escrow for nobody.
    pub burn: Amount,
    /// Net payouts and refunds.
    pub payouts: Vec<Payout>,
}

/// One account's share of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payout {
    /// The account, on the service and on main.
    pub account: Address,
    /// How much.
    pub amount: Amount,
}

/// Where an outbox stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboxHead {
    /// The chain that the entries are for.
    pub destination: Hash,
    /// Number of the next entry.
    pub next: u64,
    /// The hash chain over all entries before it.
    pub root: Hash,
}

/// The contiguous entries of another chain's outbox that follow what was taken before, and the
/// proof that they are final there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import<E> {
    /// The chain that sent them.
    pub source: Hash,
    /// Number of the first entry.
    pub first: u64,
    /// The entries, at least one.
    pub entries: Vec<E>,
    /// All outboxes of the source at the proved block, as [`commitment`] hashes them.
    pub heads: Vec<OutboxHead>,
    /// What [`Verifier::final_header`](crate::machine::Verifier::final_header) takes.
    pub proof: Vec<u8>,
}

impl OutboxHead {
    /// An outbox that nothing has been put into.
    pub const fn empty(destination: Hash) -> Self {
        Self {
            destination,
            next: 0,
            root: Hash::ZERO,
        }
    }

    /// Puts an entry in; `None` when the numbers are used up.
    pub fn push(&self, entry: &[u8]) -> Option<Self> {
        let root = next_root(&self.root, self.next, entry);
        Some(Self {
            destination: self.destination,
            next: self.next.checked_add(1)?,
            root,
        })
    }

    pub(crate) fn write(&self, writer: &mut Writer) {
        writer.raw(self.destination).u64(self.next).raw(self.root);
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(Self {
            destination: reader.hash("outbox destination")?,
            next: reader.u64("outbox next")?,
            root: reader.hash("outbox root")?,
        })
    }
}

/// One step of an outbox's hash chain.
pub fn next_root(root: &Hash, seq: u64, entry: &[u8]) -> Hash {
    let mut writer = Writer::in_domain(ENTRY_DOMAIN);
    writer.raw(root).u64(seq).raw(entry);
    writer.sha256()
}

/// What a block's header carries: a hash over all of the chain's outboxes.
pub fn commitment(heads: &[OutboxHead]) -> Hash {
    let mut writer = Writer::in_domain(OUTBOX_DOMAIN);
    write_heads(&mut writer, heads);
    writer.sha256()
}

/// Why an import does not follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ImportFault {
    /// It begins with an entry that was taken before.
    Behind,
    /// Entries before it are missing.
    Ahead,
    /// The entries or heads are not those that the header commits to.
    Other,
}

impl<E: OutboxEntry> Import<E> {
    /// Checks the entries against where the receiver stands (`head`, whose destination is the
    /// receiver itself) and a header that was proved final. Gives where it stands afterwards.
    pub(crate) fn follow(
        &self,
        head: &OutboxHead,
        header: &FinalHeader,
    ) -> Result<OutboxHead, ImportFault> {
        let reached = self.reach(head)?;
        if self.is_committed(header) {
            Ok(reached)
        } else {
            Err(ImportFault::Other)
        }
    }

    /// Checks the entries against where the receiver stands and against the heads, which are
    /// taken as they are. Gives where it stands afterwards.
    pub(crate) fn reach(&self, head: &OutboxHead) -> Result<OutboxHead, ImportFault> {
        self.starts_at(head.next)?;
        let mut reached = *head;
        for entry in &self.entries {
            reached = reached.push(&entry.to_bytes()).ok_or(ImportFault::Other)?;
        }
        if self.heads.contains(&reached) {
            Ok(reached)
        } else {
            Err(ImportFault::Other)
        }
    }

    /// Checks all that can be told without knowing where the receiver, `destination`, stands:
    /// a header that was proved final commits to the heads, and its own ends where the entries
    /// end.
    pub(crate) fn ends_at(&self, destination: &Hash, header: &FinalHeader) -> bool {
        let next = self.first.checked_add(self.entries.len() as u64);
        let mut heads = self.heads.iter();
        self.is_committed(header)
            && heads.any(|head| head.destination == *destination && Some(head.next) == next)
    }

    fn is_committed(&self, header: &FinalHeader) -> bool {
        commitment(&self.heads) == header.outbox
    }

    /// Checks the first number alone.
    pub(crate) fn starts_at(&self, next: u64) -> Result<(), ImportFault> {
        match self.first.cmp(&next) {
            std::cmp::Ordering::Less => Err(ImportFault::Behind),
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Greater => Err(ImportFault::Ahead),
        }
    }

    pub(crate) fn write(&self, writer: &mut Writer) {
        writer.raw(self.source).u64(self.first);
        writer.list(&self.entries, |writer, entry| {
            writer.bytes(&entry.to_bytes());
        });
        write_heads(writer, &self.heads);
        writer.bytes(&self.proof);
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        let source = reader.hash("import source")?;
        let first = reader.u64("import first")?;
        let entries = reader.list(E::IMPORT_MAX, "import entries", |reader| {
            E::from_bytes(reader.bytes(usize::MAX, "import entry")?)
        })?;
        if entries.is_empty() {
            return Err(CodecError::Range("import entries"));
        }
        let heads = read_heads(reader)?;
        let proof = reader.bytes(PROOF_BYTES_MAX, "import proof")?.to_vec();
        Ok(Self {
            source,
            first,
            entries,
            heads,
            proof,
        })
    }
}

impl OutboxEntry for Fund {
    const IMPORT_MAX: usize = 1_024;
}

impl Record for Fund {
    fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer
            .address(&self.funder)
            .address(&self.beneficiary)
            .amount(self.amount);
        writer.into_bytes()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        Reader::all(bytes, |reader| {
            Ok(Self {
                funder: reader.address("fund funder")?,
                beneficiary: reader.address("fund beneficiary")?,
                amount: reader.amount("fund amount")?,
            })
        })
    }
}

const _: () = assert!(FUNDS_PER_BLOCK_MAX <= Fund::IMPORT_MAX as u64);

impl OutboxEntry for Batch {
    const IMPORT_MAX: usize = 64;
}

impl Record for Batch {
    fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u64(self.height).u64(self.credited).amount(self.burn);
        writer.list(&self.payouts, |writer, payout| payout.write(writer));
        writer.into_bytes()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        Reader::all(bytes, |reader| {
            Ok(Self {
                height: reader.u64("batch height")?,
                credited: reader.u64("batch credited")?,
                burn: reader.amount("batch burn")?,
                payouts: reader.list(BATCH_PAYOUTS_MAX as usize, "batch payouts", Payout::read)?,
            })
        })
    }
}

impl Payout {
    pub(crate) fn write(&self, writer: &mut Writer) {
        writer.address(&self.account).amount(self.amount);
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(Self {
            account: reader.address("payout account")?,
            amount: reader.amount("payout amount")?,
        })
    }
}

impl Batch {
    /// All that leaves the service: payouts and burn. `None` if it cannot be named.
    pub fn total(&self) -> Option<Amount> {
        Amount::checked_sum(self.payouts.iter().map(|payout| payout.amount))?.checked_add(self.burn)
    }
}

pub(crate) fn write_heads(writer: &mut Writer, heads: &[OutboxHead]) {
    writer.list(heads, |writer, head| head.write(writer));
}

pub(crate) fn read_heads(reader: &mut Reader<'_>) -> Result<Vec<OutboxHead>, CodecError> {
    reader.list(SERVICES_MAX, "outbox heads", OutboxHead::read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_import_follows_only_from_where_the_receiver_stands() {
        let us = Hash([1; 32]);
        let fund = |n: u8| Fund {
            funder: Address([n; 32]),
            beneficiary: Address([n; 32]),
            amount: Amount::from_ntop(u64::from(n)),
        };
        let start = OutboxHead::empty(us);
        let after_one = start.push(&fund(1).to_bytes()).unwrap();
        let after_three = [fund(2), fund(3)]
            .iter()
            .fold(after_one, |head, fund| head.push(&fund.to_bytes()).unwrap());
        let heads = vec![OutboxHead::empty(Hash([9; 32])), after_three];
        let header = FinalHeader {
            height: 5,
            outbox: commitment(&heads),
            state_root: Hash::ZERO,
        };
        let import = Import {
            source: Hash([2; 32]),
            first: 1,
            entries: vec![fund(2), fund(3)],
            heads,
            proof: Vec::new(),
        };
        let from = |first, entries: &[Fund]| Import {
            first,
            entries: entries.into(),
            ..import.clone()
        };

        assert_eq!(import.follow(&after_one, &header), Ok(after_three));
        assert_eq!(
            import.follow(&after_three, &header),
            Err(ImportFault::Behind)
        );
        assert_eq!(import.follow(&start, &header), Err(ImportFault::Ahead));
        let not_all = from(1, &[fund(2)]);
        assert_eq!(not_all.follow(&after_one, &header), Err(ImportFault::Other));
        let swapped = from(1, &[fund(3), fund(2)]);
        assert_eq!(swapped.follow(&after_one, &header), Err(ImportFault::Other));
        let other_heads = Import {
            heads: vec![after_three],
            ..import.clone()
        };
        assert_eq!(
            other_heads.follow(&after_one, &header),
            Err(ImportFault::Other)
        );
        let for_another = OutboxHead {
            destination: Hash([9; 32]),
            ..after_one
        };
        assert_eq!(
            import.follow(&for_another, &header),
            Err(ImportFault::Other)
        );
    }
}
