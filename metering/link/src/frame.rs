//! Frames: a little-endian `u16` length and that many bytes, at most [`FRAME_BYTES_MAX`].

use std::{error::Error, time::Duration};

use quinn::{RecvStream, SendStream};

use crate::LinkError;

/// The longest frame. Every payment message fits; whoever announces more is cut off
/// before a byte of it is kept.
pub const FRAME_BYTES_MAX: usize = 1024;

const LENGTH_BYTES: usize = size_of::<u16>();
/// How long the other end may leave a frame unread before the link is given up.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a clean end waits for the other end to have everything.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);

const _: () = assert!(FRAME_BYTES_MAX <= u16::MAX as usize);

/// The half of a link that sends.
#[derive(Debug)]
pub struct Sender {
    stream: SendStream,
}

impl Sender {
    pub(crate) fn new(stream: SendStream) -> Self {
        Self { stream }
    }

    /// Sends one frame. Not to be cancelled half-way: a link with half a frame is of no use.
    pub async fn send(&mut self, message: &[u8]) -> Result<(), LinkError> {
        if message.len() > FRAME_BYTES_MAX {
            return Err(LinkError::FrameTooLong(message.len()));
        }
        let mut frame = Vec::with_capacity(LENGTH_BYTES + message.len());
        frame.extend_from_slice(&(message.len() as u16).to_le_bytes());
        frame.extend_from_slice(message);
        match tokio::time::timeout(SEND_TIMEOUT, self.stream.write_all(&frame)).await {
            Ok(sent) => sent.map_err(|error| lost(&error)),
            Err(_) => Err(LinkError::Timeout("read what was sent to it")),
        }
    }

    /// Ends the stream and waits a moment until the other end has all of it.
    pub async fn finish(mut self) {
        if self.stream.finish().is_ok() {
            let _ = tokio::time::timeout(FINISH_TIMEOUT, self.stream.stopped()).await;
        }
    }
}

/// The half of a link that receives.
#[derive(Debug)]
pub struct Receiver {
    stream: RecvStream,
    buffer: Box<[u8; LENGTH_BYTES + FRAME_BYTES_MAX]>,
    filled: usize,
}

impl Receiver {
    pub(crate) fn new(stream: RecvStream) -> Self {
        Self {
            stream,
            buffer: Box::new([0; LENGTH_BYTES + FRAME_BYTES_MAX]),
            filled: 0,
        }
    }

    /// The next frame; `None` after the other end's clean end. May be cancelled: what has
    /// arrived of a frame is kept for the next call.
    pub async fn recv(&mut self) -> Result<Option<Vec<u8>>, LinkError> {
        if !self.fill(LENGTH_BYTES).await? {
            return Ok(None);
        }
        let length = usize::from(u16::from_le_bytes([self.buffer[0], self.buffer[1]]));
        if length > FRAME_BYTES_MAX {
            return Err(LinkError::FrameTooLong(length));
        }
        if !self.fill(LENGTH_BYTES + length).await? {
            return Err(LinkError::Lost(
                "it ended in the middle of a message".into(),
            ));
        }
        self.filled = 0;
        Ok(Some(self.buffer[LENGTH_BYTES..][..length].to_vec()))
    }

    /// Reads until the buffer holds `wanted` bytes; false if the stream ended at a frame's
    /// beginning or at `wanted`'s.
    async fn fill(&mut self, wanted: usize) -> Result<bool, LinkError> {
        while self.filled < wanted {
            let read = self
                .stream
                .read(&mut self.buffer[self.filled..wanted])
                .await;
            match read.map_err(|error| lost(&error))? {
                Some(bytes) => self.filled += bytes,
                None if self.filled == 0 || self.filled == LENGTH_BYTES => return Ok(false),
                None => {
                    return Err(LinkError::Lost(
                        "it ended in the middle of a message".into(),
                    ));
                }
            }
        }
        Ok(true)
    }
}

/// QUIC says in the cause of an error what has happened to the connection.
fn lost(error: &dyn Error) -> LinkError {
    let mut reason = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        reason = format!("{reason}: {error}");
        cause = error.source();
    }
    LinkError::Lost(reason)
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, sync::Arc};

    use topnet_channel::SecretKey;

    use super::*;
    use crate::{Limits, Listener, connect};

    #[tokio::test]
    async fn a_frame_that_announces_too_much_ends_the_link() {
        let [payee, payer] = [1, 2].map(|byte| SecretKey::from_seed([byte; 32]).unwrap());
        let limits = Limits {
            connections_max: 4,
            known: Arc::new(|_| true),
        };
        let mut listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into(), &payee, limits).unwrap();
        let address = listener.local_addr().unwrap();
        let mut near = connect(address, payee.public_key(), &payer).await.unwrap();
        let length = FRAME_BYTES_MAX as u16 + 1;
        near.sender
            .stream
            .write_all(&length.to_le_bytes())
            .await
            .unwrap();
        let mut far = listener.accept().await.unwrap();
        let refused = far.receiver.recv().await;
        assert!(matches!(refused, Err(LinkError::FrameTooLong(bytes)) if bytes == 1025));
    }
}
