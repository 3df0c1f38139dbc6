//! Signals, exit codes and logs of the shipped binary: what operators and their scripts rely on.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::process::Process;
use crate::support::starlock::{Starlock, binary, command, local_root, write_config};
use crate::support::web::curl;
use crate::support::{PATIENCE, eventually};

/// An upstream that keeps its one answer back until it is told to give it.
struct Held {
    address: SocketAddr,
    arrived: Receiver<()>,
    answer: Sender<()>,
}

impl Held {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let ((here, arrived), (answer, told)) = (channel(), channel());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            read_head(&mut stream);
            here.send(()).unwrap();
            if told.recv().is_ok() {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nheld").unwrap();
            }
        });
        Self { address, arrived, answer }
    }

    fn arrived(&self) {
        self.arrived.recv_timeout(PATIENCE).expect("the request reaches the upstream");
    }
}

fn read_head(stream: &mut TcpStream) {
    let (mut seen, mut byte) = (Vec::new(), [0]);
    while !seen.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
}

/// In clear, so that a plain socket is client enough.
fn config(routes: &str) -> String {
    format!(
        "[listen]\nhttps = []\nhttp = [\"127.0.0.1:0\"]\n[log]\naccess = {{ file = \"{{dir}}/access.log\" }}\n[routes]\n{routes}"
    )
}

/// A connection on which one GET was sent.
fn asked(address: SocketAddr, host: &str, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).unwrap();
    stream
}

/// Everything until the other side closes, however it does.
fn rest(mut stream: TcpStream) -> String {
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
    String::from_utf8(all).unwrap()
}

