//! What recognising a caller costs in processor time. Measurements, run by hand; the figures stand in
//! `docs/benchmarks/identity.md`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use claimcheck_api::auth::{Key, Keyring, Secret, SecretKind, TokenIssuer};
use claimcheck_common::domain::{SessionId, UserId};

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
