//! Access tokens: JWTs signed with HS256 by the newest key of a ring and verified by the key that their `kid` names.
//!
//! A verifier pins the algorithm per key, wants `typ`, `exp`, `iss`, `aud`, `sub`, `iat` and `jti`, and allows no leeway
//! beyond `LEEWAY`. To rotate, put a new key in front and keep the old one until its last token has expired; another
//! algorithm (EdDSA) is another constructor of [`Key`].

use std::time::Duration;

use claimcheck_common::domain::UserId;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// RFC 9068's type, so that no other JWT of ours can ever pass as an access token.
const TYP: &str = "at+jwt";
/// Clocks of replicas may differ by this.
const LEEWAY: Duration = Duration::from_secs(2);
/// A shorter secret could be guessed offline from one token.
pub const MIN_SECRET_BYTES: usize = 32;

/// Why a token cannot be issued or is not accepted. Callers are told no more than "expired" or "not valid".
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Its time is up.
    #[error("the token has expired")]
    Expired,
    /// Wrong signature, issuer, audience, type, key or shape.
    #[error("the token is not valid")]
    Invalid,
    /// The signing secret is too short.
    #[error("the token secret has {0} bytes; at least {MIN_SECRET_BYTES} are needed")]
    WeakSecret(usize),
    /// Signing failed.
    #[error("the token could not be signed: {0}")]
    Signing(String),
}

/// What an access token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Who issued it.
    pub iss: String,
    /// For whom it is meant.
    pub aud: String,
    /// The user.
    pub sub: UserId,
    /// Unix seconds of its making.
    pub iat: u64,
    /// Unix seconds of its end.
    pub exp: u64,
    /// Its own id, for revocation.
    pub jti: Uuid,
}

/// One signing key with its public name.
pub struct Key {
    kid: String,
    algorithm: Algorithm,
    sign: EncodingKey,
    verify: DecodingKey,
}

