//! An amount of money, in nTOP, that refuses to wrap.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// nTOP in one TOP.
pub const NTOP_PER_TOP: u64 = 1_000_000_000;

/// An amount of nTOP (10⁻⁹ TOP). All arithmetic is checked; JSON carries it as a
/// decimal string of nTOP, because a JavaScript number cannot hold a `u64`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema)]
#[schemars(example = Amount(1_500_000_000))]
pub struct Amount(#[schemars(with = "String", regex(pattern = "^(0|[1-9][0-9]{0,19})$"))] u64);

/// An amount that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// The text is neither a whole number of nTOP nor `N TOP` with at most nine decimals.
    #[error("`{0}` is not an amount: write whole nTOP (\"1500\") or TOP (\"1.5TOP\")")]
    Malformed(String),
}

impl Amount {
    /// No money.
    pub const ZERO: Self = Self(0);
    /// The most that can be named.
    pub const MAX: Self = Self(u64::MAX);

    /// An amount of `ntop` nTOP.
    pub const fn from_ntop(ntop: u64) -> Self {
        Self(ntop)
    }

    /// The amount in nTOP.
    pub const fn ntop(self) -> u64 {
        self.0
    }

    /// True if there is no money here.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The sum, or `None` if it cannot be named.
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// The difference, or `None` if `other` is more than this.
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(difference) => Some(Self(difference)),
            None => None,
        }
    }

    /// This price times a number of units, or `None` if it cannot be named.
    pub const fn checked_mul(self, units: u64) -> Option<Self> {
        match self.0.checked_mul(units) {
            Some(product) => Some(Self(product)),
            None => None,
        }
    }

    /// The sum of all, or `None` if it cannot be named.
    pub fn checked_sum(amounts: impl IntoIterator<Item = Self>) -> Option<Self> {
        amounts.into_iter().try_fold(Self::ZERO, Self::checked_add)
    }
}

impl fmt::Display for Amount {
    /// Writes TOP with as many decimals as are needed: `1.5 TOP`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / NTOP_PER_TOP, self.0 % NTOP_PER_TOP);
        if rest == 0 {
            return write!(f, "{whole} TOP");
        }
        let decimals = format!("{rest:09}");
        write!(f, "{whole}.{} TOP", decimals.trim_end_matches('0'))
    }
}

impl FromStr for Amount {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Self, AmountError> {
        let malformed = || AmountError::Malformed(text.to_owned());
        let digits_only = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        let Some(top) = text.strip_suffix("TOP") else {
            if text.is_empty() || !digits_only(text) {
                return Err(malformed());
            }
            return text.parse().map(Self).map_err(|_| malformed());
        };
        let top = top.trim_end();
        let (whole, decimals) = top.split_once('.').unwrap_or((top, "0"));
        let well_formed = !whole.is_empty()
            && (1..=9).contains(&decimals.len())
            && digits_only(whole)
            && digits_only(decimals);
        if !well_formed {
            return Err(malformed());
        }
        let whole: u64 = whole.parse().map_err(|_| malformed())?;
        let rest: u64 = format!("{decimals:0<9}").parse().map_err(|_| malformed())?;
        whole
            .checked_mul(NTOP_PER_TOP)
            .and_then(|ntop| ntop.checked_add(rest))
            .map(Self)
            .ok_or_else(malformed)
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_nonsense_is_refused() {
        let cases = [
            ("0", Some(0)),
            ("1500", Some(1_500)),
            ("1TOP", Some(NTOP_PER_TOP)),
            ("1.5 TOP", Some(1_500_000_000)),
            ("0.000000001TOP", Some(1)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("18446744074TOP", None),
            ("0.0000000001TOP", None),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            (".5TOP", None),
            ("", None),
            ("TOP", None),
        ];
        for (text, ntop) in cases {
            assert_eq!(
                text.parse::<Amount>().ok().map(Amount::ntop),
                ntop,
                "{text}"
            );
        }
        for ntop in [0, 1, 999_999_999, 1_000_000_000, u64::MAX] {
            let amount = Amount::from_ntop(ntop);
            assert_eq!(amount.to_string().parse(), Ok(amount));
        }
    }

    #[test]
    fn arithmetic_refuses_to_wrap() {
        assert_eq!(Amount::MAX.checked_add(Amount::from_ntop(1)), None);
        assert_eq!(Amount::ZERO.checked_sub(Amount::from_ntop(1)), None);
        assert_eq!(Amount::MAX.checked_mul(2), None);
        assert_eq!(
            Amount::checked_sum([Amount::MAX, Amount::from_ntop(1)]),
            None
        );
    }
}
