//! The provider `acme-dns` against a fake of the server's API that is as strict as its README and its code: values of 43
//! characters, the last two kept, an account for each name.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Method, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use starlock::challenge::{ChallengeSolver, Dns01Solver};
use starlock::clock::SystemClock;
use starlock::dns::{
    CommonKeys, DnsError, Propagation, PropagationCheck, ProviderKind, ProviderSpec, Surroundings,
    TxtProvider, ZoneTurns, build,
};
use starlock::resolver::Resolver;

use crate::challenge::{Rig, challenges};
use crate::responder::record;
use crate::support::dns::Knot;
use crate::support::server::{Body, Server, full};

/// Accounts by subdomain: the password, and the values that are published.
#[derive(Default)]
struct State {
    accounts: Mutex<BTreeMap<String, (String, VecDeque<String>)>>,
    trouble: AtomicU16,
}

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let (status, said) = match state.trouble.load(Ordering::SeqCst) {
        0 => said(&state, &parts, &body),
        status => (status, json!({ "error": "trouble" })),
    };
    Response::builder().status(status).body(full(said.to_string())).unwrap()
}

fn said(state: &State, parts: &http::request::Parts, body: &[u8]) -> (u16, Value) {
    let header = |name: &str| parts.headers.get(name).map_or("", |value| value.to_str().unwrap());
    if parts.method != Method::POST || header("content-type") != "application/json" {
        return (405, json!({ "error": "method" }));
    }
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let mut accounts = state.accounts.lock().unwrap();
    match parts.uri.path() {
        "/register" if json == json!({}) => {
            let (sub, password) = (format!("sub-{}", accounts.len()), format!("password-{}", accounts.len()));
            accounts.insert(sub.clone(), (password.clone(), VecDeque::new()));
            let full = format!("{sub}.auth.test");
            (
                201,
                json!({ "username": format!("user-{sub}"), "password": password, "fulldomain": full, "subdomain": sub,
                "allowfrom": [] }),
            )
        }
        "/update" => {
            let (Some(sub), Some(txt), 2) =
                (json["subdomain"].as_str(), json["txt"].as_str(), json.as_object().map_or(0, |o| o.len()))
            else {
                return (400, json!({ "error": "malformed_json_payload" }));
            };
            let held = accounts.get_mut(sub).filter(|(password, _)| {
                header("x-api-user") == format!("user-{sub}") && header("x-api-key") == password
            });
            let Some((_, values)) = held else { return (401, json!({ "error": "forbidden" })) };
            if txt.len() != 43 {
                return (400, json!({ "error": "bad_txt" }));
            }
            values.push_back(txt.to_owned());
            if values.len() > 2 {
                values.pop_front();
            }
            (200, json!({ "txt": txt }))
        }
        _ => (404, json!({ "error": "not_found" })),
    }
}

fn provider(endpoint: &str, accounts: &Path) -> Arc<dyn TxtProvider> {
    let kind = ProviderKind::AcmeDns { endpoint: endpoint.into(), accounts: accounts.into() };
    let with = Surroundings {
        resolver: Arc::new(Resolver::new(vec![])),
        clock: Arc::new(SystemClock),
        turns: ZoneTurns::new(),
        builtin: None,
    };
    build(&ProviderSpec { kind, common: CommonKeys::default() }, &with).unwrap()
}

