//! Counting in Redis, for all processes together: one script call a request, on Redis' clock.

use claimcheck_common::redis::{Redis, RedisError, Script};

use super::gcra::{Ask, Outcome};

/// `KEYS`: one a limit. `ARGV`: for each the gap in microseconds and how many gaps its TAT may be ahead of now. Answers whether
/// the request passes, the time, and each TAT.
const SCRIPT: &str = "
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local tats, passes = redis.call('MGET', unpack(KEYS)), 1
for i = 1, #KEYS do
    local gap, burst = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
    tats[i] = math.max(tonumber(tats[i] or 0), now)
    if tats[i] + gap > now + gap * burst then passes = 0 end
end
if passes == 1 then
    for i, key in ipairs(KEYS) do
        tats[i] = tats[i] + tonumber(ARGV[2 * i - 1])
        redis.call('SET', key, string.format('%.0f', tats[i]), 'PX', math.ceil((tats[i] - now) / 1000))
    end
end
return {passes, now, unpack(tats)}
";

pub(super) struct Shared {
    redis: Redis,
    script: Script,
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
        let mut call = self.script.prepare_invoke();
        for ask in asks {
            call.key(&ask.key).arg(ask.gap()).arg(ask.burst());
        }
        let answer: Vec<u64> = self.redis.call(&call).await?;
        match answer.as_slice() {
            [passes, now, tats @ ..] if tats.len() == asks.len() => Ok(Outcome::of(asks, tats, *now, *passes == 1)),
            _ => Err(RedisError::Away(None)),
        }
    }
}
