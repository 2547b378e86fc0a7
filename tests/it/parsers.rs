//! The parsers of what strangers send, on random bytes and on bytes that nearly are what is wanted. The same functions are fuzz targets
//! (`tests/fuzz`).

use proptest::prelude::*;
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
