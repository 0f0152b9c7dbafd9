//! What a monitoring system scrapes: one page of OpenMetrics text, made when it is asked for.
//!
//! Every value is read from the processes' own status, so a scrape costs what `topnet status`
//! costs and a process that does not answer leaves its metrics out. Names end in their unit;
//! what only ever rises ends in `_total`. Labels with a channel or session are there for those
//! that are in use, and for [`LABELLED_MAX`] of them at most.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use topnet_api::{
    ChannelStatus, Latency, MeteringStatus, NatStatus, ProviderStatus, SessionReport,
};

/// Channels, and sessions, that have metrics of their own.
pub const LABELLED_MAX: usize = 1000;

const MICROS_PER_SECOND: f64 = 1e6;

type Labels = Vec<(&'static str, String)>;
type Float = Gauge<f64, AtomicU64>;

/// The page.
pub fn page(
    status: &ProviderStatus,
    channels: &[ChannelStatus],
    sessions: &[SessionReport],
) -> String {
    let mut page = Page(Registry::with_prefix("topnet"));
    let processes = status.processes.iter().map(|process| {
        let labels = vec![("process", process.process.clone())];
        (labels, u64::from(process.answers))
    });
    page.gauge("up", "1 if the process answers.", processes);
    let height = |chain: &topnet_api::ChainReport| {
        let labels = vec![("chain", chain.parameters.chain.to_string())];
        (labels, chain.height)
    };
    let heights = status.chains.iter().map(height);
    page.gauge("chain_height", "Newest final block.", heights);
    page.level(
        "sessions",
        "Sessions that may have service.",
        status.sessions,
    );
    let towers = status.towers.iter().map(|tower| {
        let labels = vec![("tower", tower.url.clone())];
        (labels, tower.unconfirmed)
    });
    let help = "Held claims that a tower elsewhere has not confirmed.";
    page.gauge("tower_unconfirmed_claims", help, towers);
    if let Some(metering) = &status.metering {
        page.metering(metering);
    }
    if let Some(dataplane) = &status.dataplane {
        let drops = dataplane.drops.iter();
        let drops = drops.map(|drop| (vec![("reason", drop.reason.clone())], drop.packets));
        page.counter("dropped_packets", "Packets dropped, by reason.", drops);
        let help = "Unit records that found their ring full; they lose nothing.";
        page.total("unit_ring_overflows", help, dataplane.ring_overflows);
        let help = "Packets that one worker received and another one's session was for.";
        page.total("passed_packets", help, dataplane.passed_packets);
        if let Some(nat) = &dataplane.nat {
            page.nat(nat);
        }
    }
    page.channels(&channels[..channels.len().min(LABELLED_MAX)]);
    page.sessions(&sessions[..sessions.len().min(LABELLED_MAX)]);
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = encode(&mut text, &page.0);
    text
}

struct Page(Registry);

impl Page {
    fn metering(&mut self, metering: &MeteringStatus) {
        let gauges = [
            (
                "unpaid_bytes",
                "Forwarded beyond what is paid for: the provider's exposure.",
                metering.unpaid_bytes_now,
            ),
            (
                "unbacked_ntop",
                "Redeemable, and lost if the service died now: in no state that main has accepted.",
                metering.unbacked.ntop(),
            ),
            ("payers", "Payers connected.", metering.connections),
            ("channels", "Channels known.", metering.channels),
            (
                "unit_ring_waiting",
                "Unit records that wait in the rings.",
                metering.ring_waiting,
            ),
            (
                "frozen",
                "1 while credit is frozen for all channels.",
                u64::from(metering.frozen.is_some()),
            ),
            (
                "journal_faulty",
                "1 while the journal cannot be written.",
                u64::from(metering.journal_fault.is_some()),
            ),
            (
                "log_segments_waiting",
                "Sealed segments of the service log that are not in the archive yet.",
                metering.archive.waiting_segments,
            ),
            (
                "log_archive_faulty",
                "1 while the archive takes no segments.",
                u64::from(metering.archive.problem.is_some()),
            ),
        ];
        for (name, help, value) in gauges {
            self.level(name, help, value);
        }
        let counters = [
            (
                "tokens",
                "Tokens that were not refused, repeats included.",
                metering.tokens,
            ),
            (
                "payments_refused",
                "Payers' messages that were refused.",
                metering.refusals,
            ),
            (
                "written_off_units",
                "Units written off.",
                metering.written_off_units,
            ),
            ("unit_records", "Unit records drained.", metering.records),
            ("journal_commits", "Journal commits.", metering.commits),
            (
                "log_segments_archived",
                "Segments that the archive has taken.",
                metering.archive.archived_segments,
            ),
        ];
        for (name, help, value) in counters {
            self.total(name, help, value);
        }
        let help = "How long a commit took, log and journal together.";
        self.latency("journal_commit_seconds", help, &metering.commit_us);
        let help = "From a unit's first byte until it was journalled.";
        self.latency("unit_journalled_seconds", help, &metering.unit_us);
    }

    fn nat(&mut self, nat: &NatStatus) {
        let gauges = [
            ("nat_blocks", "Blocks of shared ports.", nat.blocks),
            (
                "nat_lent_blocks",
                "Blocks of ports that clients have.",
                nat.blocks_lent,
            ),
            (
                "nat_resting_blocks",
                "Blocks of ports that nobody has and that are not lent again yet.",
                nat.blocks_resting,
            ),
            (
                "nat_clients",
                "Clients that have a block of ports.",
                nat.clients,
            ),
            ("nat_mappings", "Shared ports in use.", nat.mappings),
            (
                "nat_mappings_max",
                "The most shared ports in use that there can be.",
                nat.mappings_max,
            ),
            (
                "nat_flows",
                "What shared ports have to do with one remote each.",
                nat.flows,
            ),
            (
                "nat_flows_max",
                "The most flows that there can be.",
                nat.flows_max,
            ),
        ];
        for (name, help, value) in gauges {
            self.level(name, help, value.into());
        }
        // What was refused for want of room is among the dropped packets.
    }

    fn channels(&mut self, channels: &[ChannelStatus]) {
        let of = |value: fn(&ChannelStatus) -> u64| {
            channels.iter().map(move |channel| {
                (
                    vec![("channel", channel.channel.to_string())],
                    value(channel),
                )
            })
        };
        let help = "Units begun.";
        self.counter("channel_owed_units", help, of(|channel| channel.owed_units));
        let help = "Units paid for by durable tokens.";
        self.counter(
            "channel_accepted_units",
            help,
            of(|channel| channel.accepted_units),
        );
        let help = "Units paid for and not begun.";
        self.gauge(
            "channel_window_units",
            help,
            of(|channel| channel.window_units),
        );
        let help = "Forwarded beyond what is paid for.";
        self.gauge(
            "channel_unpaid_bytes",
            help,
            of(|channel| channel.unpaid_bytes_now),
        );
        let help = "Billable bytes, as the tables say.";
        self.counter("channel_bytes", help, of(|channel| channel.usage_bytes));
    }

    fn sessions(&mut self, sessions: &[SessionReport]) {
        let bytes = sessions.iter().filter_map(|report| {
            let traffic = report.traffic.as_ref()?;
            let labels = |direction: &str| {
                vec![
                    ("session", report.session.to_string()),
                    ("direction", direction.to_owned()),
                ]
            };
            Some([
                (labels("up"), traffic.up_bytes),
                (labels("down"), traffic.down_bytes),
            ])
        });
        let help = "Billable bytes of a session.";
        self.counter("session_bytes", help, bytes.flatten());
    }

    /// A gauge without labels.
    fn level(&mut self, name: &str, help: &str, value: u64) {
        let gauge = Gauge::<u64, AtomicU64>::default();
        gauge.set(value);
        self.0.register(name, help.trim_end_matches('.'), gauge);
    }

    /// A counter without labels.
    fn total(&mut self, name: &str, help: &str, value: u64) {
        let counter: Counter = Counter::default();
        counter.inc_by(value);
        self.0.register(name, help.trim_end_matches('.'), counter);
    }

    fn gauge(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, u64)>) {
        let family = Family::<Labels, Gauge<u64, AtomicU64>>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(value);
        }
        self.0.register(name, help.trim_end_matches('.'), family);
    }

    fn counter(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, u64)>) {
        let family = Family::<Labels, Counter>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).inc_by(value);
        }
        self.0.register(name, help.trim_end_matches('.'), family);
    }

    fn latency(&mut self, name: &str, help: &str, latency: &Latency) {
        let family = Family::<Labels, Float>::default();
        let quantiles = [
            ("0.5", latency.p50),
            ("0.99", latency.p99),
            ("0.999", latency.p999),
            ("1", latency.max),
        ];
        for (quantile, micros) in quantiles {
            let labels = vec![("quantile", quantile.to_owned())];
            let seconds = micros as f64 / MICROS_PER_SECOND;
            family.get_or_create(&labels).set(seconds);
        }
        self.0.register(name, help.trim_end_matches('.'), family);
    }
}

