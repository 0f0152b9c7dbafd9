//! What control repeats until the world is as the book says.
//!
//! One task has the data plane install the desired set: at once after a change, again when the
//! data plane's run is over and another one answers, and every second while it does not agree. Another carries
//! closes on to the main chain, and asks for the close of every channel whose payer has begun
//! to close it: whoever is paid must have claimed before the deadline.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use tokio::task::JoinSet;
use topnet_account::ChannelId;
use topnet_api::{
    ApiError, ChannelState, DataplaneClient, InstallReport, SessionId, WireguardPublicKey,
};

use crate::{
    processes::UNREACHABLE,
    provider::{Installed, Provider},
};

/// How often everything is looked at without a reason.
const TICK: Duration = Duration::from_secs(1);
/// How often a data plane that is not there is looked for: clients wait for it, and to find no socket
/// costs nothing.
const LOOK_PERIOD: Duration = Duration::from_millis(10);
/// How often one that is there and fails is asked again: that costs both sides something.
const RETRY_PERIOD: Duration = Duration::from_millis(100);
/// Channels with sessions that are looked at each time, whether somebody else has closed them.
const CLOSED_LOOKS_PER_TICK: usize = 64;

/// Both tasks; they end when this is dropped.
#[derive(Debug)]
pub struct Reconciler(JoinSet<()>);

impl Reconciler {
    /// Starts both.
    pub fn start(provider: &Arc<Provider>) -> Self {
        let mut tasks = JoinSet::new();
        tasks.spawn(keep_installed(Arc::clone(provider)));
        tasks.spawn(keep_closing(Arc::clone(provider)));
        Self(tasks)
    }

    /// Ends both and waits until they have ended.
    pub async fn stop(mut self) {
        self.0.shutdown().await;
    }
}

/// Says of a repeated failure once, and once when it is over.
#[derive(Debug, Default)]
struct Trouble {
    error: Option<String>,
}

impl Trouble {
    fn note<T>(&mut self, what: &str, result: Result<T, ApiError>) -> Option<T> {
        match result {
            Ok(value) => {
                if self.error.take().is_some() {
                    tracing::info!("{what}: works again");
                }
                Some(value)
            }
            Err(error) => {
                let words = error.to_string();
                if self.error.as_ref() != Some(&words) {
                    tracing::warn!("{what}: {words}");
                    self.error = Some(words);
                }
                None
            }
        }
    }
}

