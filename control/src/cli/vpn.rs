//! `topnet vpn`: the operator's own WireGuard peers, for whom nobody pays.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use qrcode::{QrCode, render::unicode::Dense1x2};
use ring::rand::{SecureRandom, SystemRandom};
use serde::Serialize;
use topnet_config::{Config, Dataplane, Unmetered};
use topnet_uapi::{
    AllowedIpChange, Conf, ConfInterface, ConfPeer, DeviceStatus, EndpointName, InterfaceAddress,
    IpNetwork, KEY_BYTES, KeyUpdate, PeerSet, PeerStatus, PresharedKey, PrivateKey, PublicKey, Set,
    Word,
};
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use super::{
    arguments::{Options, VpnAdd, VpnCommand},
    error::CliError,
    interface::Interface,
    output::Output,
    private_file::PrivateFile,
    text::{Table, Text, bytes},
};
use crate::provider::PERSISTENT_KEEPALIVE_S;

mod capture;

pub(super) fn execute(
    options: &Options,
    command: VpnCommand,
    output: Output,
) -> Result<(), CliError> {
    let config = Config::load(&options.config)?;
    // Clients' packets are looked at where there are no other peers as well.
    if let VpnCommand::Capture(capture) = &command {
        return capture::execute(&config, capture, output);
    }
    let gateway = Gateway::of(&config)?;
    match command {
        VpnCommand::Peers => gateway.peers(output),
        VpnCommand::Add(add) => gateway.add(&add, output),
        VpnCommand::Remove { peer } => gateway.remove(&peer, output),
        VpnCommand::Capture(_) => Ok(()),
    }
}

/// The data plane of this machine.
struct Gateway<'a> {
    config: &'a Config,
    dataplane: &'a Dataplane,
    unmetered: &'a Unmetered,
    interface: Interface,
}

/// A peer, as it is listed.
#[derive(Debug, Serialize)]
struct Peer {
    public_key: String,
    /// False for the operator's own.
    paid: bool,
    allowed_ips: Vec<String>,
    endpoint: Option<String>,
    handshake_age_s: Option<u64>,
    /// Inner bytes from the peer.
    up_bytes: u64,
    /// Inner bytes to the peer.
    down_bytes: u64,
}

impl Text for Peer {
    fn text(&self) -> String {
        let handshake = match self.handshake_age_s {
            Some(age) => format!("{age} s ago"),
            None => "never".to_owned(),
        };
        Table::new(format!("peer {}", self.public_key))
            .row("paid", if self.paid { "by a channel" } else { "no" })
            .row("allowed IPs", self.allowed_ips.join(", "))
            .row_if("endpoint", self.endpoint.as_ref())
            .row("handshake", handshake)
            .row("up", bytes(self.up_bytes))
            .row("down", bytes(self.down_bytes))
            .end()
    }
}

/// A peer that was added.
#[derive(Debug, Serialize)]
struct Added {
    public_key: String,
    allowed_ips: Vec<String>,
    /// Where the configuration was written.
    file: Option<String>,
}

impl Text for Added {
    fn text(&self) -> String {
        String::new()
    }
}

/// What became of a removal.
#[derive(Debug, Serialize)]
struct Removed {
    public_key: String,
    removed: bool,
}

impl Text for Removed {
    fn text(&self) -> String {
        match self.removed {
            true => format!("peer {} is removed\n", self.public_key),
            false => format!("there is no unmetered peer {}\n", self.public_key),
        }
    }
}

impl<'a> Gateway<'a> {
    fn of(config: &'a Config) -> Result<Self, CliError> {
        let dataplane = config.dataplane()?;
        let unmetered = dataplane.unmetered.as_ref().ok_or_else(|| {
            CliError::new(
                "not_configured",
                "there is no section [dataplane.unmetered]: every peer is a paying client",
                "add it with a subnet for the operator's own peers, and restart the data plane",
            )
        })?;
        Ok(Self {
            config,
            dataplane,
            unmetered,
            interface: Interface::new(&unmetered.socket_dir, &dataplane.tunnel_interface),
        })
    }

    fn peers(&self, output: Output) -> Result<(), CliError> {
        let status = self.interface.status()?;
        let peers: Vec<Peer> = status.peers.iter().map(|peer| self.listed(peer)).collect();
        output.print(peers.as_slice());
        Ok(())
    }

