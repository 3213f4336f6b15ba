//! An address to listen on, or none.

use std::borrow::Cow;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Where is listened, if anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listen(pub(crate) Option<SocketAddr>);

const BOUND: &str = "an address and port, such as 127.0.0.1:9464 or [::1]:9464, or none";

impl Default for Listen {
    fn default() -> Self {
        Listen(Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9464))))
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Listen(None)),
            address => {
                let address = address.parse().map_err(|_| format!("must be {BOUND}"))?;
                Ok(Listen(Some(address)))
            }
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str("none"),
        }
    }
}

impl Serialize for Listen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(|_| de::Error::custom(format!("{text:?} is not {BOUND}")))
    }
}

impl JsonSchema for Listen {
    fn schema_name() -> Cow<'static, str> {
        "Listen".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": r"^(none|\d{1,3}(\.\d{1,3}){3}:\d{1,5}|\[[0-9A-Fa-f:.%]+\]:\d{1,5})$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_of_a_machine_with_a_port_or_none() {
        for good in ["127.0.0.1:9464", "[::1]:9464", "0.0.0.0:80", "none"] {
            let listen: Listen = good.parse().unwrap();
            assert_eq!(listen.to_string(), good);
        }
        for bad in ["", "127.0.0.1", ":9464", "9464", "localhost:9464", "127.0.0.1:70000"] {
            assert!(bad.parse::<Listen>().unwrap_err().contains("127.0.0.1:9464"), "{bad}");
        }
        assert_eq!(Listen::default().to_string(), "127.0.0.1:9464");
    }
}