async fn keep_installed(provider: Arc<Provider>) {
    let mut trouble = Trouble::default();
    loop {
        let result = install(&provider).await;
        let pause = result.as_ref().err().map(pause_after);
        trouble.note("installing sessions", result);
        if let Some(pause) = pause {
            // Nobody may believe what a data plane confirmed that is not there any more.
            provider
                .installed()
                .send_if_modified(|installed| installed.revision.take().is_some());
            tokio::time::sleep(pause).await;
            continue;
        }
        // A change wakes this at once, and so does the end of the data plane's run: the next one has
        // no sessions. Otherwise it looks again after a while.
        tokio::select! {
            () = provider.book_changed() => {}
            () = provider.processes().dataplane.lost() => {}
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

fn pause_after(error: &ApiError) -> Duration {
    match error.code.as_str() {
        UNREACHABLE => LOOK_PERIOD,
        _ => RETRY_PERIOD,
    }
}

/// Brings the data plane to the desired set, if it is not there.
async fn install(provider: &Provider) -> Result<(), ApiError> {
    let status = ask(provider, |client, context| async move {
        client.status(context).await
    })
    .await?;
    // The book may be long, and is not copied for a data plane that is away.
    let book = provider.book().await;
    let agrees = {
        let installed = provider.installed().borrow();
        installed.revision == Some(book.revision())
            && installed.boot == status.boot
            && status.revision == book.revision()
            && installed.refused.is_empty()
    };
    if agrees {
        return Ok(());
    }
    if status.revision > book.revision() {
        let seen = status.revision;
        tracing::warn!(
            seen,
            ours = book.revision(),
            "the data plane has seen a later revision: ours rises above it"
        );
        provider
            .change_book(move |book| {
                book.rise_above(seen);
                Ok(())
            })
            .await?;
    }
    let desired = provider.book().await.desired();
    let revision = desired.revision;
    let report: InstallReport = ask(provider, |client, context| {
        let desired = desired.clone();
        async move { client.install(context, desired).await }
    })
    .await??;
    let refused: BTreeMap<SessionId, ApiError> = report
        .refused
        .into_iter()
        .filter_map(|(key, error)| {
            let key = key.try_into().ok()?;
            Some((SessionId(WireguardPublicKey(key)), error))
        })
        .collect();
    let before = provider.installed().send_replace(Installed {
        revision: Some(revision),
        boot: report.boot.clone(),
        refused: refused.clone(),
    });
    if before.boot != report.boot || before.revision != Some(revision) {
        tracing::info!(
            boot = report.boot,
            revision,
            installed = report.installed.len(),
            refused = refused.len(),
            "sessions installed"
        );
    }
    Ok(())
}

async fn ask<T, F>(
    provider: &Provider,
    request: impl Fn(DataplaneClient, tarpc::context::Context) -> F,
) -> Result<T, ApiError>
where
    F: Future<Output = Result<T, tarpc::client::RpcError>>,
{
    provider.processes().dataplane.ask(request).await
}

async fn keep_closing(provider: Arc<Provider>) {
    let (mut trouble, mut lookout) = (Trouble::default(), Trouble::default());
    let mut last = None;
    loop {
        trouble.note("closing channels", close_what_must_be(&provider).await);
        let ended = end_what_is_closed(&provider, &mut last).await;
        lookout.note("looking for closed channels", ended);
        tokio::time::sleep(TICK).await;
    }
}

async fn close_what_must_be(provider: &Provider) -> Result<(), ApiError> {
    let book = provider.book().await;
    // A channel that cannot be closed now must not keep the others waiting.
    let mut first_error = Ok(());
    for channel in book.closing() {
        let advanced = provider.advance_close(channel).await.map(|_| ());
        first_error = first_error.and(advanced);
    }
    let payee = provider.payee().await?;
    let mut after = None;
    loop {
        let page = provider.closing_of(payee, after).await?;
        let Some(last) = page.last() else {
            break;
        };
        after = Some(last.id);
        for channel in page {
            if !book.is_closing(&channel.id) {
                tracing::info!(channel = %channel.id, "the payer closes: claiming what is owed");
                let closed = provider.close_channel(channel.id).await;
                first_error = first_error.and(closed.map(|_| ()));
            }
        }
    }
    first_error
}

/// Takes the sessions of channels that somebody else has closed: a closed channel pays for none.
/// Looks at a few channels in turn, behind `last`.
async fn end_what_is_closed(
    provider: &Provider,
    last: &mut Option<ChannelId>,
) -> Result<(), ApiError> {
    let book = provider.book().await;
    let channels: BTreeSet<ChannelId> = book
        .sessions()
        .map(|(_, session)| session.channel)
        .collect();
    let behind = last.map_or(Bound::Unbounded, Bound::Excluded);
    let turn: Vec<ChannelId> = channels
        .range((behind, Bound::Unbounded))
        .take(CLOSED_LOOKS_PER_TICK)
        .copied()
        .collect();
    *last = turn.last().copied();
    for id in turn {
        if provider.channel(id).await?.state == ChannelState::Closed {
            provider
                .change_book(move |book| {
                    book.begin_close(id);
                    book.end_close(id);
                    Ok(())
                })
                .await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::{net::UnixListener, time::timeout};
    use topnet_api::SocketName;
    use topnet_config::Config;

    fn provider(dir: &std::path::Path) -> Arc<Provider> {
        let text = format!(
            "runtime_dir = {dir:?}\ndata_dir = {dir:?}\n\
             [dataplane]\nclient_interface = \"lo\"\nuplink_interface = \"lo\"\n\
             key_file = \"wireguard.key\"\ninner_subnet = \"10.78.0.0/16\"\n\
             [metering]\nkey_file = \"payment.key\"\nunit_price_ntop = 100\n\
             [control]\n[control.offer]\nwireguard_endpoint = \"127.0.0.1:51820\"\n\
             payment_endpoint = \"127.0.0.1:7447\"\n"
        );
        let config = Config::parse(&text, &dir.join("topnet.toml")).unwrap();
        Arc::new(Provider::open(config).unwrap())
    }

    #[tokio::test]
    async fn only_a_data_plane_that_is_not_there_is_looked_for_all_the_time() {
        let dir = tempfile::tempdir().unwrap();
        let provider = provider(dir.path());
        let away = install(&provider).await.unwrap_err();
        assert_eq!(pause_after(&away), LOOK_PERIOD, "{away}");

        let listener = UnixListener::bind(SocketName::Dataplane.below(dir.path())).unwrap();
        let connections = AtomicUsize::new(0);
        let failing = async {
            while listener.accept().await.is_ok() {
                connections.fetch_add(1, Ordering::Relaxed);
            }
        };
        let mut watcher = provider.installed().subscribe();
        watcher.borrow_and_update();
        let asking = async { tokio::join!(failing, keep_installed(Arc::clone(&provider))) };
        timeout(5 * RETRY_PERIOD, asking).await.unwrap_err();
        let tried = connections.into_inner();
        assert!((1..=5).contains(&tried), "{tried} times in half a second");
        assert!(!watcher.has_changed().unwrap(), "nothing was confirmed");
    }
}
