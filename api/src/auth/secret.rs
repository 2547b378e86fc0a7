//! Opaque secrets that callers hold, such as API keys: a prefix that tells what it is, 160 random bits, and a checksum.
//!
//! The checksum is there so that a mistyped or invented one is refused without a look into the database, and so that tools
//! which look for leaked secrets know ours. What is stored is the digest alone ([`Secret::sha256`]); with so many random
//! bits a fast one is enough (OWASP ASVS 5.0, 11.4.2 asks for a slow one for passwords only). The digits are those of ids.

use claimcheck_common::store::api_keys::Digest;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest as _, Sha256};

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// 160 bits in digits of five.
const RANDOM: usize = 32;
/// 32 bits in digits of five.
const CHECKSUM: usize = 7;
/// So much of a secret may be shown, for people to tell theirs apart: 20 of its bits.
const HINT: usize = 4;

/// What a secret is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretKind {
    /// `cck_…`
    ApiKey,
    /// `ccr_…`
    RefreshToken,
    /// `ccs_…`, in the cookie of a browser that is signing in with a provider.
    SignIn,
    /// `ccv_…`, of a service account.
    ServiceAccount,
}

impl SecretKind {
    /// The text before the digits.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::ApiKey => "cck_",
            Self::RefreshToken => "ccr_",
            Self::SignIn => "ccs_",
            Self::ServiceAccount => "ccv_",
        }
    }
}

/// A secret that is complete and unaltered; whether anybody knows it, the store tells.
#[derive(Debug, Clone)]
pub struct Secret {
    kind: SecretKind,
    text: SecretString,
}

impl Secret {
    /// A new one.
    pub fn draw(kind: SecretKind) -> Self {
        let random: [u8; RANDOM] = rand::random();
        let digits: String = random
            .iter()
            .map(|byte| char::from(ALPHABET[usize::from(byte & 31)]))
            .collect();
        let body = format!("{}{digits}", kind.prefix());
        let text = format!("{body}{}", checksum(&body));
        Self {
            kind,
            text: text.into(),
        }
    }

    /// Reads one of that kind; `None` for everything else.
    pub fn parse(kind: SecretKind, text: &str) -> Option<Self> {
        let digits = text.strip_prefix(kind.prefix())?;
        let known = digits.len() == RANDOM + CHECKSUM && digits.bytes().all(|digit| ALPHABET.contains(&digit));
        let (body, sum) = known.then(|| text.split_at(text.len() - CHECKSUM))?;
        (checksum(body) == sum).then(|| Self {
            kind,
            text: text.to_owned().into(),
        })
    }

    /// What is stored, and what it is found by.
    pub fn sha256(&self) -> Digest {
        Sha256::digest(self.text.expose_secret()).into()
    }

    /// Its beginning.
    pub fn hint(&self) -> String {
        self.text.expose_secret()[..self.kind.prefix().len() + HINT].to_owned()
    }

    /// All of it: shown once.
    pub fn expose(&self) -> &str {
        self.text.expose_secret()
    }
}

fn checksum(body: &str) -> String {
    let sum = crc32fast::hash(body.as_bytes());
    (0..CHECKSUM)
        .rev()
        .map(|place| char::from(ALPHABET[(u64::from(sum) >> (5 * place)) as usize & 31]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawn_secret_reads_back_and_no_two_are_the_same() {
        let one = Secret::draw(SecretKind::ApiKey);
        let again = Secret::parse(SecretKind::ApiKey, one.expose()).unwrap();
        assert_eq!(one.sha256(), again.sha256());
        assert_eq!(one.expose().len(), 43);
        assert!(one.expose().starts_with(&one.hint()) && one.hint().len() == 8);
        assert_ne!(one.sha256(), Secret::draw(SecretKind::ApiKey).sha256());
    }

    #[test]
    fn a_secret_with_any_character_changed_is_refused() {
        let text = Secret::draw(SecretKind::ApiKey).expose().to_owned();
        for place in 0..text.len() {
            for other in "0zu-".chars() {
                let mut changed: Vec<char> = text.chars().collect();
                if changed[place] == other {
                    continue;
                }
                changed[place] = other;
                let changed: String = changed.into_iter().collect();
                assert!(Secret::parse(SecretKind::ApiKey, &changed).is_none(), "{place} {other}");
            }
        }
    }

    #[test]
    fn cut_padded_and_foreign_texts_are_refused() {
        let text = Secret::draw(SecretKind::ApiKey).expose().to_owned();
        for bad in [
            "",
            "cck_",
            &text[..42],
            &format!("{text}0"),
            &text.to_uppercase(),
            &format!(" {text}"),
            "ükläß",
        ] {
            assert!(Secret::parse(SecretKind::ApiKey, bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_secret_of_one_kind_is_none_of_another() {
        let text = Secret::draw(SecretKind::RefreshToken).expose().to_owned();
        assert!(Secret::parse(SecretKind::ApiKey, &text).is_none());
        assert!(Secret::parse(SecretKind::ApiKey, &text.replace("ccr_", "cck_")).is_none());
    }

    #[test]
    fn a_secret_does_not_show_in_debug_output() {
        let secret = Secret::draw(SecretKind::ApiKey);
        assert!(!format!("{secret:?}").contains(&secret.expose()[8..]));
    }
}
