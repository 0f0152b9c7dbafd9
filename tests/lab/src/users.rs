//! Whom the processes of a run run as: numbers that no machine hands out, one each.

use crate::process::User;

/// The group that may speak to the processes' sockets.
pub const GROUP: u32 = 1_900_000_000;

const fn user(number: u32, capabilities: &'static [&'static str]) -> User {
    User {
        uid: GROUP + number,
        gid: GROUP,
        capabilities,
    }
}

/// The only one with network privileges.
pub const DATAPLANE: User = user(1, &["net_admin", "net_raw", "bpf", "ipc_lock", "sys_nice"]);
/// Counts and is paid.
pub const METERING: User = user(2, &[]);
/// Runs the chains and holds the payee's key.
pub const SETTLEMENT: User = user(3, &[]);
/// Answers.
pub const CONTROL: User = user(4, &[]);
/// nginx.
pub const ORIGIN: User = User {
    uid: GROUP + 5,
    gid: GROUP + 5,
    capabilities: &[],
};
/// The wallet and curl.
pub const CLIENT: User = User {
    uid: GROUP + 6,
    gid: GROUP + 6,
    capabilities: &[],
};
/// Holds claims elsewhere.
pub const TOWER: User = User {
    uid: GROUP + 7,
    gid: GROUP + 7,
    capabilities: &[],
};
