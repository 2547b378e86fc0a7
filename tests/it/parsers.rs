//! The parsers of what strangers send, on random bytes and on bytes that nearly are what is wanted; and bodies that are made to hurt,
//! on every route that reads JSON. The same functions are fuzz targets (`tests/fuzz`).

use proptest::prelude::*;
use reqwest::Method;

use crate::http_face::with_api;
use crate::http_operators::admin;

#[expect(unreachable_pub, reason = "there it is a crate of its own")]
#[path = "../fuzz/src/lib.rs"]
mod held_to;

/// Bytes, texts, and pieces of what is read here in any order.
fn anything(pieces: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => prop::sample::select(pieces).prop_map(ToOwned::to_owned),
        1 => ".{0,8}",
        1 => any::<i64>().prop_map(|number| number.to_string()),
    ];
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..256),
        1 => ".{0,128}".prop_map(String::into_bytes),
        4 => prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat().into_bytes()),
    ]
}

const TOKENS: &[&str] = &[
    ".",
    "eyJhbGciOiJub25lIn0",
    "eyJhbGciOiJFZERTQSIsInR5cCI6ImF0K2p3dCJ9",
    "e30",
    "=",
    "bnVsbA",
    "{\"alg\":\"none\"}",
];
const KEYS: &[&str] = &[
    "cck_",
    "ccr_",
    "0",
    "Az9",
    "0123456789abcdefghijABCDEFGHIJ",
    "\u{0}",
    "_",
];
const RULES: &[&str] = &[
    "[[rules]]\n",
    "name = \"x\"\n",
    "category = \"x\"\n",
    "action = \"reject\"\n",
    "action = \"redact\"\n",
    "on = [\"prompt\"]\n",
    "patterns = [\"(a+)+b\"]\n",
    "patterns = ['\\x{110000}']\n",
    "words = [\"x\", \"\"]\n",
    "[",
    "]",
    "\"",
    "#",
];
const LINES: &[&str] = &[
    "{",
    "}",
    ":",
    ",",
    "[",
    "]",
    "\"custom_id\"",
    "\"x\"",
    "\"method\":\"POST\"",
    "\"url\":\"/v1/completions\"",
    "\"body\":",
    "{\"prompt\":\"x\"}",
    "\"max_tokens\":",
    "1e400",
    "-0.0",
    "99999999999999999999",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "null",
    "true",
    "{\"custom_id\":\"x\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":{\"prompt\":\"x\",\"max_tokens\":",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_are_a_token_that_nobody_issued(data in anything(TOKENS)) {
        held_to::token(&data);
    }

    #[test]
    fn no_bytes_make_the_reader_of_keys_panic(data in anything(KEYS)) {
        held_to::key(&data);
    }

    #[test]
    fn no_bytes_make_the_reader_of_policies_panic(data in anything(RULES)) {
        held_to::policy(&data);
    }

    #[test]
    fn no_bytes_make_the_reader_of_batch_lines_panic(data in anything(LINES)) {
        held_to::batch_line(&data);
    }
}

/// Bodies that other services fell over, with so many brackets, fields or digits.
fn hurtful(most: usize) -> Vec<(&'static str, Vec<u8>)> {
    let deep = |open: &str, close: &str, most: usize| [open.repeat(most), close.repeat(most)].concat().into_bytes();
    vec![
        ("deep arrays", deep("[", "]", most)),
        ("deep objects", deep("{\"prompt\":", "}", most)),
        (
            "deep in a field",
            [b"{\"metadata\":".to_vec(), deep("[", "]", most), b"}".to_vec()].concat(),
        ),
        (
            "a field twice",
            b"{\"prompt\":\"a\",\"prompt\":\"b\",\"name\":\"a\",\"name\":\"b\"}".to_vec(),
        ),
        (
            "NUL",
            b"{\"prompt\":\"a\\u0000b\",\"name\":\"a\\u0000b\",\"url\":\"\\u0000\"}".to_vec(),
        ),
        ("a raw NUL", b"{\"prompt\":\"a\0b\"}".to_vec()),
        (
            "half a character",
            b"{\"prompt\":\"\\ud800\",\"name\":\"\\ud800\"}".to_vec(),
        ),
        ("no UTF-8", b"{\"prompt\":\"\xff\xfe\",\"name\":\"\xff\"}".to_vec()),
        (
            "endless numbers",
            b"{\"prompt\":\"a\",\"max_tokens\":1e400,\"overlap\":1e400,\"max_queued\":1e400}".to_vec(),
        ),
        (
            "great numbers",
            b"{\"prompt\":\"a\",\"seed\":99999999999999999999,\"expires_at\":99999999999999999999}".to_vec(),
        ),
        (
            "long numbers",
            [b"{\"seed\":".to_vec(), vec![b'9'; most], b"}".to_vec()].concat(),
        ),
        ("no object", b"\"text\"".to_vec()),
        ("nothing", Vec::new()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn hurtful_bodies_are_refused_by_every_route_that_reads_json() {
    with_api(async |world, api| {
        let root = api.user("root").await;
        let root = admin(world, root).await;
        let document: serde_json::Value = api.get("/openapi.json").send().await.unwrap().json().await.unwrap();
        let mut asked = 0;
        for (path, operations) in document["paths"].as_object().unwrap() {
            for (verb, operation) in operations.as_object().unwrap() {
                if operation["requestBody"]["content"]["application/json"].is_null() {
                    continue;
                }
                let method: Method = verb.to_uppercase().parse().unwrap();
                let place = path
                    .replace("{id}", "x")
                    .replace("{endpoint_id}", "x")
                    .replace("{event_id}", "x");
                // A route that refuses without a look at the body answers before a great one has come. The first reads all of it.
                let most = if place == "/v1/jobs" { 50_000 } else { 500 };
                for (what, body) in hurtful(most) {
                    let request = root.request(method.clone(), &place);
                    let sent = request.header("content-type", "application/json").body(body).send();
                    let status = sent.await.unwrap().status().as_u16();
                    assert!((400..500).contains(&status), "{what} to {method} {path}: {status}");
                    asked += 1;
                }
            }
        }
        assert!(asked > 15 * 13, "{asked} asked");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parameter_that_is_not_known_is_answered_as_the_document_of_every_route_says() {
    with_api(async |world, api| {
        let root = admin(world, api.user("root").await).await;
        let document: serde_json::Value = api.get("/openapi.json").send().await.unwrap().json().await.unwrap();
        let mut wrong = Vec::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            for (verb, operation) in operations.as_object().unwrap() {
                let method: Method = verb.to_uppercase().parse().unwrap();
                let parts = path
                    .split('/')
                    .map(|part| if part.starts_with('{') { "x" } else { part });
                let place = format!("{}?nonsense=1", parts.collect::<Vec<_>>().join("/"));
                let asked = root.request(method, &place).json(&serde_json::json!({})).send();
                let status = asked.await.unwrap().status().as_u16();
                if operation["responses"][status.to_string()].is_null() {
                    wrong.push(format!("{verb} {path}: {status}"));
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    })
    .await;
}