fn lines(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// Exit code and what was said.
fn verdict(output: &Output) -> (Option<i32>, String) {
    let said = [output.stdout.as_slice(), &output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

fn a_request_in_flight_is_finished_after(signal: &str) {
    let held = Held::start();
    let mut starlock =
        Starlock::start(&config(&format!("\"app.localhost\" = \"http://{}\"\n", held.address)));
    let http = starlock.address("http");
    let client = asked(http, "app.localhost", "/held");
    held.arrived();
    let (code, said) = verdict(&starlock.command(&["health"]));
    assert_eq!((code, said.trim()), (Some(0), "healthy"));
    let socket = starlock.path("admin.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);

    starlock.process().signal(signal);
    eventually("new connections are refused", || TcpStream::connect(http).is_err().then_some(()));
    let (code, said) = verdict(&starlock.command(&["health"]));
    assert!(code == Some(1) && said.contains("draining"), "{said}");
    held.answer.send(()).unwrap();
    let answer = rest(client);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("held"), "{answer}");
    assert_eq!(starlock.process().wait().code(), Some(0));

    assert!(!socket.exists(), "the admin socket is removed");
    let (code, said) = verdict(&starlock.command(&["health"]));
    assert!(code == Some(1) && said.contains("admin.sock"), "{said}");
    let logged = lines(&starlock.path("access.log"));
    assert_eq!(logged.len(), 1, "{logged:?}");
    assert_eq!((&logged[0]["path"], &logged[0]["status"]), (&"/held".into(), &200.into()));
}

#[test]
fn sigterm_finishes_what_is_in_flight() {
    a_request_in_flight_is_finished_after("TERM");
}

#[test]
fn sigint_finishes_what_is_in_flight() {
    a_request_in_flight_is_finished_after("INT");
}

#[test]
fn a_second_signal_stops_at_once() {
    let held = Held::start();
    let mut starlock =
        Starlock::start(&config(&format!("\"app.localhost\" = \"http://{}\"\n", held.address)));
    let client = asked(starlock.address("http"), "app.localhost", "/held");
    held.arrived();
    starlock.process().signal("TERM");
    eventually("it drains", || starlock.log().contains("draining").then_some(()));
    assert!(starlock.process().is_running(), "it waits for the request");
    let start = Instant::now();
    starlock.process().signal("TERM");
    assert_eq!(starlock.process().wait().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(10), "timeouts.drain is 30 s: {:?}", start.elapsed());
    assert!(rest(client).is_empty(), "the answer never came");
    let logged = lines(&starlock.path("access.log"));
    assert!(logged.len() == 1 && logged[0]["path"] == "/held", "what was cut is logged too: {logged:?}");
    assert!(!starlock.path("admin.sock").exists());
}

#[test]
fn a_balancer_hears_of_a_shutdown_before_any_client_does() {
    let config = "[listen]\nhttps = []\nhttp = [\"127.0.0.1:0\"]\nready = \"127.0.0.1:0\"\n[timeouts]\nlame_duck = \"8s\"\n\
                  [routes]\n\"app.localhost\" = { respond = 200, body = \"here\" }\n";
    let mut starlock = Starlock::start(config);
    let (http, ready) = (starlock.address("http"), starlock.address("ready"));
    let state = || rest(asked(ready, "10.0.0.1", "/any/path"));
    assert!(state().starts_with("HTTP/1.1 200"), "{}", state());
    assert_eq!(starlock.status()["draining"], false);
    let (moved_on, served) = (AtomicBool::new(false), AtomicU64::new(0));
    let start = std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !moved_on.load(Ordering::SeqCst) {
                    let mut client = asked(http, "app.localhost", "/");
                    read_head(&mut client);
                    let mut body = [0; 4];
                    client.read_exact(&mut body).unwrap();
                    assert_eq!(&body, b"here");
                    served.fetch_add(1, Ordering::SeqCst);
                    // Others want to be served, too.
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
        }
        eventually("requests are served", || (served.load(Ordering::SeqCst) > 50).then_some(()));
        let start = Instant::now();
        starlock.process().signal("TERM");
        eventually("503", || state().starts_with("HTTP/1.1 503").then_some(()));
        assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
        let (code, said) = verdict(&starlock.command(&["health"]));
        assert!(code == Some(1) && said.contains("draining"), "{said}");
        assert_eq!(starlock.status()["draining"], true);
        let before = served.load(Ordering::SeqCst);
        eventually("new connections are served", || {
            (served.load(Ordering::SeqCst) > before + 50).then_some(())
        });
        // What the balancer does when it has heard of it.
        moved_on.store(true, Ordering::SeqCst);
        start
    });
    eventually("the listeners close", || TcpStream::connect(http).is_err().then_some(()));
    assert!(start.elapsed() >= Duration::from_secs(8), "{:?}", start.elapsed());
    assert_eq!(starlock.process().wait().code(), Some(0));
}

#[test]
fn a_second_signal_does_not_wait_for_the_balancer() {
    let held = Held::start();
    let mut starlock = Starlock::start(&format!(
        "{}\"app.localhost\" = \"http://{}\"\n[timeouts]\nlame_duck = \"60s\"\n",
        config(""),
        held.address
    ));
    let client = asked(starlock.address("http"), "app.localhost", "/held");
    held.arrived();
    starlock.process().signal("TERM");
    eventually("it is going", || starlock.log().contains("second signal").then_some(()));
    assert!(starlock.process().is_running());
    let start = Instant::now();
    starlock.process().signal("TERM");
    assert_eq!(starlock.process().wait().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    drop(client);
}

#[test]
fn rotated_logs_lose_no_line() {
    let mut starlock = Starlock::start(&config("\"app.localhost\" = { respond = 204 }\n"));
    let http = starlock.address("http");
    let (sent, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let rounds: u64 = 5;
    let total = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut stream = TcpStream::connect(http).unwrap();
            stream.set_nodelay(true).unwrap();
            while !done.load(Ordering::SeqCst) {
                let number = sent.load(Ordering::SeqCst);
                let request = format!("GET /{number} HTTP/1.1\r\nHost: app.localhost\r\n\r\n");
                stream.write_all(request.as_bytes()).unwrap();
                read_head(&mut stream);
                sent.store(number + 1, Ordering::SeqCst);
            }
        });
        for round in 0..rounds {
            let before = sent.load(Ordering::SeqCst);
            eventually("requests go on", || (sent.load(Ordering::SeqCst) > before + 50).then_some(()));
            std::fs::rename(starlock.path("access.log"), starlock.path(&format!("access.log.{round}")))
                .unwrap();
            starlock.process().signal("USR1");
            eventually("a new file is there", || starlock.path("access.log").exists().then_some(()));
        }
        done.store(true, Ordering::SeqCst);
        client.join().unwrap();
        sent.load(Ordering::SeqCst)
    });
    starlock.process().signal("TERM");
    assert!(starlock.process().wait().success());
    let mut all = Vec::new();
    for round in 0..rounds {
        all.extend(lines(&starlock.path(&format!("access.log.{round}"))));
    }
    assert!(all.len() > 50 * 4, "the old files hold what came before: {}", all.len());
    all.extend(lines(&starlock.path("access.log")));
    let paths: Vec<_> = all.iter().map(|line| line["path"].as_str().unwrap().to_owned()).collect();
    let expected: Vec<_> = (0..total).map(|number| format!("/{number}")).collect();
    assert_eq!(paths, expected, "each request once, in order");
}

