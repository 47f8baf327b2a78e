//! Values as people write them in a configuration file: sizes, durations, names, addresses.
//!
//! A [`Given`] value is read from text (or, for sizes, from a plain number) and remembers nothing else; what was
//! expected is part of its type, so every mistake can say it.

use std::{fmt, marker::PhantomData, net::SocketAddr, time::Duration};

use seaway_federation_proto::{
    envelope::Codec,
    ids::{NodeName, Pattern, Site, Topic},
    replication::WantStart,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A type that is written as text in the configuration.
pub trait FromText: Sized {
    /// What is expected, as the end of "… is expected": `a size such as "64 MiB"`.
    const EXPECTED: &'static str;
    /// Reads it; the error is a reason without the value.
    fn from_text(text: &str) -> Result<Self, String>;
    /// Writes it so that [`FromText::from_text`] reads it back.
    fn to_text(&self) -> String;
    /// Reads a plain number, where a number without a unit is clear.
    fn from_number(_number: u64) -> Option<Self> {
        None
    }
}

/// A value given in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given<T>(pub T);

struct GivenVisitor<T>(PhantomData<T>);

impl<T: FromText> de::Visitor<'_> for GivenVisitor<T> {
    type Value = Given<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Given<T>, E> {
        T::from_text(text).map(Given).map_err(|reason| {
            let found = format!("{:?}", text.chars().take(80).collect::<String>());
            E::invalid_value(de::Unexpected::Other(&found), &Expected::<T>(reason, PhantomData))
        })
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Given<T>, E> {
        T::from_number(number).map(Given).ok_or_else(|| E::invalid_type(de::Unexpected::Unsigned(number), &self))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Given<T>, E> {
        match u64::try_from(number) {
            Ok(number) => self.visit_u64(number),
            Err(_) => Err(E::invalid_type(de::Unexpected::Signed(number), &self)),
        }
    }
}

struct Expected<T>(String, PhantomData<T>);

impl<T: FromText> de::Expected for Expected<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)?;
        if !self.0.is_empty() {
            write!(f, " ({})", self.0)?;
        }
        Ok(())
    }
}

impl<'de, T: FromText> Deserialize<'de> for Given<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(GivenVisitor(PhantomData))
    }
}

impl<T: FromText> Serialize for Given<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_text())
    }
}

macro_rules! parsed_name {
    ($type:ty, $expected:literal) => {
        impl FromText for $type {
            const EXPECTED: &'static str = $expected;
            fn from_text(text: &str) -> Result<Self, String> {
                text.parse().map_err(|e: seaway_federation_proto::ids::InvalidName| e.rule.to_string())
            }
            fn to_text(&self) -> String {
                self.to_string()
            }
        }
    };
}

parsed_name!(Site, "a site's name such as \"eu-1\"");
parsed_name!(NodeName, "a node's name written site/node such as \"hub/relay\"");
parsed_name!(Pattern, "a topic pattern such as \"orders\" or \"#\"");
parsed_name!(Topic, "a topic such as \"orders\"");

/// A name of one level: a federation's, or a node's in its site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label(pub String);

impl FromText for Label {
    const EXPECTED: &'static str = "a name such as \"edge-1\" (1 to 63 of a-z, 0-9 and '-')";

    fn from_text(text: &str) -> Result<Self, String> {
        text.parse::<Site>().map(|label| Self(label.to_string())).map_err(|_| String::new())
    }

    fn to_text(&self) -> String {
        self.0.clone()
    }
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

const UNITS: [(&str, u64); 10] = [
    ("B", 1),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

impl FromText for Size {
    const EXPECTED: &'static str = "a size such as \"64 MiB\"";

    fn from_text(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(digits_end);
        let unit = unit.trim();
        let number: u64 = digits.parse().map_err(|_| "a whole number and a unit".to_string())?;
        let factor = match unit {
            "" => 1,
            _ => UNITS
                .iter()
                .find(|(name, _)| *name == unit)
                .map(|(_, factor)| *factor)
                .ok_or("units are B, kB, MB, GB, TB, KiB, MiB, GiB, TiB")?,
        };
        number.checked_mul(factor).map(Size).ok_or_else(|| "that is more than 64 bits of bytes".into())
    }

    fn to_text(&self) -> String {
        for (name, factor) in UNITS.iter().rev() {
            if name.ends_with("iB") && self.0 != 0 && self.0.is_multiple_of(*factor) {
                return format!("{} {name}", self.0 / factor);
            }
        }
        format!("{} B", self.0)
    }

    fn from_number(number: u64) -> Option<Self> {
        Some(Size(number))
    }
}

impl FromText for Duration {
    const EXPECTED: &'static str = "a duration with its unit such as \"500 ms\" or \"2 days\"";

    fn from_text(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text).map_err(|e| e.to_string())
    }

    fn to_text(&self) -> String {
        humantime::format_duration(*self).to_string()
    }
}

impl FromText for SocketAddr {
    const EXPECTED: &'static str = "an address and port such as \"0.0.0.0:7400\" or \"[::]:7400\"";

    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| String::new())
    }

    fn to_text(&self) -> String {
        self.to_string()
    }
}

