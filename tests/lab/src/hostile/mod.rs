//! Small programs that break the rules on purpose, against the product as it is.
//!
//! [`payer`] forges promises at metering's port, [`payee`] overstates what was used in metering's
//! place, [`claims`] makes transactions for money that nobody is due.

pub mod claims;
pub mod payee;
pub mod payer;

use std::future::Future;

use anyhow::{Context, Result};
use topnet_netns::Namespace;

/// Runs a conversation to its end inside a namespace.
pub fn inside<T: Send>(
    namespace: &Namespace,
    conversation: impl Future<Output = Result<T>> + Send,
) -> Result<T> {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot make a runtime")?;
        runtime.block_on(conversation)
    };
    namespace.enter(run)?
}
