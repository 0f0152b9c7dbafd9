//! `topnet connect`: a paid tunnel from one command, until it is told to stop.
//!
//! An offer is taken, a channel found or opened, a session started, and the tunnel brought up by
//! this project's own WireGuard interface, whose count of inner packets is what is paid for. At the
//! end the rest is paid, the tunnel and what was told to the system are taken away, and a channel
//! that was opened here is closed.

mod device;
mod page;
mod routes;

use std::{
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use topnet_api::{ChannelState, ChannelView, Offer, SessionGrant, WireguardPublicKey};
use topnet_ledger::genesis::Rules;
use topnet_uapi::{AllowedIpChange, IpNetwork, KeyUpdate, PeerSet, PrivateKey, PublicKey, Set};
use topnet_wallet::{PayStatus, WireguardCounter};

use super::{
    arguments::{Connect, Options, Patience, WalletOpen},
    error::CliError,
    output::Output,
    session::nonce,
    vpn::{private_key, public_half},
    wallet::{OpenWallet, make_private, pay::stop_signal},
};
use device::Device;
use page::{Page, Spent};
use routes::{MARK, Plan, Routes};

/// How long a channel's opening may take.
const OPEN_PATIENCE: Duration = Duration::from_secs(120);
/// How long is waited at the end until everything owed is paid.
const REST_PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(100);
/// How often the page is drawn.
const PAGE_PERIOD: Duration = Duration::from_secs(1);

pub(super) async fn execute(
    options: &Options,
    connect: Connect,
    output: Output,
) -> Result<(), CliError> {
    // Told to stop while money is being bound, it stops when that is done.
    let stop = stop_signal()?;
    let wallet = OpenWallet::open(options)?;
    let (wallet, offer) = take_offer(wallet, &connect).await?;
    check_price(&wallet, &offer)?;
    output.progress(&format!(
        "{} offers {} for {} KiB, at {}",
        offer.name,
        offer.unit_price,
        offer.unit_bytes >> 10,
        offer.wireguard_endpoint
    ));
    let directory = wallet.config.state_dir.join("connect");
    make_private(&wallet.config.state_dir)?;
    let journal = directory.join(format!("{}.undo", connect.interface));
    Routes::recover(&journal);
    // The device first: where that is not allowed, no money is bound.
    let device = Device::start(&connect.interface, &directory).await?;
    let (channel, opened) = channel(&wallet, &offer, &connect, output).await?;
    let run = Run {
        wallet: &wallet,
        offer: &offer,
        connect: &connect,
        channel,
        journal,
    };
    let spent = run.tunnel(device, stop, output).await;
    let closed = match opened && !connect.keep_channel {
        true => run.close(output).await,
        false => Ok(()),
    };
    let spent = spent?;
    closed?;
    output.print(&spent);
    Ok(())
}

/// The offer of the provider that the wallet names, or the cheapest on main.
async fn take_offer(
    wallet: OpenWallet,
    connect: &Connect,
) -> Result<(OpenWallet, Offer), CliError> {
    let Some(service) = &connect.cheapest else {
        let offer = wallet.offer().await?;
        return Ok((wallet, offer));
    };
    let market = wallet.rpc.market(service).await?;
    let cheapest = market
        .into_iter()
        .min_by_key(|offer| offer.terms.unit_price);
    let Some(cheapest) = cheapest else {
        return Err(CliError::new(
            "no_offer",
            format!("nobody offers {service} on main"),
            "wait, or name a provider in [wallet] rpc_url",
        ));
    };
    let wallet = wallet.at(&cheapest.terms.rpc_url)?;
    let offer = wallet.offer().await?;
    // Whoever answers there is to be who offered on main.
    if offer.payee != cheapest.provider || offer.payment.key != cheapest.terms.payment_key {
        return Err(CliError::new(
            "another_provider",
            format!(
                "{} does not make the offer that {} has on main",
                cheapest.terms.rpc_url, cheapest.provider
            ),
            "name a provider in [wallet] rpc_url",
        ));
    }
    Ok((wallet, offer))
}

fn check_price(wallet: &OpenWallet, offer: &Offer) -> Result<(), CliError> {
    let most = wallet.config.unit_price_max();
    if offer.unit_price <= most {
        return Ok(());
    }
    Err(CliError::new(
        "price",
        format!(
            "the provider asks {} a unit, more than the {most} that [wallet] allows",
            offer.unit_price
        ),
        "choose another provider, or raise unit_price_ntop_max",
    ))
}

/// The channel that is to pay, and whether it was opened now.
async fn channel(
    wallet: &OpenWallet,
    offer: &Offer,
    connect: &Connect,
    output: Output,
) -> Result<(ChannelView, bool), CliError> {
    if let Some(id) = connect.channel {
        return Ok((wallet.rpc.channel(id).await?, false));
    }
    let ours = wallet.rpc.channels(wallet.keys.account()?).await?;
    let headroom = offer.unit_price.checked_mul(offer.headroom_units_min);
    let usable = ours.into_iter().find(|channel| {
        // What is promised may not be redeemed yet.
        let status = read_status(&wallet.status_file(channel.id), SystemTime::UNIX_EPOCH);
        let promised = status.map_or(channel.paid, |status| status.promised.max(channel.paid));
        let rest = channel.allocation.checked_sub(promised);
        channel.payee == offer.payee
            && channel.state == ChannelState::Open
            && channel.close_window >= offer.close_window_blocks_min
            && rest >= headroom
            && matches!(wallet.keys.key_of(channel.signer), Ok(Some(_)))
    });
    if let Some(channel) = usable {
        output.progress(&format!("channel {} pays", channel.id));
        return Ok((channel, false));
    }
    let Some(allocation) = connect.allocation else {
        return Err(CliError::new(
            "no_channel",
            format!("no open channel of this wallet can pay {}", offer.name),
            "say how much a new one may pay: --allocation",
        ));
    };
    output.progress("opening a channel");
    let opened = wallet
        .open_channel(
            WalletOpen {
                allocation,
                close_window: None,
                expiry_blocks: Rules::default().service_silence,
                signer: None,
                patience: Patience {
                    no_wait: false,
                    timeout: OPEN_PATIENCE.as_secs(),
                },
            },
            output,
        )
        .await?;
    Ok((wallet.rpc.channel(opened.channel).await?, true))
}

/// One connection.
struct Run<'a> {
    wallet: &'a OpenWallet,
    offer: &'a Offer,
    connect: &'a Connect,
    channel: ChannelView,
    journal: PathBuf,
}

