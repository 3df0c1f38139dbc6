//! What a route asks of requests and adds to answers.

use crate::support::rig::Plan;
use crate::support::server::Server;

#[tokio::test]
async fn addresses_that_may_not_come_are_403_and_the_server_hears_nothing() {
    let server = Server::echo();
    let rig = Plan::toml(&format!(
        r#"
        [listen]
        trusted_proxies = ["127.0.0.1"]
        [routes]
        "a.test" = {{ to = "{0}", allow = ["10.0.0.0/8", "2001:db8::/32"], deny = ["10.6.0.0/16"] }}
        "a.test/open" = "{0}"
        "#,
        server.url()
    ))
    .start()
    .await;
    let mut client = rig.connect().await;
    for (from, path, status) in [
        ("10.1.1.1", "/", 200),
        ("10.6.1.1", "/", 403),
        ("192.0.2.1", "/", 403),
        ("2001:db8::7", "/", 200),
        ("192.0.2.1", "/open", 200),
        ("192.0.2.1", "/open/../x", 403),
        ("10.1.1.1", "/open;a", 400),
    ] {
        let ask = format!("GET {path} HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: {from}\r\n\r\n");
        assert_eq!(client.ask(ask).await.status, status, "{from} {path}");
    }
    assert_eq!(rig.metric("starlock_rejected_total{reason=\"address_denied\"}"), 3);
    assert_eq!(rig.logged(|line| line["status"] == 403).await["reason"], "address_denied");
}

#[tokio::test]
async fn a_route_has_a_bound_for_bodies_of_its_own() {
    let server = Server::echo();
    let rig = Plan::toml(&format!(
        "limits.body = \"4B\"\n[routes]\n\"a.test\" = \"{0}\"\n\"a.test/up\" = {{ to = \"{0}\", max_body = \"6B\" }}",
        server.url()
    ))
    .start()
    .await;
    for (path, length, status) in [("/", 4, 200), ("/", 5, 413), ("/up", 6, 200), ("/up", 7, 413)] {
        let body = "x".repeat(length);
        let ask = format!("POST {path} HTTP/1.1\r\nHost: a.test\r\nContent-Length: {length}\r\n\r\n{body}");
        assert_eq!(rig.connect().await.ask(ask).await.status, status, "{path} {length}");
    }
}

#[tokio::test]
async fn browsers_are_told_to_come_by_https_only_on_every_answer_and_only_there() {
    let rig = Plan::toml(
        r#"
        listen.https = ["[::]:443"]
        [routes]
        "a.test" = { respond = 204, hsts = true, deny = "192.0.2.0/24" }
        "b.test" = { redirect = "https://a.test", hsts = { max_age = "365d", subdomains = true, preload = true } }
        "#,
    )
    .start()
    .await;
    let mut client = rig.connect_tls("a.test").await;
    let answer = client.get("a.test", "/").await;
    assert_eq!(answer.field("strict-transport-security"), Some("max-age=31536000"));
    let answer = client.get("b.test", "/").await;
    assert_eq!(
        answer.field("strict-transport-security"),
        Some("max-age=31536000; includeSubDomains; preload")
    );
    let answer = rig.connect().await.get("a.test", "/").await;
    assert_eq!((answer.status, answer.field("strict-transport-security")), (308, None));
}
