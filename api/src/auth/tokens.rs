//! Access tokens with the keys as they are now: read from the database every few seconds, so that keys are rotated without a
//! restart, and at once for a token whose key is not known yet.
//!
//! An operator publishes a key (it is accepted, and shown in the JWKS), lets it sign, and retires the one before when the
//! last token of it has expired (`claimcheck-api keys`). A service that finds no key of its secret makes the first itself.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use claimcheck_common::domain::{SessionId, UserId};
use claimcheck_common::store::signing_keys::{self, StoredKey};
use claimcheck_common::store::{Pool, StoreError};
use jsonwebtoken::jwk::JwkSet;
use tokio_util::sync::CancellationToken;

use super::seal::Seal;
use super::token::{Claims, Issued, Key, Keyring, TokenError, TokenIssuer};

/// A key that was published is known everywhere after this.
const EVERY: Duration = Duration::from_secs(10);
/// Tokens of unknown keys make nobody read more often than this.
const AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// Why a token is not issued or not accepted.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// The database, which has the keys.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The token, or a key.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// Issues and verifies access tokens.
#[derive(Debug)]
pub struct Tokens {
    issuer: TokenIssuer,
    source: Option<Source>,
}

/// Where keys come from.
#[derive(Debug)]
struct Source {
    pool: Pool,
    seal: Seal,
    last_read: Mutex<Option<Instant>>,
}

impl Tokens {
    /// With the keys that `issuer` has.
    pub const fn fixed(issuer: TokenIssuer) -> Self {
        Self { issuer, source: None }
    }

    /// With the keys in the database that open with `seal`. Reads nothing yet.
    pub const fn stored(issuer: TokenIssuer, pool: Pool, seal: Seal) -> Self {
        let source = Source {
            pool,
            seal,
            last_read: Mutex::new(None),
        };
        Self {
            issuer,
            source: Some(source),
        }
    }

    /// How long a token is good.
    pub const fn lifetime(&self) -> Duration {
        self.issuer.lifetime()
    }

    /// A token for `user` in this session from now on.
    pub async fn issue(&self, user: UserId, session: SessionId) -> Result<Issued, TokensError> {
        if !self.issuer.can_sign() {
            self.look_again().await?;
        }
        Ok(self.issuer.issue(user, session)?)
    }

    /// What the token says, if it is one of ours and its time is not up.
    pub async fn verify(&self, token: &str) -> Result<Claims, TokensError> {
        match self.issuer.verify(token) {
            Err(TokenError::UnknownKey) => {
                self.look_again().await?;
                Ok(self.issuer.verify(token)?)
            }
            verdict => Ok(verdict?),
        }
    }

    /// Another number since a key was taken away.
    pub fn generation(&self) -> u64 {
        self.issuer.generation()
    }

    /// The public halves of all keys that are accepted.
    pub fn public_keys(&self) -> JwkSet {
        self.issuer.public_keys()
    }

    /// Reads the keys until `stop`.
    pub async fn follow(&self, stop: CancellationToken) {
        let Some(source) = &self.source else { return };
        loop {
            if let Err(error) = self.read(source).await {
                tracing::warn!(%error, "the signing keys could not be read; those known go on");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
        }
    }

    /// Looks for keys that are not known yet, unless somebody has just looked.
    async fn look_again(&self) -> Result<(), TokensError> {
        let Some(source) = &self.source else { return Ok(()) };
        {
            let mut last = source.last_read.lock().unwrap_or_else(PoisonError::into_inner);
            if self.issuer.can_sign() && last.is_some_and(|last| last.elapsed() < AT_MOST_EVERY) {
                return Ok(());
            }
            *last = Some(Instant::now());
        }
        self.read(source).await
    }

    async fn read(&self, source: &Source) -> Result<(), TokensError> {
        let stored = signing_keys::list(&source.pool, false).await?;
        let keyring = open(&source.seal, &stored)?;
        if keyring.can_sign() {
            self.issuer.use_keys(keyring);
            return Ok(());
        }
        let seen = stored.into_iter().map(|key| key.kid).collect();
        let (kid, sealed) = new_key(&source.seal)?;
        signing_keys::publish_first(&source.pool, kid, sealed, seen).await?;
        let stored = signing_keys::list(&source.pool, false).await?;
        self.issuer.use_keys(open(&source.seal, &stored)?);
        Ok(())
    }
}

/// The first that may sign does; keys of another secret are left alone.
fn open(seal: &Seal, stored: &[StoredKey]) -> Result<Keyring, TokenError> {
    let (mut signing, mut others) = (None, Vec::new());
    for row in stored {
        let Some(seed) = seal.open(&row.kid, &row.sealed) else {
            tracing::debug!(kid = row.kid, "a signing key was sealed with another secret");
            continue;
        };
        let key = Key::ed25519(&seed)?;
        if key.kid() != row.kid {
            continue;
        }
        if row.may_sign && signing.is_none() {
            signing = Some(key);
        } else {
            others.push(key);
        }
    }
    Ok(Keyring::new(signing, others))
}

/// A new key: its name, and it sealed for the database.
pub fn new_key(seal: &Seal) -> Result<(String, Vec<u8>), TokenError> {
    let seed = Seal::draw()?;
    let kid = Key::ed25519(&seed)?.kid().to_owned();
    let sealed = seal.seal(&kid, &seed)?;
    Ok((kid, sealed))
}
