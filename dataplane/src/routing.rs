//! What the kernel needs so that it routes for the tunnel's device.

use std::fs;
use std::io;
use std::net::IpAddr;

use topnet_config::Dataplane;

use crate::error::{RunError, system};
use crate::netlink::Connection;

/// Says that the kernel forwards what comes from the uplink, or what is to be set. Settings of
/// the machine are the operator's.
pub(crate) fn check(section: &Dataplane) -> Result<(), RunError> {
    let uplink = &section.uplink_interface;
    require(&format!("net/ipv4/conf/{uplink}/forwarding"))?;
    match section.inner_subnet6 {
        // For IPv6 one switch decides for all interfaces.
        Some(_) => require("net/ipv6/conf/all/forwarding"),
        None => Ok(()),
    }
}

/// Gives the tunnel's device its addresses and lets packets from it be forwarded.
pub(crate) async fn set_up(section: &Dataplane, connection: &Connection) -> Result<(), RunError> {
    let inner = section.inner_network();
    let mut addresses = vec![(IpAddr::from(inner.gateway()), inner.v4().prefix_bits())];
    if let (Some(address), Some(network)) = (inner.gateway6(), inner.v6()) {
        addresses.push((address.into(), network.prefix_bits()));
    }
    let name = &section.tunnel_interface;
    // The device is ours, so its settings are as well.
    let set = |key: &str, value: &str| fs::write(format!("/proc/sys/net/{key}"), value);
    set(&format!("ipv4/conf/{name}/forwarding"), "1")
        .map_err(system("let the kernel forward what clients send"))?;
    if inner.v6().is_some() {
        set(&format!("ipv6/conf/{name}/disable_ipv6"), "0")
            .map_err(system("switch IPv6 on for the tunnel's device"))?;
    }
    let mtu_bytes = u32::from(section.inner_mtu);
    connection.set_up(name, mtu_bytes, &addresses).await?;
    if let Some(nat) = &section.nat {
        connection.route_to(name, nat.addresses).await?;
    }
    Ok(())
}

fn require(key: &str) -> Result<(), RunError> {
    let value = match fs::read_to_string(format!("/proc/sys/{key}")) {
        Ok(value) => value.trim().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => "not there".to_owned(),
        Err(error) => return Err(system("read the kernel's settings")(error)),
    };
    match value.as_str() {
        "1" => Ok(()),
        _ => Err(RunError::NotForwarding {
            key: key.to_owned(),
            value,
        }),
    }
}
