//! `--since`: a day, a moment, or a while ago.

use std::{
    str::FromStr,
    time::{SystemTime, UNIX_EPOCH},
};

/// A moment, in milliseconds since 1970.
pub(crate) fn ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Now, in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    ms(SystemTime::now())
}

const DAY_MS: u64 = 86_400_000;

/// From when on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    /// Milliseconds before now.
    Ago(u64),
    /// Milliseconds since 1970.
    At(u64),
}

impl Since {
    /// The moment, seen from `now_ms`.
    pub(crate) fn before(self, now_ms: u64) -> u64 {
        match self {
            Self::Ago(ms) => now_ms.saturating_sub(ms),
            Self::At(ms) => ms,
        }
    }
}

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        ago(text)
            .map(Self::Ago)
            .or_else(|| at(text).map(Self::At))
            .ok_or_else(|| {
                format!(
                    "`{text}` is no time: write 30m, 24h or 7d, or 2026-11-25, or \
                     2026-11-25T13:00:00Z (UTC)"
                )
            })
    }
}

fn ago(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit_ms = match unit {
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => DAY_MS,
        _ => return None,
    };
    let digits = number.bytes().all(|byte| byte.is_ascii_digit());
    number
        .parse::<u64>()
        .ok()
        .filter(|_| digits)?
        .checked_mul(unit_ms)
}

/// RFC 3339 in UTC, to the second; or its date alone.
fn at(text: &str) -> Option<u64> {
    let (date, time) = text.split_once('T').unwrap_or((text, "00:00:00Z"));
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(time.strip_suffix('Z')?, ':')?;
    let months = [
        31,
        28 + u64::from(is_leap(year)),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    let in_month = *months.get(usize::try_from(month.checked_sub(1)?).ok()?)?;
    let fits = (1970..=9999).contains(&year)
        && (1..=in_month).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !fits {
        return None;
    }
    let years: u64 = (1970..year)
        .map(|year| 365 + u64::from(is_leap(year)))
        .sum();
    let before: u64 = months[..month as usize - 1].iter().sum();
    let seconds = hour * 3_600 + minute * 60 + second;
    Some((years + before + day - 1) * DAY_MS + seconds * 1_000)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn numbers(text: &str, separator: char) -> Option<[u64; 3]> {
    let mut parts = text.split(separator).map(|part| {
        let digits = part.bytes().all(|byte| byte.is_ascii_digit());
        part.parse().ok().filter(|_| digits)
    });
    let numbers = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let cases = [
            ("30m", Some(Since::Ago(1_800_000))),
            ("24h", Some(Since::Ago(DAY_MS))),
            ("7d", Some(Since::Ago(7 * DAY_MS))),
            ("1970-01-01", Some(Since::At(0))),
            ("2000-03-01", Some(Since::At(951_868_800_000))),
            ("2026-11-25T13:00:01Z", Some(Since::At(1_795_611_601_000))),
            ("2026-02-29", None),
            ("2024-02-29", Some(Since::At(1_709_164_800_000))),
            ("2026-13-01", None),
            ("2026-00-01", None),
            ("2026-11-25T24:00:00Z", None),
            ("2026-11-25T13:00:01", None),
            ("99999999999999999999d", None),
            ("+3d", None),
            ("é", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse().ok(), expected, "{text}");
        }
        assert_eq!(Since::Ago(5).before(3), 0);
        assert_eq!(Since::Ago(5).before(9), 4);
    }
}
