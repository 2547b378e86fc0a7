//! Access tokens: JWTs (RFC 7519, RFC 9068) signed by one key of a ring and verified by the key that their `kid` names.
//!
//! A verifier takes no word of a token's for how to verify it (RFC 8725, section 3.1): the algorithm is the key's own, the
//! key is one of the ring, and headers that name or bring keys (`jwk`, `jku`, `x5u`, `crit`, …) are refused. It wants `typ`,
//! `exp`, `iss`, `aud`, `sub`, `iat`, `jti` and `sid`, and allows no leeway beyond `LEEWAY`. Keys are EdDSA keys from the
//! database (`auth/tokens.rs`) or one HS256 key from the configuration.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use claimcheck_common::domain::{SessionId, UserId};
use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse, ThumbprintHash};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use ring::signature::{Ed25519KeyPair, KeyPair};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::seal::Seed;

/// RFC 9068's type, so that no other JWT of ours can ever pass as an access token.
const TYP: &str = "at+jwt";
/// Clocks of replicas may differ by this.
const LEEWAY: Duration = Duration::from_secs(2);
/// A shorter secret could be guessed offline from one token.
pub const MIN_SECRET_BYTES: usize = 32;
/// What stands before the seed in the PKCS #8 form of an Ed25519 key (RFC 8410, section 7).
const PKCS8_ED25519: &[u8] = b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";

/// Why a token cannot be issued or is not accepted. Callers are told no more than "expired" or "not valid".
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Its time is up.
    #[error("the token has expired")]
    Expired,
    /// Wrong signature, issuer, audience, type or shape.
    #[error("the token is not valid")]
    Invalid,
    /// Its key is none of ours, or is not known here yet.
    #[error("the token's key is not known")]
    UnknownKey,
    /// There is no key to sign with: the database has not been reached yet.
    #[error("there is no signing key yet")]
    NoKey,
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
    /// Its own id.
    pub jti: Uuid,
    /// The session that it belongs to, with which it ends.
    pub sid: SessionId,
}

impl Claims {
    /// How much longer it is good.
    pub fn left(&self) -> Duration {
        Duration::from_secs(self.exp.saturating_sub(jsonwebtoken::get_current_timestamp()))
    }
}

/// One signing key with its public name.
pub struct Key {
    kid: String,
    algorithm: Algorithm,
    sign: EncodingKey,
    verify: DecodingKey,
    /// What everybody may know of it.
    public: Option<Jwk>,
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
            public: None,
        })
    }

    /// An Ed25519 key for EdDSA (RFC 8037), named by its thumbprint (RFC 7638).
    pub fn ed25519(seed: &Seed) -> Result<Self, TokenError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|error| TokenError::Signing(error.to_string()))?;
        let verify = DecodingKey::from_ed_der(pair.public_key().as_ref());
        let mut public = Jwk::from_decoding_key(&verify, Some(Algorithm::EdDSA)).map_err(signing)?;
        let kid = public.thumbprint(ThumbprintHash::SHA256).map_err(signing)?;
        public.common.key_id = Some(kid.clone());
        public.common.public_key_use = Some(PublicKeyUse::Signature);
        Ok(Self {
            kid,
            algorithm: Algorithm::EdDSA,
            sign: EncodingKey::from_ed_der(&[PKCS8_ED25519, seed.as_slice()].concat()),
            verify,
            public: Some(public),
        })
    }

    /// Its public name.
    pub fn kid(&self) -> &str {
        &self.kid
    }
}

