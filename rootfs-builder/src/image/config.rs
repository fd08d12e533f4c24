//! What an image says about the program in it.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

/// The `config` object of an image's configuration (OCI image specification
/// 1.1, config.md). What is missing or `null` there is empty here; nothing is
/// checked.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// The program and its first arguments.
    #[serde(deserialize_with = "null_is_empty")]
    pub entrypoint: Vec<String>,
    /// Arguments after those, unless the user gives other ones.
    #[serde(deserialize_with = "null_is_empty")]
    pub cmd: Vec<String>,
    /// `NAME=VALUE`.
    #[serde(deserialize_with = "null_is_empty")]
    pub env: Vec<String>,
    /// Where the program starts; empty means `/`.
    #[serde(deserialize_with = "null_is_empty")]
    pub working_dir: String,
    /// `user`, `uid`, `user:group`, `uid:gid`, `uid:group` or `user:gid`;
    /// empty means root.
    #[serde(deserialize_with = "null_is_empty")]
    pub user: String,
    /// `PORT/tcp` or `PORT/udp`, or just `PORT`.
    #[serde(deserialize_with = "keys")]
    pub exposed_ports: Vec<String>,
    /// Paths.
    #[serde(deserialize_with = "keys")]
    pub volumes: Vec<String>,
    /// Free text by name.
    #[serde(deserialize_with = "null_is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The signal that ends the program, by name or number; empty means
    /// `SIGTERM`.
    #[serde(deserialize_with = "null_is_empty")]
    pub stop_signal: String,
}

fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Names of an object whose values are empty objects, or a list.
fn keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        List(Vec<String>),
        Set(BTreeMap<String, serde_json::Value>),
    }
    Ok(match Option::deserialize(deserializer)? {
        None => Vec::new(),
        Some(Either::List(list)) => list,
        Some(Either::Set(set)) => set.into_keys().collect(),
    })
}
