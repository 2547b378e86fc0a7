//! What can go wrong in the store, as its callers tell it apart.

/// A failure of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be reached or refuses work for the moment: try again.
    #[error("the database is not available: {0}")]
    Unavailable(#[source] sqlx::Error),
    /// Another transaction was in the way; the same work will do when repeated.
    #[error("the transaction has to be repeated: {0}")]
    Retry(#[source] sqlx::Error),
    /// A unique constraint says that this exists already.
    #[error("`{constraint}` is taken")]
    Conflict {
        /// The constraint's or index's name in the migrations.
        constraint: String,
    },
    /// The row contradicts what the code knows, or the statement was refused.
    #[error("the database refused: {0}")]
    Refused(#[source] sqlx::Error),
}

/// The result of a store function.
pub type StoreResult<T> = Result<T, StoreError>;

impl StoreError {
    /// A stored value that does not read back: a bug or a foreign hand.
    pub(super) fn contradiction(what: impl std::fmt::Display) -> Self {
        Self::Refused(sqlx::Error::Decode(what.to_string().into()))
    }

    /// The work was given up on this side: its outcome is unknown.
    pub fn interrupted(what: impl Into<String>) -> Self {
        Self::Unavailable(sqlx::Error::Io(std::io::Error::other(what.into())))
    }

    /// The same failure for another of those whom it concerns, if waiting and repeating can help.
    pub fn for_another(&self) -> Option<Self> {
        self.is_transient().then(|| Self::interrupted(self.to_string()))
    }

    /// Whether the statement's or the lock's time was over.
    pub fn is_out_of_time(&self) -> bool {
        let Self::Unavailable(sqlx::Error::Database(cause)) = self else {
            return false;
        };
        // query_canceled, lock_not_available
        matches!(cause.code().as_deref(), Some("57014" | "55P03"))
    }

    /// Whether nobody answered: the connection failed, and of the database nothing is known.
    pub const fn is_silence(&self) -> bool {
        matches!(self, Self::Unavailable(cause) if !matches!(cause, sqlx::Error::Database(_)))
    }

    /// Whether waiting and repeating can help.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Retry(_))
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let sqlx::Error::Database(database) = &error else {
            return match error {
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed => Self::Unavailable(error),
                other => Self::Refused(other),
            };
        };
        if database.is_unique_violation() {
            return Self::Conflict {
                constraint: database.constraint().unwrap_or("unknown").to_owned(),
            };
        }
        match database.code().as_deref() {
            // serialization_failure, deadlock_detected
            Some("40001" | "40P01") => Self::Retry(error),
            // connection_exception, insufficient_resources, operator_intervention (shutdown, time-outs); a lock that was
            // not to be had in time, a transaction that rested for too long because this process was frozen
            // (idle_in_transaction_session_timeout), and a schema that is not there yet (undefined_table): the migration is to come
            Some(code)
                if ["08", "53", "57"].iter().any(|class| code.starts_with(class))
                    || ["55P03", "25P03", "42P01"].contains(&code) =>
            {
                Self::Unavailable(error)
            }
            _ => Self::Refused(error),
        }
    }
}
