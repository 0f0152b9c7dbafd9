//! The wallet's business on chain, over a provider's public RPC: look, move money, open, close.
//!
//! Whoever answers is not trusted with anything but answers: transactions are signed here, for
//! the chains that the caller names by their genesis hashes.

use std::time::Duration;

use jsonrpsee::{
    core::{ClientError, client::ClientT, params::ArrayParams},
    http_client::HttpClient,
    rpc_params,
};
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use topnet_account::{Address, Amount, ChannelId, Hash, PublicKey};
use topnet_api::{
    AccountView, ApiError, ChainName, ChainParameters, ChainReport, ChannelView, HexBytes,
    MarketOffer, Offer, RecoverySubject, ServiceView, SessionAction, SessionGrant, SessionRequest,
    SessionStopped, SubmittedTransaction, TransactionStatus, WireguardPublicKey,
};
use topnet_channel::SecretKey;
use topnet_ledger::{
    Transaction,
    transaction::{Action, CloseByPayer, Message, Open, Order, channel_id},
};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
const ANSWER_BYTES_MAX: u32 = 4 << 20;
/// How often a transaction that waits for its block is looked up.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// The provider does not answer, or not as an RPC does: check the URL, try again later.
    #[error("no answer from {url}: {reason}; is the provider's RPC there?")]
    Unreachable {
        /// Whom we asked.
        url: String,
        /// What went wrong.
        reason: String,
    },
    /// The provider answers that it cannot be.
    #[error(transparent)]
    Refused(ApiError),
    /// Not yet final: it may still become so.
    #[error("transaction {id} is in no block of {chain} after {seconds} s; look again later")]
    NotFinal {
        /// The transaction.
        id: Hash,
        /// Its chain.
        chain: ChainName,
        /// How long we waited.
        seconds: u64,
    },
}

/// The most that is taken from a provider page by page: it could go on for ever.
const LIST_MAX: usize = 100_000;

/// True if each is greater than the one before it, and the first than `after`.
fn rises<P: PartialOrd>(page: impl Iterator<Item = P>, mut after: Option<P>) -> bool {
    page.into_iter().all(|place| {
        let new = after.as_ref().is_none_or(|after| place > *after);
        after = Some(place);
        new
    })
}

/// A provider's public RPC.
#[derive(Clone, Debug)]
pub struct Rpc {
    url: String,
    client: HttpClient,
}

