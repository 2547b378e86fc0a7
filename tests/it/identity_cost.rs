//! What recognising a caller costs in processor time. Measurements, run by hand; the figures stand in
//! `docs/benchmarks/identity.md`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use claimcheck_api::AppState;
use claimcheck_api::access::Need;
use claimcheck_api::auth::{Key, Keyring, Secret, SecretKind, TokenIssuer};
use claimcheck_api::extract::Origin;
use claimcheck_common::domain::{SessionId, UserId};

use crate::http_face::{config, with_api};
use crate::identity_keys::keyed;

/// So few that a series fits into the time that a busy machine gives in one piece.
const ROUNDS: u32 = 10;
const SERIES: u32 = 500;

fn issuer(key: Key) -> TokenIssuer {
    let keys = Keyring::new(Some(key), Vec::new());
    TokenIssuer::new(
        keys,
        "claimcheck".into(),
        "claimcheck-api".into(),
        Duration::from_mins(15),
    )
}

/// The fastest series, in microseconds a round: what the machine does besides only adds.
fn cost(what: &str, round: impl Fn()) -> f64 {
    let series = (0..SERIES).map(|_| {
        let began = Instant::now();
        (0..ROUNDS).for_each(|_| round());
        began.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS)
    });
    let best = series.fold(f64::INFINITY, f64::min);
    println!("{what}: {best:.1} us");
    best
}

#[test]
#[ignore = "a measurement"]
fn recognising_a_caller_costs_at_most_sixty_microseconds() {
    use secrecy::ExposeSecret;
    let secret = "a secret of at least thirty-two bytes".to_owned().into();
    for (what, key) in [
        ("an EdDSA token", Key::ed25519(&[7; 32]).unwrap()),
        ("an HS256 token", Key::hs256(&secret).unwrap()),
    ] {
        let issuer = issuer(key);
        let token = issuer.issue(UserId::new(), SessionId::new()).unwrap().token;
        let spent = cost(what, || {
            black_box(issuer.verify(black_box(token.expose_secret())).unwrap());
        });
        assert!(spent < 60.0, "{what} costs {spent} us");
    }
    let key = Secret::draw(SecretKind::ApiKey);
    let spent = cost("an API key", || {
        black_box(
            Secret::parse(SecretKind::ApiKey, black_box(key.expose()))
                .unwrap()
                .sha256(),
        );
    });
    assert!(spent < 60.0);
}

/// Processor seconds of this process so far, in user and system mode (proc(5)).
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // A tick is a hundredth of a second everywhere that this runs.
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    ticks as f64 / 100.0
}

/// Callers that are recognised at the same time, and how often each.
const TOGETHER: usize = 64;
const EACH: usize = 1000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn recognising_known_callers_who_come_together_costs_at_most_sixty_microseconds_each_with_the_round_trip() {
    with_api(async |world, api| {
        let ada = api.user("ada").await;
        let key = keyed(&ada, &["jobs:read"]).await;
        let state = AppState::new(&config(world)).unwrap();
        for (what, token) in [("an EdDSA token", ada.token), ("an API key", key.token)] {
            let headers: HeaderMap = [(AUTHORIZATION, format!("Bearer {token}").parse().unwrap())]
                .into_iter()
                .collect();
            let doorkeeper = state.doorkeeper.clone();
            // From the third time on the caller is known.
            for _ in 0..3 {
                doorkeeper
                    .recognise(&headers, Need::Credential, &Origin::default())
                    .await
                    .unwrap();
            }
            let began = processor_seconds();
            let callers = (0..TOGETHER).map(|_| {
                let (doorkeeper, headers) = (doorkeeper.clone(), headers.clone());
                tokio::spawn(async move {
                    for _ in 0..EACH {
                        let origin = Origin::default();
                        let caller = doorkeeper.recognise(black_box(&headers), Need::Credential, &origin);
                        black_box(caller.await.unwrap());
                    }
                })
            });
            for caller in callers.collect::<Vec<_>>() {
                caller.await.unwrap();
            }
            let spent = (processor_seconds() - began) * 1e6 / (TOGETHER * EACH) as f64;
            println!("{what}, known: {spent:.1} us");
            assert!(spent < 60.0, "{what} costs {spent} us");
        }
    })
    .await;
}
