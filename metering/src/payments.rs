//! How payers reach the books: one task a link, which decodes and passes on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use topnet_account::ChannelId;
use topnet_books::{ConnectionId, Greeting};
use topnet_channel::{PROTOCOL_VERSION, PayeeMessage, PayerMessage, RefusalCode};
use topnet_link::{Connection, Listener, Receiver, Sender};
use tracing::{debug, warn};

use crate::{
    event::{Event, Handle, Payment},
    keeper::REPLIES_MAX,
    settlement::LookUp,
};

/// From the link's beginning to its hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Asking the chain about a channel that nobody knows.
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(5);

/// Takes links until the keeper or the listener ends, and tells those that stand.
pub async fn serve(mut listener: Listener, handle: Handle, chain: LookUp) {
    let next = Arc::new(AtomicU64::new(1));
    loop {
        let link = tokio::select! {
            link = listener.accept() => link,
            () = handle.events.closed() => None,
        };
        let Some(link) = link else {
            return listener.close().await;
        };
        let connection = next.fetch_add(1, Ordering::Relaxed);
        let (handle, chain) = (handle.clone(), chain.clone());
        tokio::spawn(async move {
            let (peer, remote) = (link.peer, link.remote);
            match converse(link, connection, &handle, &chain).await {
                Ok(()) => debug!(%peer, %remote, "a payer's link ended"),
                Err(reason) => debug!(%peer, %remote, reason, "a payer's link broke"),
            }
            // It fails only when metering ends.
            let _ = handle.tell(Event::Disconnected(connection)).await;
        });
    }
}

async fn converse(
    mut link: Connection,
    connection: ConnectionId,
    handle: &Handle,
    chain: &LookUp,
) -> Result<(), String> {
    let key = link.peer;
    let first = timeout(HELLO_TIMEOUT, link.receiver.recv()).await;
    let first = first
        .map_err(|_| "it said no hello")?
        .map_err(|error| error.to_string())?;
    let Some(first) = first else { return Ok(()) };
    let channel = match PayerMessage::from_bytes(&first) {
        Ok(PayerMessage::Hello {
            version: PROTOCOL_VERSION,
            channel,
        }) => channel,
        Ok(PayerMessage::Hello { .. }) => return refuse(link.sender, RefusalCode::Version).await,
        Ok(_) => return refuse(link.sender, RefusalCode::OutOfOrder).await,
        Err(_) => return refuse(link.sender, RefusalCode::Malformed).await,
    };
    let (replies, mut answers) = mpsc::channel(REPLIES_MAX);
    let hello = |greeting: oneshot::Sender<Greeting>| Event::Hello {
        connection,
        channel,
        key,
        replies: replies.clone(),
        greeting,
    };
    let ended = |error: crate::event::Ended| error.to_string();
    let mut greeting = handle.ask(&hello).await.map_err(ended)?;
    if greeting == Greeting::Unknown && look_up(channel, handle, chain).await {
        greeting = handle.ask(&hello).await.map_err(ended)?;
    }
    match greeting {
        Greeting::Welcome => link.welcome(),
        Greeting::Unknown | Greeting::WrongKey => {
            return refuse(link.sender, RefusalCode::UnknownChannel).await;
        }
        Greeting::TooOften => return refuse(link.sender, RefusalCode::TooOften).await,
    }
    drop(replies);
    let (mut sender, mut receiver) = link.split();
    let exchanged = exchange(connection, &mut sender, &mut receiver, &mut answers, handle).await;
    // What was said last, a refusal perhaps, is lost with the link unless it is waited for.
    sender.finish().await;
    exchanged
}

/// Passes words on, both ways, until one end has no more.
async fn exchange(
    connection: ConnectionId,
    sender: &mut Sender,
    receiver: &mut Receiver,
    answers: &mut mpsc::Receiver<PayeeMessage>,
    handle: &Handle,
) -> Result<(), String> {
    loop {
        tokio::select! {
            answer = answers.recv() => {
                // None: a newer link of the channel took this one's place.
                let Some(answer) = answer else { return Ok(()) };
                sender.send(&answer.to_bytes()).await.map_err(|error| error.to_string())?;
            }
            received = receiver.recv() => {
                let Some(bytes) = received.map_err(|error| error.to_string())? else {
                    return Ok(());
                };
                let Ok(message) = PayerMessage::from_bytes(&bytes) else {
                    let refusal = PayeeMessage::Refused(RefusalCode::Malformed);
                    let _ = sender.send(&refusal.to_bytes()).await;
                    return Err("it said something that is no message".to_owned());
                };
                pay(connection, message, handle).await?;
            }
        }
    }
}

/// Passes on what a payer said. A signature is proved here, on this link's own time, and nothing
/// else of the link is heard meanwhile.
async fn pay(
    connection: ConnectionId,
    message: PayerMessage,
    handle: &Handle,
) -> Result<(), String> {
    let ending = "metering is ending";
    let send = async |payment| handle.payments.send(payment).await.map_err(|_| ending);
    if let PayerMessage::Token(_) = message {
        let said = Payment::Said {
            connection,
            message,
        };
        return Ok(send(said).await?);
    }
    let (unproved, answer) = oneshot::channel();
    send(Payment::Promised {
        connection,
        message,
        unproved,
    })
    .await?;
    if let Some(unproved) = answer.await.map_err(|_| ending)? {
        let proof = unproved.prove();
        send(Payment::Proof { connection, proof }).await?;
    }
    Ok(())
}

/// Has the chain tell the keeper of a channel. True if there is such a channel.
async fn look_up(channel: ChannelId, handle: &Handle, chain: &LookUp) -> bool {
    match timeout(LOOK_UP_TIMEOUT, chain.channel(channel)).await {
        Ok(Ok(view)) => handle.tell(Event::Channel(Box::new(view))).await.is_ok(),
        Ok(Err(error)) => {
            debug!(%channel, %error, "the chain does not know the channel");
            false
        }
        Err(_) => {
            warn!(%channel, "settlement does not say in time what the channel is");
            false
        }
    }
}

async fn refuse(mut sender: Sender, code: RefusalCode) -> Result<(), String> {
    let refusal = PayeeMessage::Refused(code);
    sender
        .send(&refusal.to_bytes())
        .await
        .map_err(|error| error.to_string())?;
    sender.finish().await;
    Err(format!("refused: {code:?}"))
}