impl Rpc {
    /// The RPC at `url`, such as `http://203.0.113.1:8545`.
    pub fn new(url: &str) -> Result<Self, RpcError> {
        let client = HttpClient::builder()
            .request_timeout(REQUEST_TIMEOUT)
            .max_response_size(ANSWER_BYTES_MAX)
            .build(url)
            .map_err(|error| unreachable(url, error))?;
        Ok(Self {
            url: url.to_owned(),
            client,
        })
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What providers offer on main for a service.
    pub async fn market(&self, service: &ChainName) -> Result<Vec<MarketOffer>, RpcError> {
        let mut offers: Vec<MarketOffer> = Vec::new();
        loop {
            let after = offers.last().map(|offer| offer.provider);
            let page: Vec<MarketOffer> = self.ask("market", rpc_params![service, after]).await?;
            // Whoever gives the same page again would have us ask for ever.
            let new = rises(page.iter().map(|offer| offer.provider), after);
            if page.is_empty() || !new || offers.len() >= LIST_MAX {
                return Ok(offers);
            }
            offers.extend(page);
        }
    }

    /// What the provider offers.
    pub async fn offers(&self) -> Result<Vec<Offer>, RpcError> {
        self.ask("offers", rpc_params![]).await
    }

    /// A chain and where it is.
    pub async fn chain(&self, chain: &ChainName) -> Result<ChainReport, RpcError> {
        self.ask("chain", rpc_params![chain]).await
    }

    /// An account.
    pub async fn account(
        &self,
        chain: &ChainName,
        address: Address,
    ) -> Result<AccountView, RpcError> {
        self.ask("account", rpc_params![chain, address]).await
    }

    /// A channel.
    pub async fn channel(&self, id: ChannelId) -> Result<ChannelView, RpcError> {
        self.ask("channel", rpc_params![id]).await
    }

    /// The channels that an account pays or is paid by.
    pub async fn channels(&self, party: Address) -> Result<Vec<ChannelView>, RpcError> {
        let mut channels: Vec<ChannelView> = Vec::new();
        loop {
            let after = channels.last().map(|channel| channel.id);
            let page: Vec<ChannelView> = self.ask("channels", rpc_params![party, after]).await?;
            // A provider that gives the same page again would have us ask for ever.
            let new = rises(page.iter().map(|channel| channel.id), after);
            if page.is_empty() || !new || channels.len() >= LIST_MAX {
                return Ok(channels);
            }
            channels.extend(page);
        }
    }

    /// Hands a transaction to a chain.
    pub async fn submit(
        &self,
        chain: &ChainName,
        transaction: &Transaction,
    ) -> Result<SubmittedTransaction, RpcError> {
        let bytes = HexBytes(transaction.to_bytes());
        self.ask("submit", rpc_params![chain, bytes]).await
    }

    /// The same with the transaction's bytes as somebody else made them.
    pub async fn submit_bytes(
        &self,
        chain: &ChainName,
        transaction: HexBytes,
    ) -> Result<SubmittedTransaction, RpcError> {
        self.ask("submit", rpc_params![chain, transaction]).await
    }

    /// A service as main knows it.
    pub async fn service(&self, chain: &ChainName) -> Result<ServiceView, RpcError> {
        self.ask("service", rpc_params![chain]).await
    }

    /// The transaction for main that takes something out of a dead service.
    pub async fn recovery(
        &self,
        chain: &ChainName,
        subject: &RecoverySubject,
    ) -> Result<HexBytes, RpcError> {
        self.ask("recovery", rpc_params![chain, subject]).await
    }

    /// What became of a transaction.
    pub async fn transaction(
        &self,
        chain: &ChainName,
        id: Hash,
    ) -> Result<TransactionStatus, RpcError> {
        self.ask("transaction", rpc_params![chain, id]).await
    }

    /// Waits until a transaction stands in a final block.
    pub async fn wait_final(
        &self,
        chain: &ChainName,
        id: Hash,
        patience: Duration,
    ) -> Result<TransactionStatus, RpcError> {
        let deadline = Instant::now() + patience;
        loop {
            let status = self.transaction(chain, id).await?;
            if status.block.is_some() {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                let (chain, seconds) = (chain.clone(), patience.as_secs());
                return Err(RpcError::NotFinal { id, chain, seconds });
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Starts a session of `channel`, whose signer key `secret` is.
    pub async fn start_session(
        &self,
        secret: &SecretKey,
        channel: ChannelId,
        key: WireguardPublicKey,
        nonce: u64,
    ) -> Result<SessionGrant, RpcError> {
        let request = signed(secret, SessionAction::Start, channel, key, nonce);
        self.ask("session_start", rpc_params![request]).await
    }

    /// Stops a session of `channel`, whose signer key `secret` is.
    pub async fn stop_session(
        &self,
        secret: &SecretKey,
        channel: ChannelId,
        key: WireguardPublicKey,
        nonce: u64,
    ) -> Result<SessionStopped, RpcError> {
        let request = signed(secret, SessionAction::Stop, channel, key, nonce);
        self.ask("session_stop", rpc_params![request]).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: &str,
        parameters: ArrayParams,
    ) -> Result<T, RpcError> {
        self.client
            .request(method, parameters)
            .await
            .map_err(|error| {
                if let ClientError::Call(call) = &error
                    && let Some(refusal) = call
                        .data()
                        .and_then(|data| serde_json::from_str::<ApiError>(data.get()).ok())
                {
                    return RpcError::Refused(refusal);
                }
                unreachable(&self.url, error)
            })
    }
}

fn unreachable(url: &str, error: ClientError) -> RpcError {
    RpcError::Unreachable {
        url: url.to_owned(),
        reason: error.to_string(),
    }
}

fn signed(
    secret: &SecretKey,
    action: SessionAction,
    channel: ChannelId,
    key: WireguardPublicKey,
    nonce: u64,
) -> SessionRequest {
    let request = SessionRequest::unsigned(channel, key, nonce);
    SessionRequest {
        signature: secret.sign(&request.signed_bytes(action)),
        ..request
    }
}

/// What a new channel shall be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenTerms {
    /// Who is paid.
    pub payee: Address,
    /// The most that can be redeemed.
    pub allocation: Amount,
    /// Blocks between the payer's close and the deadline for claims.
    pub close_window: u32,
    /// Blocks from now after which anybody may close.
    pub expiry_blocks: u64,
    /// The key that signs vouchers and session requests. It need not be the account's: whoever
    /// has it can pay out of the channel and move nothing else.
    pub signer: PublicKey,
}

/// A channel that is being opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Its id.
    pub channel: ChannelId,
    /// The transaction that opens it.
    pub transaction: Hash,
}

/// An account's owner at an RPC. Each call signs and submits one transaction and gives its id;
/// [`Rpc::wait_final`] tells when it stands.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    /// Whose account it is.
    pub secret: &'a SecretKey,
    /// Where to ask.
    pub rpc: &'a Rpc,
}

impl Owner<'_> {
    /// Moves money to another account of the same chain.
    pub async fn transfer(
        &self,
        chain: &ChainParameters,
        to: Address,
        amount: Amount,
    ) -> Result<Hash, RpcError> {
        self.order(chain, Action::Transfer { to, amount }).await
    }

