//! Sealing the private halves of signing keys: ChaCha20-Poly1305 under a key derived from `CLAIMCHECK_JWT_SECRET` (HKDF with
//! SHA-256, RFC 5869), bound to the key's name.
//!
//! Whoever can read the database cannot sign, and whoever can write it cannot slip in a key of their own: one that does
//! not open with our secret is not ours.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::rand::{SecureRandom, SystemRandom};
use secrecy::{ExposeSecret, SecretString};

use super::token::{MIN_SECRET_BYTES, TokenError};

/// The private half of an Ed25519 key.
pub type Seed = [u8; 32];

/// Seals and opens. Must never be shown: whoever has it has every key.
pub struct Seal(LessSafeKey);

impl Seal {
    /// Derived from the service's secret.
    pub fn new(secret: &SecretString) -> Result<Self, TokenError> {
        let secret = secret.expose_secret().as_bytes();
        if secret.len() < MIN_SECRET_BYTES {
            return Err(TokenError::WeakSecret(secret.len()));
        }
        let key = Salt::new(HKDF_SHA256, b"claimcheck")
            .extract(secret)
            .expand(&[b"signing keys, version 1"], &CHACHA20_POLY1305)
            .map(UnboundKey::from)
            .map_err(|_| TokenError::Signing("the sealing key could not be derived".to_owned()))?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// A new private half.
    pub fn draw() -> Result<Seed, TokenError> {
        let mut seed = Seed::default();
        random(&mut seed)?;
        Ok(seed)
    }

    /// The nonce, then the sealed seed with its tag. The nonce is drawn: so few keys are ever made that two never meet.
    pub fn seal(&self, kid: &str, seed: &Seed) -> Result<Vec<u8>, TokenError> {
        let mut nonce = [0; NONCE_LEN];
        random(&mut nonce)?;
        let mut sealed = seed.to_vec();
        self.0
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(kid), &mut sealed)
            .map_err(|_| TokenError::Signing("a key could not be sealed".to_owned()))?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    /// The seed, if it was sealed with this secret under this name.
    pub fn open(&self, kid: &str, sealed: &[u8]) -> Option<Seed> {
        let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut sealed = sealed.to_vec();
        let opened = self.0.open_in_place(nonce, Aad::from(kid), &mut sealed).ok()?;
        Seed::try_from(&*opened).ok()
    }
}

fn random(bytes: &mut [u8]) -> Result<(), TokenError> {
    SystemRandom::new()
        .fill(bytes)
        .map_err(|_| TokenError::Signing("the system has no random numbers".to_owned()))
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seal")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal(secret: &str) -> Seal {
        Seal::new(&SecretString::from(secret.to_owned())).unwrap()
    }

    #[test]
    fn a_seed_opens_under_its_secret_and_its_name_alone() {
        let ours = seal("0123456789abcdef0123456789abcdef");
        let seed = Seal::draw().unwrap();
        let sealed = ours.seal("one", &seed).unwrap();
        assert_eq!(ours.open("one", &sealed), Some(seed));
        assert_eq!(ours.open("two", &sealed), None);
        assert_eq!(seal("fedcba9876543210fedcba9876543210").open("one", &sealed), None);
        for place in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[place] ^= 1;
            assert_eq!(ours.open("one", &altered), None, "{place}");
        }
        assert_eq!(ours.open("one", &[]), None);
        assert!(!sealed.windows(32).any(|window| window == seed));
    }

    #[test]
    fn a_short_secret_is_refused() {
        let short = SecretString::from("short".to_owned());
        assert!(matches!(Seal::new(&short), Err(TokenError::WeakSecret(5))));
    }
}