#[allow(clippy::needless_pass_by_value, reason = "the shape that `map_err` wants")]
fn signing(error: jsonwebtoken::errors::Error) -> TokenError {
    TokenError::Signing(error.to_string())
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// The keys that are accepted, and the one that signs.
#[derive(Debug, Default)]
pub struct Keyring {
    signing: Option<Key>,
    others: Vec<Key>,
}

impl Keyring {
    /// `others` verify and sign nothing: they are published and not in use yet, or in use no more.
    pub const fn new(signing: Option<Key>, others: Vec<Key>) -> Self {
        Self { signing, others }
    }

    /// Whether one signs.
    pub const fn can_sign(&self) -> bool {
        self.signing.is_some()
    }

    fn all(&self) -> impl Iterator<Item = &Key> {
        self.signing.iter().chain(&self.others)
    }

    fn find(&self, kid: &str) -> Option<&Key> {
        self.all().find(|key| key.kid == kid)
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
    keys: RwLock<Arc<Keyring>>,
    /// How often keys were taken out of the ring.
    generation: AtomicU64,
    issuer: String,
    audience: String,
    lifetime: Duration,
}

impl TokenIssuer {
    /// `issuer` and `audience` are written into every token and demanded of every token.
    pub fn new(keys: Keyring, issuer: String, audience: String, lifetime: Duration) -> Self {
        Self {
            keys: RwLock::new(Arc::new(keys)),
            generation: AtomicU64::new(0),
            issuer,
            audience,
            lifetime,
        }
    }

    /// Takes other keys from now on.
    pub fn use_keys(&self, keys: Keyring) {
        let mut known = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let retired = known.all().any(|key| keys.find(&key.kid).is_none());
        *known = Arc::new(keys);
        drop(known);
        if retired {
            self.generation.fetch_add(1, Ordering::Release);
        }
    }

    /// Another number since a key was taken away: what was verified before may not verify any more.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether there is a key to sign with.
    pub fn can_sign(&self) -> bool {
        self.keys().can_sign()
    }

    fn keys(&self) -> Arc<Keyring> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The public halves of all keys that are accepted (RFC 7517). A symmetric key has none.
    pub fn public_keys(&self) -> JwkSet {
        let keys = self.keys().all().filter_map(|key| key.public.clone()).collect();
        JwkSet { keys }
    }

    /// How long a token is good.
    pub const fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// A token for `user` in this session from now on.
    pub fn issue(&self, user: UserId, session: SessionId) -> Result<Issued, TokenError> {
        self.issue_at(user, session, jsonwebtoken::get_current_timestamp())
    }

    fn issue_at(&self, user: UserId, session: SessionId, now: u64) -> Result<Issued, TokenError> {
        let claims = Claims {
            iss: self.issuer.clone(),
            aud: self.audience.clone(),
            sub: user,
            iat: now,
            exp: now + self.lifetime.as_secs(),
            jti: Uuid::now_v7(),
            sid: session,
        };
        let keys = self.keys();
        let key = keys.signing.as_ref().ok_or(TokenError::NoKey)?;
        let header = Header {
            typ: Some(TYP.to_owned()),
            kid: Some(key.kid.clone()),
            ..Header::new(key.algorithm)
        };
        let token = jsonwebtoken::encode(&header, &claims, &key.sign).map_err(signing)?;
        Ok(Issued {
            token: token.into(),
            lifetime: self.lifetime,
        })
    }

    /// What the token says, if it is one of ours and its time is not up.
    pub fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Invalid)?;
        if header.typ.as_deref() != Some(TYP) || brings_keys(&header) {
            return Err(TokenError::Invalid);
        }
        let keys = self.keys();
        let kid = header.kid.ok_or(TokenError::Invalid)?;
        let key = keys.find(&kid).ok_or(TokenError::UnknownKey)?;
        let mut validation = Validation::new(key.algorithm);
        validation.leeway = LEEWAY.as_secs();
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[&self.audience]);
        // Without this list the library accepts tokens that lack what it would otherwise check.
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        // `iat`, `jti` and `sid` are demanded by the type.
        let token =
            jsonwebtoken::decode::<Claims>(token, &key.verify, &validation).map_err(|error| match error.kind() {
                jsonwebtoken::errors::ErrorKind::ExpiredSignature => TokenError::Expired,
                _ => TokenError::Invalid,
            })?;
        Ok(token.claims)
    }
}