    /// Locks money on main for the own account on a service's chain.
    pub async fn fund(
        &self,
        main: &ChainParameters,
        service: &ChainParameters,
        amount: Amount,
    ) -> Result<Hash, RpcError> {
        let beneficiary = self.secret.address();
        self.order(
            main,
            Action::Fund {
                service: service.genesis,
                amount,
                beneficiary,
            },
        )
        .await
    }

    /// Sends money home to main with the next batch.
    pub async fn withdraw(
        &self,
        service: &ChainParameters,
        amount: Amount,
    ) -> Result<Hash, RpcError> {
        self.order(service, Action::Withdraw { amount }).await
    }

    /// Opens a channel.
    pub async fn open(
        &self,
        service: &ChainParameters,
        terms: OpenTerms,
    ) -> Result<Opened, RpcError> {
        let height = self.rpc.chain(&service.chain).await?.height;
        let payer = self.secret.address();
        let nonce = self.rpc.account(&service.chain, payer).await?.nonce;
        let open = Open {
            payee: terms.payee,
            allocation: terms.allocation,
            signer: terms.signer,
            close_window: terms.close_window,
            expiry: height.saturating_add(terms.expiry_blocks),
        };
        let transaction = self
            .submit_order(service, nonce, Action::Open(open))
            .await?;
        let channel = channel_id(&service.genesis, &payer, &terms.payee, nonce);
        Ok(Opened {
            channel,
            transaction,
        })
    }

    /// Adds to a channel's allocation.
    pub async fn top_up(
        &self,
        service: &ChainParameters,
        channel: ChannelId,
        amount: Amount,
    ) -> Result<Hash, RpcError> {
        self.order(service, Action::TopUp { channel, amount }).await
    }

    /// Starts a channel's close window.
    pub async fn close(
        &self,
        service: &ChainParameters,
        channel: ChannelId,
    ) -> Result<Hash, RpcError> {
        let close = CloseByPayer { channel }.sign(&service.genesis, self.secret);
        Ok(self.rpc.submit(&service.chain, &close).await?.id)
    }

    async fn order(&self, chain: &ChainParameters, action: Action) -> Result<Hash, RpcError> {
        let nonce = self
            .rpc
            .account(&chain.chain, self.secret.address())
            .await?
            .nonce;
        self.submit_order(chain, nonce, action).await
    }

    async fn submit_order(
        &self,
        chain: &ChainParameters,
        nonce: u64,
        action: Action,
    ) -> Result<Hash, RpcError> {
        let order = Order { nonce, action }.sign(&chain.genesis, self.secret);
        Ok(self.rpc.submit(&chain.chain, &order).await?.id)
    }
}
