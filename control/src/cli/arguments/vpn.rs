//! The words of `topnet vpn`.

use std::{net::Ipv4Addr, path::PathBuf};

use clap::{Args, Subcommand, value_parser};
use topnet_api::WireguardPublicKey;
use topnet_uapi::IpNetwork;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum VpnCommand {
    /// List all WireGuard peers, those that a channel pays for among them.
    Peers,
    /// Add a peer and write the configuration that it needs: for `wg-quick`, or as a code for an
    /// app.
    Add(VpnAdd),
    /// Remove a peer.
    Remove {
        /// Its public key.
        peer: WireguardPublicKey,
    },
    /// Write peers' packets, as they are inside the tunnel, to a file that tcpdump and Wireshark
    /// read. It ends after a time or a number of packets, or with Ctrl-C.
    Capture(VpnCapture),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct VpnCapture {
    /// Write them there, for the file's owner alone; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) out: PathBuf,
    /// The one peer whose packets are wanted; everybody's if left out.
    #[arg(long, value_name = "KEY")]
    pub(in crate::cli) peer: Option<WireguardPublicKey>,
    /// End after so many seconds.
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    pub(in crate::cli) seconds: Option<u64>,
    /// End after so many packets.
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    pub(in crate::cli) packets: Option<u64>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct VpnAdd {
    /// The peer's public key, if it has made its keys itself; made here if left out.
    #[arg(long, value_name = "KEY")]
    pub(in crate::cli) wg_public_key: Option<WireguardPublicKey>,
    /// The peer's address in the tunnel; the first that is free if left out.
    #[arg(long, value_name = "ADDRESS")]
    pub(in crate::cli) address: Option<Ipv4Addr>,
    /// Send only what is for these networks through the tunnel; everything if left out.
    #[arg(long, value_name = "NETWORK", value_delimiter = ',')]
    pub(in crate::cli) allowed_ips: Vec<IpNetwork>,
    /// A network behind the peer, which is reached through it.
    #[arg(long = "network", value_name = "NETWORK")]
    pub(in crate::cli) networks: Vec<IpNetwork>,
    /// Write the configuration there, for its owner alone.
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) out: Option<PathBuf>,
    /// Draw the configuration as a code that WireGuard's apps read.
    #[arg(long)]
    pub(in crate::cli) qr: bool,
}
