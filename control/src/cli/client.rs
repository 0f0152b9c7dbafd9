//! The RPC that a command asks.

use std::{net::SocketAddr, time::Duration};

use jsonrpsee::{core::ClientError, http_client::HttpClient};
use topnet_config::Config;

use super::{arguments::Options, error::CliError};

/// A close waits for the data plane, metering and settlement in turn.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
const ANSWER_BYTES_MAX: u32 = 16 << 20;

/// An RPC and its name in errors.
pub(super) struct Rpc {
    pub(super) url: String,
    pub(super) client: HttpClient,
}

impl Rpc {
    /// The operator's listener: `--rpc`, or what `[control]` says.
    pub(super) fn operator(options: &Options) -> Result<Self, CliError> {
        match &options.rpc {
            Some(url) => Self::at(url),
            None => {
                let config = Config::load(&options.config)?;
                Self::at(&url_of(config.control()?.operator_listen))
            }
        }
    }

    /// A listener with the public methods: `--rpc`, or what `[wallet]` says, or our own.
    pub(super) fn public(options: &Options) -> Result<Self, CliError> {
        if let Some(url) = &options.rpc {
            return Self::at(url);
        }
        let config = Config::load(&options.config)?;
        match &config.wallet {
            Some(wallet) => Self::at(&wallet.rpc_url),
            None => Self::at(&url_of(config.control()?.operator_listen)),
        }
    }

    fn at(url: &str) -> Result<Self, CliError> {
        let client = HttpClient::builder()
            .request_timeout(REQUEST_TIMEOUT)
            .max_response_size(ANSWER_BYTES_MAX)
            .build(url)
            .map_err(|error| CliError::rpc(url, error))?;
        Ok(Self {
            url: url.to_owned(),
            client,
        })
    }

    /// Gives an answer, or says what went wrong at this RPC.
    pub(super) fn check<T>(&self, answer: Result<T, ClientError>) -> Result<T, CliError> {
        answer.map_err(|error| CliError::rpc(&self.url, error))
    }

    /// Takes where a page has ended, which must be behind the one before: an RPC that gives the
    /// same again would be asked for ever.
    pub(super) fn advance<P: PartialOrd>(
        &self,
        place: &mut Option<P>,
        end: P,
    ) -> Result<(), CliError> {
        if place.as_ref().is_some_and(|place| end <= *place) {
            return Err(CliError::new(
                "rpc_repeats",
                format!("{} gives a page again that it has given before", self.url),
                "name another RPC with --rpc",
            ));
        }
        *place = Some(end);
        Ok(())
    }
}

fn url_of(address: SocketAddr) -> String {
    format!("http://{address}")
}
