//! A provider that claims more than it forwarded.
//!
//! It holds the key of the offer and listens where metering should, takes whatever the wallet
//! pays, and says that more was used than was.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use topnet_channel::{Meter, Payee, PayeeMessage, PayeeTerms, PayerMessage, SecretKey};
use topnet_link::{Connection, Limits, Listener};
use topnet_unit::units_owed;

/// How often it says what it claims.
const TELL: Duration = Duration::from_millis(20);

/// What the payee claims and has got, for whoever holds it against the truth.
#[derive(Debug, Default)]
pub struct Loot {
    /// Units that it has claimed.
    pub told_units: AtomicU64,
    /// Units that it was paid.
    pub accepted_units: AtomicU64,
    /// Set to end it.
    pub ended: AtomicBool,
}

/// Listens at `address` and claims what `claimed_bytes` says, until [`Loot::ended`].
pub async fn overstate(
    address: SocketAddr,
    secret: &SecretKey,
    terms: PayeeTerms,
    claimed_bytes: &(dyn Fn() -> u64 + Sync),
    loot: &Loot,
) -> Result<()> {
    let limits = Limits {
        connections_max: 16,
        known: Arc::new(|_| true),
    };
    let mut listener = Listener::bind(address, secret, limits)?;
    let mut payee = Payee::new(terms);
    while !loot.ended.load(Ordering::Relaxed) {
        let accepted = tokio::time::timeout(TELL, listener.accept()).await;
        if let Ok(Some(link)) = accepted {
            // A link that breaks is made again by the wallet.
            let _ = converse(link, &mut payee, claimed_bytes, loot).await;
        }
    }
    listener.close().await;
    Ok(())
}

async fn converse(
    link: Connection,
    payee: &mut Payee,
    claimed_bytes: &(dyn Fn() -> u64 + Sync),
    loot: &Loot,
) -> Result<()> {
    let (mut sender, mut receiver) = link.split();
    receiver.recv().await?.context("no hello")?;
    for message in [
        PayeeMessage::Offer(payee.offer()),
        PayeeMessage::Resume(payee.promise()),
    ] {
        sender.send(&message.to_bytes()).await?;
    }
    while !loot.ended.load(Ordering::Relaxed) {
        if let Ok(received) = tokio::time::timeout(TELL, receiver.recv()).await {
            let Some(bytes) = received? else {
                return Ok(());
            };
            if let Err(code) = payee.handle_message(&PayerMessage::from_bytes(&bytes)?) {
                sender.send(&PayeeMessage::Refused(code).to_bytes()).await?;
            }
            // It keeps no journal: nobody shall be able to prove what it says.
            if payee.poll_record().is_some() {
                payee.handle_durable();
            }
        }
        let channel_bytes = claimed_bytes();
        let meter = Meter {
            channel_bytes,
            owed: units_owed(channel_bytes, 0),
            accepted: payee.meter().accepted,
            credit_bytes: 0,
        };
        loot.told_units.fetch_max(meter.owed, Ordering::Relaxed);
        loot.accepted_units
            .fetch_max(meter.accepted, Ordering::Relaxed);
        sender.send(&PayeeMessage::Meter(meter).to_bytes()).await?;
    }
    sender.finish().await;
    Ok(())
}
