//! What WireGuard's own tools see: `wg`, `wg-quick` and what is built on them.

pub mod gateway;
pub mod socket;
pub mod standalone;
