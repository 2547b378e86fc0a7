//! Who may do what: the roles of users, and the scopes of credentials.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a user is; each role may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Works in the own project.
    User,
    /// Sees besides what operators see, and changes nothing of it.
    Auditor,
    /// Operates the service.
    Admin,
}

impl Role {
    /// Every one, the least first.
    pub const ALL: [Self; 3] = [Self::User, Self::Auditor, Self::Admin];

    /// The stored and shown form.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Auditor => "auditor",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| "a role is user, auditor or admin".to_owned())
    }
}

/// What a user is in a project; each role may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProjectRole {
    /// Works in it.
    Member,
    /// Besides lets others in and out, and makes service accounts.
    Admin,
}

impl ProjectRole {
    /// Every one, the least first.
    pub const ALL: [Self; 2] = [Self::Member, Self::Admin];

    /// The stored and shown form.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for ProjectRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ProjectRole {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| "a role in a project is member or admin".to_owned())
    }
}

/// What a credential is good for; its user's role limits it further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Scope {
    /// Read jobs, their results and streams.
    #[serde(rename = "jobs:read")]
    JobsRead,
    /// Submit, cancel, retry and erase jobs.
    #[serde(rename = "jobs:write")]
    JobsWrite,
    /// Files and batches.
    #[serde(rename = "batches")]
    Batches,
    /// Webhook endpoints.
    #[serde(rename = "webhooks")]
    Webhooks,
    /// API keys, and whatever the user's role opens.
    #[serde(rename = "admin")]
    Admin,
}

impl Scope {
    /// Every one.
    pub const ALL: [Self; 5] = [
        Self::JobsRead,
        Self::JobsWrite,
        Self::Batches,
        Self::Webhooks,
        Self::Admin,
    ];

    /// The stored and shown form.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::JobsRead => "jobs:read",
            Self::JobsWrite => "jobs:write",
            Self::Batches => "batches",
            Self::Webhooks => "webhooks",
            Self::Admin => "admin",
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|scope| scope.as_str() == text);
        found.ok_or_else(|| format!("a scope is one of {}", Self::ALL.map(Self::as_str).join(", ")))
    }
}

/// A set of scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scopes(u8);

impl Scopes {
    /// Whether `scope` is among them.
    pub const fn contain(self, scope: Scope) -> bool {
        self.0 & scope.bit() != 0
    }

    /// Each, in the order of [`Scope::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |scope| self.contain(*scope))
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | scope.bit()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back_and_serde_writes_the_same_one() {
        for scope in Scope::ALL {
            assert_eq!(scope.as_str().parse(), Ok(scope));
            assert_eq!(serde_json::to_value(scope).unwrap(), scope.as_str());
        }
        for role in Role::ALL {
            assert_eq!(role.as_str().parse(), Ok(role));
        }
        assert!("Admin".parse::<Role>().is_err() && "jobs".parse::<Scope>().is_err());
    }

    #[test]
    fn a_set_holds_what_was_put_in_and_nothing_else() {
        let set: Scopes = [Scope::Webhooks, Scope::JobsRead, Scope::Webhooks]
            .into_iter()
            .collect();
        assert_eq!(set.iter().collect::<Vec<_>>(), [Scope::JobsRead, Scope::Webhooks]);
        assert!(Scope::ALL.into_iter().all(|scope| !Scopes::default().contain(scope)));
    }

    #[test]
    fn a_greater_role_includes_the_lesser() {
        assert!(Role::Admin > Role::Auditor && Role::Auditor > Role::User);
    }
}
