//! Messages between processes and to Dapps.
//!
//! Between processes: one typed service per process, on one Unix socket each. To Dapps and
//! operators: the values of the JSON-RPC methods, which control serves.
//!
//! Every request may be repeated: installation is declarative, totals are cumulative,
//! submission is idempotent. A process that restarts is asked again and answers anew.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod capture;
mod dataplane;
mod error;
mod history;
mod market;
mod metering;
mod operator;
mod public;
mod settlement;
mod socket;
mod tower;

pub use capture::{
    CAPTURE_ALL, CAPTURE_PEER, CAPTURE_REFUSED, CaptureRecord, PCAP_HEADER_BYTES,
    PCAP_RECORD_BYTES, pcap_header,
};
pub use dataplane::{
    Assignment, Assignments, Dataplane, DataplaneClient, DataplaneStatus, DesiredSession,
    DesiredSessions, DropCount, InstallReport, InstalledSession, IoStatus, NatStatus,
    SessionStatus, SlotState,
};
pub use error::{ApiError, REFUSED};
pub use history::{
    BatchView, BlockHeader, BlockSummary, BlockView, ExecutedTransaction, HistoryEntry,
    HistoryPlace,
};
pub use market::{MarketOffer, NewOffer, OfferTerms};
pub use metering::{
    ArchiveStatus, ChannelStatus, ClaimBytes, FinalClaim, Latency, Metering, MeteringClient,
    MeteringStatus,
};
pub use operator::{
    ChannelReport, DataplaneReport, ProcessReport, ProviderStatus, SessionReport, SessionTraffic,
};
pub use public::{
    ChainReport, HexBytes, Offer, PaymentEndpoint, SessionAction, SessionGrant, SessionId,
    SessionRequest, SessionStopped, WireguardConfig, WireguardKeyError, WireguardPublicKey,
};
pub use settlement::{
    AccountView, BlockRef, ChainName, ChainParameters, ChainTip, ChannelState, ChannelView,
    ClaimReport, ClaimStage, CloseProgress, DayEarnings, HeldClaim, HostedService, HostedState,
    NewService, PaidClaim, RecoverySubject, ServiceView, Settlement, SettlementClient, StateProof,
    SubmittedTransaction, TransactionStatus,
};
pub use socket::{ConnectError, REQUEST_BYTES_MAX, SocketName, connect, listen, serve_connections};
pub use topnet_account::StateSubject;
pub use tower::{HandoverStatus, HoldReport, NodeStatus, RefusedClaim, TowerStatus};
