//! Defaults, file, environment, overrides: each layer over the one before.

use std::fmt::Write;
use std::path::Path;

use toml::{Table, Value};

use crate::component::{Component, Given, KeyInfo};
use crate::error::ConfigError;
use crate::local::LocalConfig;
use crate::meta::MetaConfig;
use crate::store::StoreConfig;

/// Names a file for clients; it is nobody's key.
pub(crate) const FILE_VARIABLE: &str = "MEMCACHE_CONFIG";

/// How alike a variable under the shared prefix must be to a key (0 to 1) to count as a slip. Other programs use
/// variables of that prefix too, and they are none of our business.
const SLIP: f64 = 0.8;

pub(crate) fn load<C: Component>(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
    overrides: &[(String, String)],
) -> Result<C, ConfigError> {
    let mut config = C::default();
    if let Some(path) = file {
        read_file(&mut config, path)?;
    }
    for (variable, text) in environment {
        if let Some(name) = own_variable::<C>(&variable) {
            set(&mut config, &format!("environment variable {variable}"), &name, &Given::Text(&text))?;
        }
    }
    for (key, text) in overrides {
        set(&mut config, "override", key, &Given::Text(text))?;
    }
    config.check()?;
    Ok(config)
}

fn read_file<C: Component>(config: &mut C, path: &Path) -> Result<(), ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let table: Table = text
        .parse()
        .map_err(|error: toml::de::Error| ConfigError::Syntax { path: path.to_owned(), message: error.to_string() })?;
    let origin = path.display().to_string();
    for (key, value) in &table {
        match value {
            Value::Table(section) if key == C::NAME => {
                for (key, value) in section {
                    set(config, &origin, key, &Given::Value(value))?;
                }
            }
            _ => set(config, &origin, key, &Given::Value(value))?,
        }
    }
    Ok(())
}

fn set<C: Component>(config: &mut C, origin: &str, key: &str, given: &Given<'_>) -> Result<(), ConfigError> {
    let Some(info) = C::KEYS.iter().find(|info| info.name == key) else {
        let nearest = nearest(C::KEYS, key).map(|(name, _)| name);
        return Err(ConfigError::UnknownKey { origin: origin.to_owned(), key: key.to_owned(), nearest });
    };
    config.set(info.name, given).ok_or_else(|| ConfigError::BadValue {
        origin: origin.to_owned(),
        key: info.name,
        value: match given {
            Given::Value(Value::String(text)) => text.clone(),
            Given::Value(value) => value.to_string(),
            Given::Text(text) => (*text).to_owned(),
        },
        allowed: info.allowed,
    })
}

fn nearest(keys: &'static [KeyInfo], key: &str) -> Option<(&'static str, f64)> {
    keys.iter()
        .map(|info| (info.name, strsim::normalized_damerau_levenshtein(info.name, key)))
        .max_by(|left, right| left.1.total_cmp(&right.1))
}

/// The key a variable is meant for, if it is meant for this component.
fn own_variable<C: Component>(variable: &str) -> Option<String> {
    let key = variable.strip_prefix(C::ENV_PREFIX)?.to_ascii_lowercase();
    let known = |keys: &[KeyInfo], key: &str| keys.iter().any(|info| info.name == key);
    if variable == FILE_VARIABLE {
        return None;
    }
    if known(C::KEYS, &key) {
        return Some(key);
    }
    if C::ENV_PREFIX != StoreConfig::ENV_PREFIX {
        // The store's prefix begins ours, so that one of its variables may look like ours.
        let shared = variable.strip_prefix(StoreConfig::ENV_PREFIX)?.to_ascii_lowercase();
        return if known(StoreConfig::KEYS, &shared) { None } else { Some(key) };
    }
    let slip = nearest(C::KEYS, &key).map_or(0.0, |(_, likeness)| likeness);
    let foreign = likeness_elsewhere::<MetaConfig>(variable).max(likeness_elsewhere::<LocalConfig>(variable));
    (slip >= SLIP && slip > foreign).then_some(key)
}

/// How much a variable looks like one of another component, 0 to 1.
fn likeness_elsewhere<C: Component>(variable: &str) -> f64 {
    variable
        .strip_prefix(C::ENV_PREFIX)
        .and_then(|key| nearest(C::KEYS, &key.to_ascii_lowercase()))
        .map_or(0.0, |(_, likeness)| likeness)
}

pub(crate) fn entries<C: Component>(config: &C) -> Vec<(&'static str, String)> {
    C::KEYS
        .iter()
        .map(|info| {
            let text = match config.value(info.name) {
                Value::String(text) => text,
                value => value.to_string(),
            };
            (info.name, text)
        })
        .collect()
}

pub(crate) fn default_toml<C: Component>() -> String {
    let config = C::default();
    let mut text = format!(
        "# {}\n#\n# The values below are the defaults. A variable {}<KEY> in the environment goes over this file.\n",
        C::HEADING,
        C::ENV_PREFIX
    );
    for info in C::KEYS {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "\n# {}\n# Allowed: {}.\n{} = {}\n",
            info.doc,
            info.allowed,
            info.name,
            config.value(info.name)
        );
    }
    text
}
