//! Which server gets a request.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use http::Response;
use starlock::resolver::Hosts;
use tokio::net::UdpSocket;

use crate::support::rig::{Plan, Rig};
use crate::support::server::{Server, answer_h2, full};
use crate::support::starlock::Starlock;
use crate::support::web::Upstream;
use crate::support::{PATIENCE, eventually};

/// Servers that answer with their own address.
fn servers(count: usize) -> Vec<Server> {
    let named = || {
        let name: Arc<Mutex<String>> = Arc::default();
        let said = name.clone();
        let server = Server::http(move |_| {
            let text = said.lock().unwrap().clone();
            async { Response::new(full(text)) }
        });
        *name.lock().unwrap() = server.address.to_string();
        server
    };
    (0..count).map(|_| named()).collect()
}

/// Who answers `count` requests for `path`, each with `fields`.
async fn answers(rig: &Rig, count: usize, path: &str, fields: &str) -> BTreeMap<String, usize> {
    let mut client = rig.connect().await;
    let mut by = BTreeMap::new();
    for _ in 0..count {
        let answer = client.ask(format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        *by.entry(answer.text().to_owned()).or_default() += 1;
    }
    by
}

#[tokio::test]
async fn weights_are_shares_and_backups_wait() {
    let all = servers(3);
    let rig = Plan::toml(&format!(
        r#"
        routes = {{ "a.test" = "app" }}
        [upstreams.app]
        servers = [{{ url = "{}", weight = 2 }}, "{}", {{ url = "{}", backup = true }}]
        balance = "round_robin"
        "#,
        all[0].url(),
        all[1].url(),
        all[2].url()
    ))
    .start()
    .await;
    let name = |n: usize| all[n].address.to_string();
    assert_eq!(answers(&rig, 30, "/", "").await, [(name(0), 20), (name(1), 10)].into());
    rig.endpoint(all[0].address).drain(true);
    rig.endpoint(all[1].address).drain(true);
    assert_eq!(answers(&rig, 5, "/", "").await, [(name(2), 5)].into());
}

#[tokio::test]
async fn a_key_decides_and_a_cookie_holds_until_its_server_is_gone() {
    let mut all = servers(3);
    let urls: Vec<String> = all.iter().map(|s| format!("\"{}\"", s.url())).collect();
    let urls = urls.join(", ");
    let rig = Plan::toml(&format!(
        r#"
        listen.https = ["[::]:443"]
        [routes]
        "a.test" = "app"
        "a.test/stay" = "stay"
        [upstreams.app]
        servers = [{urls}]
        balance = {{ by = "hash", key = "header:X-User" }}
        [upstreams.stay]
        servers = [{urls}]
        sticky = {{ cookie = "srv", secret = "0123456789abcdef", ttl = "1h" }}
        "#
    ))
    .start()
    .await;
    let mut tls = rig.connect_tls("a.test").await;
    let mut seen = BTreeSet::new();
    for user in 0..30 {
        let ask = format!("GET / HTTP/1.1\r\nHost: a.test\r\nX-User: {user}\r\n\r\n");
        let first = tls.ask(&ask).await.text().to_owned();
        assert_eq!(tls.ask(&ask).await.text(), first);
        seen.insert(first);
    }
    assert_eq!(seen.len(), 3);

    let first = tls.get("a.test", "/stay").await;
    let cookie = first.field("set-cookie").unwrap().to_owned();
    assert!(cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax; Max-Age=3600; Secure"), "{cookie}");
    assert!(!cookie.contains("127") && cookie.starts_with("srv="), "{cookie}");
    let pair = cookie.split(';').next().unwrap();
    let ask = format!("GET /stay HTTP/1.1\r\nHost: a.test\r\nCookie: x=1; {pair}\r\n\r\n");
    for _ in 0..10 {
        let again = tls.ask(&ask).await;
        assert_eq!((again.text(), again.field("set-cookie")), (first.text(), None));
    }
    all.retain(|server| server.address.to_string() != first.text());
    for _ in 0..10 {
        let moved = tls.ask(&ask).await;
        assert_eq!(moved.status, 200);
        assert_ne!(moved.text(), first.text());
        assert!(moved.field("set-cookie").is_some_and(|other| !other.starts_with(pair)));
    }
}

#[tokio::test]
async fn addresses_cookies_and_paths_are_keys_and_dice_have_none() {
    let all = servers(3);
    let urls: Vec<String> = all.iter().map(|s| format!("\"{}\"", s.url())).collect();
    let upstream = |balance: &str| {
        format!(
            "listen.trusted_proxies = [\"127.0.0.1\"]\nroutes = {{ \"a.test\" = \"app\" }}\n[upstreams.app]\n\
             servers = [{}]\nbalance = {balance}\n",
            urls.join(", ")
        )
    };
    for key in ["ip", "cookie:user", "path"] {
        let rig = Plan::toml(&upstream(&format!("{{ by = \"hash\", key = \"{key}\" }}"))).start().await;
        let mut seen = BTreeSet::new();
        for n in 1..30 {
            let (path, fields) = match key {
                "ip" => ("/".to_owned(), format!("X-Forwarded-For: 203.0.113.{n}\r\n")),
                "path" => (format!("/{n}"), String::new()),
                _ => ("/".to_owned(), format!("Cookie: a=\u{e9}; user={n}\r\n")),
            };
            let by = answers(&rig, 3, &path, &fields).await;
            assert_eq!(by.len(), 1, "{key} {n}: always the same one");
            seen.extend(by.into_keys());
        }
        assert_eq!(seen.len(), 3, "{key}: all of them have their share");
    }
    let rig = Plan::toml(&upstream("\"random\"")).start().await;
    let by = answers(&rig, 300, "/", "").await;
    assert!(by.len() == 3 && by.values().all(|count| *count > 50), "{by:?}");
}

#[tokio::test]
async fn a_server_that_is_new_begins_slowly() {
    let all = servers(2);
    let plan = |servers: &[Server]| {
        let urls: Vec<String> = servers.iter().map(|s| format!("\"{}\"", s.url())).collect();
        Plan::toml(&format!(
            "routes = {{ \"a.test\" = \"app\" }}\n[upstreams.app]\nservers = [{}]\nbalance = \"round_robin\"\nslow_start = \"1h\"\n",
            urls.join(", ")
        ))
    };
    let mut rig = plan(&all[..1]).start().await;
    assert_eq!(answers(&rig, 5, "/", "").await.len(), 1);
    rig.load(&plan(&all)).await;
    let by = answers(&rig, 400, "/", "").await;
    let new = by.get(&all[1].address.to_string()).copied().unwrap_or_default();
    // A twentieth of what it is due: about ten of two hundred.
    assert!((1..60).contains(&new), "{by:?}");
    let rig = plan(&all).start().await;
    let by = answers(&rig, 100, "/", "").await;
    assert!(by.values().all(|count| *count == 50), "who was there from the start is due all of it: {by:?}");
}

#[tokio::test]
async fn a_full_server_passes_requests_on_and_full_servers_say_when_to_come_again() {
    let (release, released) = tokio::sync::watch::channel(false);
    let slow = || {
        let released = released.clone();
        Server::http(move |_| {
            let mut released = released.clone();
            async move {
                released.wait_for(|go| *go).await.unwrap();
                Response::new(full("done"))
            }
        })
    };
    let (one, two) = (slow(), slow());
    let rig = Plan::toml(&format!(
        r#"
        routes = {{ "a.test" = "app" }}
        [upstreams.app]
        servers = [{{ url = "{}", max_requests = 1 }}, {{ url = "{}", max_connections = 2 }}]
        "#,
        one.url(),
        two.url()
    ))
    .start()
    .await;
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let mut client = rig.connect().await;
        client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        waiting.push(client);
        let expected = waiting.len();
        rig.until("the request is at a server", |_| one.connections() + two.connections() == expected).await;
    }
    assert_eq!((one.connections(), two.connections()), (1, 2));
    let refused = rig.connect().await.get("a.test", "/").await;
    assert_eq!((refused.status, refused.field("retry-after")), (503, Some("1")));
    assert_eq!(rig.logged(|line| line["status"] == 503).await["reason"], "upstream_full");
    release.send(true).unwrap();
    for client in &mut waiting {
        assert_eq!(client.answer(false).await.text(), "done");
    }
    assert_eq!(rig.connect().await.get("a.test", "/").await.status, 200);
}

/// A name server with the records of a list that can change; a TTL of one second.
struct Zone {
    address: SocketAddr,
    records: Arc<Mutex<Vec<(&'static str, RData)>>>,
}

impl Zone {
    async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let records: Arc<Mutex<Vec<(&'static str, RData)>>> = Arc::default();
        let known = records.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                let question = Message::from_vec(&buffer[..length]).unwrap();
                let query = question.queries[0].clone();
                let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
                answer.metadata.message_type = MessageType::Response;
                answer.metadata.authoritative = true;
                answer.metadata.recursion_available = true;
                answer.add_query(query.clone());
                let known = known.lock().unwrap().clone();
                let is_named = |name: &str| Name::from_ascii(name).unwrap() == *query.name();
                if !known.iter().any(|(name, _)| is_named(name)) {
                    answer.metadata.response_code = ResponseCode::NXDomain;
                }
                for (_, data) in known.iter().filter(|(name, data)| {
                    is_named(name)
                        && (data.record_type() == query.query_type() || query.query_type() == RecordType::ANY)
                }) {
                    answer.add_answer(Record::from_rdata(query.name().clone(), 1, data.clone()));
                }
                socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
            }
        });
        Self { address, records }
    }

    fn set(&self, records: Vec<(&'static str, RData)>) {
        *self.records.lock().unwrap() = records;
    }
}

