//! Carries one chain's outbox to another: funds from main to the service, batches back.
//!
//! Where it stands is read from both chains' states each time, never remembered, so it may be
//! stopped anywhere and several may run. An import must end where a final header's outbox
//! ends. That is the tip's, or, when there is too much for one import, an earlier header's,
//! which the index finds by the commitment that the entries lead to.

use topnet_account::Hash;
use topnet_api::ChainName;
use topnet_chain::{Chain, ChainEnded, EngineVerifier, Standing};
use topnet_ledger::{
    CodecError, Transaction,
    outbox::{Batch, Fund, Import, OutboxEntry, OutboxHead, PROOF_BYTES_MAX, commitment},
    state::{
        Heads, MainLink, Record, Service, heads_key, main_link_key, outbox_entry_key, service_key,
    },
    transaction::{Body, TRANSACTION_BYTES_MAX},
};
use tracing::{debug, info, warn};

use crate::{chains::Running, index::Index, start::TaskError};

/// Bytes of an import beside its entries and proof: heads and frame.
const FRAME_BYTES_MAX: usize = 8 * 1024;

/// What is carried, and where the receiver notes how far it came.
pub(crate) trait Cargo: Send + Sync + 'static {
    type Entry: OutboxEntry + Send + Sync;
    const NAME: &'static str;

    /// How far the destination has taken the source's outbox; `None` if it does not take any.
    fn inbox(
        source: &Chain,
        destination: &Chain,
    ) -> impl Future<Output = Result<Option<OutboxHead>, TaskError>> + Send;

    fn body(import: Import<Self::Entry>) -> Body;
}

/// Main's funds, credited on the service.
pub(crate) struct Funds;

impl Cargo for Funds {
    type Entry = Fund;
    const NAME: &'static str = "funds";

    async fn inbox(_: &Chain, destination: &Chain) -> Result<Option<OutboxHead>, TaskError> {
        let link: Option<MainLink> = record(destination, main_link_key()).await?;
        let link = link.ok_or(TaskError::StateLost {
            what: "link to main",
        })?;
        Ok(Some(link.inbox))
    }

    fn body(import: Import<Fund>) -> Body {
        Body::Credit(import)
    }
}

/// The service's batches, accepted by main.
pub(crate) struct Batches;

impl Cargo for Batches {
    type Entry = Batch;
    const NAME: &'static str = "batches";

    async fn inbox(source: &Chain, destination: &Chain) -> Result<Option<OutboxHead>, TaskError> {
        let service: Option<Service> = record(destination, service_key(&source.genesis())).await?;
        // It may not be registered yet.
        Ok(service.map(|service| service.inbox))
    }

    fn body(import: Import<Batch>) -> Body {
        Body::Batch(import)
    }
}

/// A record of a chain's final state.
pub(crate) async fn record<R: Record>(
    chain: &Chain,
    key: topnet_ledger::machine::Key,
) -> Result<Option<R>, TaskError> {
    let view = chain.read(vec![key.clone()]).await?;
    let value = view.values.get(&key).and_then(Option::as_deref);
    Ok(value.map(R::from_bytes).transpose()?)
}

/// Carries `C` from `source` to `destination`, for good.
pub(crate) async fn relay<C: Cargo>(
    source: Running,
    destination: Running,
    index: Index,
) -> Result<(), TaskError> {
    let mut relay = Relay::<C> {
        source: source.chain,
        source_name: source.name,
        destination: destination.chain,
        index,
        waiting: None,
        refused: None,
        cargo: std::marker::PhantomData,
    };
    let mut source_tips = relay.source.tips();
    let mut destination_tips = relay.destination.tips();
    // The outbox that was seen carried to its end: while it stays, there is nothing to do.
    let mut carried = None;
    loop {
        let outbox = source_tips.borrow_and_update().header.outbox();
        if carried != Some(outbox) {
            carried = relay.step().await?.then_some(outbox);
        }
        tokio::select! {
            changed = source_tips.changed() => changed.map_err(|_| ChainEnded)?,
            changed = destination_tips.changed() => changed.map_err(|_| ChainEnded)?,
        }
    }
}

struct Relay<C> {
    source: Chain,
    source_name: ChainName,
    destination: Chain,
    index: Index,
    /// Number of the first entry and id of the import that was submitted last.
    waiting: Option<(u64, Hash)>,
    /// What was last said about a refusal, so that it is said once.
    refused: Option<String>,
    cargo: std::marker::PhantomData<C>,
}

/// What follows the destination's inbox.
enum Found<E> {
    /// Nothing: it has all.
    Nothing,
    /// Entries that no certificate covers yet.
    Unproved,
    /// Entries and their proof.
    Import(Import<E>),
}

