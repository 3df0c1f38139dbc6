//! `config.example.toml`: good as it is, and every section of its tour is good too.

use starlock::config::{Environment, parse};

const EXAMPLE: &str = include_str!("../../config.example.toml");

fn environment() -> Environment {
    Environment { state_dir: "/var/lib/starlock".into(), runtime_dir: "/run/starlock".into() }
}

/// The commented sections: paragraphs of the tour, without their prose.
fn sections() -> Vec<String> {
    let mut sections: Vec<String> = Vec::new();
    let tour = EXAMPLE.split("# -----").last().unwrap();
    for paragraph in tour.split("\n\n") {
        let lines = paragraph.lines().filter_map(|line| line.strip_prefix("# ").or(line.strip_prefix('#')));
        let section: Vec<&str> = lines.skip_while(|line| !line.starts_with('[')).collect();
        if !section.is_empty() {
            sections.push(section.join("\n"));
        }
    }
    sections
}

/// What a section needs around itself to be whole.
fn around(section: &str) -> String {
    let mut text = String::new();
    if !section.contains("[routes]") {
        text.push_str("routes.\"app.example.com\" = { respond = 200 }\n");
    }
    if !section.contains("[dns]") {
        text.push_str("dns = { provider = \"exec\", program = \"/bin/hook\" }\n");
    }
    format!("{text}{section}")
}

#[test]
fn the_example_is_good_as_it_is() {
    let loaded = parse(EXAMPLE, "config.example.toml", &environment()).unwrap_or_else(|p| panic!("{p}"));
    assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
    assert_eq!(loaded.expects.len(), 2);
    let ports: Vec<u16> = loaded
        .plan
        .listen
        .https
        .iter()
        .chain(&loaded.plan.listen.http)
        .map(|address| address.port())
        .collect();
    assert!(ports.iter().all(|port| *port > 1023), "needs no root");
}

#[test]
fn every_section_of_the_tour_is_good() {
    let sections = sections();
    assert!(sections.len() >= 12, "only {} sections were found", sections.len());
    for section in &sections {
        let text = around(section);
        let loaded =
            parse(&text, "config.example.toml", &environment()).unwrap_or_else(|p| panic!("{text}\n{p}"));
        assert!(loaded.warnings.is_empty(), "{text}\n{}", loaded.warnings);
    }
}

#[test]
fn the_tour_holds_together() {
    let mut text = String::new();
    let mut dns = false;
    for section in sections() {
        // Three ways to answer DNS-01: the first one here.
        if !section.starts_with("[dns]") || !std::mem::replace(&mut dns, true) {
            text.push_str(&section);
            text.push_str("\n\n");
        }
    }
    let loaded = parse(&text, "config.example.toml", &environment()).unwrap_or_else(|p| panic!("{p}"));
    assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
    assert_eq!(loaded.plan.proxy.routes.len(), 16);
    assert_eq!(loaded.plan.certificates.len(), 3, "the wildcard covers all routes");
}