#[test]
fn a_line_says_who_asked_what_and_what_became_of_it() {
    let app = crate::support::web::Upstream::start("app");
    let mut starlock = Starlock::start(&format!(
        "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = []\n[log]\naccess = {{ file = \"{{dir}}/access.log\" }}\n[routes]\n\
         \"app.localhost\" = \"{}\"\n\"app.localhost/text\" = {{ respond = 418, body = \"short\" }}\n",
        app.url()
    ));
    let (https, root) = (starlock.address("https"), local_root(&starlock));
    for (url, more) in [
        ("https://app.localhost/up?a=b", ["--http1.1", "--data", "12345"].as_slice()),
        ("https://app.localhost/text", &["--http2"]),
        ("https://app.localhost/\"status\":200,", &["--http1.1"]),
    ] {
        curl(https, &root, url, more).unwrap();
    }
    starlock.process().signal("TERM");
    assert!(starlock.process().wait().success());
    let mut logged = lines(&starlock.path("access.log"));
    // Each worker writes its own lines when they are over: between connections there is no order.
    logged
        .sort_by_key(|line| ["/up?a=b", "/text"].iter().position(|path| line["path"] == *path).unwrap_or(2));
    let [up, text, odd] = logged.as_slice() else { panic!("a line a request: {logged:?}") };
    let field = |line: &Value, name: &str| match &line[name] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    for (name, value) in [
        ("client", "127.0.0.1"),
        ("method", "POST"),
        ("host", "app.localhost"),
        ("path", "/up?a=b"),
        ("protocol", "HTTP/1.1"),
        ("status", "200"),
        ("received", "5"),
        ("route", "app.localhost"),
        ("server", app.url().as_str()),
    ] {
        assert_eq!(field(up, name), value, "{name} of {up}");
    }
    let times = |line: &Value| line["time"].as_str().is_some_and(|time| time.ends_with('Z'));
    assert!(logged.iter().all(times), "{logged:?}");
    assert!(up["sent"].as_u64().unwrap() > 10 && up["duration_ms"].as_f64().unwrap() > 0.0, "{up}");
    assert_eq!((field(text, "protocol"), field(text, "sent")), ("HTTP/2".into(), "5".into()), "{text}");
    assert_eq!((field(text, "status"), field(text, "route")), ("418".into(), "app.localhost/text".into()));
    assert_eq!(field(odd, "path"), "/\"status\":200,", "a client adds no field: {odd}");
    let ids: std::collections::BTreeSet<_> = logged.iter().map(|line| field(line, "id")).collect();
    assert_eq!(ids.len(), 3, "each request has its own id: {logged:?}");
}

#[test]
fn json_logs_are_an_object_a_line() {
    let dir = tempfile::tempdir().unwrap();
    write_config(dir.path(), &config("\"app.localhost\" = { respond = 204 }\n"));
    let mut run = binary(dir.path());
    run.args(["run", "--log-format", "json", "--log-level", "debug"]);
    let mut process = Process::start(&mut run, &dir.path().join("starlock.log"));
    eventually("it answers", || command(dir.path(), &["health"]).status.success().then_some(()));
    // A refusal has several lines of text; it is still one line of the log.
    write_config(dir.path(), "[listne]\n[routse]\n");
    assert!(!command(dir.path(), &["reload"]).status.success());
    process.signal("TERM");
    assert!(process.wait().success());
    let logged = lines(&dir.path().join("starlock.log"));
    assert!(logged.iter().all(Value::is_object));
    let message = |line: &&Value| line["message"].as_str().is_some_and(|text| text.contains("listne"));
    let refused = logged.iter().find(message).expect("the refusal is logged");
    assert_eq!(refused["level"], "ERROR");
    assert!(refused["message"].as_str().unwrap().contains("routse"), "{refused}");
    assert!(logged.iter().any(|line| line["message"] == "stopped"), "up to the last line");
}
