//! Takes a batch's lines up as jobs, as many at a time as may run, or as failures once the batch is to end.
//!
//! A bounded number of a batch's lines are jobs at the same time. The release window alone would keep the broker's queues
//! short, but so the tenant's limit of waiting jobs holds for batches as well, `jobs` and the outbox do not grow by 50,000 rows at
//! once, counting looks at the open items alone, and a cancel has little to undo.

use std::sync::Arc;

use claimcheck_common::batch::{input, output};
use claimcheck_common::catalog;
use claimcheck_common::config::BatchConfig;
use claimcheck_common::domain::{BatchStatus, Class, JobError, JobId};
use claimcheck_common::files::FileError;
use claimcheck_common::policy::{Policy, Rejection, Unfit};
use claimcheck_common::store::audit::Origin;
use claimcheck_common::store::batch_work::{self, FedLine, Held, Progress};
use claimcheck_common::store::submit::{JobOptions, NewJob};
use claimcheck_common::tokenizer::TokenizerError;
use claimcheck_common::validate::Problem;
use claimcheck_common::validate::job::SubmitJob;
use claimcheck_common::validate::text::Text;
use time::OffsetDateTime;

use super::BatchError;
use super::lines::{self, Lines, RawLine};
use super::models::Served;
use super::turn::Turn;

/// Lines in one transaction.
const CHUNK: usize = 500;
const CHUNK_BYTES: usize = 4 << 20;
/// Chunks in one turn.
const CHUNKS: usize = 8;

/// How far feeding came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Feed {
    /// There is more to take up, and room for it.
    More,
    /// As many jobs run as may, or there are no more lines.
    Full,
    /// The tenant has too much waiting, a budget too little left, or no model is served.
    Blocked,
    /// The batch is another worker's.
    Lost,
}

pub(super) async fn feed(turn: &mut Turn<'_>) -> Result<Feed, BatchError> {
    let (pool, held) = (turn.work.pool.clone(), &mut turn.held);
    let served = Arc::new(turn.models.now(&pool).await?);
    if served.is_empty() && held.view.ending.is_none() {
        return Ok(Feed::Blocked);
    }
    let mut lines = match Lines::open(&turn.work.files, held.view.input_file_id, held.mark).await {
        Ok(lines) => lines,
        Err(FileError::Missing) => return without_input(turn).await,
        Err(error) => return Err(error.into()),
    };
    let mut chunks = 0;
    while chunks < CHUNKS {
        let room = match held.view.ending {
            Some(_) => CHUNK,
            None => turn.work.config.batch_in_flight.saturating_sub(held.open()) as usize,
        };
        if room == 0 || held.is_fed() {
            return Ok(Feed::Full);
        }
        // Of a batch that is done again most lines may be none of its: they do not count as a chunk.
        let most = if held.view.retry_of.is_some() {
            CHUNK
        } else {
            room.min(CHUNK)
        };
        let Some(chunk) = next_chunk(&mut lines, most).await? else {
            let _written = batch_work::no_more_lines(&pool, held).await?;
            return Ok(Feed::More);
        };
        let mut wanted = wanted(turn.work, held, chunk).await?;
        if wanted.is_empty() {
            continue;
        }
        let is_cut = wanted.len() > room;
        wanted.truncate(room);
        let terms = Terms {
            policy: turn.work.policy.current(),
            config: turn.work.config.clone(),
        };
        let prepared = prepare(wanted, served.clone(), terms, held).await?;
        let count = prepared.len();
        match batch_work::feed(&pool, held, prepared, turn.work.config.batch_tokens).await? {
            Progress::Lost => return Ok(Feed::More),
            Progress::Done(fed) => {
                held.mark = fed.mark;
                held.view.failed += fed.refused;
                if fed.taken < count {
                    return Ok(Feed::Blocked);
                }
            }
        }
        if is_cut {
            return Ok(Feed::Full);
        }
        chunks += 1;
    }
    Ok(Feed::More)
}

async fn next_chunk(lines: &mut Lines, most: usize) -> Result<Option<Vec<RawLine>>, BatchError> {
    let mut chunk = Vec::with_capacity(most);
    let mut bytes = 0;
    while chunk.len() < most && bytes < CHUNK_BYTES {
        let Some(line) = lines.next().await? else { break };
        bytes += line.text.len();
        chunk.push(line);
    }
    Ok((!chunk.is_empty()).then_some(chunk))
}

/// Of a chunk those lines that are to be done: all, or those that failed before.
async fn wanted(work: &super::Batches, held: &Held, chunk: Vec<RawLine>) -> Result<Vec<RawLine>, BatchError> {
    let (Some(before), Some(first), Some(last)) = (held.view.retry_of, chunk.first(), chunk.last()) else {
        return Ok(chunk);
    };
    let failed = batch_work::failed_lines(&work.pool, before, first.number, last.number).await?;
    let is_wanted = |line: &RawLine| failed.binary_search(&line.number).is_ok();
    Ok(chunk.into_iter().filter(is_wanted).collect())
}

/// On which terms lines become jobs.
struct Terms {
    policy: Arc<Policy>,
    config: BatchConfig,
}

