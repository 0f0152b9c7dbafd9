//! Defaults, so that each stands beside the field that it is for:
//! `#[serde(default = "default::u16::<7_447>")]`.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

pub(crate) const fn i8<const VALUE: i8>() -> i8 {
    VALUE
}

pub(crate) const fn u16<const VALUE: u16>() -> u16 {
    VALUE
}

pub(crate) const fn u32<const VALUE: u32>() -> u32 {
    VALUE
}

pub(crate) const fn u64<const VALUE: u64>() -> u64 {
    VALUE
}

pub(crate) fn runtime_dir() -> PathBuf {
    "/run/topnet".into()
}

pub(crate) fn data_dir() -> PathBuf {
    "/var/lib/topnet".into()
}

pub(crate) fn vpn() -> String {
    "vpn".to_owned()
}

/// What stores without regions of their own call theirs.
pub(crate) fn region() -> String {
    "us-east-1".to_owned()
}

/// This port on every address.
pub(crate) fn any<const PORT: u16>() -> SocketAddr {
    (Ipv4Addr::UNSPECIFIED, PORT).into()
}

/// This port on the loopback address.
pub(crate) fn loopback<const PORT: u16>() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, PORT).into()
}

/// Everything goes through the tunnel.
pub(crate) fn all_addresses() -> Vec<crate::Ipv4Subnet> {
    vec![crate::Ipv4Subnet::ALL]
}