    fn listed(&self, peer: &PeerStatus) -> Peer {
        let age = |at: Duration| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
            Some(now.saturating_sub(at).as_secs())
        };
        Peer {
            public_key: peer.public_key.to_string(),
            paid: self.is_paid(peer),
            allowed_ips: peer.allowed_ips.iter().map(ToString::to_string).collect(),
            endpoint: peer.endpoint.map(|endpoint| endpoint.to_string()),
            handshake_age_s: peer.last_handshake.and_then(age),
            up_bytes: peer.rx_bytes,
            down_bytes: peer.tx_bytes,
        }
    }

    /// Clients have one address outside of the operator's part, and nobody else has.
    fn is_paid(&self, peer: &PeerStatus) -> bool {
        peer.allowed_ips.iter().any(|network| {
            matches!(network.address(), IpAddr::V4(address)
                if self.dataplane.inner_subnet.contains(address)
                    && !self.unmetered.subnet.contains(address))
        })
    }

    fn add(&self, add: &VpnAdd, output: Output) -> Result<(), CliError> {
        if output.json && add.out.is_none() {
            return Err(CliError::new(
                "out",
                "with --json the configuration is not printed, and would be lost",
                "say where it is to be written: --out FILE",
            ));
        }
        // Two that add at once would choose the same address, and one take it from the other.
        let _alone = self.lock()?;
        let status = self.interface.status()?;
        let address = match add.address {
            Some(address) => self.wanted(&status, address)?,
            None => self.free(&status)?,
        };
        let inner = self.dataplane.inner_network();
        let addresses: Vec<IpAddr> = [
            Some(IpAddr::from(address)),
            inner.address6(address).map(IpAddr::from),
        ]
        .into_iter()
        .flatten()
        .collect();
        let private = match &add.wg_public_key {
            Some(_) => None,
            None => Some(private_key()?),
        };
        let public_key = match (&add.wg_public_key, &private) {
            (Some(key), _) => PublicKey(key.0),
            (None, Some(private)) => public_half(private),
            (None, None) => return Err(no_randomness()),
        };
        if status
            .peers
            .iter()
            .any(|peer| peer.public_key == public_key)
        {
            return Err(CliError::new(
                "peer_exists",
                format!("there is a peer with the key {public_key}"),
                "remove it first, or use another key",
            ));
        }
        let preshared_key = PresharedKey::new(*random()?).ok_or_else(no_randomness)?;
        let networks = addresses.iter().copied().map(IpNetwork::host);
        let more = add.networks.iter().copied();
        let allowed_ips: Vec<IpNetwork> = networks.chain(more).collect();
        let conf = self.conf(
            &status,
            private,
            &preshared_key,
            &addresses,
            &add.allowed_ips,
        )?;
        let text = match &conf.interface.private_key {
            Some(_) => conf.to_text(),
            None => {
                let placeholder = Word::new("(yours)").ok_or_else(no_randomness)?;
                conf.to_text_without_key(&placeholder)
            }
        };
        // A configuration that cannot be written is not asked for.
        let staged = add
            .out
            .as_ref()
            .map(|path| PrivateFile::stage(path, text.as_bytes()));
        let staged = staged.transpose()?;
        self.interface.apply(Set {
            peers: vec![PeerSet {
                preshared_key: KeyUpdate::Replace(preshared_key),
                replace_allowed_ips: true,
                allowed_ips: allowed_ips
                    .iter()
                    .copied()
                    .map(AllowedIpChange::Add)
                    .collect(),
                ..PeerSet::new(public_key)
            }],
            ..Set::default()
        })?;
        staged.map_or(Ok(()), PrivateFile::put)?;
        match &add.out {
            Some(path) => output.progress(&format!("written to {}", path.display())),
            None if add.qr || output.json => {}
            None => print!("{}", *text),
        }
        if add.qr && !output.json {
            print!("{}", qr(&text)?);
        }
        output.print(&Added {
            public_key: public_key.to_string(),
            allowed_ips: allowed_ips.iter().map(ToString::to_string).collect(),
            file: add.out.as_ref().map(|path| path.display().to_string()),
        });
        Ok(())
    }

    fn remove(
        &self,
        peer: &topnet_api::WireguardPublicKey,
        output: Output,
    ) -> Result<(), CliError> {
        let public_key = PublicKey(peer.0);
        let status = self.interface.status()?;
        let known = status
            .peers
            .iter()
            .find(|peer| peer.public_key == public_key);
        if known.is_some_and(|peer| self.is_paid(peer)) {
            return Err(CliError::new(
                "peer_pays",
                format!("a channel pays for the peer {public_key}"),
                "close its channel: `topnet channel close`",
            ));
        }
        self.interface.apply(Set {
            peers: vec![PeerSet {
                remove: true,
                ..PeerSet::new(public_key)
            }],
            ..Set::default()
        })?;
        output.print(&Removed {
            public_key: public_key.to_string(),
            removed: known.is_some(),
        });
        Ok(())
    }

    /// Held as long as a peer is being added.
    fn lock(&self) -> Result<File, CliError> {
        let path = self.config.runtime_dir.join("vpn.lock");
        let file = File::create(&path).map_err(|error| CliError::file(&path, error))?;
        file.lock().map_err(|error| CliError::file(&path, error))?;
        Ok(file)
    }

    fn wanted(&self, status: &DeviceStatus, address: Ipv4Addr) -> Result<Ipv4Addr, CliError> {
        let subnet = self.unmetered.subnet;
        if !subnet.contains(address) {
            return Err(CliError::new(
                "address",
                format!("{address} is not in {subnet} (dataplane.unmetered.subnet)"),
                "choose one of it, or leave --address out",
            ));
        }
        if is_used(status, address) {
            return Err(CliError::new(
                "address",
                format!("{address} is another peer's"),
                "choose another, or leave --address out",
            ));
        }
        Ok(address)
    }

    fn free(&self, status: &DeviceStatus) -> Result<Ipv4Addr, CliError> {
        let subnet = self.unmetered.subnet;
        subnet
            .hosts()
            .find(|host| !is_used(status, *host))
            .ok_or_else(|| {
                CliError::new(
                    "subnet_full",
                    format!("all addresses of {subnet} are peers'"),
                    "remove a peer, or give dataplane.unmetered a larger subnet",
                )
            })
    }

    /// What the peer is to run `wg-quick` with.
    fn conf(
        &self,
        status: &DeviceStatus,
        private_key: Option<PrivateKey>,
        preshared_key: &PresharedKey,
        addresses: &[IpAddr],
        allowed_ips: &[IpNetwork],
    ) -> Result<Conf, CliError> {
        let server = status
            .private_key
            .as_ref()
            .map(public_half)
            .ok_or_else(|| {
                CliError::new(
                    "interface",
                    "the interface does not tell its key",
                    "start the data plane anew",
                )
            })?;
        let control = self.config.control()?;
        let endpoint = control.offer.wireguard_endpoint;
        let all = |text: &str| text.parse::<IpNetwork>().ok();
        let world6 = self.dataplane.inner_subnet6.and_then(|_| all("::/0"));
        let allowed_ips = match allowed_ips {
            [] => all("0.0.0.0/0").into_iter().chain(world6).collect(),
            some => some.to_vec(),
        };
        let address = |address: &IpAddr| InterfaceAddress {
            address: *address,
            prefix_bits: if address.is_ipv4() { 32 } else { 128 },
        };
        Ok(Conf {
            interface: ConfInterface {
                private_key,
                addresses: addresses.iter().map(address).collect(),
                dns: control
                    .offer
                    .dns
                    .iter()
                    .copied()
                    .map(IpAddr::from)
                    .collect(),
                mtu: Some(self.dataplane.inner_mtu),
                ..ConfInterface::default()
            },
            peers: vec![ConfPeer {
                preshared_key: Some(preshared_key.clone()),
                allowed_ips,
                endpoint: EndpointName::new(&endpoint.ip().to_string(), endpoint.port()),
                persistent_keepalive_s: Some(PERSISTENT_KEEPALIVE_S),
                ..ConfPeer::new(server)
            }],
        })
    }
}

