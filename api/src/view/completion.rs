//! The answer of `/v1/completions`, put together from the jobs of its prompts.

use claimcheck_common::domain::{Choice, Usage};
use claimcheck_common::store::jobs::JobView;
use claimcheck_common::view::{ChoiceBody, OutputBody, UsageBody, completion_id};

use crate::validate::completion::Shape;

/// The answer to a request whose jobs have all completed, in the order of its prompts. `echoes` has each prompt's text, if
/// the texts are to begin with it.
pub fn completion(shape: Shape, jobs: &[JobView], echoes: &[String]) -> Option<OutputBody> {
    let first = jobs.first()?;
    let mut choices = Vec::new();
    for (number, job) in jobs.iter().enumerate() {
        let best = best(job.choices.as_deref()?, shape.n as usize);
        for choice in best {
            let mut body = ChoiceBody::from(choice);
            body.index = choices.len() as u32;
            body.logprobs = body.logprobs.filter(|_| shape.logprobs);
            if let Some(prompt) = echoes.get(number) {
                body.text.insert_str(0, prompt);
            }
            choices.push(body);
        }
    }
    Some(OutputBody {
        id: completion_id(first.key.id),
        object: "text_completion",
        created: first.created_at.unix_timestamp(),
        model: first.model.name.clone(),
        choices,
        usage: usage(jobs),
        system_fingerprint: first.model.revision.clone(),
    })
}

/// The tokens of all jobs together.
pub fn usage(jobs: &[JobView]) -> UsageBody {
    let prompt = jobs.iter().map(|job| job.usage.prompt_tokens).sum();
    let generated = jobs.iter().map(|job| job.usage.completion_tokens).sum();
    Usage::new(prompt, generated).into()
}

/// The `n` choices whose tokens are likeliest on average, the likeliest first; all of them as they are, if there are no more.
fn best(choices: &[Choice], n: usize) -> Vec<&Choice> {
    let mut best: Vec<&Choice> = choices.iter().collect();
    if best.len() > n {
        best.sort_by(|a, b| mean_logprob(b).total_cmp(&mean_logprob(a)));
        best.truncate(n);
    }
    best
}

fn mean_logprob(choice: &Choice) -> f32 {
    let Some(logprobs) = &choice.logprobs else {
        return f32::NEG_INFINITY;
    };
    let all = &logprobs.token_logprobs;
    all.iter().sum::<f32>() / all.len().max(1) as f32
}

#[cfg(test)]
mod tests {
    use claimcheck_common::domain::Logprobs;

    use super::*;

    fn choice(index: u32, token_logprobs: &[f32]) -> Choice {
        Choice {
            tokens: Vec::new(),
            text: String::new(),
            index,
            finish_reason: None,
            logprobs: Some(Logprobs {
                token_logprobs: token_logprobs.to_vec(),
                ..Logprobs::default()
            }),
        }
    }

    #[test]
    fn the_best_are_those_with_the_likeliest_tokens_and_not_the_shortest() {
        let choices = [
            choice(0, &[-2.0]),
            choice(1, &[-1.0, -1.0, -1.0]),
            choice(2, &[-0.5, -4.0]),
        ];
        let chosen: Vec<_> = best(&choices, 2).iter().map(|choice| choice.index).collect();
        assert_eq!(chosen, [1, 0]);
        assert_eq!(best(&choices, 3)[0].index, 0, "nothing is chosen, nothing is moved");
    }
}
