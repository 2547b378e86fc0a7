//! How often API keys are used: counted here, written down together every few seconds and at the end.
//!
//! A crash loses what was not written yet: these counts are for people, no limit depends on them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use claimcheck_common::domain::ApiKeyId;
use claimcheck_common::store::Pool;
use claimcheck_common::store::api_keys::{self, KeyUse};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

/// How late what is shown may be.
const EVERY: Duration = Duration::from_secs(5);
/// Keys whose uses are written in one statement.
const CHUNK: usize = 500;

/// The uses that are not written yet. Bounded by the keys that hold: only those are counted.
#[derive(Debug, Clone, Default)]
pub struct KeyUses(Arc<Mutex<HashMap<ApiKeyId, KeyUse>>>);

impl KeyUses {
    /// One more use.
    pub fn note(&self, id: ApiKeyId) {
        self.add(KeyUse {
            id,
            count: 1,
            last: OffsetDateTime::now_utc(),
        });
    }

    fn add(&self, more: KeyUse) {
        let mut uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = uses.entry(more.id).or_insert(KeyUse { count: 0, ..more });
        known.count = known.count.saturating_add(more.count);
        known.last = known.last.max(more.last);
    }

    /// Writes until `stop`, and then a last time.
    pub async fn write(self, pool: Pool, stop: CancellationToken) {
        loop {
            let ending = tokio::select! {
                () = stop.cancelled() => true,
                () = tokio::time::sleep(EVERY) => false,
            };
            self.write_now(&pool).await;
            if ending {
                return;
            }
        }
    }

    async fn write_now(&self, pool: &Pool) {
        let uses = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let uses: Vec<KeyUse> = uses.into_values().collect();
        for chunk in uses.chunks(CHUNK) {
            if let Err(error) = api_keys::note_use(pool, chunk.to_vec()).await {
                tracing::debug!(%error, "uses of API keys could not be written; they are kept");
                for one in chunk {
                    self.add(*one);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_of_one_key_add_up_and_keep_the_last_time() {
        let (uses, id) = (KeyUses::default(), ApiKeyId::new());
        uses.note(id);
        uses.note(id);
        uses.note(ApiKeyId::new());
        let late = OffsetDateTime::now_utc() + Duration::from_mins(1);
        uses.add(KeyUse {
            id,
            count: 5,
            last: late,
        });
        let uses = uses.0.lock().unwrap();
        assert_eq!((uses.len(), uses[&id].count, uses[&id].last), (2, 7, late));
    }
}
