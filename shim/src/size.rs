//! Amounts of memory and processors as people write them.

use std::fmt;
use std::str::FromStr;

/// A number of bytes. Reads `512m`, `1g`, `1.5g`, `67108864`, as Docker does:
/// binary multiples, either case, an optional final `b` or `ib`.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// So many MiB.
    #[must_use]
    pub const fn mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    /// Rounded up to a multiple of `unit`, which is a power of two.
    #[must_use]
    pub const fn round_up(self, unit: Self) -> Self {
        Self(self.0.saturating_add(unit.0 - 1) & !(unit.0 - 1))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, shift) in [("GiB", 30), ("MiB", 20), ("KiB", 10)] {
            let size = 1_u64 << shift;
            if self.0 >= size {
                let (whole, tenth) = (self.0 / size, self.0 % size * 10 / size);
                return if tenth == 0 {
                    write!(f, "{whole} {unit}")
                } else {
                    write!(f, "{whole}.{tenth} {unit}")
                };
            }
        }
        write!(f, "{} B", self.0)
    }
}

/// A text that is no amount of memory.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{text:?} is not an amount of memory: write a number and b, k, m or g, such as 512m")]
pub struct BadByteSize {
    text: String,
}

impl FromStr for ByteSize {
    type Err = BadByteSize;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadByteSize { text: text.into() };
        let lower = text.trim().to_ascii_lowercase();
        let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match lower.get(digits.len()..).unwrap_or_default() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(bad()),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        if !whole
            .bytes()
            .chain(fraction.bytes())
            .all(|b| b.is_ascii_digit())
            || whole.is_empty()
        {
            return Err(bad());
        }
        let unit = 1_u64 << shift;
        let scaled = |digits: &str, divisor: u128| {
            let number = digits.parse::<u128>().ok()?;
            number.checked_mul(u128::from(unit))?.checked_div(divisor)
        };
        let places = u32::try_from(fraction.len()).map_err(|_| bad())?;
        let divisor = 10_u128.checked_pow(places).ok_or_else(bad)?;
        let bytes = scaled(&format!("{whole}{fraction}"), divisor)
            .and_then(|bytes| u64::try_from(bytes).ok())
            .ok_or_else(bad)?;
        Ok(Self(bytes))
    }
}

/// Processors in thousandths: `2`, `0.5`, `1.25`.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Cpus(pub u32);

/// Most processors that a guest can have.
pub const MAX_CPUS: u8 = 64;

impl Cpus {
    /// One processor.
    pub const ONE: Self = Self(1000);

    /// Whole processors that are needed to give so much.
    #[must_use]
    pub fn vcpus(self) -> u8 {
        u8::try_from(self.0.div_ceil(1000))
            .unwrap_or(MAX_CPUS)
            .clamp(1, MAX_CPUS)
    }

    /// Quota in microseconds per period of 100 ms, when it is not just the
    /// whole of [`Cpus::vcpus`].
    #[must_use]
    pub fn quota(self) -> Option<i64> {
        (!self.0.is_multiple_of(1000)).then(|| i64::from(self.0) * 100)
    }
}

/// A text that is no number of processors.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{text:?} is not a number of processors: write 0.01 to {MAX_CPUS}, such as 2 or 0.5")]
pub struct BadCpus {
    text: String,
}

impl FromStr for Cpus {
    type Err = BadCpus;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadCpus { text: text.into() };
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let all_digits = whole
            .bytes()
            .chain(fraction.bytes())
            .all(|b| b.is_ascii_digit());
        if !all_digits || (whole.is_empty() && fraction.is_empty()) || fraction.len() > 3 {
            return Err(bad());
        }
        let whole: u32 = if whole.is_empty() {
            0
        } else {
            whole.parse().map_err(|_| bad())?
        };
        let thousandths: u32 = format!("{fraction:0<3}").parse().map_err(|_| bad())?;
        let cpus = whole
            .checked_mul(1000)
            .and_then(|w| w.checked_add(thousandths));
        cpus.filter(|cpus| (10..=u32::from(MAX_CPUS) * 1000).contains(cpus))
            .map(Self)
            .ok_or_else(bad)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("67108864", 67_108_864)]
    #[case("64m", 64 << 20)]
    #[case("64MiB", 64 << 20)]
    #[case("1.5g", 3 << 29)]
    #[case("512k", 512 << 10)]
    #[case("0", 0)]
    fn byte_size_reads(#[case] text: &str, #[case] bytes: u64) {
        assert_eq!(text.parse(), Ok(ByteSize(bytes)));
    }

    #[rstest]
    #[case("")]
    #[case("m")]
    #[case("-1m")]
    #[case("1x")]
    #[case("1 m x")]
    #[case("99999999999999g")]
    #[case("1.m.2")]
    fn byte_size_refuses(#[case] text: &str) {
        assert!(text.parse::<ByteSize>().is_err());
    }

    #[test]
    fn byte_size_prints_for_people() {
        assert_eq!(ByteSize::mib(64).to_string(), "64 MiB");
        assert_eq!(ByteSize(3 << 29).to_string(), "1.5 GiB");
        assert_eq!(ByteSize(12).to_string(), "12 B");
    }

    #[rstest]
    #[case("1", 1, None)]
    #[case("2", 2, None)]
    #[case("0.5", 1, Some(50_000))]
    #[case("1.25", 2, Some(125_000))]
    #[case(".5", 1, Some(50_000))]
    #[case("64", 64, None)]
    fn cpus_read(#[case] text: &str, #[case] vcpus: u8, #[case] quota: Option<i64>) {
        let cpus: Cpus = text.parse().unwrap();
        assert_eq!((cpus.vcpus(), cpus.quota()), (vcpus, quota));
    }

    #[rstest]
    #[case("")]
    #[case(".")]
    #[case("0")]
    #[case("-1")]
    #[case("65")]
    #[case("1e3")]
    #[case("4294968")]
    fn cpus_refuse(#[case] text: &str) {
        assert!(text.parse::<Cpus>().is_err());
    }
}
