//! Who is calling, as handlers see it. The layer in `access.rs` has recognised the caller before; a handler that takes one
//! on a route which states no need is a mistake of ours and answers 500, never a way in.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use claimcheck_common::domain::{ApiKeyId, ProjectId, Role, Scope, Scopes, SessionId, TenantId, UserId};
use claimcheck_common::store::api_keys::Grant;
use claimcheck_common::store::audit::{self, By};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::Origin;
use crate::error::{ApiError, Problem};
use crate::middleware::RequestNotes;

/// An authenticated, active user.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who it is.
    pub user_id: UserId,
    /// The organization of the project.
    pub tenant_id: TenantId,
    /// Where the caller's jobs go.
    pub project_id: ProjectId,
    /// Whether it is the one that the user has from the beginning.
    pub is_in_first_project: bool,
    /// Whether the organization is the user's own, not that of somebody who let them in.
    pub is_at_home: bool,
    /// What the user may do.
    pub role: Role,
    /// What the request showed.
    pub credential: Credential,
    /// How the request came, for the audit log.
    pub origin: audit::Origin,
    /// What its answer tells besides.
    pub notes: RequestNotes,
}

/// What a request was authenticated by.
#[derive(Debug, Clone)]
pub enum Credential {
    /// An access token of this session: the user in person, with every scope.
    Token(SessionId),
    /// An access token of a service, good for so much.
    Service(Scopes),
    /// An API key.
    Key(Arc<KeyGrant>),
}

/// An API key and what it is good for.
#[derive(Debug, Clone)]
pub struct KeyGrant {
    /// Which key.
    pub id: ApiKeyId,
    /// Scopes, models, largest request.
    pub grant: Grant,
}

impl Credential {
    /// As the audit log shows it.
    fn shown(&self) -> String {
        match self {
            Self::Token(_) => "token".to_owned(),
            Self::Service(_) => "service".to_owned(),
            Self::Key(key) => format!("key:{}", key.id.uuid()),
        }
    }
}

impl Caller {
    /// As the audit log names them; [`Self::by`] says besides how they came.
    pub fn actor(&self) -> String {
        self.by().actor
    }

    /// As the audit log knows them.
    pub fn by(&self) -> By {
        By {
            origin: self.origin.clone(),
            ..By::from(self.user_id)
        }
    }

    /// Who it is that words for requests (idempotency keys) are kept apart by: the user, and in each project but their first one as
    /// somebody else.
    pub fn claimant(&self) -> UserId {
        if self.is_in_first_project {
            return self.user_id;
        }
        let (user, project) = (self.user_id.uuid(), self.project_id.uuid());
        let digest = Sha256::new().chain_update(user).chain_update(project).finalize();
        UserId::from_uuid(Uuid::from_slice(&digest[..16]).unwrap_or_default())
    }

    /// Whether they may read everybody's audit trail.
    pub fn is_auditor(&self) -> bool {
        self.role >= Role::Auditor
    }

    /// The API key that the request showed, if it was one.
    pub fn key(&self) -> Option<&KeyGrant> {
        match &self.credential {
            Credential::Token(_) | Credential::Service(_) => None,
            Credential::Key(key) => Some(key),
        }
    }

    /// Whether it is a user in person.
    pub const fn is_in_person(&self) -> bool {
        matches!(self.credential, Credential::Token(_))
    }

    /// Whether the credential is good for `scope`.
    pub fn has(&self, scope: Scope) -> bool {
        match &self.credential {
            Credential::Token(_) => true,
            Credential::Service(scopes) => scopes.contain(scope),
            Credential::Key(key) => key.grant.scopes.contain(scope),
        }
    }

    /// 403 for everybody else. For parts of a route; whole ones state their need in `router.rs`.
    pub fn must_be_admin(&self) -> Result<(), ApiError> {
        if self.role < Role::Admin {
            return Err(forbidden("admin_only", "This needs the role `admin`."));
        }
        self.must_have(Scope::Admin)
    }