fn service(priority: u16, weight: u16, server: &Server, target: &str) -> RData {
    RData::SRV(SRV::new(priority, weight, server.address.port(), Name::from_ascii(target).unwrap()))
}

#[tokio::test]
async fn names_and_services_are_followed_and_what_stays_keeps_what_is_known_of_it() {
    let all = servers(3);
    let zone = Zone::start().await;
    let local = RData::A(A(Ipv4Addr::LOCALHOST));
    let both = |first: &Server, second: &Server| {
        vec![
            ("_http._tcp.app.test.", service(10, 1, first, "one.test.")),
            ("_http._tcp.app.test.", service(20, 1, second, "two.test.")),
            ("one.test.", local.clone()),
            ("two.test.", local.clone()),
            ("plain.test.", local.clone()),
        ]
    };
    zone.set(both(&all[0], &all[1]));
    let mut plan = Plan::toml(&format!(
        r#"
        [routes]
        "a.test" = "app"
        "b.test" = "http://plain.test:{}"
        [upstreams.app]
        servers = ["srv://_http._tcp.app.test"]
        "#,
        all[2].address.port()
    ));
    plan.hosts = Hosts::asking(&[zone.address]);
    let rig = plan.start().await;
    let name = |n: usize| all[n].address.to_string();
    // The very first request waits for the resolver.
    assert_eq!(answers(&rig, 10, "/", "").await, [(name(0), 10)].into(), "the lower priority serves");
    assert_eq!(rig.connect().await.get("b.test", "/").await.text(), name(2));
    let label = format!("one.test:{}#127.0.0.1", all[0].address.port());
    assert_eq!(rig.metric(&format!("starlock_upstream_up{{upstream=\"app\",server=\"http://{label}\"}}")), 1);

    rig.endpoint(all[0].address).drain(true);
    assert_eq!(answers(&rig, 5, "/", "").await, [(name(1), 5)].into());
    zone.set(both(&all[0], &all[2]));
    rig.until("the backup has moved", |rig| !rig.metrics.render().contains(&format!("{}#", &name(1)[9..])))
        .await;
    assert_eq!(answers(&rig, 5, "/", "").await, [(name(2), 5)].into(), "still drained");
    zone.set(vec![]);
    // Longer than the TTL: the next question is refused, and nothing changes.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(answers(&rig, 5, "/", "").await, [(name(2), 5)].into());
}

