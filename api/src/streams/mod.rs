//! Following a job while it waits, runs and ends: what happens, as one sequence, whatever the face that shows it.
//!
//! States come from Postgres, woken by its notifications; the text comes from the job's worker by way of Redis
//! (`common/src/deltas/`), and what did not come that way comes from the stored output at the end. So the pieces add up to the final
//! text, whenever the caller connects and whatever is restarted meanwhile. Next: `routes/job_events.rs`,
//! `routes/completions.rs`.

pub mod completion;
mod cursor;
mod follow;
pub mod response;
pub mod sse;

pub use cursor::Cursor;
pub use follow::{Happening, JobStream, Piece, Shown};
