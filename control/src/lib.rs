//! Answers Dapps and operators, and owns who may have a session.
//!
//! Control never touches a packet, a token or a block. It asks settlement whether a channel may
//! have service ([`admission`]), writes down who has ([`book`], [`store`]), has the data plane
//! install exactly that ([`reconcile`]), and answers over JSON-RPC ([`rpc`]). Closing a channel
//! is its errand between metering, which knows the last claim, and settlement, which signs.
//!
//! A monitoring system scrapes [`metrics`]. The `topnet` command is in [`cli`].
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod admission;
pub mod book;
pub mod cli;
pub mod daemon;
pub mod metrics;
pub mod processes;
pub mod provider;
pub mod reconcile;
pub mod rpc;
pub mod store;