impl Run<'_> {
    /// Brings the tunnel up, pays until told to stop, and takes everything away again.
    async fn tunnel(
        &self,
        device: Device,
        stop: impl Future<Output = ()>,
        output: Output,
    ) -> Result<Spent, CliError> {
        let key = private_key()?;
        let public_key = WireguardPublicKey(public_half(&key).0);
        let signer = self.wallet.signer_of(self.channel.id).await?;
        let rpc = &self.wallet.rpc;
        let grant = rpc
            .start_session(&signer, self.channel.id, public_key, nonce()?)
            .await?;
        let paid = self.pay(device, key, &grant, stop, output).await;
        let stopped = rpc
            .stop_session(&signer, self.channel.id, public_key, nonce()?)
            .await;
        if let Err(error) = stopped {
            output.progress(&format!("the provider was not told of the end: {error}"));
        }
        paid
    }

    async fn pay(
        &self,
        mut device: Device,
        key: PrivateKey,
        grant: &SessionGrant,
        stop: impl Future<Output = ()>,
        output: Output,
    ) -> Result<Spent, CliError> {
        let networks = self.networks(grant)?;
        let config = &grant.wireguard;
        device.interface().apply(Set {
            private_key: KeyUpdate::Replace(key),
            fwmark: Some(MARK),
            peers: vec![PeerSet {
                endpoint: Some(config.endpoint),
                persistent_keepalive_s: Some(config.persistent_keepalive_s),
                replace_allowed_ips: true,
                allowed_ips: networks.iter().copied().map(AllowedIpChange::Add).collect(),
                ..PeerSet::new(PublicKey(config.server_public_key.0))
            }],
            ..Set::default()
        })?;
        let dns: Vec<IpAddr> = match self.connect.no_dns {
            true => Vec::new(),
            false => config.dns.iter().copied().map(IpAddr::from).collect(),
        };
        let addresses: Vec<IpAddr> = [
            Some(IpAddr::from(config.address)),
            config
                .address6
                .filter(|_| has_ipv6(&self.connect.interface))
                .map(IpAddr::from),
        ]
        .into_iter()
        .flatten()
        .collect();
        let routes = Routes::set_up(
            &Plan {
                device: &self.connect.interface,
                addresses: &addresses,
                mtu_bytes: config.mtu,
                networks: &networks,
                beside: &self.beside(grant),
                dns: &dns,
            },
            &self.journal,
        )?;
        if let Some(words) = &routes.dns_left {
            output.progress(words);
        }
        let counter = WireguardCounter::exact(
            &self.connect.interface,
            config.server_public_key.0,
            device.socket(),
        );
        let status_file = self.wallet.status_file(self.channel.id);
        let began = Instant::now();
        let since = SystemTime::now();
        let mut page = Page::new(self.offer, self.channel.id, &self.connect.interface);
        let mut routes = Some(routes);
        let (told, mut stopping) = tokio::sync::oneshot::channel();
        let end = async {
            let mut stop = std::pin::pin!(stop);
            loop {
                tokio::select! {
                    () = &mut stop => break,
                    () = tokio::time::sleep(PAGE_PERIOD) => {}
                }
                if device.is_gone() {
                    output.progress("the tunnel's device is gone");
                    break;
                }
                if let Some(status) = read_status(&status_file, since) {
                    let peer = device.interface().status().ok();
                    page.show(&status, peer.as_ref(), output);
                }
            }
            // Nothing more is used: what is used already is paid, and then paying ends.
            if let Some(routes) = routes.take() {
                routes.take_down(&self.connect.interface);
            }
            let mut quiet = device.interface().status().ok();
            let rest = Instant::now();
            while rest.elapsed() < REST_PATIENCE {
                tokio::time::sleep(POLL).await;
                let now = device.interface().status().ok();
                let paid = read_status(&status_file, since)
                    .is_some_and(|status| status.accepted_units >= status.owed_units);
                if paid && now == quiet && rest.elapsed() > 5 * POLL {
                    break;
                }
                quiet = now;
            }
            let _ = told.send(());
        };
        let wallet = self.wallet;
        let stopped = async { drop((&mut stopping).await) };
        let paying = wallet.pay_on(
            &self.channel,
            self.offer,
            counter,
            Some(status_file.clone()),
            stopped,
            output,
        );
        let mut paying = std::pin::pin!(paying);
        let mut end = std::pin::pin!(end);
        let status = tokio::select! {
            // The payee has finished the channel, or paying is not possible.
            paid = &mut paying => paid?,
            () = &mut end => paying.await?,
        };
        Ok(Spent::new(self.offer, &status, began.elapsed()))
    }

    /// What goes through the tunnel.
    fn networks(&self, grant: &SessionGrant) -> Result<Vec<IpNetwork>, CliError> {
        if !self.connect.allowed_ips.is_empty() {
            return Ok(self.connect.allowed_ips.clone());
        }
        let parse = |text: &String| {
            text.parse::<IpNetwork>().map_err(|error| {
                CliError::new(
                    "offer",
                    format!("the provider's allowed IPs: {error}"),
                    "say what is to go through the tunnel: --allowed-ips",
                )
            })
        };
        grant.wireguard.allowed_ips.iter().map(parse).collect()
    }

    /// What must not go through the tunnel, or nothing would.
    fn beside(&self, grant: &SessionGrant) -> Vec<IpAddr> {
        let mut addresses = vec![grant.payment.address.ip(), grant.wireguard.endpoint.ip()];
        let host = self.wallet.rpc.url().split("//").nth(1).unwrap_or_default();
        let host = host.split('/').next().unwrap_or_default();
        let host = if host.contains(':') {
            host.to_owned()
        } else {
            format!("{host}:80")
        };
        let resolved = host.to_socket_addrs();
        addresses.extend(resolved.into_iter().flatten().map(|at: SocketAddr| at.ip()));
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    async fn close(&self, output: Output) -> Result<(), CliError> {
        let patience = Patience {
            no_wait: false,
            timeout: OPEN_PATIENCE.as_secs(),
        };
        self.wallet.close(self.channel.id, patience, output).await?;
        output.progress(&format!(
            "channel {} closes; what is left of it returns after {} blocks",
            self.channel.id, self.channel.close_window
        ));
        Ok(())
    }
}

/// False where the system is told to do without IPv6.
fn has_ipv6(interface: &str) -> bool {
    let path = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
    std::fs::read_to_string(path).is_ok_and(|text| text.trim() == "0")
}

/// How paying stands, if that was written down after `since`: an earlier run's words are not this
/// one's.
fn read_status(path: &Path, since: SystemTime) -> Option<PayStatus> {
    let written = std::fs::metadata(path).ok()?.modified().ok()?;
    if written < since {
        return None;
    }
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}
