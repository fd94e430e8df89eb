//! The types of the options' values. Each owns its text form for flags and variables, its form in
//! the configuration file, its range, and the error text: `must be` and the allowed values.

use crate::access::Hosts;
use crate::duration::HumanDuration;
use crate::log::LogFormat;
use crate::memory::MEMORY_MIN;
use crate::proxies::ProxyNet;
use bytesize::ByteSize;
use clap::builder::{
    BoolishValueParser, MapValueParser, PathBufValueParser, TypedValueParser as _,
    ValueParserFactory,
};
use keypeg_store::LANE_MAX;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use std::convert::Infallible;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use toml::Value;

/// The largest number of requests per core that may wait for the engine.
pub(crate) const QUEUE_MAX: u32 = 16_384;
/// The most threads that answer HTTP.
pub(crate) const HTTP_THREADS_MAX: u32 = 256;
/// The amounts of memory for which [`MemoryPlan`](crate::memory::MemoryPlan) has bounds, in bytes.
const MEMORY_RANGE: RangeInclusive<u64> = MEMORY_MIN..=16 << 40;
const _: () = assert!(QUEUE_MAX as usize == LANE_MAX);
/// The most shards of an installation.
pub(crate) const SHARDS_MAX: u32 = 128;
const _: () = assert!(SHARDS_MAX == keypeg_engine::SHARDS_MAX as u32);

/// An address and a port to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Value")]
pub(crate) struct ListenAddr(pub(crate) SocketAddr);

/// A path, not empty.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Value")]
pub(crate) struct FilePath(pub(crate) PathBuf);

/// A yes or no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Value")]
pub(crate) struct Switch(pub(crate) bool);

/// A time limit of a connection: long enough for a slow network, and short enough to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Value")]
pub(crate) struct Timeout(pub(crate) Duration);

/// The URL of a shared store. It can contain a password, so no error and no log shows it.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Value")]
pub(crate) struct StoreUrl(pub(crate) String);

/// An amount of memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Value")]
pub(crate) struct MemorySize(pub(crate) u64);

/// A whole number from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Value")]
pub(crate) struct Bounded<const MIN: u32, const MAX: u32>(pub(crate) u32);

impl FromStr for ListenAddr {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The only name that is the same address on every machine.
        let address = match text.strip_prefix("localhost:") {
            Some(port) => port.parse().map(|port: u16| (Ipv4Addr::LOCALHOST, port).into()).ok(),
            None => text.parse().ok(),
        };
        address.map(Self).ok_or(
            "must be ADDR:PORT with an address of this machine, such as 127.0.0.1:8000, [::1]:8000 \
             or localhost:8000",
        )
    }
}

impl TryFrom<Value> for ListenAddr {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let text = value.as_str().unwrap_or_default();
        text.parse().map_err(|allowed| format!("{allowed}, in quotes"))
    }
}

/// A path need not be UTF-8 on the command line.
impl ValueParserFactory for FilePath {
    type Parser = MapValueParser<PathBufValueParser, fn(PathBuf) -> Self>;

    fn value_parser() -> Self::Parser {
        PathBufValueParser::new().map(Self)
    }
}

impl TryFrom<Value> for FilePath {
    type Error = &'static str;

    fn try_from(value: Value) -> Result<Self, Self::Error> {
        let text = value.as_str().filter(|text| !text.is_empty());
        text.map(|text| Self(text.into())).ok_or("must be a path, in quotes")
    }
}

/// Every text is accepted here: an error of the parser would show it. The configuration checks it.
impl FromStr for StoreUrl {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<Value> for StoreUrl {
    type Error = &'static str;

    fn try_from(value: Value) -> Result<Self, Self::Error> {
        value.as_str().map(|text| Self(text.to_owned())).ok_or("must be a URL, in quotes")
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.0.split("://").next().filter(|scheme| scheme.len() < 16);
        write!(f, "StoreUrl({}://…)", scheme.unwrap_or_default())
    }
}

impl TryFrom<Value> for ProxyNet {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let text = value.as_str().unwrap_or_default();
        text.parse().map_err(|allowed| format!("{allowed}, in quotes"))
    }
}

impl FromStr for Timeout {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const MIN_MS: u64 = 100;
        const MAX_MS: u64 = 24 * 3_600_000;
        let time = text.parse::<HumanDuration>().ok().map(HumanDuration::ms);
        time.filter(|ms| (MIN_MS..=MAX_MS).contains(ms))
            .map(|ms| Self(Duration::from_millis(ms)))
            .ok_or("must be 100ms to 24h with a unit, such as 500ms, 90s, 1m30s or 1h")
    }
}

impl TryFrom<Value> for Timeout {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let text = value.as_str().unwrap_or_default();
        text.parse().map_err(|allowed| format!("{allowed}, in quotes"))
    }
}

impl FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("must be text or json"),
        }
    }
}

impl TryFrom<Value> for LogFormat {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let text = value.as_str().unwrap_or_default();
        text.parse().map_err(|allowed| format!("{allowed}, in quotes"))
    }
}

impl FromStr for MemorySize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_bare = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let size = text.parse().ok().map(|size: ByteSize| size.as_u64());
        size.filter(|bytes| !is_bare && MEMORY_RANGE.contains(bytes)).map(Self).ok_or_else(|| {
            let fix = if is_bare && text.len() <= 9 {
                format!(": write {text}MiB for {text} MiB")
            } else {
                String::new()
            };
            format!("must be 64MiB to 16TiB with a unit, such as 512MiB or 2GiB{fix}")
        })
    }
}

impl TryFrom<Value> for MemorySize {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let number = value.as_integer().map(|number| number.to_string());
        let text = number.as_deref().or(value.as_str()).unwrap_or_default();
        text.parse().map_err(|allowed| format!("{allowed}, in quotes"))
    }
}

impl ValueParserFactory for Switch {
    type Parser = MapValueParser<BoolishValueParser, fn(bool) -> Self>;

    fn value_parser() -> Self::Parser {
        BoolishValueParser::new().map(Self)
    }
}

impl TryFrom<Value> for Switch {
    type Error = &'static str;

    fn try_from(value: Value) -> Result<Self, Self::Error> {
        value.as_bool().map(Self).ok_or("must be true or false, without quotes")
    }
}

impl<const MIN: u32, const MAX: u32> Bounded<MIN, MAX> {
    fn check(number: Option<u32>) -> Result<Self, String> {
        let in_range = number.filter(|number| (MIN..=MAX).contains(number));
        in_range.map(Self).ok_or_else(|| format!("must be {MIN} to {MAX}"))
    }
}

impl<const MIN: u32, const MAX: u32> FromStr for Bounded<MIN, MAX> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::check(text.parse().ok())
    }
}

impl<const MIN: u32, const MAX: u32> TryFrom<Value> for Bounded<MIN, MAX> {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let checked = Self::check(value.as_integer().and_then(|number| number.try_into().ok()));
        checked.map_err(
            |allowed| {
                if value.is_str() { format!("{allowed}, without quotes") } else { allowed }
            },
        )
    }
}

/// Reads host names in the file. Those of flags and variables are checked with the configuration,
/// whose exit code an invalid name has.
pub(super) fn host_names<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<String>>, D::Error> {
    let allowed = "must be an array of names without scheme and port, \
                   such as [\"keys.example\"], or [\"*\"]";
    let names = Vec::deserialize(Value::deserialize(deserializer)?).ok();
    let names = names.filter(|names| Hosts::new(names).is_ok());
    names.map(Some).ok_or_else(|| D::Error::custom(allowed))
}
