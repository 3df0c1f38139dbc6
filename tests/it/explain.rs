//! `starlock explain` beside a running process.

use crate::support::free_port;
use crate::support::starlock::Starlock;
use crate::support::web::Upstream;

#[test]
fn servers_are_shown_as_the_running_process_finds_them() {
    let one = Upstream::start("one");
    let config = |servers: &str| {
        format!(
            "[listen]\nhttps = []\nhttp = [\"127.0.0.1:0\"]\n[routes]\n\"a.test\" = \"app\"\n[upstreams.app]\nservers = [{servers}]\n"
        )
    };
    let gone = free_port();
    let both = format!(
        "{{ url = \"{}\", weight = 3, max_requests = 7 }}, {{ url = \"http://127.0.0.1:{gone}\", backup = true }}",
        one.url()
    );
    let mut starlock = Starlock::start(&config(&both));
    let address = one.address.to_string();
    assert!(starlock.command(&["upstreams", "drain", "app", &address]).status.success());
    let explain = |starlock: &Starlock| {
        let output = starlock.command(&["explain", "http://a.test/x", "--from", "192.0.2.1"]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let text = explain(&starlock);
    let line = |url: &str| {
        let line = text.lines().find(|line| line.trim_start().starts_with(url));
        line.unwrap_or_else(|| panic!("{url} is not in {text}")).to_owned()
    };
    let drained = line(&one.url());
    assert!(drained.contains("drained") && drained.ends_with(", weight 3, at most 7 requests"), "{drained}");
    let up = line(&format!("http://127.0.0.1:{gone}"));
    assert!(up.contains("  up ") && up.ends_with(", backup"), "{up}");
    assert!(text.contains("chosen by p2c") && text.contains("\nLimits\n"), "{text}");

    starlock.process().kill();
    let text = explain(&starlock);
    assert!(
        text.contains("condition unknown, weight 3") && text.contains("(no starlock is running: "),
        "{text}"
    );
}
