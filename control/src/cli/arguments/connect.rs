//! The words of `topnet connect`.

use clap::Args;
use topnet_account::{Amount, ChannelId};
use topnet_uapi::IpNetwork;

#[derive(Debug, Args)]
pub(in crate::cli) struct Connect {
    /// Name of the tunnel's interface.
    #[arg(long, value_name = "NAME", default_value = "topnet-vpn")]
    pub(in crate::cli) interface: String,
    /// The channel that pays. Without it an open one to the provider is used, or one is opened.
    #[arg(long, value_name = "ID")]
    pub(in crate::cli) channel: Option<ChannelId>,
    /// Open a channel that can pay so much, if there is none.
    #[arg(long, value_name = "AMOUNT", conflicts_with = "channel")]
    pub(in crate::cli) allocation: Option<Amount>,
    /// Take the cheapest offer on main for this service, instead of the provider that `[wallet]`
    /// names.
    #[arg(long, value_name = "SERVICE", num_args = 0..=1, default_missing_value = "vpn")]
    pub(in crate::cli) cheapest: Option<topnet_api::ChainName>,
    /// Send only what is for these networks through the tunnel; what the offer names if left out.
    #[arg(long, value_name = "NETWORK", value_delimiter = ',')]
    pub(in crate::cli) allowed_ips: Vec<IpNetwork>,
    /// Leave the system's name servers as they are.
    #[arg(long)]
    pub(in crate::cli) no_dns: bool,
    /// Only take back what a run that was killed has left: rules, routes, name servers.
    #[arg(long)]
    pub(in crate::cli) undo: bool,
    /// Leave a channel that was opened open at the end, for the next time.
    #[arg(long)]
    pub(in crate::cli) keep_channel: bool,
}
