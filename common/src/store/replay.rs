//! Replays: a job that does an ended one again, and whether it drew the same tokens. Made by [`super::retry`].

use sqlx::PgExecutor;
use sqlx::postgres::PgRow;

use super::StoreResult;
use super::row::{get, json, parse};
use crate::domain::{Id, JobId, JobStatus, ProjectId, Runtime};

/// A replay with what it is held against.
#[derive(Debug, Clone)]
pub struct Replay {
    /// The job that does it again.
    pub id: JobId,
    /// Where that job stands.
    pub status: JobStatus,
    /// The first run.
    pub first: Run,
    /// This run; without tokens until it ended.
    pub again: Run,
    /// The job that was done before.
    pub replay_of: JobId,
    /// Whether that job came to its own end: one that was cut off is compared as far as it came.
    pub first_completed: bool,
}

/// One run of a job.
#[derive(Debug, Clone)]
pub struct Run {
    /// The tokens of each choice; `None` if there are none, or they are erased.
    pub tokens: Option<Vec<Vec<u32>>>,
    /// On what it ran.
    pub runtime: Option<Runtime>,
}

/// Where two runs first differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference {
    /// Which choice.
    pub choice: usize,
    /// Which of its tokens.
    pub position: usize,
    /// The first run's token; `None` if it had ended.
    pub first: Option<u32>,
    /// This run's token; `None` if it had ended.
    pub again: Option<u32>,
}

impl Replay {
    /// Whether the runs have the same tokens, and else where they first differ. `None`: there is nothing to compare (yet).
    pub fn verdict(&self) -> Option<Result<(), Difference>> {
        let (first, again) = (self.first.tokens.as_ref()?, self.again.tokens.as_ref()?);
        let difference = (0..first.len().max(again.len())).find_map(|choice| {
            let run = |tokens: &[Vec<u32>]| tokens.get(choice).cloned().unwrap_or_default();
            self.difference(choice, &run(first), &run(again))
        });
        Some(difference.map_or(Ok(()), Err))
    }

    fn difference(&self, choice: usize, first: &[u32], again: &[u32]) -> Option<Difference> {
        let length = if self.first_completed {
            first.len().max(again.len())
        } else {
            first.len()
        };
        let position = (0..length).find(|&position| first.get(position) != again.get(position))?;
        Some(Difference {
            choice,
            position,
            first: first.get(position).copied(),
            again: again.get(position).copied(),
        })
    }
}

/// The replay that is the job `id`. `None`: the project has no such job, or it is no replay.
pub async fn find(executor: impl PgExecutor<'_>, project: ProjectId, id: JobId) -> StoreResult<Option<Replay>> {
    let row = sqlx::query(
        "SELECT j.id, j.status, j.replay_of, coalesce(f.status = 'completed', true) AS first_completed,
             fo.tokens AS first_tokens, ao.tokens AS again_tokens,
             to_jsonb(fr) AS first_runtime, to_jsonb(ar) AS again_runtime
         FROM jobs j LEFT JOIN jobs f ON f.id = j.replay_of
             LEFT JOIN job_outputs fo ON fo.job_id = j.replay_of LEFT JOIN job_outputs ao ON ao.job_id = j.id
             LEFT JOIN receipts fr ON fr.job_id = j.replay_of AND fr.weights_sha256 IS NOT NULL
             LEFT JOIN receipts ar ON ar.job_id = j.id AND ar.weights_sha256 IS NOT NULL
         WHERE j.id = $1 AND j.project_id = $2 AND j.replay_of IS NOT NULL",
    )
    .bind(id.uuid())
    .bind(project.uuid())
    .fetch_optional(executor)
    .await?;
    row.as_ref().map(replay).transpose()
}

fn replay(row: &PgRow) -> StoreResult<Replay> {
    Ok(Replay {
        id: Id::from_uuid(get(row, "id")?),
        status: parse(row, "status")?,
        first: Run {
            tokens: json(row, "first_tokens")?,
            runtime: json(row, "first_runtime")?,
        },
        again: Run {
            tokens: json(row, "again_tokens")?,
            runtime: json(row, "again_runtime")?,
        },
        replay_of: Id::from_uuid(get(row, "replay_of")?),
        first_completed: get(row, "first_completed")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replay(first: &[&[u32]], again: &[&[u32]], first_completed: bool) -> Replay {
        let run = |tokens: &[&[u32]]| Run {
            tokens: Some(tokens.iter().map(|tokens| tokens.to_vec()).collect()),
            runtime: None,
        };
        Replay {
            id: JobId::new(),
            status: JobStatus::Completed,
            first: run(first),
            again: run(again),
            replay_of: JobId::new(),
            first_completed,
        }
    }

    #[test]
    fn equal_tokens_match_and_the_first_other_one_is_named() {
        assert_eq!(replay(&[&[1, 2], &[3]], &[&[1, 2], &[3]], true).verdict(), Some(Ok(())));
        let other = replay(&[&[1, 2], &[3, 4]], &[&[1, 2], &[3, 5]], true).verdict();
        let expected = Difference {
            choice: 1,
            position: 1,
            first: Some(4),
            again: Some(5),
        };
        assert_eq!(other, Some(Err(expected)));
    }

    #[test]
    fn a_run_that_goes_on_differs_unless_the_first_was_cut_off() {
        let (short, long): (&[&[u32]], &[&[u32]]) = (&[&[1]], &[&[1, 2]]);
        let longer = replay(short, long, true).verdict();
        let expected = Difference {
            choice: 0,
            position: 1,
            first: None,
            again: Some(2),
        };
        assert_eq!(longer, Some(Err(expected)));
        assert_eq!(replay(short, long, false).verdict(), Some(Ok(())));
        assert!(
            replay(long, short, false)
                .verdict()
                .is_some_and(|verdict| verdict.is_err())
        );
    }

    #[test]
    fn without_tokens_there_is_no_verdict() {
        let mut waiting = replay(&[&[1]], &[], true);
        waiting.again.tokens = None;
        assert_eq!(waiting.verdict(), None);
    }
}
