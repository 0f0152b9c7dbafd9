//! `topnet connect`: a paid tunnel from one command, until it is told to stop.
//!
//! An offer is taken, a channel found or opened, a session started, and the tunnel brought up by
//! this project's own WireGuard interface, whose count of inner packets is what is paid for. At the
//! end the rest is paid, the tunnel and what was told to the system are taken away, and a channel
//! that was opened here is closed.
//!
//! What can fail for the system's reasons is tried before money is bound. One runs at a time in a
//! network namespace.

mod channel;
mod device;
mod names;
mod offer;
mod page;
mod routes;

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::{DirBuilderExt, MetadataExt},
            net::{SocketAddr as UnixAddress, UnixListener},
        },
    },
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use topnet_api::{ChannelView, Offer, SessionGrant, WireguardPublicKey};
use topnet_uapi::{
    AllowedIpChange, DeviceStatus, IpNetwork, KeyUpdate, PeerSet, PrivateKey, PublicKey, Set,
};
use topnet_wallet::{PayStatus, WireguardCounter};

use super::{
    arguments::{Connect, Options},
    error::CliError,
    output::Output,
    private_file::PrivateFile,
    session::nonce,
    stop::Stop,
    vpn::{private_key, public_half},
    wallet::{OpenWallet, make_private, pay::HowToPay},
};
use channel::Channel;
use device::Device;
use page::{Page, Spent};
use routes::{MARK, Plan, Routes};

/// How long is waited at the end until everything owed is paid.
const REST_PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(100);
/// How often the page is drawn.
const PAGE_PERIOD: Duration = Duration::from_secs(1);
/// What a provider may ask a client to lead through the tunnel.
const NETWORKS_MAX: usize = 256;
/// Every link of IPv6 carries packets of so many bytes; smaller ones would be headers for the most
/// part, which are paid for too.
const MTU_BYTES_MIN: u16 = 1_280;
/// Held while one runs, in the namespace of its routes.
const ALONE: &str = "topnet-connect";
const ROOT_DIRECTORY: &str = "/run/topnet-connect";

pub(super) async fn execute(
    options: &Options,
    connect: Connect,
    output: Output,
) -> Result<(), CliError> {
    let _alone = alone()?;
    let wallet = OpenWallet::open(options)?;
    make_private(&wallet.config.state_dir)?;
    let directory = directory(&wallet.config.state_dir)?;
    let journal = directory.join("undo");
    Routes::recover(&journal, &connect.interface)?;
    if connect.undo {
        return Ok(());
    }
    let mut stop = Stop::listen()?;
    let (wallet, offer) = offer::take(wallet, &connect, output).await?;
    // The system first: where something is not allowed, no money is bound.
    Routes::check()?;
    let device = Device::start(&connect.interface, &directory).await?;
    stop.check()?;
    let channel = Channel::find_or_open(&wallet, &offer, &connect, output).await?;
    channel.close_others(&wallet, output).await;
    let run = Run {
        wallet: &wallet,
        offer: &offer,
        connect: &connect,
        channel: &channel.view,
        journal,
    };
    let spent = match stop.check() {
        Ok(()) => run.tunnel(device, &mut stop, output).await,
        Err(stopped) => Err(stopped),
    };
    if let Ok(spent) = &spent {
        spent.print(output);
    }
    let closed = channel.end(&wallet, &connect, output).await;
    match (spent, closed) {
        (Err(error), Err(second)) => {
            output.error(&second);
            Err(error)
        }
        (Err(error), Ok(())) | (Ok(_), Err(error)) => Err(error),
        (Ok(_), Ok(())) => Ok(()),
    }
}

/// Rules and marks are one set for a whole network namespace, and so is this name.
fn alone() -> Result<UnixListener, CliError> {
    UnixAddress::from_abstract_name(ALONE)
        .and_then(|address| UnixListener::bind_addr(&address))
        .map_err(|error| {
            CliError::new(
                "running",
                format!("another `topnet connect` runs here ({error})"),
                "stop that one first (Ctrl-C, or SIGTERM)",
            )
        })
}

/// Where socket, log and journal are. Nobody else may write there: the journal says what root is
/// to take back.
fn directory(state_dir: &Path) -> Result<PathBuf, CliError> {
    let own = rustix::process::geteuid();
    let above = match own.is_root() {
        true => PathBuf::from(ROOT_DIRECTORY),
        false => state_dir.join("connect"),
    };
    // Rules are a network namespace's, and so is what is written down about them.
    let namespace = Path::new("/proc/self/ns/net");
    let namespace =
        std::fs::metadata(namespace).map_err(|error| CliError::file(namespace, error))?;
    let path = above.join(namespace.ino().to_string());
    let mut builder = std::fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(&path);
    made.map_err(|error| CliError::file(&path, error))?;
    let found = std::fs::symlink_metadata(&path).map_err(|error| CliError::file(&path, error))?;
    let safe = found.is_dir() && found.uid() == own.as_raw() && found.mode() & 0o022 == 0;
    match safe {
        true => Ok(path),
        false => Err(CliError::new(
            "directory",
            format!("{} can be written by others", path.display()),
            "remove it, and connect again",
        )),
    }
}

