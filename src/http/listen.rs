//! The address a server listens on.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{
    fmt,
    net::{Ipv6Addr, SocketAddr},
    str::FromStr,
};

/// `host:port` with a numeric host, or `:port` for every address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    address: SocketAddr,
    any: bool,
}

impl Listen {
    /// Every address of the machine, IPv4 included.
    pub fn any(port: u16) -> Self {
        Self { address: SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), any: true }
    }

    /// One address.
    pub fn at(address: SocketAddr) -> Self {
        Self { address, any: false }
    }

    /// The addresses to try, in order: a machine without IPv6 can still listen on `:port`.
    pub fn candidates(&self) -> Vec<SocketAddr> {
        let mut candidates = vec![self.address];
        if self.any {
            candidates.push(SocketAddr::from(([0, 0, 0, 0], self.address.port())));
        }
        candidates
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed = || format!("`{text}` is no address to listen on; write `:8080` or `127.0.0.1:8080`");
        if let Some(port) = text.strip_prefix(':') {
            return Ok(Self::any(port.parse().map_err(|_| malformed())?));
        }
        Ok(Self { address: text.parse().map_err(|_| malformed())?, any: false })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.any { write!(formatter, ":{}", self.address.port()) } else { self.address.fmt(formatter) }
    }
}

impl Serialize for Listen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// A bare number can only be meant as a port.
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Port(u16),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Port(port) => Ok(Self::any(port)),
            Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_port_means_every_address() {
        let listen: Listen = ":9000".parse().unwrap();
        assert_eq!(listen.candidates().len(), 2);
        assert_eq!(listen.to_string(), ":9000");
    }

    #[test]
    fn a_bad_address_says_what_to_write() {
        for bad in ["8080", "localhost", ":x", ":70000"] {
            assert!(bad.parse::<Listen>().unwrap_err().contains("write `:8080`"), "{bad}");
        }
        assert_eq!("127.0.0.1:1".parse::<Listen>().unwrap().to_string(), "127.0.0.1:1");
    }
}
