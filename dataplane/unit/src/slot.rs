//! Names of slots and of a data plane's runs.

use std::{fmt, str::FromStr};

/// A channel's place in one data plane's tables: the index and which use of it this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// Index into the tables; 0 is never used.
    pub index: u32,
    /// Use of the index, from 1.
    pub generation: u32,
}

/// The random name of one run of a data plane: its tables begin at zero and end with it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootId(pub [u8; 16]);

/// Text that is not a boot id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a boot id: expected 32 hex digits")]
pub struct BootIdError(String);

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for BootId {
    type Err = BootIdError;

    fn from_str(text: &str) -> Result<Self, BootIdError> {
        let error = || BootIdError(text.chars().take(80).collect());
        let well_formed = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let number = u128::from_str_radix(text, 16).map_err(|_| error())?;
        if well_formed {
            Ok(Self(number.to_be_bytes()))
        } else {
            Err(error())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_id_round_trips() {
        let boot = BootId(std::array::from_fn(|i| i as u8 * 7));
        assert_eq!(boot.to_string().parse(), Ok(boot));
        for text in [
            "",
            "00",
            "+0000000000000000000000000000000",
            &format!("{boot}0"),
        ] {
            assert!(text.parse::<BootId>().is_err(), "{text}");
        }
    }
}
