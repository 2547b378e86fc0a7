//! What the fuzz targets hold the parsers to, whatever bytes come: they never panic, and take nothing that they must not. The same
//! functions are run on random bytes by `tests/it/parsers.rs`, with every run of the tests.

use std::sync::LazyLock;
use std::time::Duration;

use claimcheck_api::auth::{Key, Keyring, Secret, SecretKind, TokenIssuer};
use claimcheck_common::batch::input;
use claimcheck_common::domain::{SessionId, UserId};
use claimcheck_common::policy::{Policy, Side};
use claimcheck_common::validate::job::ModelLimits;
use secrecy::ExposeSecret;

static ISSUER: LazyLock<TokenIssuer> = LazyLock::new(|| {
    let key = Key::ed25519(&[7; 32]).expect("a key");
    let keys = Keyring::new(Some(key), Vec::new());
    TokenIssuer::new(keys, "issuer".into(), "audience".into(), Duration::from_hours(1))
});

/// A token that is good, to be spoilt.
static GOOD: LazyLock<String> = LazyLock::new(|| {
    let issued = ISSUER.issue(UserId::new(), SessionId::new()).expect("a token");
    issued.token.expose_secret().to_owned()
});

/// An access token: nothing that we did not issue is taken, as it comes or put in the place of a part of a good one.
pub fn token(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    assert!(ISSUER.verify(&text).is_err(), "a token from nowhere");
    let parts: Vec<&str> = GOOD.split('.').collect();
    for place in 0..parts.len() {
        let mut spoilt = parts.clone();
        spoilt[place] = &text;
        let spoilt = spoilt.join(".");
        assert!(spoilt == *GOOD || ISSUER.verify(&spoilt).is_err(), "a token of pieces");
    }
}

/// An API key or a refresh token: what is taken is shown as it came, and is of one kind.
pub fn key(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let kinds = [SecretKind::ApiKey, SecretKind::RefreshToken];
    let read: Vec<_> = kinds
        .into_iter()
        .filter_map(|kind| Secret::parse(kind, &text))
        .collect();
    assert!(read.len() <= 1, "of two kinds");
    assert!(read.iter().all(|secret| secret.expose() == text), "another secret");
}

/// A content policy: rules that are taken can be held against a text.
pub fn policy(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(policy) = Policy::parse(&text) {
        for side in [Side::Prompt, Side::Completion] {
            let _verdict = policy.look(side, &text);
        }
    }
}

/// A line of a batch's file: one that is taken has a name, and comes to a job or to a problem.
pub fn batch_line(data: &[u8]) {
    if let Ok(line) = input::read(data) {
        assert!(!line.custom_id.is_empty(), "a line without a name");
        let limits = ModelLimits {
            context_length: 1024,
            vocab_size: 50_257,
        };
        let _job_or_problem = line.body.into_valid(4, limits, 1_795_000_000);
    }
}