impl Key {
    /// A symmetric key for HS256.
    pub fn hs256(secret: &SecretString) -> Result<Self, TokenError> {
        let secret = secret.expose_secret().as_bytes();
        if secret.len() < MIN_SECRET_BYTES {
            return Err(TokenError::WeakSecret(secret.len()));
        }
        // The name tells two keys apart and nothing about them: a digest under a label of its own.
        let kid = Sha256::new()
            .chain_update(b"claimcheck key id")
            .chain_update(secret)
            .finalize();
        Ok(Self {
            kid: hex::encode(&kid[..8]),
            algorithm: Algorithm::HS256,
            sign: EncodingKey::from_secret(secret),
            verify: DecodingKey::from_secret(secret),
        })
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// The keys that are accepted; the first one signs.
#[derive(Debug)]
pub struct Keyring {
    signing: Key,
    retired: Vec<Key>,
}

impl Keyring {
    /// `retired` keys verify and sign nothing.
    pub const fn new(signing: Key, retired: Vec<Key>) -> Self {
        Self { signing, retired }
    }

    fn find(&self, kid: &str) -> Option<&Key> {
        std::iter::once(&self.signing)
            .chain(&self.retired)
            .find(|key| key.kid == kid)
    }
}

/// A token with its lifetime.
#[derive(Debug)]
pub struct Issued {
    /// The JWT.
    pub token: SecretString,
    /// How long it is valid.
    pub lifetime: Duration,
}

/// Issues and verifies access tokens.
#[derive(Debug)]
pub struct TokenIssuer {
    keys: Keyring,
    issuer: String,
    audience: String,
    lifetime: Duration,
}

impl TokenIssuer {
    /// `issuer` and `audience` are written into every token and demanded of every token.
    pub const fn new(keys: Keyring, issuer: String, audience: String, lifetime: Duration) -> Self {
        Self {
            keys,
            issuer,
            audience,
            lifetime,
        }
    }

    /// A token for `user` from now on.
    pub fn issue(&self, user: UserId) -> Result<Issued, TokenError> {
        self.issue_at(user, jsonwebtoken::get_current_timestamp())
    }

    fn issue_at(&self, user: UserId, now: u64) -> Result<Issued, TokenError> {
        let claims = Claims {
            iss: self.issuer.clone(),
            aud: self.audience.clone(),
            sub: user,
            iat: now,
            exp: now + self.lifetime.as_secs(),
            jti: Uuid::now_v7(),
        };
        let key = &self.keys.signing;
        let header = Header {
            typ: Some(TYP.to_owned()),
            kid: Some(key.kid.clone()),
            ..Header::new(key.algorithm)
        };
        let token = jsonwebtoken::encode(&header, &claims, &key.sign)
            .map_err(|error| TokenError::Signing(error.to_string()))?;
        Ok(Issued {
            token: token.into(),
            lifetime: self.lifetime,
        })
    }

    /// What the token says, if it is one of ours and its time is not up.
    pub fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Invalid)?;
        if header.typ.as_deref() != Some(TYP) || header.crit.is_some() {
            return Err(TokenError::Invalid);
        }
        let key = header
            .kid
            .and_then(|kid| self.keys.find(&kid))
            .ok_or(TokenError::Invalid)?;
        let mut validation = Validation::new(key.algorithm);
        validation.leeway = LEEWAY.as_secs();
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[&self.audience]);
        // Without this list the library accepts tokens that lack what it would otherwise check.
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        // `iat` and `jti` are demanded by the type.
        let token =
            jsonwebtoken::decode::<Claims>(token, &key.verify, &validation).map_err(|error| match error.kind() {
                jsonwebtoken::errors::ErrorKind::ExpiredSignature => TokenError::Expired,
                _ => TokenError::Invalid,
            })?;
        Ok(token.claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn key(secret: &str) -> Key {
        Key::hs256(&SecretString::from(secret.to_owned())).unwrap()
    }

    fn issuer_with(keys: Keyring) -> TokenIssuer {
        TokenIssuer::new(
            keys,
            "https://issuer".into(),
            "claimcheck".into(),
            Duration::from_mins(10),
        )
    }

    fn issuer() -> TokenIssuer {
        issuer_with(Keyring::new(key(SECRET), vec![]))
    }

    fn good_claims() -> Value {
        let now = jsonwebtoken::get_current_timestamp();
        json!({"iss": "https://issuer", "aud": "claimcheck", "sub": UserId::new(), "iat": now, "exp": now + 60,
            "jti": Uuid::now_v7()})
    }

    fn sign(header: &Header, claims: &Value) -> String {
        jsonwebtoken::encode(header, claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
    }

    fn good_header() -> Header {
        Header {
            typ: Some(TYP.into()),
            kid: Some(key(SECRET).kid),
            ..Header::new(Algorithm::HS256)
        }
    }

    #[test]
    fn an_issued_token_verifies_and_names_its_user() {
        let user = UserId::new();
        let issued = issuer().issue(user).unwrap();
        let claims = issuer().verify(issued.token.expose_secret()).unwrap();
        assert_eq!(claims.sub, user);
        assert_eq!(claims.exp - claims.iat, 600);
    }

    #[test]
    fn a_token_without_any_one_of_its_claims_is_refused() {
        assert!(issuer().verify(&sign(&good_header(), &good_claims())).is_ok());
        for claim in ["iss", "aud", "sub", "iat", "exp", "jti"] {
            let mut claims = good_claims();
            claims.as_object_mut().unwrap().remove(claim);
            let verdict = issuer().verify(&sign(&good_header(), &claims));
            assert!(verdict.is_err(), "accepted without {claim}");
        }
    }

    #[test]
    fn a_token_of_another_issuer_audience_or_subject_kind_is_refused() {
        for (claim, value) in [
            ("iss", "https://other"),
            ("aud", "other"),
            ("sub", "job_01h455vb4pex5vsknk084sn02q"),
        ] {
            let mut claims = good_claims();
            claims[claim] = json!(value);
            assert!(issuer().verify(&sign(&good_header(), &claims)).is_err(), "{claim}");
        }
    }

    #[test]
    fn an_expired_token_is_told_apart_from_a_bad_one() {
        let long_ago = jsonwebtoken::get_current_timestamp() - 600 - LEEWAY.as_secs() - 1;
        let issued = issuer().issue_at(UserId::new(), long_ago).unwrap();
        assert!(matches!(
            issuer().verify(issued.token.expose_secret()),
            Err(TokenError::Expired)
        ));
        assert!(matches!(issuer().verify("nonsense"), Err(TokenError::Invalid)));
    }

    #[test]
    fn another_type_algorithm_or_key_name_is_refused() {
        let claims = good_claims();
        let other_type = Header {
            typ: Some("JWT".into()),
            ..good_header()
        };
        let other_algorithm = Header {
            alg: Algorithm::HS512,
            ..good_header()
        };
        let unknown_key = Header {
            kid: Some("none".into()),
            ..good_header()
        };
        let no_key = Header {
            kid: None,
            ..good_header()
        };
        for header in [other_type, other_algorithm, unknown_key, no_key] {
            assert!(issuer().verify(&sign(&header, &claims)).is_err(), "{header:?}");
        }
    }

    #[test]
    fn an_unsigned_or_altered_token_is_refused() {
        let token = sign(&good_header(), &good_claims());
        let (head, _) = token.rsplit_once('.').unwrap();
        assert!(issuer().verify(&format!("{head}.")).is_err());
        let foreign = jsonwebtoken::encode(
            &good_header(),
            &good_claims(),
            &EncodingKey::from_secret(b"another secret of the same length"),
        );
        assert!(issuer().verify(&foreign.unwrap()).is_err());
    }

    #[test]
    fn a_retired_key_still_verifies_until_it_is_removed() {
        let old = issuer().issue(UserId::new()).unwrap();
        let new = || key("fedcba9876543210fedcba9876543210");
        let rotated = issuer_with(Keyring::new(new(), vec![key(SECRET)]));
        assert!(rotated.verify(old.token.expose_secret()).is_ok());
        let removed = issuer_with(Keyring::new(new(), vec![]));
        assert!(removed.verify(old.token.expose_secret()).is_err());
    }

    #[test]
    fn a_short_secret_is_refused() {
        let short = SecretString::from("short".to_owned());
        assert!(matches!(Key::hs256(&short), Err(TokenError::WeakSecret(5))));
    }
}
