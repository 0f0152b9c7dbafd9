//! Greets a payee before money is bound to it.

use std::{net::SocketAddr, time::Duration};

use topnet_account::{ChannelId, PublicKey};
use topnet_channel::{
    MessageError, PROTOCOL_VERSION, PayeeMessage, PayerMessage, RefusalCode, SecretKey,
};
use topnet_link::LinkError;

/// The payee may have to ask its chain first.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// An id that no channel has, so that the greeting takes no running payment's place.
const NO_CHANNEL: ChannelId = ChannelId([0; 32]);

/// Why no money should be bound to a payee.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Nobody answers, or somebody who cannot prove the offer's key.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The two ends were built from different releases.
    #[error("the payee speaks another version of the payment protocol; update the older one")]
    Version,
    /// It proved its key, and then did not speak the protocol.
    #[error("it proved its key but answered no greeting: {0}")]
    NoAnswer(&'static str),
    /// It answered with something else.
    #[error("it answered the greeting with what is no message: {0}")]
    Malformed(#[from] MessageError),
}

/// Makes sure that whoever holds `payee` answers at `address` and speaks our version of the
/// payment protocol. `secret` proves our end; a stranger's will do.
pub async fn probe(
    address: SocketAddr,
    payee: PublicKey,
    secret: &SecretKey,
) -> Result<(), ProbeError> {
    let link = topnet_link::connect(address, payee, secret).await?;
    let (mut sender, mut receiver) = link.split();
    let hello = PayerMessage::Hello {
        version: PROTOCOL_VERSION,
        channel: NO_CHANNEL,
    };
    sender.send(&hello.to_bytes()).await?;
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, receiver.recv())
        .await
        .map_err(|_| ProbeError::NoAnswer("it said nothing in time"))??
        .ok_or(ProbeError::NoAnswer("it ended the link"))?;
    sender.finish().await;
    // It knows no such channel, and says so; that it speaks is all that is asked here.
    match PayeeMessage::from_bytes(&answer)? {
        PayeeMessage::Refused(RefusalCode::Version) => Err(ProbeError::Version),
        _ => Ok(()),
    }
}
