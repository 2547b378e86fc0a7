use super::super::json;
use super::*;
use serde_json::{Value, json};

const LIMITS: ModelLimits = ModelLimits {
    context_length: 512,
    vocab_size: 1000,
};
const NOW: i64 = 1_800_000_000;

fn submit(body: &Value) -> Result<ValidJob, Problem> {
    let request: SubmitJob = json::parse(body.to_string().as_bytes(), "The request body")?;
    let tokens = match &request.prompt.0 {
        Prompt::Text(text) => text.len() as u32 / 4 + 1,
        Prompt::Tokens(ids) => ids.len() as u32,
    };
    request.into_valid(tokens, LIMITS, NOW)
}

fn refusal(body: &Value) -> Problem {
    match submit(body) {
        Err(problem) => problem,
        Ok(job) => panic!("{body} was not refused: {job:?}"),
    }
}

#[test]
fn an_absent_field_takes_its_documented_default() {
    let job = submit(&json!({"prompt": "hello"})).unwrap();
    assert_eq!(job.params.max_tokens, 100);
    assert!((job.params.temperature - 0.7).abs() < 1e-6);
    assert!((job.params.top_p - 1.0).abs() < f32::EPSILON);
    assert_eq!((job.params.top_k, job.params.n), (None, 1));
    assert!(job.params.stop.is_empty() && job.metadata.is_empty());
    assert_eq!(job.scheduled_at, None);
}

#[test]
fn null_counts_as_absent() {
    let nulls = json!({"prompt": "hi", "max_tokens": null, "temperature": null, "stop": null, "seed": null,
        "metadata": null, "top_k": null, "model": null, "n": null, "top_p": null, "scheduled_at": null,
        "min_p": null, "repetition_penalty": null, "presence_penalty": null, "frequency_penalty": null,
        "logit_bias": null, "logprobs": null, "stop_token_ids": null});
    assert_eq!(submit(&nulls).unwrap().params.max_tokens, 100);
}

#[test]
fn an_absent_seed_is_drawn_anew_each_time_and_survives_doubles() {
    let seeds: Vec<i64> = (0..4)
        .map(|_| submit(&json!({"prompt": "hi"})).unwrap().params.seed)
        .collect();
    assert!(seeds.windows(2).any(|pair| pair[0] != pair[1]), "{seeds:?}");
    assert!(seeds.iter().all(|seed| (0..1 << 53).contains(seed)));
    assert_eq!(submit(&json!({"prompt": "hi", "seed": -7})).unwrap().params.seed, -7);
}

#[test]
fn every_limit_holds_at_both_ends() {
    for (field, good) in [
        ("max_tokens", json!([1, 400])),
        ("temperature", json!([0, 2, 1.5])),
        ("top_p", json!([0, 1])),
        ("top_k", json!([1, 50257])),
        ("n", json!([1, 5])),
        ("min_p", json!([0, 0.05, 1])),
        ("repetition_penalty", json!([0.01, 1.3, 10])),
        ("presence_penalty", json!([-2, 0.5, 2])),
        ("frequency_penalty", json!([-2, 0.5, 2])),
        ("logit_bias", json!([{}, {"0": -100, "999": 100}])),
        ("logprobs", json!([0, 5])),
        ("stop_token_ids", json!([[], [0, 999]])),
        ("stop", json!(["x", ["a", "b", "c", "d"], []])),
        ("seed", json!([i64::MIN, i64::MAX])),
        ("scheduled_at", json!([NOW + 1])),
    ] {
        for value in good.as_array().unwrap() {
            let body = json!({"prompt": "hi", field: value});
            assert!(submit(&body).is_ok(), "{body}: {:?}", submit(&body));
        }
    }
}