#[cfg(test)]
mod tests {
    use topnet_account::{Amount, ChannelId};
    use topnet_api::{ArchiveStatus, DataplaneReport, DropCount, HandoverStatus, IoStatus};

    use super::*;

    #[test]
    fn the_page_tells_the_exposure_and_what_each_channel_owes() {
        let channel = ChannelStatus {
            channel: ChannelId([9; 32]),
            metered_bytes: 5,
            usage_bytes: 6,
            owed_units: 7,
            accepted_units: 8,
            written_off_units: 0,
            window_units: 1,
            window_units_max: 1,
            payer_bytes: 5,
            unpaid_bytes_now: 11,
            unpaid_bytes: 12,
            redeemable: Amount::ZERO,
            unbacked: Amount::ZERO,
            state: "open".to_owned(),
            reason: None,
            connected: true,
        };
        let status = ProviderStatus {
            payee: None,
            processes: Vec::new(),
            dataplane: Some(DataplaneReport {
                boot: String::new(),
                uptime_s: 1,
                io: IoStatus::default(),
                revision: 1,
                drops: vec![DropCount {
                    reason: "nat_flows_full".to_owned(),
                    packets: 21,
                }],
                ring_overflows: 0,
                passed_packets: 0,
                nat: Some(NatStatus {
                    blocks: 22,
                    blocks_lent: 23,
                    blocks_resting: 24,
                    clients: 25,
                    mappings: 26,
                    mappings_max: 27,
                    flows: 28,
                    flows_max: 29,
                    refused: Vec::new(),
                }),
            }),
            metering: Some(MeteringStatus {
                identity: topnet_account::PublicKey([1; 32]),
                dataplane_boot: None,
                connections: 2,
                channels: 3,
                tokens: 4,
                refusals: 0,
                written_off_units: 0,
                records: 0,
                ring_waiting: 0,
                commits: 0,
                commit_us: Latency {
                    p99: 1500,
                    ..Latency::default()
                },
                unit_us: Latency::default(),
                unpaid_bytes_now: 11,
                unbacked: Amount::from_ntop(13),
                journal_fault: Some("full".to_owned()),
                frozen: None,
                archive: ArchiveStatus {
                    waiting_segments: 5,
                    archived_segments: 6,
                    problem: Some("full".to_owned()),
                },
            }),
            chains: Vec::new(),
            sessions: 1,
            revision: 0,
            closing: Vec::new(),
            towers: vec![HandoverStatus {
                url: "http://tower".to_owned(),
                unconfirmed: 13,
                confirmed_ms: None,
                problem: None,
            }],
            unpaid_bytes: 11,
        };
        let page = page(&status, &[channel], &[]);
        let id = format!("0x{}", "09".repeat(32));
        for line in [
            "topnet_unpaid_bytes 11".to_owned(),
            "topnet_unbacked_ntop 13".to_owned(),
            "topnet_tokens_total 4".to_owned(),
            "topnet_dropped_packets_total{reason=\"nat_flows_full\"} 21".to_owned(),
            "topnet_nat_blocks 22".to_owned(),
            "topnet_nat_lent_blocks 23".to_owned(),
            "topnet_nat_resting_blocks 24".to_owned(),
            "topnet_nat_clients 25".to_owned(),
            "topnet_nat_mappings 26".to_owned(),
            "topnet_nat_mappings_max 27".to_owned(),
            "topnet_nat_flows 28".to_owned(),
            "topnet_nat_flows_max 29".to_owned(),
            "topnet_journal_faulty 1".to_owned(),
            "topnet_tower_unconfirmed_claims{tower=\"http://tower\"} 13".to_owned(),
            "topnet_log_segments_waiting 5".to_owned(),
            "topnet_log_archive_faulty 1".to_owned(),
            "topnet_log_segments_archived_total 6".to_owned(),
            "topnet_journal_commit_seconds{quantile=\"0.99\"} 0.0015".to_owned(),
            format!("topnet_channel_owed_units_total{{channel=\"{id}\"}} 7"),
            "# EOF".to_owned(),
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
    }
}