#[tokio::test]
async fn it_registers_says_the_cname_and_keeps_two_values() {
    let state = Arc::new(State::default());
    let server = Server::http({
        let state = state.clone();
        move |request| answer(state.clone(), request)
    });
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("accounts.json");
    let acme = provider(&server.url(), &file);
    let value = |letter: &str| letter.repeat(43);

    // Without an account: one is registered, kept, and the CNAME is said; once, however often it is tried.
    for _ in 0..2 {
        let error = acme.add_txt(&record("_acme-challenge.example.com", &value("a"))).await.unwrap_err();
        assert!(matches!(error, DnsError::Unavailable(_)), "{error:?}");
        let said = error.to_string();
        assert!(said.contains("_acme-challenge.example.com. CNAME sub-0.auth.test."), "{said}");
        assert!(!said.contains("password-0"), "{said}");
    }
    assert_eq!(state.accounts.lock().unwrap().len(), 1);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let kept: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(kept["example.com"]["server_url"], server.url());
    assert_eq!(kept["example.com"]["subdomain"], "sub-0");

    // With the CNAME, the name is that of the account.
    let at = |letter: &str| record("sub-0.auth.test", &value(letter));
    let seen = || {
        let mut values: Vec<String> = state.accounts.lock().unwrap()["sub-0"].1.iter().cloned().collect();
        values.sort();
        values
    };
    for (letter, standing) in
        [("a", vec!["a"]), ("b", vec!["a", "b"]), ("a", vec!["a", "b"]), ("b", vec!["a", "b"])]
    {
        acme.add_txt(&at(letter)).await.unwrap();
        assert_eq!(seen(), standing.iter().map(|l| value(l)).collect::<Vec<_>>());
    }
    // Another process, or this one after a restart, knows nothing: both stand in the end.
    let again = provider(&server.url(), &file);
    for letter in ["b", "a"] {
        again.add_txt(&at(letter)).await.unwrap();
    }
    assert_eq!(seen(), [value("a"), value("b")]);
    for letter in ["a", "b", "b"] {
        acme.remove_txt(&at(letter)).await.unwrap();
    }

    // A name that no account has, and a name with an account that is not led there.
    let stray = acme.add_txt(&record("elsewhere.auth.test", &value("a"))).await.unwrap_err();
    assert!(matches!(&stray, DnsError::Refused(said) if said.contains("elsewhere.auth.test")), "{stray:?}");
    for status in [429, 500] {
        state.trouble.store(status, Ordering::SeqCst);
        let busy = acme.add_txt(&at("c")).await.unwrap_err();
        assert!(matches!(busy, DnsError::Unavailable(_)), "{busy:?}");
    }
    state.trouble.store(0, Ordering::SeqCst);

    // A password that is not the server's.
    let text = std::fs::read_to_string(&file).unwrap().replace("password-0", "password-wrong");
    std::fs::write(&file, text).unwrap();
    let refused = provider(&server.url(), &file).add_txt(&at("d")).await.unwrap_err();
    assert!(matches!(&refused, DnsError::Refused(said) if said.contains("`accounts`")), "{refused:?}");
    assert!(!refused.to_string().contains("password-wrong"), "{refused}");
}

/// The server keeps two values: a third, of another order, would push out one that a CA is about to look for.
#[tokio::test]
async fn orders_that_share_an_account_take_turns() {
    let state = Arc::new(State::default());
    let server = Server::http({
        let state = state.clone();
        move |request| answer(state.clone(), request)
    });
    let dir = tempfile::tempdir().unwrap();
    let acme = provider(&server.url(), &dir.path().join("accounts.json"));
    // The first try registers the account.
    acme.add_txt(&record("_acme-challenge.example.test", &"x".repeat(43))).await.unwrap_err();
    let knot = Knot::start(&[("test", "_acme-challenge.example CNAME sub-0.auth.test.")]);
    let rig = Rig::new(knot.address);
    let propagation = Propagation { check: PropagationCheck::Off, ..Propagation::default() };
    let solver = Dns01Solver::new(acme, rig.resolver.clone(), rig.janitor.clone(), propagation, None);
    let values = |letters: [&str; 2]| letters.map(|letter| letter.repeat(43));
    let order = |letters| {
        let values = values(letters);
        let batch = challenges("example.test", &[&values[0], &values[1]]);
        let solver = &solver;
        async move { solver.present(&batch).await.unwrap() }
    };
    let seen = || state.accounts.lock().unwrap()["sub-0"].1.iter().cloned().collect::<BTreeSet<_>>();
    let first = order(["a", "b"]).await;
    let mut second = std::pin::pin!(order(["c", "d"]));
    assert!(tokio::time::timeout(Duration::from_millis(500), &mut second).await.is_err(), "it waits");
    assert_eq!(seen(), BTreeSet::from(values(["a", "b"])));
    first.clean_up().await;
    let second = second.await;
    assert_eq!(seen(), BTreeSet::from(values(["c", "d"])));
    second.clean_up().await;
    assert_eq!(rig.end().await, 0);
}