/// One connection.
struct Run<'a> {
    wallet: &'a OpenWallet,
    offer: &'a Offer,
    connect: &'a Connect,
    channel: &'a ChannelView,
    journal: PathBuf,
}

impl Run<'_> {
    /// Brings the tunnel up, pays until told to stop, and takes everything away again.
    async fn tunnel(
        &self,
        device: Device,
        stop: &mut Stop,
        output: Output,
    ) -> Result<Spent, CliError> {
        let key = private_key()?;
        let public_key = WireguardPublicKey(public_half(&key).0);
        let signer = self.wallet.signer_of(self.channel.id).await?;
        let rpc = &self.wallet.rpc;
        // A provider lets a channel have few sessions; a killed run's would be one for ever.
        let mut begun = Vec::new();
        for left in self.begun_sessions() {
            let stopped = rpc.stop_session(&signer, self.channel.id, left, nonce()?);
            if let Err(error) = stopped.await {
                output.progress(&format!(
                    "a session that an earlier run has left is not stopped: {error}"
                ));
                begun.push(left);
            }
        }
        self.note_sessions(&[&*begun, &[public_key]].concat())?;
        let grant = rpc
            .start_session(&signer, self.channel.id, public_key, nonce()?)
            .await?;
        let paid = self.pay(device, key, &grant, stop, output).await;
        let stopped = rpc
            .stop_session(&signer, self.channel.id, public_key, nonce()?)
            .await;
        match stopped {
            Ok(_) => self.note_sessions(&begun)?,
            Err(error) => {
                output.progress(&format!("the provider was not told of the end: {error}"));
            }
        }
        paid
    }

    /// Keys of sessions that may be there.
    fn begun_sessions(&self) -> Vec<WireguardPublicKey> {
        let text = std::fs::read_to_string(self.sessions_file()).unwrap_or_default();
        text.lines().filter_map(|key| key.parse().ok()).collect()
    }

    /// Notes them, before they are begun and once they are ended.
    fn note_sessions(&self, keys: &[WireguardPublicKey]) -> Result<(), CliError> {
        let file = self.sessions_file();
        if keys.is_empty() {
            let _ = std::fs::remove_file(file);
            return Ok(());
        }
        let text: String = keys.iter().map(|key| format!("{key}\n")).collect();
        PrivateFile::stage(&file, text.as_bytes())?.put()
    }

    fn sessions_file(&self) -> PathBuf {
        channel::sessions_file(self.wallet, self.channel.id)
    }

    async fn pay(
        &self,
        mut device: Device,
        key: PrivateKey,
        grant: &SessionGrant,
        stop: &mut Stop,
        output: Output,
    ) -> Result<Spent, CliError> {
        self.check(grant)?;
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
        let dns: Vec<IpAddr> = config.dns.iter().copied().map(IpAddr::from).collect();
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
        stop.check()?;
        let routes = Routes::set_up(
            &Plan {
                device: &self.connect.interface,
                addresses: &addresses,
                mtu_bytes: config.mtu,
                networks: &networks,
                beside: &self.beside(),
                dns: (!self.connect.no_dns).then_some(&*dns),
            },
            &self.journal,
        )?;
        for words in &routes.warnings {
            let _ = writeln!(std::io::stderr(), "topnet: {words}");
        }
        let counter = WireguardCounter::exact(
            &self.connect.interface,
            config.server_public_key.0,
            device.socket(),
        );
        let status_file = self.wallet.status_file(self.channel.id);
        let before = read_status(&status_file, SystemTime::UNIX_EPOCH);
        let (began, since) = (Instant::now(), SystemTime::now());
        let mut page = Page::new(self.offer, self.channel.id, &self.connect.interface);
        let (told, mut stopping) = tokio::sync::oneshot::channel();
        let end = async {
            let mut ended = Ok(());
            loop {
                tokio::select! {
                    () = stop.wait() => break,
                    () = tokio::time::sleep(PAGE_PERIOD) => {}
                }
                if device.is_gone() {
                    ended = Err(device.lost());
                    break;
                }
                let Some(status) = read_status(&status_file, since) else {
                    continue;
                };
                if !self.can_pay_more(&status) {
                    ended = Err(self.used_up());
                    break;
                }
                let interface = device.interface().status().ok();
                // Whoever read it is gone.
                if page.show(&status, interface.as_ref(), output).is_err() {
                    break;
                }
            }
            // Nothing more is used: what is used already is paid, and then paying ends.
            let taken_back = routes.take_down(&self.connect.interface);
            let mut last = device.interface().status().ok();
            let (rest, mut still) = (Instant::now(), Instant::now());
            while rest.elapsed() < REST_PATIENCE {
                tokio::time::sleep(POLL).await;
                let now = device.interface().status().ok();
                if counts(now.as_ref()) != counts(last.as_ref()) {
                    still = Instant::now();
                }
                last = now;
                let paid = read_status(&status_file, since)
                    .is_some_and(|status| status.accepted_units >= status.owed_units);
                // What is written down is a little older than what is counted.
                if paid && still.elapsed() > 5 * POLL {
                    break;
                }
            }
            if let Some(status) = read_status(&status_file, since) {
                // The last word, for whoever still reads.
                let _ = page.show(&status, last.as_ref(), output);
            }
            let _ = told.send(());
            ended.and(taken_back)
        };
        let stopped = async { drop((&mut stopping).await) };
        let how = HowToPay {
            counter,
            // What was shown is what is paid, whatever is asked for later.
            unit_price_max: self.offer.unit_price,
            status_file: Some(status_file.clone()),
        };
        let paying = self
            .wallet
            .pay_on(self.channel, self.offer, how, stopped, output);
        let mut paying = std::pin::pin!(paying);
        let mut end = std::pin::pin!(end);
        let status = tokio::select! {
            // The payee has finished the channel, or paying is not possible.
            paid = &mut paying => paid?,
            ended = &mut end => {
                let status = paying.await?;
                ended?;
                status
            }
        };
        Ok(Spent::new(
            self.offer,
            &status,
            before.as_ref(),
            began.elapsed(),
        ))
    }

    /// A grant that differs from the offer is somebody's mistake, or worse.
    fn check(&self, grant: &SessionGrant) -> Result<(), CliError> {
        let (config, offer) = (&grant.wireguard, self.offer);
        let what = if grant.payment != offer.payment {
            "another payment endpoint".to_owned()
        } else if config.endpoint != offer.wireguard_endpoint
            || config.server_public_key != offer.wireguard_public_key
        {
            "another WireGuard endpoint or key".to_owned()
        } else if config.mtu < MTU_BYTES_MIN {
            format!("packets of {} bytes", config.mtu)
        } else {
            return Ok(());
        };
        Err(CliError::new(
            "grant",
            format!("the provider offered one thing and grants {what}"),
            "connect again, or choose another provider",
        ))
    }

    /// What goes through the tunnel.
    fn networks(&self, grant: &SessionGrant) -> Result<Vec<IpNetwork>, CliError> {
        if !self.connect.allowed_ips.is_empty() {
            return Ok(self.connect.allowed_ips.clone());
        }
        let offered = |what: String| {
            CliError::new(
                "offer",
                format!("the provider's allowed IPs: {what}"),
                "say what is to go through the tunnel: --allowed-ips",
            )
        };
        let texts = &grant.wireguard.allowed_ips;
        if texts.len() > NETWORKS_MAX {
            return Err(offered(format!("more than {NETWORKS_MAX}")));
        }
        let parse = |text: &String| {
            let network = text.parse::<IpNetwork>();
            network.map_err(|error| offered(error.to_string()))
        };
        texts.iter().map(parse).collect()
    }

    /// What must not go through the tunnel, or nothing would: it is paid for beside it.
    fn beside(&self) -> Vec<IpAddr> {
        let host = self.wallet.rpc.url().split("//").nth(1).unwrap_or_default();
        let host = host.split('/').next().unwrap_or_default();
        let has_port = host
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let host = if has_port {
            host.to_owned()
        } else {
            format!("{host}:443")
        };
        let resolved = host.to_socket_addrs().into_iter().flatten();
        let mut addresses: Vec<IpAddr> = resolved.map(|at: SocketAddr| at.ip()).collect();
        addresses.push(self.offer.payment.address.ip());
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// False if the next unit is more than the channel has.
    fn can_pay_more(&self, status: &PayStatus) -> bool {
        let next = status.promised.checked_add(self.offer.unit_price);
        let owed = status.owed_units >= status.released_units;
        !owed || next.is_some_and(|next| next <= self.channel.allocation)
    }

    fn used_up(&self) -> CliError {
        CliError::new(
            "channel",
            format!("channel {} is used up", self.channel.id),
            "connect again with --allocation, or add to it with `topnet wallet top-up`",
        )
    }
}

/// Bytes of a device's peers, both ways.
fn counts(device: Option<&DeviceStatus>) -> Vec<(u64, u64)> {
    let peers = device.into_iter().flat_map(|device| &device.peers);
    peers.map(|peer| (peer.tx_bytes, peer.rx_bytes)).collect()
}

/// False if the system is told to do without IPv6.
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