impl<C: Cargo> Relay<C> {
    /// Does what there is to do; true if the destination has all that the source had to say
    /// when this began.
    async fn step(&mut self) -> Result<bool, TaskError> {
        let Some(inbox) = C::inbox(&self.source, &self.destination).await? else {
            return Ok(false);
        };
        if let Some((first, id)) = self.waiting {
            let waits = matches!(self.destination.standing(&id), Standing::Waiting(_));
            if first == inbox.next && waits {
                return Ok(false);
            }
            if let Standing::Dropped(reason) = self.destination.standing(&id) {
                self.complain(first, &reason.to_string());
            }
            self.waiting = None;
        }
        let import = match self.import(&inbox).await? {
            Found::Import(import) => import,
            Found::Unproved => return Ok(false),
            Found::Nothing => return Ok(true),
        };
        let (first, count) = (import.first, import.entries.len());
        let transaction = Transaction {
            chain: self.destination.genesis(),
            body: C::body(import),
        };
        match self.destination.submit(transaction.to_bytes()).await {
            Ok(id) => {
                debug!(cargo = C::NAME, first, count, %id, "carried to the other chain");
                self.waiting = Some((first, id));
            }
            Err(reason) => self.complain(first, &reason.to_string()),
        }
        Ok(false)
    }

    fn complain(&mut self, first: u64, reason: &str) {
        if self.refused.as_deref() != Some(reason) {
            warn!(
                cargo = C::NAME,
                first, reason, "the other chain refused; trying again"
            );
            self.refused = Some(reason.to_owned());
        }
    }

    /// The entries that follow `inbox` and the proof of them.
    async fn import(&self, inbox: &OutboxHead) -> Result<Found<C::Entry>, TaskError> {
        let heads: Option<Heads> = record(&self.source, heads_key()).await?;
        let Heads(heads) = heads.unwrap_or_default();
        // Main has none for a service that it does not know yet, or any more.
        let Some(head) = heads
            .iter()
            .find(|head| head.destination == inbox.destination)
        else {
            return Ok(Found::Nothing);
        };
        if head.next <= inbox.next {
            return Ok(Found::Nothing);
        }
        let entries = self.entries(inbox, head).await?;
        let Some((heads, proof)) = self.prove(inbox, &heads, &entries).await? else {
            return Ok(Found::Unproved);
        };
        let reached = heads
            .iter()
            .find(|head| head.destination == inbox.destination);
        let reached = reached.map_or(inbox.next, |head| head.next);
        let count = usize::try_from(reached - inbox.next).unwrap_or(usize::MAX);
        let entries = entries
            .iter()
            .take(count)
            .map(|bytes| C::Entry::from_bytes(bytes))
            .collect::<Result<_, CodecError>>()?;
        Ok(Found::Import(Import {
            source: self.source.genesis(),
            first: inbox.next,
            entries,
            heads,
            proof,
        }))
    }

    /// As many entries after `inbox` as one import may have.
    async fn entries(
        &self,
        inbox: &OutboxHead,
        head: &OutboxHead,
    ) -> Result<Vec<Vec<u8>>, TaskError> {
        let last = head
            .next
            .min(inbox.next.saturating_add(C::Entry::IMPORT_MAX as u64));
        let keys: Vec<_> = (inbox.next..last)
            .map(|seq| outbox_entry_key(&inbox.destination, seq))
            .collect();
        let view = self.source.read(keys.clone()).await?;
        let mut room = TRANSACTION_BYTES_MAX - PROOF_BYTES_MAX - FRAME_BYTES_MAX;
        let mut entries = Vec::new();
        for key in keys {
            let Some(bytes) = view.values.get(&key).cloned().flatten() else {
                // Funds of a dead service go back one by one, and are nothing to carry.
                break;
            };
            // Each entry has a length before it.
            let Some(left) = room.checked_sub(bytes.len() + 4) else {
                break;
            };
            room = left;
            entries.push(bytes);
        }
        Ok(entries)
    }

    /// A final header that commits to an outbox that ends with one of `entries`, the latest
    /// that there is: all heads that it commits to, and the proof.
    async fn prove(
        &self,
        inbox: &OutboxHead,
        heads: &[OutboxHead],
        entries: &[Vec<u8>],
    ) -> Result<Option<(Vec<OutboxHead>, Vec<u8>)>, TaskError> {
        let mut reached = vec![*inbox];
        for entry in entries {
            let next = reached.last().and_then(|head| head.push(entry));
            reached.extend(next);
        }
        for head in reached.iter().skip(1).rev() {
            let heads: Vec<OutboxHead> = if heads.contains(head) {
                heads.to_vec()
            } else if heads.len() == 1 {
                vec![*head]
            } else if let Some(heads) = self.index.outboxes_at(&self.source_name, head)? {
                heads
            } else {
                continue;
            };
            let commitment = commitment(&heads);
            let Some(height) = self.index.outbox_height(&self.source_name, &commitment)? else {
                continue;
            };
            let Some(proof) = self.source.proof_from(height).await? else {
                continue;
            };
            let ours = (self.source.genesis(), self.source.validators());
            let header = EngineVerifier.prove(&ours.0, ours.1, &proof.bytes);
            if header.is_some_and(|header| header.outbox() == commitment) {
                return Ok(Some((heads, proof.bytes)));
            }
        }
        info!(
            cargo = C::NAME,
            first = inbox.next,
            "no certificate covers it yet"
        );
        Ok(None)
    }
}
