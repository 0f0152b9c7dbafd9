//! What control does, whoever asks: the one place where book, store and processes meet.
//!
//! A change of the book is on disk before anybody hears of it. The data plane learns of it
//! through [`crate::reconcile`], which is woken here and repeats itself until they agree.

mod chains;
mod reports;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use tokio::sync::{Mutex, Notify, watch};
use topnet_account::{Address, ChannelId};
use topnet_api::{
    ApiError, ChainName, ChainParameters, ChannelState, ChannelView, CloseProgress, MeteringStatus,
    NewOffer, Offer, OfferTerms, PaymentEndpoint, SessionAction, SessionGrant, SessionId,
    SessionRequest, SessionStopped, WireguardConfig, WireguardPublicKey,
};
use topnet_config::{Config, ConfigError, Dataplane, Ipv4Subnet};
use topnet_unit::UNIT_BYTES;

use crate::{
    admission::Terms,
    book::{Bounds, SessionBook},
    processes::Processes,
    store::{Store, StoreError},
};

/// How long a request waits for the data plane to have installed its change.
const INSTALL_WAIT: Duration = Duration::from_secs(3);
/// WireGuard's own advice for clients behind NAT.
pub(crate) const PERSISTENT_KEEPALIVE_S: u16 = 25;

/// A provider, from control's side.
#[derive(Debug)]
pub struct Provider {
    config: Config,
    bounds: Bounds,
    processes: Processes,
    book: Arc<Mutex<Kept>>,
    changed: Notify,
    installed: watch::Sender<Installed>,
    /// Settlement's address never changes while it runs; it is asked once.
    known: Mutex<Known>,
}

/// The book and where it is kept: whoever changes one has both.
#[derive(Debug)]
struct Kept {
    book: SessionBook,
    store: Store,
}

/// What the data plane has confirmed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Installed {
    /// The revision, in the run of the data plane that is there now.
    pub(crate) revision: Option<u64>,
    /// Its run.
    pub(crate) boot: String,
    /// Sessions that found no place.
    pub(crate) refused: BTreeMap<SessionId, ApiError>,
}

/// What other processes are asked only once in their lives.
#[derive(Debug, Default)]
struct Known {
    payee: Option<Address>,
    chains: Vec<ChainParameters>,
    wireguard_public_key: Option<WireguardPublicKey>,
    payment_key: Option<topnet_account::PublicKey>,
}