#[test]
fn a_server_that_is_drained_finishes_what_it_has() {
    use std::io::{Read, Write};
    let (tell, told) = tokio::sync::watch::channel(false);
    let busy = Server::http(move |_| {
        let mut told = told.clone();
        async move {
            told.wait_for(|go| *go).await.unwrap();
            http::Response::new(crate::support::server::full("finished"))
        }
    });
    let other = Upstream::start("other");
    let starlock = Starlock::start(&format!(
        "[listen]\nhttps = []\nhttp = [\"127.0.0.1:0\"]\n[routes]\n\"a.test\" = \"app\"\n\
         [upstreams.app]\nservers = [\"{}\", \"{}\"]\nretries = false\n",
        busy.url(),
        other.url()
    ));
    let address = starlock.address("http");
    let ask = || {
        let mut client = std::net::TcpStream::connect(address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").unwrap();
        client
    };
    let answer = |mut client: std::net::TcpStream| {
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        text
    };
    // Who has requests under way is chosen less and less: they are all under way until both have some.
    let mut clients = Vec::new();
    eventually("it has a request", || {
        clients.push(ask());
        (busy.connections() > 0).then_some(())
    });
    let server = busy.address.to_string();
    assert!(starlock.command(&["upstreams", "drain", "app", &server]).status.success());
    let has = busy.connections();
    for _ in 0..20 {
        assert!(!answer(ask()).contains("finished"));
    }
    assert_eq!(busy.connections(), has, "nothing new");
    let listed = String::from_utf8(starlock.command(&["upstreams"]).stdout).unwrap();
    assert!(listed.contains("drained") && listed.contains("request"), "{listed}");
    tell.send_replace(true);
    let finished = clients.into_iter().map(answer).filter(|text| text.contains("finished")).count();
    assert_eq!(finished, has, "each request that it had");
}

#[test]
fn a_server_is_drained_by_a_command_over_reloads_and_its_requests_finish() {
    let (one, two) = (Upstream::start("one"), Upstream::start("two"));
    let config = |extra: &str| {
        format!(
            "[listen]\nhttps = []\nhttp = [\"127.0.0.1:0\"]\n[routes]\n\"a.test\" = \"app\"\n{extra}\
             [upstreams.app]\nservers = [\"{}\", \"{}\"]\n",
            one.url(),
            two.url()
        )
    };
    let starlock = Starlock::start(&config(""));
    let address = starlock.address("http");
    let get = || {
        let mut client = std::net::TcpStream::connect(address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        std::io::Write::write_all(
            &mut client,
            b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n",
        )
        .unwrap();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut client, &mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    };
    let count = |upstream: &Upstream| upstream.requests.load(std::sync::atomic::Ordering::SeqCst);
    let verb = |verb: &str| {
        let server = one.address.to_string();
        let output = starlock.command(&["upstreams", verb, "app", &server]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(verb("drain").contains("drained"));
    assert!(starlock.reload(&config("\"b.test\" = { respond = 204 }\n")).status.success());
    (0..20).for_each(|_| get());
    assert_eq!((count(&one), count(&two)), (0, 20));
    assert_eq!(starlock.status()["servers"], serde_json::json!({ "drained": 1, "up": 1 }));
    let output = starlock.command(&["upstreams", "--json"]);
    let listed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(listed[0]["servers"][0]["condition"], "drained", "{listed}");
    assert!(!verb("undrain").contains("drained"));
    eventually("the server gets requests again", || {
        get();
        (count(&one) > 0).then_some(())
    });
    let output = starlock.command(&["upstreams", "drain", "app", "10.9.9.9:1"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("has no server `10.9.9.9:1`"), "{output:?}");
}

#[tokio::test]
async fn services_are_spoken_to_as_their_url_says() {
    let (secure, clear) =
        (Server::tls(&["h2"], |stream| answer_h2(stream, 201)), Server::raw(|stream| answer_h2(stream, 202)));
    let zone = Zone::start().await;
    zone.set(vec![
        ("_https._tcp.app.test.", service(10, 1, &secure, "one.test.")),
        ("_h2c._tcp.app.test.", service(10, 1, &clear, "one.test.")),
        ("one.test.", RData::A(A(Ipv4Addr::LOCALHOST))),
    ]);
    let mut plan = Plan::toml(
        r#"
        routes = { "a.test" = "secure", "b.test" = "clear" }
        [upstreams.secure]
        servers = ["srv+https://_https._tcp.app.test"]
        tls = { danger_skip_verify = true }
        [upstreams.clear]
        servers = ["srv+h2c://_h2c._tcp.app.test"]
        "#,
    );
    plan.hosts = Hosts::asking(&[zone.address]);
    let rig = plan.start().await;
    for (host, status) in [("a.test", 201), ("b.test", 202)] {
        assert_eq!(rig.connect().await.get(host, "/").await.status, status);
    }
    let label = format!("https://one.test:{}#127.0.0.1", secure.address.port());
    assert_eq!(rig.metric(&format!("starlock_upstream_up{{upstream=\"secure\",server=\"{label}\"}}")), 1);
}
