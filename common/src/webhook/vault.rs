//! Sealing what must be readable but not by whoever gets hold of the database: signing secrets and headers.
//!
//! ChaCha20-Poly1305 with a random nonce, bound to the endpoint that it belongs to. A sealed value names the key that sealed
//! it, so that the key can be changed while the old one still opens.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use secrecy::{ExposeSecret, SecretString};

use super::SigningSecret;
use crate::domain::EndpointId;

const KEY_MIN: usize = 32;
const NAME: usize = 4;
const NONCE: usize = 12;

/// Why a value cannot be sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VaultError {
    /// The configured key is too short to be one.
    #[error("CLAIMCHECK_WEBHOOK_KEY must have at least {KEY_MIN} bytes")]
    Short,
    /// The machine gives no random numbers.
    #[error("no random numbers are to be had")]
    Random,
    /// It was sealed with a key that is not configured, for another endpoint, or not at all.
    #[error("the value was sealed with another key")]
    Foreign,
}

/// Seals with one key and opens with two.
pub struct Vault {
    current: Key,
    old: Option<Key>,
    random: SystemRandom,
}

struct Key {
    name: [u8; NAME],
    key: LessSafeKey,
}

impl Vault {
    /// A vault with the configured keys.
    pub fn new(current: &SecretString, old: Option<&SecretString>) -> Result<Self, VaultError> {
        Ok(Self {
            current: Key::of(current)?,
            old: old.map(Key::of).transpose()?,
            random: SystemRandom::new(),
        })
    }

    /// Seals a value of an endpoint.
    pub fn seal(&self, owner: EndpointId, value: &[u8]) -> Result<Vec<u8>, VaultError> {
        let mut nonce = [0; NONCE];
        self.random.fill(&mut nonce).map_err(|_| VaultError::Random)?;
        let mut sealed = [self.current.name.as_slice(), &nonce].concat();
        let mut text = value.to_vec();
        let key = &self.current.key;
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), bound_to(owner), &mut text)
            .map_err(|_| VaultError::Random)?;
        sealed.extend(text);
        Ok(sealed)
    }

    /// Opens a sealed value of an endpoint.
    pub fn open(&self, owner: EndpointId, sealed: &[u8]) -> Result<Vec<u8>, VaultError> {
        let (name, rest) = sealed.split_at_checked(NAME).ok_or(VaultError::Foreign)?;
        let (nonce, text) = rest.split_at_checked(NONCE).ok_or(VaultError::Foreign)?;
        let mut keys = std::iter::once(&self.current).chain(&self.old);
        let key = keys.find(|key| key.name == name).ok_or(VaultError::Foreign)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| VaultError::Foreign)?;
        let mut text = text.to_vec();
        let value = key.key.open_in_place(nonce, bound_to(owner), &mut text);
        value.map(|value| value.to_vec()).map_err(|_| VaultError::Foreign)
    }

    /// Opens a sealed signing secret.
    pub fn open_secret(&self, owner: EndpointId, sealed: &[u8]) -> Result<SigningSecret, VaultError> {
        SigningSecret::from_bytes(&self.open(owner, sealed)?).ok_or(VaultError::Foreign)
    }
}

impl Key {
    fn of(configured: &SecretString) -> Result<Self, VaultError> {
        let text = configured.expose_secret();
        if text.len() < KEY_MIN {
            return Err(VaultError::Short);
        }
        // The text may be of any length and alphabet, and is used for nothing else.
        let bytes = digest(
            &SHA256,
            &[b"claimcheck webhook secrets\0".as_slice(), text.as_bytes()].concat(),
        );
        let key = UnboundKey::new(&CHACHA20_POLY1305, bytes.as_ref()).map_err(|_| VaultError::Short)?;
        let mut name = [0; NAME];
        name.copy_from_slice(&digest(&SHA256, bytes.as_ref()).as_ref()[..NAME]);
        Ok(Self {
            name,
            key: LessSafeKey::new(key),
        })
    }
}

fn bound_to(owner: EndpointId) -> Aad<[u8; 16]> {
    Aad::from(owner.uuid().into_bytes())
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vault(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(letter: &str) -> SecretString {
        letter.repeat(32).into()
    }

    #[test]
    fn only_the_owner_s_value_opens_and_only_untouched() {
        let vault = Vault::new(&key("a"), None).unwrap();
        let owner = EndpointId::new();
        let sealed = vault.seal(owner, b"value").unwrap();
        assert_eq!(vault.open(owner, &sealed).unwrap(), b"value");
        assert_eq!(vault.open(EndpointId::new(), &sealed), Err(VaultError::Foreign));
        for place in 0..sealed.len() {
            let mut touched = sealed.clone();
            touched[place] ^= 1;
            assert_eq!(vault.open(owner, &touched), Err(VaultError::Foreign), "byte {place}");
        }
        assert_ne!(
            vault.seal(owner, b"value").unwrap(),
            sealed,
            "each has a nonce of its own"
        );
        assert!(!sealed.windows(5).any(|part| part == b"value"));
    }

    #[test]
    fn a_changed_key_still_opens_what_the_old_one_sealed() {
        let owner = EndpointId::new();
        let sealed = Vault::new(&key("a"), None).unwrap().seal(owner, b"value").unwrap();
        let changed = Vault::new(&key("b"), Some(&key("a"))).unwrap();
        assert_eq!(changed.open(owner, &sealed).unwrap(), b"value");
        let forgotten = Vault::new(&key("b"), None).unwrap();
        assert_eq!(forgotten.open(owner, &sealed), Err(VaultError::Foreign));
    }

    #[test]
    fn a_short_key_is_refused() {
        assert_eq!(
            Vault::new(&"short".to_owned().into(), None).unwrap_err(),
            VaultError::Short
        );
    }
}
