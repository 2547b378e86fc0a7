//! What a receiver does with a delivery, by Standard Webhooks 1.0.0: looks whether a signature in it is by the key that it holds.

use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use ring::signature::{ED25519, UnparsedPublicKey};

/// What a receiver holds: the shared secret (`whsec_…`, for `v1`) or the public key (`whpk_…`, for `v1a`).
pub enum ReceiverKey {
    /// For HMAC-SHA256.
    Shared(hmac::Key),
    /// For Ed25519.
    Public(Vec<u8>),
}

impl FromStr for ReceiverKey {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "must be `whsec_` or `whpk_` and base64";
        let decode = |base64: &str| STANDARD.decode(base64).ok().filter(|key| !key.is_empty()).ok_or(FORM);
        match text.trim().split_once('_') {
            Some(("whsec", base64)) => Ok(Self::Shared(hmac::Key::new(hmac::HMAC_SHA256, &decode(base64)?))),
            Some(("whpk", base64)) => Ok(Self::Public(decode(base64)?)),
            _ => Err(FORM),
        }
    }
}

impl ReceiverKey {
    /// The signatures' version that this key is for.
    pub const fn version(&self) -> &'static str {
        match self {
            Self::Shared(_) => "v1",
            Self::Public(_) => "v1a",
        }
    }

    /// Whether one of the signatures (`webhook-signature`: any number, with spaces between them) is by this key over `id`, `timestamp`
    /// and `body`. Whether the timestamp is recent is the receiver's to look at.
    pub fn signed(&self, id: &str, timestamp: &str, body: &[u8], signatures: &str) -> bool {
        let message = [format!("{id}.{timestamp}.").as_bytes(), body].concat();
        let of_version = signatures.split_whitespace().filter_map(|signature| {
            let (version, base64) = signature.split_once(',')?;
            STANDARD.decode(base64).ok().filter(|_| version == self.version())
        });
        of_version.into_iter().any(|signature| match self {
            // In constant time.
            Self::Shared(key) => hmac::verify(key, &message, &signature).is_ok(),
            Self::Public(key) => UnparsedPublicKey::new(&ED25519, key)
                .verify(&message, &signature)
                .is_ok(),
        })
    }
}

impl std::fmt::Debug for ReceiverKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReceiverKey({})", self.version())
    }
}

#[cfg(test)]
mod tests {
    use super::super::SigningSecret;
    use super::*;

    #[test]
    fn both_keys_of_an_endpoint_know_its_signatures_and_no_others() {
        let (ours, other) = (SigningSecret::draw().unwrap(), SigningSecret::draw().unwrap());
        // While a secret is rotated both sign.
        let signatures = format!("{} {}", other.sign("evt_1", 17, b"{}"), ours.sign("evt_1", 17, b"{}"));
        for text in [ours.shown(), ours.public_key()] {
            let key: ReceiverKey = text.parse().unwrap();
            assert!(key.signed("evt_1", "17", b"{}", &signatures), "{key:?}");
            for (id, timestamp, body) in [
                ("evt_2", "17", "{}"),
                ("evt_1", "18", "{}"),
                ("evt_1", "17", "{ }"),
                ("evt_1", "017", "{}"),
            ] {
                assert!(!key.signed(id, timestamp, body.as_bytes(), &signatures), "{key:?}");
            }
            assert!(!key.signed("evt_1", "17", b"{}", &other.sign("evt_1", 17, b"{}")));
            assert!(!key.signed("evt_1", "17", b"{}", "v1, v1a,x v2,AAAA nonsense"));
        }
    }

    #[test]
    fn a_key_that_is_none_is_refused() {
        for bad in ["", "whsec_", "whsec_!", "whpk", "AAAA", "whsek_AAAA"] {
            assert!(bad.parse::<ReceiverKey>().is_err(), "{bad}");
        }
        assert!(
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n"
                .parse::<ReceiverKey>()
                .is_ok()
        );
    }
}