/// `host:port`, where the host may be a name that is resolved anew for each attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort(pub String);

impl FromText for HostPort {
    const EXPECTED: &'static str = "a host and port such as \"relay.example.org:7400\"";

    fn from_text(text: &str) -> Result<Self, String> {
        let valid = text.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty()
                && !host.contains(char::is_whitespace)
                && port.parse::<u16>().is_ok_and(|port| port != 0)
                && (!host.contains(':') || (host.starts_with('[') && host.ends_with(']')))
        });
        if valid { Ok(Self(text.to_string())) } else { Err(String::new()) }
    }

    fn to_text(&self) -> String {
        self.0.clone()
    }
}

impl FromText for Codec {
    const EXPECTED: &'static str = "\"none\", \"lz4\" or \"zstd\"";

    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Codec::None),
            "lz4" => Ok(Codec::Lz4),
            "zstd" => Ok(Codec::Zstd),
            _ => Err(String::new()),
        }
    }

    fn to_text(&self) -> String {
        match self {
            Codec::None => "none".into(),
            Codec::Lz4 => "lz4".into(),
            Codec::Zstd => "zstd".into(),
            Codec::Unknown(code) => format!("unknown {code}"),
        }
    }
}

impl FromText for WantStart {
    const EXPECTED: &'static str = "\"earliest\", \"latest\" or a time such as \"2026-03-01T12:00:00Z\"";

    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "earliest" => Ok(WantStart::Earliest),
            "latest" => Ok(WantStart::Latest),
            _ => time_us(text).map(WantStart::Time).ok_or_else(String::new),
        }
    }

    fn to_text(&self) -> String {
        match self {
            WantStart::Earliest => "earliest".into(),
            WantStart::Latest => "latest".into(),
            WantStart::Time(us) => time_text(*us),
        }
    }
}

/// Reads a time in RFC 3339; microseconds since 1970.
pub fn time_us(text: &str) -> Option<u64> {
    let time = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok()?;
    u64::try_from(time.unix_timestamp_nanos() / 1_000).ok()
}

/// Writes a time in RFC 3339, in UTC; `time_us` in microseconds since 1970.
pub fn time_text(time_us: u64) -> String {
    time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(time_us) * 1_000)
        .ok()
        .and_then(|time| time.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_else(|| format!("{time_us} µs since 1970"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_take_units_and_refuse_what_is_not_one() {
        assert_eq!(Size::from_text("64 MiB"), Ok(Size(64 << 20)));
        assert_eq!(Size::from_text("64MiB"), Ok(Size(64 << 20)));
        assert_eq!(Size::from_text("1 MB"), Ok(Size(1_000_000)));
        assert_eq!(Size::from_text("12"), Ok(Size(12)));
        for wrong in ["", "MiB", "1.5 MiB", "-1", "1 mib", "99999999999 TiB"] {
            assert!(Size::from_text(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn host_and_port() {
        for right in ["a:1", "relay.example:7400", "[::1]:7400", "10.0.0.1:65535"] {
            assert!(HostPort::from_text(right).is_ok(), "{right}");
        }
        for wrong in ["", "a", ":1", "a:0", "a:65536", "::1:7400", "a b:1"] {
            assert!(HostPort::from_text(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_size_is_read_back(bytes: u64) {
            prop_assert_eq!(Size::from_text(&Size(bytes).to_text()), Ok(Size(bytes)));
        }

        #[test]
        fn a_duration_is_read_back(ms in 0u64..10_000_000_000) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(<Duration as FromText>::from_text(&duration.to_text()), Ok(duration));
        }

        #[test]
        fn a_time_is_read_back(us in 0u64..200_000_000_000_000_000) {
            prop_assert_eq!(time_us(&time_text(us)), Some(us));
        }

        #[test]
        fn text_never_panics(text in ".{0,40}") {
            let _ = Size::from_text(&text);
            let _ = HostPort::from_text(&text);
            let _ = <WantStart as FromText>::from_text(&text);
        }
    }
}
