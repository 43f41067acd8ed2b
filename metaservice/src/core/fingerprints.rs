//! What families of engines must agree on to share objects.

use std::collections::BTreeMap;

use memcache_types::limits::{FINGERPRINT_FIELD_BYTES_MAX, FINGERPRINT_FIELDS_MAX};

use super::Core;
use super::limits::{FINGERPRINT_BYTES_MAX, SCOPE_BYTES_MAX, SCOPE_FINGERPRINTS_MAX, SCOPES_MAX};
use super::refusal::Refusal;

type Fields = BTreeMap<String, String>;

/// Fingerprints by scope. The scopes and the fingerprints of one scope are ordered by last use, newest last.
#[derive(Debug)]
pub(super) struct Fingerprints {
    scopes: Vec<(String, Vec<Fields>)>,
}

/// A field in which two fingerprints differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Name of the field.
    pub name: String,
    /// The newcomer's value; empty if it has no such field.
    pub ours: String,
    /// The value registered before; empty if there is no such field.
    pub theirs: String,
}

impl Fingerprints {
    pub(super) const fn new() -> Self {
        Self { scopes: Vec::new() }
    }

    fn register(&mut self, scope: String, fields: Fields) -> Vec<Difference> {
        let mut known = match self.scopes.iter().position(|(name, _)| *name == scope) {
            Some(position) => self.scopes.remove(position).1,
            None => Vec::new(),
        };
        let differences = known
            .iter()
            .rev()
            .filter(|other| **other != fields)
            .map(|other| differences(&fields, other))
            .min_by_key(Vec::len)
            .unwrap_or_default();
        known.retain(|other| *other != fields);
        known.push(fields);
        if known.len() > SCOPE_FINGERPRINTS_MAX {
            known.remove(0);
        }
        self.scopes.push((scope, known));
        if self.scopes.len() > SCOPES_MAX {
            self.scopes.remove(0);
        }
        differences
    }
}

fn differences(ours: &Fields, theirs: &Fields) -> Vec<Difference> {
    let only_theirs = theirs.keys().filter(|name| !ours.contains_key(*name));
    ours.keys()
        .chain(only_theirs)
        .filter(|name| ours.get(*name) != theirs.get(*name))
        .map(|name| Difference {
            name: name.clone(),
            ours: ours.get(name).cloned().unwrap_or_default(),
            theirs: theirs.get(name).cloned().unwrap_or_default(),
        })
        .collect()
}

impl Core {
    /// Registers a fingerprint in a scope. The answer says in what it differs from the closest other one there;
    /// empty when there is no other.
    pub fn register_fingerprint(
        &mut self,
        scope: String,
        fields: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Vec<Difference>, Refusal> {
        let limit = |what, found: usize, limit: usize| {
            if found > limit {
                return Err(Refusal::Limit { what, found: found as u64, limit: limit as u64 });
            }
            Ok(())
        };
        limit("bytes of the scope", scope.len(), SCOPE_BYTES_MAX)?;
        let (mut kept, mut bytes) = (Fields::new(), 0);
        for (position, (name, value)) in fields.into_iter().enumerate() {
            limit("fields of the fingerprint", position + 1, FINGERPRINT_FIELDS_MAX)?;
            limit("bytes of a fingerprint field", name.len().max(value.len()), FINGERPRINT_FIELD_BYTES_MAX)?;
            bytes += name.len() + value.len();
            limit("bytes of the fingerprint", bytes, FINGERPRINT_BYTES_MAX)?;
            kept.insert(name, value);
        }
        Ok(self.fingerprints.register(scope, kept))
    }
}
