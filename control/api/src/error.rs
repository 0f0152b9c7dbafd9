//! The one error that a request to another process can be answered with.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// JSON-RPC's code of every error that has an [`ApiError`] as its data.
pub const REFUSED: i32 = -32_000;

/// A refused request: a code for programs, what is wrong, and the mend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{what} ({code}); {mend}")]
pub struct ApiError {
    /// Stable, snake_case.
    pub code: String,
    /// What was wrong, naming the thing.
    pub what: String,
    /// What the caller can do about it.
    pub mend: String,
}

impl ApiError {
    /// An error with all three parts.
    pub fn new(code: &str, what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            what: what.into(),
            mend: mend.into(),
        }
    }
}
