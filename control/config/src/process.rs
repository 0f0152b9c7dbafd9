//! The processes that one configuration is for.

use std::{fmt, str::FromStr};

/// A process of a provider, or of a tower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Process {
    /// The fast path; the only one with network privileges.
    Dataplane,
    /// The payee.
    Metering,
    /// The chains.
    Settlement,
    /// RPC and sessions.
    Control,
    /// Other machines' claims.
    Tower,
}

impl Process {
    /// Every process.
    pub const ALL: [Self; 5] = [
        Self::Dataplane,
        Self::Metering,
        Self::Settlement,
        Self::Control,
        Self::Tower,
    ];

    /// As in `topnet run NAME` and `topnet-NAME`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dataplane => "dataplane",
            Self::Metering => "metering",
            Self::Settlement => "settlement",
            Self::Control => "control",
            Self::Tower => "tower",
        }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Process {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|process| process.name() == text)
            .ok_or_else(|| {
                let names = Self::ALL.map(Self::name).join(", ");
                format!("there is no process `{text}`; there are {names}")
            })
    }
}
