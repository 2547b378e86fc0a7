//! Signing by Standard Webhooks (github.com/standard-webhooks/standard-webhooks, version 1.0.0): `v1` is HMAC-SHA256, `v1a` is
//! Ed25519, each over `id.timestamp.body`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};

use super::VaultError;

const HALF: usize = 32;

/// What an endpoint's deliveries are signed with: a shared key, and the seed of a key pair.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningSecret {
    shared: [u8; HALF],
    seed: [u8; HALF],
}

impl SigningSecret {
    /// A new one.
    pub fn draw() -> Result<Self, VaultError> {
        let random = SystemRandom::new();
        let mut secret = Self {
            shared: [0; HALF],
            seed: [0; HALF],
        };
        for half in [&mut secret.shared, &mut secret.seed] {
            random.fill(half).map_err(|_| VaultError::Random)?;
        }
        Ok(secret)
    }

    /// Reads what [`Self::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (shared, seed) = bytes.split_at_checked(HALF)?;
        Some(Self {
            shared: shared.try_into().ok()?,
            seed: seed.try_into().ok()?,
        })
    }

    /// Both halves, to be sealed.
    pub fn to_bytes(&self) -> Vec<u8> {
        [self.shared, self.seed].concat()
    }

    /// What a receiver verifies `v1` with: `whsec_` and base64.
    pub fn shown(&self) -> String {
        format!("whsec_{}", STANDARD.encode(self.shared))
    }

    /// What a receiver verifies `v1a` with: `whpk_` and base64. No secret.
    pub fn public_key(&self) -> String {
        let key = self.pair().map(|pair| STANDARD.encode(pair.public_key()));
        format!("whpk_{}", key.unwrap_or_default())
    }

    /// Both signatures of a message, as they stand in `webhook-signature`.
    pub fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let message = [format!("{id}.{timestamp}.").as_bytes(), body].concat();
        let shared = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.shared), &message);
        let shared = STANDARD.encode(shared);
        match self.pair() {
            Some(pair) => format!("v1,{shared} v1a,{}", STANDARD.encode(pair.sign(&message))),
            None => format!("v1,{shared}"),
        }
    }

    fn pair(&self) -> Option<Ed25519KeyPair> {
        // Every 32 bytes are a seed.
        Ed25519KeyPair::from_seed_unchecked(&self.seed).ok()
    }
}

impl std::fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningSecret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::signature::{ED25519, UnparsedPublicKey};

    #[test]
    fn a_message_is_signed_as_the_standards_own_example_is() {
        // The example of the specification's reference libraries.
        let shared = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let message = [
            b"msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330.".as_slice(),
            br#"{"test": 2432232314}"#,
        ]
        .concat();
        let signed = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &shared), &message);
        assert_eq!(STANDARD.encode(signed), "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn the_public_key_verifies_what_the_seed_signed() {
        let secret = SigningSecret::draw().unwrap();
        let signatures = secret.sign("evt_1", 17, b"{}");
        let asymmetric = signatures.split_once(" v1a,").unwrap().1;
        let key = STANDARD
            .decode(secret.public_key().strip_prefix("whpk_").unwrap())
            .unwrap();
        UnparsedPublicKey::new(&ED25519, key)
            .verify(b"evt_1.17.{}", &STANDARD.decode(asymmetric).unwrap())
            .unwrap();
    }

    #[test]
    fn a_secret_reads_back_and_does_not_show_itself() {
        let secret = SigningSecret::draw().unwrap();
        assert_eq!(SigningSecret::from_bytes(&secret.to_bytes()), Some(secret.clone()));
        assert_eq!(SigningSecret::from_bytes(&[0; 63]), None);
        assert_eq!(format!("{secret:?}"), "SigningSecret(…)");
        assert_ne!(secret, SigningSecret::draw().unwrap());
    }
}