/// A token of ours never has such headers; one that does hopes for a verifier that follows them (RFC 8725, section 3.10).
fn brings_keys(header: &Header) -> bool {
    header.crit.is_some()
        || header.jwk.is_some()
        || header.jku.is_some()
        || header.x5u.is_some()
        || header.x5c.is_some()
        || header.x5t.is_some()
        || header.x5t_s256.is_some()
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
        issuer_with(Keyring::new(Some(key(SECRET)), vec![]))
    }

    fn good_claims() -> Value {
        let now = jsonwebtoken::get_current_timestamp();
        json!({"iss": "https://issuer", "aud": "claimcheck", "sub": UserId::new(), "iat": now, "exp": now + 60,
            "jti": Uuid::now_v7(), "sid": SessionId::new()})
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
        let issued = issuer().issue(user, SessionId::new()).unwrap();
        let claims = issuer().verify(issued.token.expose_secret()).unwrap();
        assert_eq!(claims.sub, user);
        assert_eq!(claims.exp - claims.iat, 600);
    }

    #[test]
    fn a_token_without_any_one_of_its_claims_is_refused() {
        assert!(issuer().verify(&sign(&good_header(), &good_claims())).is_ok());
        for claim in ["iss", "aud", "sub", "iat", "exp", "jti", "sid"] {
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
        let issued = issuer().issue_at(UserId::new(), SessionId::new(), long_ago).unwrap();
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
        let old = issuer().issue(UserId::new(), SessionId::new()).unwrap();
        let new = || key("fedcba9876543210fedcba9876543210");
        let rotated = issuer_with(Keyring::new(Some(new()), vec![key(SECRET)]));
        assert!(rotated.verify(old.token.expose_secret()).is_ok());
        let removed = issuer_with(Keyring::new(Some(new()), vec![]));
        assert!(removed.verify(old.token.expose_secret()).is_err());
    }

    fn eddsa() -> (TokenIssuer, Key) {
        let key = || Key::ed25519(&[7; 32]).unwrap();
        (issuer_with(Keyring::new(Some(key()), vec![])), key())
    }

    #[test]
    fn an_eddsa_token_verifies_and_its_public_key_is_shown_by_its_thumbprint() {
        let (issuer, key) = eddsa();
        let token = issuer.issue(UserId::new(), SessionId::new()).unwrap();
        assert!(issuer.verify(token.token.expose_secret()).is_ok());
        let set = serde_json::to_value(issuer.public_keys()).unwrap();
        let shown = &set["keys"][0];
        assert_eq!(
            (
                &shown["kty"],
                &shown["crv"],
                &shown["alg"],
                &shown["use"],
                &shown["kid"]
            ),
            (
                &json!("OKP"),
                &json!("Ed25519"),
                &json!("EdDSA"),
                &json!("sig"),
                &json!(key.kid)
            )
        );
        assert!(shown.get("d").is_none(), "the private half stays here");
        // What any other verifier makes of the published key.
        let jwk: Jwk = serde_json::from_value(shown.clone()).unwrap();
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_audience(&["claimcheck"]);
        let verify = DecodingKey::from_jwk(&jwk).unwrap();
        assert!(jsonwebtoken::decode::<Claims>(token.token.expose_secret(), &verify, &validation).is_ok());
        assert!(
            serde_json::to_string(&issuer_with(Keyring::new(Some(super::tests::key(SECRET)), vec![])).public_keys())
                .unwrap()
                .contains("[]"),
            "a symmetric key is not shown"
        );
    }

    #[test]
    fn a_public_key_taken_as_a_shared_secret_signs_nothing() {
        let (issuer, key) = eddsa();
        let public = serde_json::to_value(issuer.public_keys()).unwrap()["keys"][0].clone();
        let x = public["x"].as_str().unwrap();
        for secret in [x.as_bytes().to_vec(), serde_json::to_vec(&public).unwrap()] {
            let header = Header {
                typ: Some(TYP.into()),
                kid: Some(key.kid.clone()),
                ..Header::new(Algorithm::HS256)
            };
            let forged = jsonwebtoken::encode(&header, &good_claims(), &EncodingKey::from_secret(&secret)).unwrap();
            assert!(matches!(issuer.verify(&forged), Err(TokenError::Invalid)));
        }
    }

    #[test]
    fn a_token_that_brings_or_names_a_key_of_its_own_is_refused() {
        let (issuer, key) = eddsa();
        let mine = Key::ed25519(&[8; 32]).unwrap();
        let header = Header {
            typ: Some(TYP.into()),
            kid: Some(key.kid.clone()),
            ..Header::new(Algorithm::EdDSA)
        };
        let with_jwk = Header {
            jwk: mine.public.clone(),
            ..header.clone()
        };
        let with_jku = Header {
            jku: Some("https://evil.example/jwks.json".into()),
            ..header.clone()
        };
        let with_x5u = Header {
            x5u: Some("https://evil.example/cert.pem".into()),
            ..header.clone()
        };
        for kid in ["../../etc/passwd", "' OR 1=1 --", "", &mine.kid] {
            let header = Header {
                kid: Some(kid.into()),
                ..header.clone()
            };
            let token = jsonwebtoken::encode(&header, &good_claims(), &mine.sign).unwrap();
            assert!(matches!(issuer.verify(&token), Err(TokenError::UnknownKey)), "{kid}");
        }
        for header in [header, with_jwk, with_jku, with_x5u] {
            let token = jsonwebtoken::encode(&header, &good_claims(), &mine.sign).unwrap();
            assert!(issuer.verify(&token).is_err(), "{header:?}");
            // Even well signed, such a header is none of ours.
            let token = jsonwebtoken::encode(&header, &good_claims(), &key.sign).unwrap();
            assert_eq!(issuer.verify(&token).is_ok(), !brings_keys(&header), "{header:?}");
        }
    }

    #[test]
    fn without_a_key_nothing_is_signed_and_no_token_is_known() {
        let empty = issuer_with(Keyring::default());
        assert!(matches!(
            empty.issue(UserId::new(), SessionId::new()),
            Err(TokenError::NoKey)
        ));
        let token = issuer().issue(UserId::new(), SessionId::new()).unwrap();
        assert!(matches!(
            empty.verify(token.token.expose_secret()),
            Err(TokenError::UnknownKey)
        ));
    }

    #[test]
    fn a_short_secret_is_refused() {
        let short = SecretString::from("short".to_owned());
        assert!(matches!(Key::hs256(&short), Err(TokenError::WeakSecret(5))));
    }
}