/// Why control does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A section that control needs is missing.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The sessions cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Provider {
    /// Reads the sessions of earlier runs. Control needs the sections of the other processes
    /// too: the terms and the tunnel's addresses are said there.
    pub fn open(config: Config) -> Result<Self, StartError> {
        let (control, dataplane) = (config.control()?, config.dataplane()?);
        config.metering()?;
        let bounds = Bounds {
            inner_subnet: dataplane.inner_subnet,
            gateway_address: dataplane.gateway_address(),
            reserved: dataplane.unmetered.as_ref().map(|own| own.subnet),
            sessions_max: dataplane.sessions_max as usize,
            sessions_per_channel_max: control.sessions_per_channel_max as usize,
        };
        let store = Store::open(&control.state_dir)?;
        let mut book = store.load()?;
        for session in book.fit(&bounds) {
            tracing::warn!(%session, subnet = %bounds.inner_subnet, "session dropped: its address is not a client's any more");
        }
        store.save(&book)?;
        Ok(Self {
            processes: Processes::below(&config.runtime_dir),
            config,
            bounds,
            book: Arc::new(Mutex::new(Kept { book, store })),
            changed: Notify::new(),
            installed: watch::Sender::default(),
            known: Mutex::default(),
        })
    }

    /// The offer.
    pub async fn offer(&self) -> Result<Offer, ApiError> {
        let (metering, offer) = (self.config.metering(), self.config.control());
        let (Ok(metering), Ok(control)) = (metering, offer) else {
            return Err(not_configured());
        };
        let offer = &control.offer;
        Ok(Offer {
            name: offer.name.clone(),
            region: offer.region.clone(),
            service: ChainName(metering.service.clone()),
            payee: self.payee().await?,
            unit_bytes: UNIT_BYTES,
            unit_price: metering.unit_price(),
            epsilon_ppm: metering.epsilon_ppm,
            window_units_max: metering.window_units_max,
            close_window_blocks_min: metering.close_window_blocks_min,
            headroom_units_min: offer.headroom_units_min,
            wireguard_endpoint: offer.wireguard_endpoint,
            wireguard_public_key: self.wireguard_public_key().await?,
            payment: self.payment_endpoint().await?,
            chains: self.chain_parameters().await?,
        })
    }

    /// What main is to tell of the offer.
    pub(crate) async fn new_offer(&self) -> Result<NewOffer, ApiError> {
        let offer = self.offer().await?;
        let control = self.config.control().map_err(|_| not_configured())?;
        let rpc_url = control.offer.rpc_url.clone().unwrap_or_else(|| {
            let port = control.public_listen.port();
            let address = SocketAddr::new(control.offer.wireguard_endpoint.ip(), port);
            format!("http://{address}")
        });
        let close_window = offer.close_window_blocks_min;
        Ok(NewOffer {
            chain: offer.service,
            terms: OfferTerms {
                unit_price: offer.unit_price,
                close_window_blocks_min: u32::try_from(close_window).unwrap_or(u32::MAX),
                payment_key: offer.payment.key,
                payment_address: offer.payment.address.to_string(),
                rpc_url,
                name: offer.name,
                region: offer.region,
            },
        })
    }

    /// The service that is offered.
    pub(crate) fn offered_service(&self) -> Result<ChainName, ApiError> {
        let metering = self.config.metering().map_err(|_| not_configured())?;
        Ok(ChainName(metering.service.clone()))
    }

    /// Lets a client's WireGuard key have service, paid by the request's channel.
    pub async fn start_session(&self, request: SessionRequest) -> Result<SessionGrant, ApiError> {
        // Known and payable first, so that only a channel's owner costs us a signature check.
        let channel = self.channel(request.channel).await?;
        let tip = self.tip(channel.chain.clone()).await?;
        self.terms().await?.check(&channel, tip.block.height)?;
        check_signature(&request, &channel, SessionAction::Start)?;
        // What the answer needs, before anything is changed.
        let (server_public_key, payment) = (
            self.wireguard_public_key().await?,
            self.payment_endpoint().await?,
        );
        let bounds = self.bounds;
        let (session, revision) = self
            .change_book(move |book| {
                let session = book.start(&request, &bounds)?;
                Ok((session, book.revision()))
            })
            .await?;
        let installed = self.wait_installed(revision).await;
        if let Some(error) = self.installed.borrow().refused.get(&request.session()) {
            return Err(error.clone());
        }
        let (Ok(dataplane), Ok(control)) = (self.config.dataplane(), self.config.control()) else {
            return Err(not_configured());
        };
        Ok(SessionGrant {
            session: request.session(),
            channel: request.channel,
            wireguard: WireguardConfig {
                server_public_key,
                endpoint: control.offer.wireguard_endpoint,
                address: session.inner_address,
                address6: dataplane.inner_network().address6(session.inner_address),
                allowed_ips: allowed_ips(&control.offer.allowed_ips, dataplane),
                dns: control.offer.dns.clone(),
                mtu: dataplane.inner_mtu,
                persistent_keepalive_s: PERSISTENT_KEEPALIVE_S,
            },
            payment,
            installed,
        })
    }

    /// Takes a client's WireGuard key its service.
    pub async fn stop_session(&self, request: SessionRequest) -> Result<SessionStopped, ApiError> {
        let channel = self.channel(request.channel).await?;
        check_signature(&request, &channel, SessionAction::Stop)?;
        let stopped = self
            .change_book(move |book| Ok(book.stop(&request)?))
            .await?;
        Ok(SessionStopped {
            session: request.session(),
            stopped,
        })
    }

    /// Asks for a channel's last claim and has the payee's close submitted with it. The rest
    /// happens in the background, also after a restart; asking again gives the progress.
    pub async fn close_channel(&self, channel: ChannelId) -> Result<CloseProgress, ApiError> {
        let view = self.channel(channel).await?;
        let payee = self.payee().await?;
        if view.payee != payee {
            return Err(ApiError::new(
                "wrong_payee",
                format!(
                    "channel {channel} pays {}, not this provider ({payee})",
                    view.payee
                ),
                "close it where it is paid, or as its payer with `topnet wallet close`",
            ));
        }
        if view.state == ChannelState::Closed {
            return self.advance_close(channel).await;
        }
        let revision = self
            .change_book(move |book| {
                book.begin_close(channel);
                Ok(book.revision())
            })
            .await?;
        // With the sessions gone nothing counts any more. If the data plane does not answer,
        // metering reads the last totals from its tables all the same.
        self.wait_installed(revision).await;
        self.advance_close(channel).await
    }

    /// One step of a close that was asked for.
    pub(crate) async fn advance_close(&self, id: ChannelId) -> Result<CloseProgress, ApiError> {
        let finish = |client: topnet_api::MeteringClient, context| async move {
            client.finish(context, id).await
        };
        let finished = self.processes.metering.ask(finish).await?;
        let claim = match finished {
            Ok(finished) => finished.claim,
            // It never paid, so nothing is owed.
            Err(error) if error.code == "channel_unknown" => None,
            Err(error) => return Err(error),
        };
        let close = |client: topnet_api::SettlementClient, context| {
            let claim = claim.clone();
            async move { client.close(context, id, claim).await }
        };
        let answer: Result<CloseProgress, ApiError> = self.processes.settlement.ask(close).await?;
        let progress = match answer {
            Ok(progress) => progress,
            Err(error) => {
                // Somebody else's close was final first: there is nothing left to do.
                if error.code == "channel_closed" {
                    self.end_close(id).await?;
                }
                return Err(error);
            }
        };
        // From here on the chain holds what is owed; settlement alone carries it to main.
        if progress.service_block.is_some() {
            self.end_close(id).await?;
        }
        Ok(progress)
    }

    async fn end_close(&self, id: ChannelId) -> Result<(), ApiError> {
        let was_closing = self
            .change_book(move |book| {
                let was_closing = book.is_closing(&id);
                book.end_close(id);
                Ok(was_closing)
            })
            .await?;
        if was_closing {
            tracing::info!(channel = %id, "channel closed on its chain");
        }
        Ok(())
    }

    pub(crate) fn processes(&self) -> &Processes {
        &self.processes
    }

    pub(crate) fn installed(&self) -> &watch::Sender<Installed> {
        &self.installed
    }

    /// Returns when the book has changed since the last call.
    pub(crate) async fn book_changed(&self) {
        self.changed.notified().await;
    }

    pub(crate) async fn book(&self) -> SessionBook {
        self.book.lock().await.book.clone()
    }

    /// Changes the book: on disk first, then in memory, then for everybody to see. If `change`
    /// refuses, or the disk does, nothing has happened.
    pub(crate) async fn change_book<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut SessionBook) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let mut kept = Arc::clone(&self.book).lock_owned().await;
        let changing = tokio::task::spawn_blocking(move || {
            let mut next = kept.book.clone();
            let answer = change(&mut next)?;
            let changes = next != kept.book;
            if changes {
                kept.store.save(&next).map_err(|error| {
                    ApiError::new(
                        "state_not_durable",
                        error.to_string(),
                        "make room on the disk, or mend the permissions, and repeat the request",
                    )
                })?;
                kept.book = next;
            }
            Ok::<_, ApiError>((answer, changes))
        });
        let (answer, changes) = changing.await.map_err(|error| {
            ApiError::new(
                "internal",
                error.to_string(),
                "look at the log of topnet-control",
            )
        })??;
        if changes {
            self.changed.notify_one();
        }
        Ok(answer)
    }

    async fn terms(&self) -> Result<Terms, ApiError> {
        let (Ok(metering), Ok(control)) = (self.config.metering(), self.config.control()) else {
            return Err(not_configured());
        };
        Ok(Terms {
            service: ChainName(metering.service.clone()),
            payee: self.payee().await?,
            unit_price: metering.unit_price(),
            headroom_units_min: control.offer.headroom_units_min,
            close_window_blocks_min: metering.close_window_blocks_min,
        })
    }

    /// The gateway's key. It is on disk, so a restart of the data plane does not change it.
    async fn wireguard_public_key(&self) -> Result<WireguardPublicKey, ApiError> {
        if let Some(key) = self.known.lock().await.wireguard_public_key {
            return Ok(key);
        }
        let ask = |client: topnet_api::DataplaneClient, context| async move {
            client.status(context).await
        };
        let status = self.processes.dataplane.ask(ask).await?;
        let key = WireguardPublicKey(status.wireguard_public_key);
        self.known.lock().await.wireguard_public_key = Some(key);
        Ok(key)
    }

    async fn payment_endpoint(&self) -> Result<PaymentEndpoint, ApiError> {
        let Ok(control) = self.config.control() else {
            return Err(not_configured());
        };
        let address = control.offer.payment_endpoint;
        let known = self.known.lock().await.payment_key;
        let key = match known {
            Some(key) => key,
            None => {
                let key = self.metering_status().await?.identity;
                self.known.lock().await.payment_key = Some(key);
                key
            }
        };
        Ok(PaymentEndpoint { address, key })
    }

    async fn metering_status(&self) -> Result<MeteringStatus, ApiError> {
        let ask = |client: topnet_api::MeteringClient, context| async move {
            client.status(context).await
        };
        self.processes.metering.ask(ask).await
    }

    /// True once the data plane has confirmed this revision or a later one; false if it takes
    /// too long, which is nobody's loss: the background goes on.
    async fn wait_installed(&self, revision: u64) -> bool {
        let mut installed = self.installed.subscribe();
        let reached = installed.wait_for(|installed| installed.revision >= Some(revision));
        matches!(tokio::time::timeout(INSTALL_WAIT, reached).await, Ok(Ok(_)))
    }
}

fn check_signature(
    request: &SessionRequest,
    channel: &ChannelView,
    action: SessionAction,
) -> Result<(), ApiError> {
    let bytes = request.signed_bytes(action);
    if topnet_channel::verify(&channel.signer, &bytes, &request.signature) {
        return Ok(());
    }
    Err(ApiError::new(
        "signature_wrong",
        format!(
            "the request is not signed by channel {}'s signer key",
            channel.id
        ),
        "sign the bytes that control/README.md lays out with the key that the channel was opened with",
    ))
}

/// [`Provider::open`] has checked the sections; this is for the type's sake.
fn not_configured() -> ApiError {
    ApiError::new(
        "not_configured",
        "a section of the configuration is missing",
        "run `topnet check-config`",
    )
}

/// What goes through the tunnel. Who offers all of the world offers the IPv6 part of it too, if
/// clients have IPv6 addresses.
fn allowed_ips(offered: &[Ipv4Subnet], dataplane: &Dataplane) -> Vec<String> {
    let world6 = dataplane
        .inner_subnet6
        .filter(|_| offered.contains(&Ipv4Subnet::ALL));
    let six = world6.map(|_| "::/0".to_owned());
    offered.iter().map(ToString::to_string).chain(six).collect()
}