    /// 403 if the credential is not good for `scope`.
    pub fn must_have(&self, scope: Scope) -> Result<(), ApiError> {
        if self.has(scope) {
            return Ok(());
        }
        let message = format!("This credential lacks the scope `{scope}`.");
        Err(forbidden("insufficient_scope", message))
    }

    /// 403 for a service that would give away more than it has.
    pub fn may_grant(&self, scopes: Scopes) -> Result<(), ApiError> {
        match &self.credential {
            Credential::Service(_) => scopes.iter().try_for_each(|scope| self.must_have(scope)),
            Credential::Token(_) | Credential::Key(_) => Ok(()),
        }
    }

    /// 403 if the API key may not use the model, or not for so many tokens. Asked by everything that starts a generation.
    pub fn may_generate(&self, model: &str, alias: Option<&str>, max_tokens: u32) -> Result<(), ApiError> {
        let Some(KeyGrant { grant, .. }) = self.key() else {
            return Ok(());
        };
        grant.permits(model, alias, max_tokens).map_err(ApiError::Forbidden)
    }

    /// 403 for API keys with such limits: what is done again may have been asked for without them.
    pub fn may_repeat(&self) -> Result<(), ApiError> {
        match self.key() {
            Some(KeyGrant { grant, .. }) if grant.models.is_some() || grant.max_tokens.is_some() => {
                let message = "This API key is limited to models or tokens and cannot repeat jobs; submit them anew.";
                Err(forbidden("limited_key", message))
            }
            _ => Ok(()),
        }
    }
}

fn forbidden(code: &'static str, message: impl Into<String>) -> ApiError {
    ApiError::Forbidden(Problem::new(code, message))
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        let known = parts.extensions.get::<Self>().cloned();
        let mut caller = known.ok_or_else(|| ApiError::internal("a route that states no need asks for its caller"))?;
        if let Some(origin) = parts.extensions.get::<Origin>() {
            caller.origin = origin.audit(Some(caller.credential.shown()));
            caller.notes = origin.notes.clone();
        }
        Ok(caller)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(credential: Credential) -> Caller {
        Caller {
            user_id: UserId::new(),
            tenant_id: TenantId::new(),
            project_id: ProjectId::new(),
            is_in_first_project: true,
            is_at_home: true,
            role: Role::Admin,
            credential,
            origin: audit::Origin::default(),
            notes: RequestNotes::default(),
        }
    }

    fn keyed(scopes: &[Scope], models: Option<&[&str]>, max_tokens: Option<u32>) -> Caller {
        let models = models.map(|models| models.iter().map(ToString::to_string).collect());
        caller(Credential::Key(Arc::new(KeyGrant {
            id: ApiKeyId::new(),
            grant: Grant {
                scopes: scopes.iter().copied().collect(),
                models,
                max_tokens,
            },
        })))
    }

    #[test]
    fn a_key_of_an_admin_is_no_admin_without_the_scope() {
        assert!(caller(Credential::Token(SessionId::new())).must_be_admin().is_ok());
        assert!(keyed(&[Scope::Admin], None, None).must_be_admin().is_ok());
        assert!(
            keyed(&[Scope::JobsRead, Scope::JobsWrite], None, None)
                .must_be_admin()
                .is_err()
        );
    }

    #[test]
    fn a_key_keeps_to_its_models_and_its_largest_request() {
        assert!(
            caller(Credential::Token(SessionId::new()))
                .may_generate("any", None, 4096)
                .is_ok()
        );
        let narrow = keyed(&[], Some(&["tiny"]), Some(50));
        assert!(narrow.may_generate("tiny", None, 50).is_ok());
        assert!(narrow.may_generate("tiny", Some("prod"), 50).is_ok());
        assert!(
            narrow.may_generate("gpt2", Some("tiny"), 50).is_ok(),
            "the name that it knows leads there"
        );
        assert!(narrow.may_generate("gpt2", Some("prod"), 50).is_err());
        for (model, tokens) in [("tiny", 51), ("gpt2", 1)] {
            assert!(narrow.may_generate(model, None, tokens).is_err(), "{model} {tokens}");
        }
    }
}