/// Counting tokens is work: it is done on another thread.
async fn prepare(
    chunk: Vec<RawLine>,
    served: Arc<Served>,
    terms: Terms,
    held: &Held,
) -> Result<Vec<FedLine>, BatchError> {
    let held = held.clone();
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let prepared = tokio::task::spawn_blocking(move || {
        chunk
            .into_iter()
            .map(|line| match held.view.ending {
                None => as_job(&line, &served, &terms, &held, now),
                Some(ending) => as_failure(&line, ending),
            })
            .collect()
    });
    Ok(prepared.await?)
}

/// Why a line becomes no job.
enum NoJob {
    /// It is wrong.
    Wrong(Problem),
    /// The content policy rejects its prompt.
    Rejected(Rejection),
}

impl NoJob {
    fn problem(self) -> Problem {
        match self {
            Self::Wrong(problem) => problem,
            Self::Rejected(rejection) => rejection.problem(),
        }
    }
}

impl From<Problem> for NoJob {
    fn from(problem: Problem) -> Self {
        Self::Wrong(problem)
    }
}

impl From<Rejection> for NoJob {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

#[allow(clippy::needless_pass_by_value, reason = "the shape that `map_err` wants")]
fn not_encodable(_: TokenizerError) -> Problem {
    Problem::new("not_encodable", "The model's tokenizer does not take this prompt.").at("prompt")
}

fn as_job(raw: &RawLine, served: &Served, terms: &Terms, held: &Held, now: i64) -> FedLine {
    let fed = |custom_id, outcome: Result<NewJob, NoJob>| {
        let rejected_by = match &outcome {
            Err(NoJob::Rejected(rejection)) => Some(rejection.hit.clone()),
            _ => None,
        };
        let failure = |problem: Problem| JobError::invalid(problem.code, problem.message);
        FedLine {
            line: raw.number,
            end: raw.end,
            custom_id,
            outcome: outcome.map(Box::new).map_err(|no_job| failure(no_job.problem())),
            rejected_by,
        }
    };
    match input::read(&raw.text) {
        Ok(line) => fed(Some(line.custom_id), new_job(line.body, served, terms, held, now)),
        // Validated, and yet no line: the object is another one than it was.
        Err(problem) => fed(None, Err(problem.into())),
    }
}

fn new_job(mut body: SubmitJob, served: &Served, terms: &Terms, held: &Held, now: i64) -> Result<NewJob, NoJob> {
    let (model, tokenizer) = served.find(body.model.as_ref().map(Text::as_str))?;
    let decode = |ids: &[u32]| tokenizer.decode(ids);
    let hits = match terms.policy.screen(&mut body.prompt.0, model.vocabulary_size, decode) {
        Ok(hits) => hits,
        Err(Unfit::Unreadable(error)) => return Err(not_encodable(error).into()),
        Err(Unfit::Rejected(rejection)) => return Err(rejection.into()),
    };
    let (prompt_tokens, encoded) = catalog::encode(tokenizer, &body.prompt.0).map_err(not_encodable)?;
    let valid = body.into_valid(prompt_tokens, model.limits(), now)?;
    if let Some(grant) = &held.grant {
        grant.permits(&model.model.name, model.alias.as_deref(), valid.params.max_tokens)?;
    }
    Ok(NewJob {
        id: JobId::new(),
        tenant_id: held.tenant_id,
        project_id: held.project_id,
        user_id: held.user_id,
        api_key_id: held.api_key_id,
        price: terms.config.prices.of(&model.model.name),
        model: model.model.clone(),
        requested_model: model.alias.clone(),
        class: Class::Batch,
        prompt: valid.prompt,
        prompt_tokens: valid.prompt_tokens,
        encoded,
        params: valid.params,
        metadata: (!valid.metadata.is_empty()).then_some(valid.metadata),
        scheduled_at: None,
        options: JobOptions {
            deadline_at: Some(held.view.expires_at),
            ..valid.options
        },
        queue_limit: terms.config.max_queued,
        traceparent: None,
        webhook: None,
        // The batch's own entry says how its maker came.
        origin: Origin::default(),
        hits,
    })
}

fn as_failure(raw: &RawLine, ending: BatchStatus) -> FedLine {
    FedLine {
        line: raw.number,
        end: raw.end,
        custom_id: input::read(&raw.text).ok().map(|line| line.custom_id),
        outcome: Err(output::unfinished(ending)),
        rejected_by: None,
    }
}

/// The input is gone. What runs is stopped and what is left of the lines fails, without the names that only the input knew.
async fn without_input(turn: &mut Turn<'_>) -> Result<Feed, BatchError> {
    let (pool, held) = (&turn.work.pool, &mut turn.held);
    let Some(ending) = held.view.ending else {
        let _changed = batch_work::fail(pool, held, lines::lost(held)).await?;
        return Ok(Feed::More);
    };
    while !held.is_fed() {
        let next = held.mark.line + 1;
        let rest = held.view.total - held.mark.items;
        let lines = (next..next + rest.min(CHUNK as u32)).map(|line| FedLine {
            line,
            end: held.mark.bytes,
            custom_id: None,
            outcome: Err(output::unfinished(ending)),
            rejected_by: None,
        });
        match batch_work::feed(pool, held, lines.collect(), None).await? {
            Progress::Lost => return Ok(Feed::Lost),
            Progress::Done(fed) => {
                held.mark = fed.mark;
                held.view.failed += fed.refused;
            }
        }
    }
    Ok(Feed::More)
}
