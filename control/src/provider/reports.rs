//! What an operator sees, put together from all processes. What does not answer is left out.

use std::collections::BTreeMap;

use topnet_account::ChannelId;
use topnet_api::{
    ApiError, ChannelReport, ChannelState, ChannelStatus, ChannelView, DataplaneClient,
    DataplaneReport, MeteringClient, ProcessReport, ProviderStatus, SessionId, SessionReport,
    SessionTraffic, WireguardPublicKey,
};
use topnet_config::Process;

use super::Provider;
use crate::book::SessionBook;

impl Provider {
    /// A channel as everybody sees it.
    pub async fn channel_report(&self, id: ChannelId) -> Result<ChannelReport, ApiError> {
        let chain = self.channel(id).await;
        let ask =
            |client: MeteringClient, context| async move { client.channel(context, id).await };
        let metering = self
            .processes
            .metering
            .ask(ask)
            .await
            .and_then(|status| status);
        let (sessions, closing) = {
            let kept = self.book.lock().await;
            (sessions_of(&kept.book, id), kept.book.is_closing(&id))
        };
        if let (Err(error), Err(_)) = (&chain, &metering) {
            return Err(error.clone());
        }
        let closed = chain
            .as_ref()
            .is_ok_and(|view| view.state == ChannelState::Closed);
        // Not every close is the payee's; of others there is no progress to tell.
        let close = if closing || closed {
            self.advance_close(id).await.ok()
        } else {
            None
        };
        Ok(ChannelReport {
            channel: id,
            chain: chain.ok(),
            metering: metering.ok(),
            sessions,
            close,
        })
    }

    /// Every channel that pays this provider.
    pub async fn channel_reports(&self) -> Result<Vec<ChannelReport>, ApiError> {
        let payee = self.payee().await?;
        let mut on_chain: Vec<ChannelView> = Vec::new();
        loop {
            let after = on_chain.last().map(|channel| channel.id);
            let page = self.channels_of(payee, after).await?;
            if page.is_empty() {
                break;
            }
            on_chain.extend(page);
        }
        // Without metering the list is still worth having.
        let metered = self
            .metered_channels(true, None, usize::MAX)
            .await
            .unwrap_or_default();
        let mut metered: BTreeMap<ChannelId, _> = metered
            .into_iter()
            .map(|status| (status.channel, status))
            .collect();
        let book = self.book.lock().await.book.clone();
        let report = |channel, chain, metering| ChannelReport {
            channel,
            chain,
            metering,
            sessions: sessions_of(&book, channel),
            close: None,
        };
        let mut reports: Vec<ChannelReport> = on_chain
            .into_iter()
            .map(|view| {
                let id = view.id;
                report(id, Some(view), metered.remove(&id))
            })
            .collect();
        reports.extend(
            metered
                .into_iter()
                .map(|(id, status)| report(id, None, Some(status))),
        );
        Ok(reports)
    }

    /// How channels with a payer or a slot stand with metering, in the order of their ids from
    /// behind `after` on: `count` at most.
    pub async fn live_channels(
        &self,
        after: Option<ChannelId>,
        count: usize,
    ) -> Result<Vec<ChannelStatus>, ApiError> {
        self.metered_channels(false, after, count).await
    }

    async fn metered_channels(
        &self,
        all: bool,
        mut after: Option<ChannelId>,
        count: usize,
    ) -> Result<Vec<ChannelStatus>, ApiError> {
        let mut metered: Vec<ChannelStatus> = Vec::new();
        while metered.len() < count {
            let ask = |client: MeteringClient, context| async move {
                client.channels(context, all, after).await
            };
            let page = self.processes.metering.ask(ask).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.channel);
            metered.extend(page);
        }
        metered.truncate(count);
        Ok(metered)
    }

    /// Every session, wanted and had.
    pub async fn session_reports(&self) -> Vec<SessionReport> {
        let ask = |client: DataplaneClient, context| async move { client.status(context).await };
        let had = self
            .processes
            .dataplane
            .ask(ask)
            .await
            .map(|status| status.sessions);
        let mut traffic: BTreeMap<SessionId, SessionTraffic> = had
            .unwrap_or_default()
            .into_iter()
            .map(|session| {
                let traffic = SessionTraffic {
                    endpoint: session.endpoint,
                    up_bytes: session.up_bytes,
                    down_bytes: session.down_bytes,
                    given_bytes: session.given_bytes,
                    handshake_age_s: session.handshake_age_s,
                    slot: session.slot,
                    generation: session.generation,
                    slot_usage_bytes: session.slot_usage_bytes,
                    slot_limit_bytes: session.slot_limit_bytes,
                };
                (
                    SessionId(WireguardPublicKey(session.wireguard_public_key)),
                    traffic,
                )
            })
            .collect();
        let refused = self.installed.borrow().refused.clone();
        let kept = self.book.lock().await;
        kept.book
            .sessions()
            .map(|(id, session)| SessionReport {
                session: id,
                channel: session.channel,
                inner_address: session.inner_address,
                refused: refused.get(&id).cloned(),
                traffic: traffic.remove(&id),
            })
            .collect()
    }

    /// The provider at a glance. It never fails: what does not answer is said so.
    pub async fn status(&self) -> ProviderStatus {
        let dataplane = self
            .processes
            .dataplane
            .ask(|client, context| async move { client.status(context).await })
            .await;
        let metering = self.metering_status().await;
        let (chains, payee) = (self.chains().await, self.payee().await.ok());
        let towers = self.towers().await.unwrap_or_default();
        let processes = [
            (Process::Dataplane, dataplane.as_ref().err()),
            (Process::Metering, metering.as_ref().err()),
            (Process::Settlement, chains.as_ref().err()),
            (Process::Control, None),
        ];
        let kept = self.book.lock().await;
        ProviderStatus {
            payee,
            processes: processes
                .map(|(process, error)| ProcessReport {
                    process: process.to_string(),
                    answers: error.is_none(),
                    error: error.cloned(),
                })
                .into(),
            dataplane: dataplane.ok().map(|status| DataplaneReport {
                boot: status.boot,
                uptime_s: status.uptime_s,
                io: status.io,
                revision: status.revision,
                drops: status.drops,
                ring_overflows: status.ring_overflows,
                passed_packets: status.passed_packets,
                nat: status.nat,
            }),
            unpaid_bytes: metering
                .as_ref()
                .map_or(0, |status| status.unpaid_bytes_now),
            metering: metering.ok(),
            chains: chains.unwrap_or_default(),
            sessions: kept.book.sessions().count() as u64,
            revision: kept.book.revision(),
            closing: kept.book.closing().collect(),
            towers,
        }
    }
}

fn sessions_of(book: &SessionBook, channel: ChannelId) -> Vec<SessionId> {
    let of_channel = book
        .sessions()
        .filter(|(_, session)| session.channel == channel);
    of_channel.map(|(id, _)| id).collect()
}
