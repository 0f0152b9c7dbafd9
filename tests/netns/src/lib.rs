//! Network namespaces for tests, the lab and the benchmarks.
//!
//! Owns every namespace whose name begins with [`PREFIX`] and nothing else: the host's own
//! interfaces, routes and settings are never touched, because links are created inside the
//! namespaces that they join. A [`Namespace`] is removed when it is dropped, with the processes
//! that still live in it; what a killed run left behind is removed by [`sweep`], which leaves
//! namespaces of running owners alone (each owner holds a lock on its namespaces).
//!
//! Everything here needs root; unit of work is the `ip` command, as an operator would type it.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod link;
mod namespace;
mod processes;
mod root;
mod tunnel_driver;

pub use link::{Endpoint, Offload, Veth};
pub use namespace::{NAMESPACES_MAX, Namespace, PREFIX, sweep};
pub use root::{ROOT_TESTS_ENV, root_tests};
pub use tunnel_driver::with_tunnel_driver;

use std::io;

/// What kept a namespace from being made, used or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller is not root.
    #[error(
        "network namespaces need root: run through `cargo xtask`, which elevates only this part, or with sudo"
    )]
    NotRoot,
    /// The name does not begin with [`PREFIX`] or holds characters that a path must not.
    #[error(
        "namespace name `{0}`: use `topnet-` and then 1 to 48 of a-z, 0-9, - (others are not ours to make or remove)"
    )]
    Name(String),
    /// A running process owns a namespace of this name.
    #[error(
        "namespace `{0}` belongs to a run that is still going: wait for it, or stop it, then try again"
    )]
    Busy(String),
    /// [`NAMESPACES_MAX`] namespaces exist already.
    #[error(
        "{NAMESPACES_MAX} namespaces named topnet-* exist already: look at `ip netns list`, leftovers go with `ip netns del NAME`"
    )]
    TooMany,
    /// A command could not be started.
    #[error("cannot start `{command}`: {source}; `cargo xtask doctor` lists what is missing")]
    Start {
        /// The command line.
        command: String,
        /// Why it could not be started.
        source: io::Error,
    },
    /// A command ran and failed.
    #[error("`{command}` failed ({status}): {stderr}")]
    Command {
        /// The command line.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it wrote to standard error, trimmed.
        stderr: String,
    },
    /// A file that stands for a namespace or a setting of it could not be used.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// Why it could not be used.
        source: io::Error,
    },
    /// The thread that starts processes inside the namespace is gone.
    #[error("the thread of namespace `{0}` is gone; make the namespace again")]
    ThreadGone(String),
}

/// The result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;
