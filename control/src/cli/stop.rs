//! When it is to end.

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use super::error::CliError;

/// Ctrl-C that is pressed so often means that nothing is to be waited for.
const IMPATIENT: u32 = 3;
/// What a shell says of who was interrupted.
const INTERRUPTED: i32 = 130;

/// Told to stop, or not yet. A terminal that closes says so as well.
#[derive(Clone, Debug)]
pub(super) struct Stop(watch::Receiver<bool>);

impl Stop {
    /// Listens from now on.
    pub(super) fn listen() -> Result<Self, CliError> {
        let refused = |error: std::io::Error| {
            CliError::new(
                "signal",
                format!("cannot wait for signals: {error}"),
                "try again",
            )
        };
        let mut interrupt = signal(SignalKind::interrupt()).map_err(refused)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(refused)?;
        let mut hangup = signal(SignalKind::hangup()).map_err(refused)?;
        let (tell, told) = watch::channel(false);
        tokio::spawn(async move {
            for times in 1.. {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
                let _ = tell.send(true);
                if times >= IMPATIENT {
                    // What is left is written down: the next run takes it back.
                    std::process::exit(INTERRUPTED);
                }
            }
        });
        Ok(Self(told))
    }

    /// An error once it is told.
    pub(super) fn check(&self) -> Result<(), CliError> {
        match *self.0.borrow() {
            false => Ok(()),
            true => Err(CliError::new(
                "stopped",
                "stopped before it was done",
                "run it again",
            )),
        }
    }

    /// Ready once it is told.
    pub(super) async fn wait(&mut self) {
        // The other end lives as long as the process.
        let _ = self.0.wait_for(|told| *told).await;
    }
}