#[test]
fn every_value_beyond_a_limit_is_refused_by_field_and_limit() {
    let many: Value = (0..17)
        .map(|i| (i.to_string(), json!("v")))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let biases: Value = (0..301)
        .map(|id| (id.to_string(), json!(1)))
        .collect::<serde_json::Map<_, _>>()
        .into();
    for (field, bad, param, says) in [
        ("prompt", json!(""), "prompt", "1 to 10000"),
        ("prompt", json!("x".repeat(10_001)), "prompt", "1 to 10000"),
        ("prompt", json!("a\u{0}b"), "prompt", "U+0000"),
        ("prompt", json!([]), "prompt", "token ids"),
        ("prompt", json!([1, "x"]), "prompt[1]", "whole number"),
        ("prompt", json!([5, 1000]), "prompt[1]", "0 to 999"),
        ("prompt", json!(17), "prompt", "a string"),
        ("prompt", Value::Null, "prompt", "a string"),
        ("max_tokens", json!(0), "max_tokens", "1 to 4096"),
        ("max_tokens", json!(4097), "max_tokens", "1 to 4096"),
        ("max_tokens", json!("5"), "max_tokens", "1 to 4096"),
        ("temperature", json!(2.01), "temperature", "0 to 2"),
        ("top_p", json!(-0.1), "top_p", "0 to 1"),
        ("top_k", json!(0), "top_k", "from 1"),
        ("n", json!(6), "n", "1 to 5"),
        ("n", json!(1.5), "n", "1 to 5"),
        ("min_p", json!(1.1), "min_p", "0 to 1"),
        ("repetition_penalty", json!(0), "repetition_penalty", "0.01 to 10"),
        ("repetition_penalty", json!(10.1), "repetition_penalty", "0 to 10"),
        ("presence_penalty", json!(-2.1), "presence_penalty", "-2 to 2"),
        ("frequency_penalty", json!(2.1), "frequency_penalty", "-2 to 2"),
        ("logit_bias", json!({"5": 101}), "logit_bias.5", "-100 to 100"),
        ("logit_bias", json!({"1000": 1}), "logit_bias.1000", "0 to 999"),
        ("logit_bias", json!({"05": 1}), "logit_bias", "under token ids"),
        ("logit_bias", json!({"the": 1}), "logit_bias", "under token ids"),
        ("logit_bias", biases, "logit_bias", "at most 300"),
        ("logit_bias", json!([1]), "logit_bias", "an object"),
        ("logprobs", json!(6), "logprobs", "0 to 5"),
        ("logprobs", json!(true), "logprobs", "0 to 5"),
        ("stop_token_ids", json!([1000]), "stop_token_ids[0]", "0 to 999"),
        ("stop_token_ids", json!([-1]), "stop_token_ids[0]", "whole number"),
        ("stop_token_ids", json!(vec![1; 17]), "stop_token_ids", "at most 16"),
        ("stop", json!(["a", "b", "c", "d", "e"]), "stop", "at most 4"),
        ("stop", json!([""]), "stop[0]", "1 to 256"),
        ("stop", json!({}), "stop", "at most 4"),
        ("seed", json!(u64::MAX), "seed", "whole number"),
        ("metadata", many, "metadata", "at most 16"),
        ("metadata", json!({"k": 1}), "metadata.k", "0 to 512"),
        ("metadata", json!({"k": "x".repeat(513)}), "metadata.k", "0 to 512"),
        ("metadata", json!({"": "v"}), "metadata", "1 to 64"),
        ("metadata", json!({"k": "\u{0}"}), "metadata.k", "U+0000"),
        ("scheduled_at", json!(NOW), "scheduled_at", "in the future"),
        ("scheduled_at", json!(NOW + 400 * 86_400), "scheduled_at", "366 days"),
        ("model", json!(""), "model", "1 to 256"),
    ] {
        let mut body = json!({"prompt": "hi"});
        body[field] = bad;
        let problem = refusal(&body);
        let shown: String = body.to_string().chars().take(80).collect();
        assert!(
            problem.param.as_deref().unwrap_or_default().starts_with(param),
            "{shown}: {problem:?}"
        );
        assert!(problem.message.contains(says), "{shown}: {problem:?}");
        assert!(problem.message.contains(field), "{shown}: {problem:?}");
    }
}

#[test]
fn unknown_missing_and_repeated_fields_are_named() {
    let unknown = refusal(&json!({"prompt": "hi", "maxtokens": 5}));
    assert_eq!(
        (unknown.param.as_deref(), unknown.code),
        (Some("maxtokens"), "unknown_field")
    );
    let missing = refusal(&json!({"max_tokens": 5}));
    assert_eq!(
        (missing.param.as_deref(), missing.code),
        (Some("prompt"), "missing_field")
    );
    let twice = json::parse::<SubmitJob>(br#"{"prompt": "a", "prompt": "b"}"#, "The request body").unwrap_err();
    assert_eq!(
        (twice.param.as_deref(), twice.code),
        (Some("prompt"), "duplicate_field")
    );
}

#[test]
fn a_request_beyond_the_context_is_refused_with_the_counts() {
    let ids: Vec<u32> = vec![1; 500];
    assert!(submit(&json!({"prompt": ids, "max_tokens": 12})).is_ok());
    let problem = refusal(&json!({"prompt": ids, "max_tokens": 13}));
    assert_eq!(problem.code, "context_length_exceeded");
    for count in ["512", "513", "500", "13"] {
        assert!(problem.message.contains(count), "{}", problem.message);
    }
}
