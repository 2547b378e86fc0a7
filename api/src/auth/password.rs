//! Password hashing: argon2id at OWASP's minimum (19 MiB, two passes, one lane), off the async threads.
//!
//! A hash costs about 30 ms of one core and 19 MiB, so at most [`Passwords::new`]'s `running` are made at a time, at most
//! `waiting` more stand in line, and whoever comes beyond is refused at once. An unknown user costs as much as a wrong
//! password: a dummy hash is verified instead. Hashes are PHC strings and carry their own parameters, so that the cost
//! can be raised without touching stored ones.

use std::sync::Arc;

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;

/// Why a password was neither hashed nor checked.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// The line is full.
    #[error("too many passwords are being checked at the moment")]
    Busy,
    /// The library refused, or its thread died.
    #[error("hashing failed: {0}")]
    Failed(String),
}

/// Hashes and checks passwords, a bounded number at a time.
#[derive(Debug, Clone)]
pub struct Passwords {
    /// Those at work and those in line.
    admitted: Arc<Semaphore>,
    /// Those at work.
    running: Arc<Semaphore>,
    /// What an unknown user's password is compared with.
    dummy: Arc<str>,
}

impl Passwords {
    /// Makes the dummy hash, so this call itself costs one hash.
    pub fn new(running: usize, waiting: usize) -> Result<Self, PasswordError> {
        Ok(Self {
            admitted: Arc::new(Semaphore::new(running + waiting)),
            running: Arc::new(Semaphore::new(running)),
            dummy: hash_now(&uuid::Uuid::new_v4().to_string())?.into(),
        })
    }

    /// The PHC string to store.
    pub async fn hash(&self, password: SecretString) -> Result<String, PasswordError> {
        self.off_thread(move || hash_now(password.expose_secret())).await?
    }

    /// Whether the password belongs to the stored hash; `None` (no such user) takes as long and is never true.
    pub async fn verify(&self, password: SecretString, stored: Option<String>) -> Result<bool, PasswordError> {
        let known = stored.is_some();
        let stored = stored.unwrap_or_else(|| self.dummy.to_string());
        let matches = self
            .off_thread(move || verify_now(password.expose_secret(), &stored))
            .await??;
        Ok(known && matches)
    }

    async fn off_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PasswordError> {
        let (admitted, running) = self.admit().await?;
        tokio::task::spawn_blocking(move || {
            // Held by the work itself: a caller that leaves must not make room for another one.
            let _permits = (admitted, running);
            work()
        })
        .await
        .map_err(|died| PasswordError::Failed(died.to_string()))
    }

    async fn admit(&self) -> Result<(OwnedSemaphorePermit, OwnedSemaphorePermit), PasswordError> {
        let admitted = self
            .admitted
            .clone()
            .try_acquire_owned()
            .map_err(|_| PasswordError::Busy)?;
        let running = self
            .running
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| PasswordError::Busy)?;
        Ok((admitted, running))
    }
}

fn argon2id() -> Result<Argon2<'static>, PasswordError> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).map_err(failed)?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn hash_now(password: &str) -> Result<String, PasswordError> {
    let hash = argon2id()?.hash_password(password.as_bytes()).map_err(failed)?;
    Ok(hash.to_string())
}

fn verify_now(password: &str, stored: &str) -> Result<bool, PasswordError> {
    let stored = PasswordHash::new(stored).map_err(failed)?;
    match argon2id()?.verify_password(password.as_bytes(), &stored) {
        Ok(()) => Ok(true),
        Err(argon2::password_hash::Error::PasswordInvalid) => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

#[allow(clippy::needless_pass_by_value, reason = "the shape that `map_err` wants")]
fn failed(error: impl std::fmt::Display) -> PasswordError {
    PasswordError::Failed(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> SecretString {
        SecretString::from(text.to_owned())
    }

    #[tokio::test]
    async fn only_the_right_password_matches_its_hash() {
        let passwords = Passwords::new(2, 2).unwrap();
        let stored = passwords.hash(secret("correct horse")).await.unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{stored}");
        assert!(
            passwords
                .verify(secret("correct horse"), Some(stored.clone()))
                .await
                .unwrap()
        );
        assert!(!passwords.verify(secret("Correct horse"), Some(stored)).await.unwrap());
    }

    #[tokio::test]
    async fn equal_passwords_get_different_hashes() {
        let passwords = Passwords::new(2, 2).unwrap();
        let one = passwords.hash(secret("the same")).await.unwrap();
        assert_ne!(one, passwords.hash(secret("the same")).await.unwrap());
    }

    #[tokio::test]
    async fn an_unknown_user_is_checked_against_a_hash_of_the_same_cost_and_never_matches() {
        let passwords = Passwords::new(1, 1).unwrap();
        assert!(passwords.dummy.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
        assert!(!passwords.verify(secret("anything"), None).await.unwrap());
    }

    #[tokio::test]
    async fn beyond_the_line_callers_are_refused_at_once() {
        let passwords = Passwords::new(1, 1).unwrap();
        let busy = passwords.running.clone().acquire_owned().await.unwrap();
        let _at_work = passwords.admitted.clone().try_acquire_owned().unwrap();
        let in_line = tokio::spawn({
            let passwords = passwords.clone();
            async move { passwords.hash(secret("patient")).await }
        });
        while passwords.admitted.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert!(matches!(passwords.hash(secret("late")).await, Err(PasswordError::Busy)));
        drop(busy);
        assert!(in_line.await.unwrap().is_ok(), "who stood in line is served");
    }
}