fn is_used(status: &DeviceStatus, address: Ipv4Addr) -> bool {
    let networks = status.peers.iter().flat_map(|peer| &peer.allowed_ips);
    networks
        .filter(|network| network.address().is_ipv4())
        .any(|network| network.contains(address.into()))
}

/// A code that WireGuard's apps read from a screen.
fn qr(text: &str) -> Result<String, CliError> {
    let code = QrCode::new(text.as_bytes()).map_err(|error| {
        CliError::new(
            "qr",
            format!("the configuration does not fit into a code: {error}"),
            "write it to a file with --out",
        )
    })?;
    // Dark on light whatever the terminal's colours are: half blocks, inverted.
    let drawn = code
        .render::<Dense1x2>()
        .dark_color(Dense1x2::Light)
        .light_color(Dense1x2::Dark)
        .build();
    Ok(drawn + "\n")
}

/// A new private key.
pub(super) fn private_key() -> Result<PrivateKey, CliError> {
    PrivateKey::new(*random()?).ok_or_else(no_randomness)
}

/// The key that peers know an interface by.
pub(super) fn public_half(private: &PrivateKey) -> PublicKey {
    let secret = StaticSecret::from(*private.as_bytes());
    PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
}

fn random() -> Result<Zeroizing<[u8; KEY_BYTES]>, CliError> {
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    let filled = SystemRandom::new().fill(&mut *bytes);
    filled.map_err(|_| no_randomness()).map(|()| bytes)
}

fn no_randomness() -> CliError {
    CliError::new("random", "the system gives no randomness", "try again")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_networks_addresses_are_used_up_to_its_end() {
        let mut peer = PeerStatus::new(PublicKey([1; KEY_BYTES]));
        peer.allowed_ips = vec![
            "10.78.255.0/30".parse().unwrap(),
            "fd78::9/128".parse().unwrap(),
        ];
        let status = DeviceStatus {
            peers: vec![peer],
            ..DeviceStatus::default()
        };
        assert!(is_used(&status, Ipv4Addr::new(10, 78, 255, 3)));
        assert!(!is_used(&status, Ipv4Addr::new(10, 78, 255, 4)));
    }

    #[test]
    fn a_public_key_is_what_wg_says() {
        let private = PrivateKey::from_base64("yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=");
        let public = public_half(&private.flatten().unwrap());
        assert_eq!(
            public.to_string(),
            "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw="
        );
    }

    #[test]
    fn a_code_is_drawn_with_its_quiet_zone() {
        let drawn = qr("[Interface]\n").unwrap();
        let widths: BTreeSet<usize> = drawn.lines().map(|line| line.chars().count()).collect();
        assert_eq!(widths.len(), 1, "{drawn}");
        assert!(drawn.starts_with('█'), "{drawn}");
    }
}
