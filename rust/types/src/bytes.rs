//! Sizes as people write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// A number of bytes. Parses `"2GB"`, `"512 MiB"`, `"4096"`; prints the same way.
///
/// `KB`, `MB`, `GB` and `TB` mean powers of 1024, as memory sizes do in this field; `KiB` and so on
/// are accepted with the same meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteCount(u64);

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ByteCountError {
    /// The number cannot be read.
    #[error("{text:?} is not a size: want a number and an optional unit, such as \"2GB\" or \"512MiB\"")]
    NotANumber {
        /// What was given.
        text: String,
    },
    /// The unit is not known.
    #[error("{text:?}: unknown unit {unit:?}; known units are B, KB, MB, GB, TB (or KiB, MiB, GiB, TiB)")]
    UnknownUnit {
        /// What was given.
        text: String,
        /// The part after the number.
        unit: String,
    },
    /// More bytes than fit in 64 bits.
    #[error("{text:?} is more than {} bytes", u64::MAX)]
    TooLarge {
        /// What was given.
        text: String,
    },
}

const UNITS: [(&str, u32); 4] = [("TB", 40), ("GB", 30), ("MB", 20), ("KB", 10)];

impl ByteCount {
    /// This many bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteCount {
    type Err = ByteCountError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let number = number.replace('_', "");
        let normal = unit.trim().to_ascii_uppercase().replace("IB", "B");
        let shift = match normal.as_str() {
            "" | "B" => 0,
            "K" | "KB" => 10,
            "M" | "MB" => 20,
            "G" | "GB" => 30,
            "T" | "TB" => 40,
            _ => {
                return Err(ByteCountError::UnknownUnit { text: text.to_owned(), unit: unit.trim().to_owned() });
            }
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((&number, ""));
        let not_a_number = || ByteCountError::NotANumber { text: text.to_owned() };
        let too_large = || ByteCountError::TooLarge { text: text.to_owned() };
        let whole: u64 =
            if whole.is_empty() && !fraction.is_empty() { 0 } else { whole.parse().map_err(|_| not_a_number())? };
        let mut bytes = whole.checked_mul(1 << shift).ok_or_else(too_large)?;
        if !fraction.is_empty() {
            let digits = u32::try_from(fraction.len()).ok().filter(|digits| *digits <= 9).ok_or_else(not_a_number)?;
            let part: u64 = fraction.parse().map_err(|_| not_a_number())?;
            let part = u128::from(part) * (1u128 << shift) / 10u128.pow(digits);
            bytes = u64::try_from(part).ok().and_then(|part| bytes.checked_add(part)).ok_or_else(too_large)?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, shift) in UNITS {
            if self.0 != 0 && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl Serialize for ByteCount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteCount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Number(u64),
            Text(String),
        }
        match Raw::deserialize(deserializer)? {
            Raw::Number(bytes) => Ok(Self(bytes)),
            Raw::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, bytes) in [
            ("4096", 4096),
            ("2GB", 2 << 30),
            ("512 MiB", 512 << 20),
            ("1.5k", 1536),
            (".5MB", 512 << 10),
            ("1_000", 1000),
            ("0", 0),
        ] {
            assert_eq!(text.parse::<ByteCount>(), Ok(ByteCount::new(bytes)), "{text}");
        }
    }

    #[test]
    fn names_what_it_cannot_read() {
        let unit = "2 parsecs".parse::<ByteCount>().unwrap_err();
        assert!(unit.to_string().contains("parsecs"), "{unit}");
        assert!(matches!("GB".parse::<ByteCount>(), Err(ByteCountError::NotANumber { .. })));
        assert!(matches!("99999999TB".parse::<ByteCount>(), Err(ByteCountError::TooLarge { .. })));
        assert!(matches!("-1".parse::<ByteCount>(), Err(ByteCountError::UnknownUnit { .. })));
    }

    #[test]
    fn prints_what_it_reads() {
        for bytes in [0, 1, 1023, 1024, 5 << 20, 3 << 30, 7 << 40, (1 << 30) + 1] {
            let count = ByteCount::new(bytes);
            assert_eq!(count.to_string().parse::<ByteCount>(), Ok(count));
        }
    }
}
