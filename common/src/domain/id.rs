//! Typed ids: `UUIDv7` inside, `prefix_` + 26 lower-case Crockford base32 digits outside, so that ids sort by creation.
//!
//! The text form is that of the `TypeID` specification (version 0.3). Two kinds of id can never be swapped: the kind is
//! part of the type.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const DIGITS: usize = 26;

/// What an id names. Implementors are markers without values.
pub trait IdKind {
    /// The text before the digits, with its separator (`job_`).
    const PREFIX: &'static str;
}

macro_rules! id_kinds {
    ($($kind:ident, $alias:ident, $prefix:literal, $what:literal;)*) => {$(
        #[doc = concat!("Marks ids of ", $what, ".")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $kind {}
        impl IdKind for $kind {
            const PREFIX: &'static str = $prefix;
        }
        #[doc = concat!("The id of ", $what, ", shown as `", $prefix, "…`.")]
        pub type $alias = Id<$kind>;
    )*};
}

// Append only: a prefix that was shown to a caller stays taken.
id_kinds! {
    JobKind, JobId, "job_", "a job";
    UserKind, UserId, "user_", "a user";
    TenantKind, TenantId, "org_", "an organization, which is what a tenant is";
    ProjectKind, ProjectId, "proj_", "a project";
    WorkerKind, WorkerId, "worker_", "a worker process";
    EventKind, EventId, "evt_", "an event";
    ApiKeyKind, ApiKeyId, "key_", "an API key";
    SessionKind, SessionId, "sess_", "a session";
    EndpointKind, EndpointId, "whe_", "a webhook endpoint";
    FileKind, FileId, "file-", "an uploaded file";
    BatchKind, BatchId, "batch_", "a batch";
    BatchItemKind, BatchItemId, "batch_req_", "a batch's line; the same number as its job's";
    IdentityKind, IdentityId, "ident_", "a link from a provider's user to an account";
    ServiceAccountKind, ServiceAccountId, "svc_", "a service account; the same number as its user's";
}

/// An id of kind `K`.
pub struct Id<K> {
    uuid: Uuid,
    kind: PhantomData<fn() -> K>,
}

impl<K> Id<K> {
    /// A new id, greater than those made before it on this machine.
    pub fn new() -> Self {
        Self::from_uuid(Uuid::now_v7())
    }

    /// The id that a stored UUID stands for.
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self {
            uuid,
            kind: PhantomData,
        }
    }

    /// The form that is stored.
    pub const fn uuid(self) -> Uuid {
        self.uuid
    }
}

impl<K> Default for Id<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: IdKind> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.uuid.as_u128();
        let mut digits = [0_u8; DIGITS];
        for (place, digit) in digits.iter_mut().rev().enumerate() {
            *digit = ALPHABET[(value >> (5 * place)) as usize & 31];
        }
        f.write_str(K::PREFIX)?;
        digits
            .iter()
            .try_for_each(|digit| fmt::Write::write_char(f, char::from(*digit)))
    }
}

/// Why a text is not an id of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an id here is `{prefix}` followed by 26 characters of 0-9 and a-z without i, l, o and u")]
pub struct IdParseError {
    prefix: &'static str,
}

impl<K: IdKind> FromStr for Id<K> {
    type Err = IdParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = IdParseError { prefix: K::PREFIX };
        let digits = text.strip_prefix(K::PREFIX).ok_or(error.clone())?.as_bytes();
        // 26 digits hold 130 bits: the first may not exceed 7.
        if digits.len() != DIGITS || digits[0] > b'7' {
            return Err(error);
        }
        let mut value = 0_u128;
        for digit in digits {
            let place = ALPHABET.iter().position(|known| known == digit).ok_or(error.clone())?;
            value = value << 5 | place as u128;
        }
        Ok(Self::from_uuid(Uuid::from_u128(value)))
    }
}

impl<K: IdKind> Serialize for Id<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, K: IdKind> Deserialize<'de> for Id<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl<K: IdKind> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// Derives would ask the same of `K`, which is only a marker.
impl<K> Clone for Id<K> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<K> Copy for Id<K> {}
impl<K> PartialEq for Id<K> {
    fn eq(&self, other: &Self) -> bool {
        self.uuid == other.uuid
    }
}
impl<K> Eq for Id<K> {}
impl<K> PartialOrd for Id<K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<K> Ord for Id<K> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.uuid.cmp(&other.uuid)
    }
}
impl<K> std::hash::Hash for Id<K> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.uuid.hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_id_survives_its_text_form_and_keeps_its_order(a: u128, b: u128) {
            let (a, b) = (JobId::from_uuid(Uuid::from_u128(a)), JobId::from_uuid(Uuid::from_u128(b)));
            prop_assert_eq!(a.to_string().parse::<JobId>().unwrap(), a);
            prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".*") {
            let _ = text.parse::<JobId>();
            let _ = format!("job_{text}").parse::<JobId>();
        }
    }

    #[test]
    fn an_id_of_another_kind_is_refused() {
        assert!(UserId::new().to_string().parse::<JobId>().is_err());
        assert!("job_8zzzzzzzzzzzzzzzzzzzzzzzzz".parse::<JobId>().is_err());
    }
}
