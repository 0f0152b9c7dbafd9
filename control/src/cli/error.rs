//! What a command ends with when it fails: code, what, mend.

use jsonrpsee::core::ClientError;
use topnet_api::ApiError;
use topnet_config::ConfigError;

/// A failed command; the same shape as an error over RPC.
#[derive(Clone, Debug)]
pub(super) struct CliError(pub(super) ApiError);

impl CliError {
    pub(super) fn new(code: &str, what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self(ApiError::new(code, what, mend))
    }

    /// What RPC at `url` answered, or why it did not.
    pub(super) fn rpc(url: &str, error: ClientError) -> Self {
        match error {
            ClientError::Call(error) => {
                let data = error
                    .data()
                    .and_then(|data| serde_json::from_str(data.get()).ok());
                Self(data.unwrap_or_else(|| {
                    ApiError::new(
                        "rpc_refused",
                        format!("{url} refused the request: {}", error.message()),
                        "is it the right listener? the operator's methods are on 127.0.0.1:8546",
                    )
                }))
            }
            ClientError::RequestTimeout => Self::new(
                "rpc_timeout",
                format!("{url} did not answer in time"),
                "look at the log of topnet-control; the request may be repeated",
            ),
            error => Self::new(
                "rpc_unreachable",
                format!("RPC at {url} cannot be reached: {}", with_causes(&error)),
                "start it with `topnet run control`, or name another with --rpc",
            ),
        }
    }

    /// The system refused something about `path`.
    pub(super) fn file(path: &std::path::Path, error: impl std::fmt::Display) -> Self {
        Self::new(
            "file",
            format!("{}: {error}", path.display()),
            "correct the path, or its permissions",
        )
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        Self::new("config", error.to_string(), "correct the configuration")
    }
}

impl From<topnet_archive::ArchiveError> for CliError {
    fn from(error: topnet_archive::ArchiveError) -> Self {
        Self::new(error.code(), error.what(), error.mend())
    }
}

impl From<topnet_wallet::chain::RpcError> for CliError {
    fn from(error: topnet_wallet::chain::RpcError) -> Self {
        use topnet_wallet::chain::RpcError;
        match error {
            RpcError::Refused(error) => Self(error),
            error @ RpcError::Unreachable { .. } => Self::new(
                "rpc_unreachable",
                error.to_string(),
                "check [wallet] rpc_url, or name another RPC with --rpc",
            ),
            error @ RpcError::NotFinal { .. } => Self::new(
                "timeout",
                error.to_string(),
                "look again with `topnet tx show`, or wait longer with --timeout",
            ),
        }
    }
}

impl From<ApiError> for CliError {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !words.contains(&next) {
            words = format!("{words}: {next}");
        }
        cause = error.source();
    }
    words
}
