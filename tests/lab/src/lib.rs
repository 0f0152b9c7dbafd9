//! Runs the whole product in three network namespaces and reconciles it.
//!
//! Owns the parts that a scenario is made of: the topology, the programs that nobody here wrote
//! (wireguard-go, curl, nginx), the product's processes each under its own user, and the report.
//! Everything that a run makes is removed with it, also when it fails, panics or is interrupted:
//! each part removes itself when dropped, and nothing waits without asking [`interrupt`].
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod files;
pub mod flows;
pub mod growth;
pub mod hostile;
pub mod interrupt;
pub mod machine;
pub mod name_server;
pub mod origin;
pub mod probe;
pub mod process;
pub mod product;
pub mod report;
pub mod run_dir;
pub mod scenario;
pub mod topology;
pub mod tower;
pub mod transfer;
pub mod tunnel;
pub mod users;
pub mod vitals;
pub mod watch;
