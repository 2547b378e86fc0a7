//! The key that signs receipts: Ed25519, for nothing else, so that no receipt can pass as a token or the other way round.
//!
//! A signature is a JWS (RFC 7515, compact, `EdDSA` of RFC 8037) whose payload is the whole statement. The public half is a
//! JWK set (RFC 7517) at `/.well-known/receipt-keys.json`, and the key's name is its thumbprint (RFC 7638).

use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse, ThumbprintHash};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use sha2::{Digest, Sha256};

/// The type in the header of every signed receipt.
const TYP: &str = "claimcheck-receipt+jws";
/// PKCS #8 (RFC 8410) of an Ed25519 seed is these bytes and the seed.
const PKCS8_HEAD: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// Signs receipts.
pub struct ReceiptKey {
    sign: EncodingKey,
    public: Jwk,
    header: Header,
}

impl ReceiptKey {
    /// The key that follows from a secret: the same secret gives the same key on every replica.
    pub fn from_secret(secret: &SecretString) -> Result<Self, jsonwebtoken::errors::Error> {
        let seed = Sha256::new()
            .chain_update(b"claimcheck receipt key")
            .chain_update([0])
            .chain_update(secret.expose_secret().as_bytes())
            .finalize();
        let sign = EncodingKey::from_ed_der(&[&PKCS8_HEAD[..], &seed[..]].concat());
        let mut public = Jwk::from_encoding_key(&sign, Algorithm::EdDSA)?;
        let kid = public.thumbprint(ThumbprintHash::SHA256)?;
        public.common.key_id = Some(kid.clone());
        public.common.public_key_use = Some(PublicKeyUse::Signature);
        let header = Header {
            typ: Some(TYP.to_owned()),
            kid: Some(kid),
            ..Header::new(Algorithm::EdDSA)
        };
        Ok(Self { sign, public, header })
    }

    /// A compact JWS whose payload is `statement`.
    pub fn sign(&self, statement: &impl Serialize) -> Result<String, jsonwebtoken::errors::Error> {
        jsonwebtoken::encode(&self.header, statement, &self.sign)
    }

    /// What signatures are verified by.
    pub fn published(&self) -> JwkSet {
        JwkSet {
            keys: vec![self.public.clone()],
        }
    }
}

impl std::fmt::Debug for ReceiptKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReceiptKey")
            .field("kid", &self.public.common.key_id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation};
    use serde_json::{Value, json};

    use super::*;

    fn key(secret: &str) -> ReceiptKey {
        ReceiptKey::from_secret(&SecretString::from(secret.to_owned())).unwrap()
    }

    fn verify(signed: &str, keys: &JwkSet) -> Option<Value> {
        let kid = jsonwebtoken::decode_header(signed).ok()?.kid?;
        let key = DecodingKey::from_jwk(keys.find(&kid)?).ok()?;
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        Some(jsonwebtoken::decode::<Value>(signed, &key, &validation).ok()?.claims)
    }

    #[test]
    fn a_statement_verifies_by_the_published_key_and_an_altered_one_does_not() {
        let key = key("a secret");
        let statement = json!({"job_id": "job_1", "total_tokens": 7});
        let signed = key.sign(&statement).unwrap();
        assert_eq!(verify(&signed, &key.published()), Some(statement));
        let altered = signed.replacen('.', ".e30", 1);
        assert_eq!(verify(&altered, &key.published()), None);
    }

    #[test]
    fn a_secret_gives_one_key_and_another_secret_another() {
        let kid = |secret| key(secret).public.common.key_id;
        assert_eq!(kid("a"), kid("a"));
        assert_ne!(kid("a"), kid("b"));
        let published = serde_json::to_value(key("a").published()).unwrap();
        assert_eq!(published["keys"][0]["crv"], "Ed25519");
        assert!(published["keys"][0].get("d").is_none(), "no private half: {published}");
    }
}
