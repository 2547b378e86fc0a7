//! Counting in Redis, for all processes together: one script call a request, on Redis' clock. The same call says whether anything has
//! changed about the account and the project that the request's credential was good for, and about the models' names ([`Marks`]).
//!
//! A mark is a number that Redis makes up when somebody asks for one that is not there. Whoever takes access away deletes it, and what
//! was learned under a mark is good while that mark stands. So a Redis that lost its marks has everybody learn anew.

use claimcheck_common::redis::{Redis, RedisError, Script, cmd};
use uuid::Uuid;

use super::gcra::{Ask, Outcome};

/// Stands until something is changed.
pub type Mark = u64;

/// An account's and a project's marks.
pub type Marks = [Mark; 2];

/// `KEYS`: one a mark, the last that of the names, then one a limit. `ARGV`: how many marks the caller knows, those (0: none), for each
/// limit the gap in microseconds and how many gaps its TAT may be ahead of now. Answers the marks, and unless one is another than the
/// caller knows: whether the request passes, the time, and each TAT.
const SCRIPT: &str = "
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local found, marks, known = redis.call('MGET', unpack(KEYS)), {}, true
local compared = tonumber(ARGV[1])
local count = compared > 0 and compared + 1 or 0
for i = 1, count do
    if not found[i] then
        found[i] = string.format('%.0f', now)
        redis.call('SET', KEYS[i], found[i], 'EX', 3600)
    end
    marks[i] = tonumber(found[i])
    if i <= compared and found[i] ~= ARGV[1 + i] then known = false end
end
if not known then return {marks, {}} end
local tats, passes = {}, 1
for i = count + 1, #KEYS do
    local at = compared + 2 * (i - count)
    local gap, burst = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
    tats[i - count] = math.max(tonumber(found[i] or 0), now)
    if tats[i - count] + gap > now + gap * burst then passes = 0 end
end
if passes == 1 then
    for i = count + 1, #KEYS do
        local tat = tats[i - count] + tonumber(ARGV[compared + 2 * (i - count)])
        tats[i - count] = tat
        redis.call('SET', KEYS[i], string.format('%.0f', tat), 'PX', math.ceil((tat - now) / 1000))
    end
end
return {marks, {passes, now, unpack(tats)}}
";

pub(super) struct Shared {
    redis: Redis,
    script: Script,
}

/// What came of a call that knows marks.
#[derive(Debug)]
pub(super) enum Still {
    /// They stand, and the request was counted.
    Same(Outcome),
    /// At least one is another, and nothing was counted.
    Other(Marks),
}

impl Shared {
    pub(super) fn new(redis: Redis) -> Self {
        Self {
            redis,
            script: Script::new(SCRIPT),
        }
    }

    /// Counts a request with all of its limits, or with none.
    pub(super) async fn take(&self, asks: &[Ask]) -> Result<Outcome, RedisError> {
        match self.call(None, asks).await? {
            (_, Some(outcome)) => Ok(outcome),
            _ => Err(RedisError::Away(None)),
        }
    }

    /// The marks of an account and a project; those that are not there are made.
    pub(super) async fn marks(&self, whose: [Uuid; 2]) -> Result<Marks, RedisError> {
        let (marks, _) = self.call(Some((whose, [0; 2])), &[]).await?;
        marks.map(|(marks, _)| marks).ok_or(RedisError::Away(None))
    }

    /// Counts a request if the marks stand; with the mark of the names.
    pub(super) async fn take_if(
        &self,
        whose: [Uuid; 2],
        known: Marks,
        asks: &[Ask],
    ) -> Result<(Still, Mark), RedisError> {
        match self.call(Some((whose, known)), asks).await? {
            (Some((marks, names)), Some(outcome)) if marks == known => Ok((Still::Same(outcome), names)),
            (Some((marks, names)), None) => Ok((Still::Other(marks), names)),
            _ => Err(RedisError::Away(None)),
        }
    }

    /// Takes away the mark of an account or a project.
    pub(super) async fn forget(&self, whose: Uuid) -> Result<(), RedisError> {
        self.redis.run(cmd("DEL").arg(self.mark(whose))).await
    }

    /// Takes away the mark of the names.
    pub(super) async fn forget_names(&self) -> Result<(), RedisError> {
        self.redis.run(cmd("DEL").arg(self.names_mark())).await
    }

    fn mark(&self, whose: Uuid) -> String {
        self.redis.key(format_args!("access:{}", whose.simple()))
    }

    fn names_mark(&self) -> String {
        self.redis.key("names")
    }

    async fn call(
        &self,
        marks: Option<([Uuid; 2], Marks)>,
        asks: &[Ask],
    ) -> Result<(Option<(Marks, Mark)>, Option<Outcome>), RedisError> {
        let mut call = self.script.prepare_invoke();
        call.arg(marks.map_or(0, |(whose, _)| whose.len()));
        if let Some((whose, known)) = marks {
            for (whose, known) in whose.into_iter().zip(known) {
                call.key(self.mark(whose)).arg(known);
            }
            call.key(self.names_mark());
        }
        for ask in asks {
            call.key(&ask.key).arg(ask.gap()).arg(ask.burst());
        }
        let (marks, counted): (Vec<u64>, Vec<u64>) = self.redis.call(&call).await?;
        let outcome = match counted.as_slice() {
            [passes, now, tats @ ..] if tats.len() == asks.len() => Some(Outcome::of(asks, tats, *now, *passes == 1)),
            _ => None,
        };
        let marks = match marks.as_slice() {
            [account, project, names] => Some(([*account, *project], *names)),
            _ => None,
        };
        Ok((marks, outcome))
    }
}
