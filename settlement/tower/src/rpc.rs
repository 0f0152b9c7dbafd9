//! The methods that a tower answers, and whoever brings it claims.

use std::time::Duration;

use jsonrpsee::{
    core::ClientError,
    http_client::{HttpClient, HttpClientBuilder},
    proc_macros::rpc,
    types::ErrorObjectOwned,
};
use topnet_account::ChannelId;
use topnet_api::{ApiError, ClaimReport, HeldClaim, HoldReport, REFUSED, TowerStatus};

/// Claims in one request, at most.
pub const CLAIMS_PER_REQUEST_MAX: usize = 64;
/// Length of a request, at most; so many claims take less than half.
pub const REQUEST_BYTES_MAX: u32 = 256 << 10;

/// A tower writes to its disk, and may have to ask a node about every claim.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const ANSWER_BYTES_MAX: u32 = 4 << 20;

/// What a tower answers, to anybody.
#[rpc(server, client)]
pub trait Tower {
    /// Holds those of the claims that are better than what is held, and makes them in time. They
    /// are on disk when this answers. Repeating it changes nothing.
    #[method(name = "hold")]
    async fn hold(&self, claims: Vec<HeldClaim>) -> Result<HoldReport, ErrorObjectOwned>;

    /// Claims that are held, in the order of their channels: those behind `after`, at most a
    /// thousand in an answer.
    #[method(name = "claims")]
    async fn claims(&self, after: Option<ChannelId>) -> Result<Vec<ClaimReport>, ErrorObjectOwned>;

    /// The tower at a glance.
    #[method(name = "status")]
    async fn status(&self) -> Result<TowerStatus, ErrorObjectOwned>;
}

/// A tower elsewhere, for whoever brings it claims.
#[derive(Clone, Debug)]
pub struct RemoteTower {
    /// Its RPC.
    pub url: String,
    client: HttpClient,
}

impl RemoteTower {
    /// The tower at `url`; an error if that is no address. Nothing is connected yet.
    pub fn new(url: &str) -> Result<Self, String> {
        let client = HttpClientBuilder::default()
            .request_timeout(REQUEST_TIMEOUT)
            .max_response_size(ANSWER_BYTES_MAX)
            .build(url);
        Ok(Self {
            url: url.to_owned(),
            client: client.map_err(|error| error.to_string())?,
        })
    }

    /// Brings claims, at most [`CLAIMS_PER_REQUEST_MAX`]; an error says what is wrong with the
    /// tower or the way there.
    pub async fn hold(&self, claims: Vec<HeldClaim>) -> Result<HoldReport, String> {
        let answer = TowerClient::hold(&self.client, claims).await;
        answer.map_err(|error| match refusal(&error) {
            Some(refusal) => refusal.to_string(),
            None => error.to_string(),
        })
    }
}

/// A refusal as JSON-RPC has it.
pub(crate) fn refused(error: ApiError) -> ErrorObjectOwned {
    ErrorObjectOwned::owned(REFUSED, error.to_string(), Some(error))
}

/// What whoever was asked has refused; `None` if nobody has answered, or nobody who knows the
/// method.
pub(crate) fn refusal(error: &ClientError) -> Option<ApiError> {
    let ClientError::Call(error) = error else {
        return None;
    };
    let data = error.data()?;
    serde_json::from_str(data.get()).ok()
}

#[cfg(test)]
mod tests {
    use topnet_account::Hash;
    use topnet_api::ClaimBytes;
    use topnet_channel::SIGNED_VOUCHER_BYTES;

    use super::*;

    #[test]
    fn the_most_claims_fit_into_a_request() {
        let claim = HeldClaim {
            channel: ChannelId([255; 32]),
            claim: ClaimBytes {
                voucher: vec![255; SIGNED_VOUCHER_BYTES],
                index: u16::MAX,
                preimage: [255; 32],
                log_root: Hash([255; 32]),
            },
        };
        let claims = vec![claim; CLAIMS_PER_REQUEST_MAX];
        let bytes = serde_json::to_vec(&claims).unwrap().len();
        assert!(bytes < REQUEST_BYTES_MAX as usize / 2, "{bytes}");
    }
}
