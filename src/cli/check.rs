//! `starlock check`: whether a configuration is good, and what it would serve.

use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;

use super::options::ConfigArgs;
use super::{CONFIG, colours, count, fail, print, tell, verdict};
use crate::acme::AcmeSpec;
use crate::challenge::ChallengeKind;
use crate::config::{AcmePlan, CertificatePlan, Expect, IssuerPlan, Loaded, Plan};
use crate::dns::ProviderKind;
use crate::doctor::records::{self, KnownAccounts};
use crate::name::HostPattern;
use crate::proxy::{ActionSpec, ForwardSpec, RouteHost, RouteSpec, Router, StickSpec};

/// Where a URL comes from that could not be read in the state directory.
const UNKNOWN_ACCOUNT: &str = "no account can be read in the state directory. The first order registers it; then `starlock accounts list` \
     shows its URL, and so does this command, as the user that Starlock runs as";

/// `offline`: secrets, roots and state are not read.
pub(super) fn run(config: &ConfigArgs, offline: bool) -> ExitCode {
    let (path, loaded) = match config.load() {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    if !offline {
        let unreadable = loaded.references.unreadable();
        if !unreadable.is_empty() {
            let errors = count(unreadable.len(), "problem");
            let report = unreadable.render(colours());
            return fail(CONFIG, &format!("{report}\n\nerror: {errors} in {}", path.display()));
        }
    }
    if !loaded.warnings.is_empty() {
        tell(&format!("{}\n\n", loaded.warnings.render(colours())));
    }
    let (expectations, failed) = expectations(&loaded.plan, &loaded.expects);
    let accounts = if offline { KnownAccounts::default() } else { KnownAccounts::read(&loaded.plan) };
    let code = print(&format!("{}{expectations}", report(&path, &loaded, &accounts)));
    if failed > 0 {
        return fail(CONFIG, &format!("{} of {} failed", failed, count(loaded.expects.len(), "expectation")));
    }
    code
}

fn report(path: &Path, loaded: &Loaded, accounts: &KnownAccounts) -> String {
    let plan = &loaded.plan;
    let mut out = String::new();
    let summary = [
        count(plan.proxy.routes.len(), "route"),
        count(plan.upstreams.len(), "upstream"),
        count(plan.certificates.len(), "certificate"),
    ];
    let _ = writeln!(out, "{} is good: {}", path.display(), summary.join(", "));
    listeners(&mut out, plan);
    let _ = writeln!(out, "\nRoutes");
    let rows: Vec<[String; 2]> =
        plan.proxy.routes.iter().map(|route| [route.key.to_string(), row(plan, route)]).collect();
    table(&mut out, &rows);
    if !plan.certificates.is_empty() {
        let _ = writeln!(out, "\nCertificates");
        for certificate in &plan.certificates {
            let _ = writeln!(out, "  {}", names(certificate));
            let _ = writeln!(out, "    {}", issuer(&certificate.issuer));
            let _ = writeln!(out, "    for {}", reason(plan, certificate));
        }
    }
    dns_records(&mut out, plan, accounts);
    account_records(&mut out, plan, accounts);
    out
}

/// What depends on the account: the records of dns-persist-01, and the names of dns-account-01.
fn account_records(out: &mut String, plan: &Plan, accounts: &KnownAccounts) {
    let lasting = records::persistent(plan, accounts);
    if !lasting.is_empty() {
        let _ = writeln!(out, "\nRecords to add at your DNS, once, for dns-persist-01");
        for line in &lasting {
            let _ = writeln!(out, "  {line}");
        }
        if lasting.iter().any(|line| line.contains("accounturi=ACCOUNT")) {
            let _ = writeln!(out, "  ; ACCOUNT: {UNKNOWN_ACCOUNT}");
        }
        let _ = writeln!(
            out,
            "  ; starlock doctor asks each CA what it calls itself and how it wants the account written, and shows the record that is missing"
        );
    }
    let labelled = records::labelled(plan, accounts);
    if !labelled.is_empty() {
        let _ = writeln!(out, "\nNames at which TXT records are written, for dns-account-01");
        for line in &labelled {
            let _ = writeln!(out, "  {line}");
        }
        if labelled.iter().any(|line| line.starts_with("_LABEL")) {
            let _ = writeln!(out, "  ; _LABEL is made from the account's URL: {UNKNOWN_ACCOUNT}");
        }
    }
}

fn listeners(out: &mut String, plan: &Plan) {
    let mut rows = Vec::new();
    for address in &plan.listen.https {
        rows.push(["https".to_owned(), address.to_string()]);
    }
    for address in &plan.listen.http {
        let what =
            if plan.listen.https.is_empty() { "serves the routes in clear" } else { "redirects to https" };
        rows.push(["http".to_owned(), format!("{address}  {what}")]);
    }
    if let Some(responder) = &plan.responder {
        rows.extend(
            responder.listen.iter().map(|address| ["dns".to_owned(), format!("{address}  udp and tcp")]),
        );
    }
    rows.extend(plan.telemetry.metrics.map(|address| ["metrics".to_owned(), address.to_string()]));
    rows.extend(plan.ready.map(|address| {
        let lame_duck = super::explain::human(plan.lame_duck);
        [
            "ready".to_owned(),
            format!("{address}  503 as soon as a shutdown begins, {lame_duck} before the listeners close"),
        ]
    }));
    rows.push(["admin".to_owned(), plan.admin.display().to_string()]);
    rows.push(["state".to_owned(), plan.storage.path.display().to_string()]);
    let _ = writeln!(out, "\nPlaces");
    table(out, &rows);
}

fn table(out: &mut String, rows: &[[String; 2]]) {
    let width = rows.iter().map(|[first, _]| first.chars().count()).max().unwrap_or(0).min(48);
    for [first, second] in rows {
        let _ = writeln!(out, "  {first:<width$}  {second}");
    }
}

fn row(plan: &Plan, route: &RouteSpec) -> String {
    match route.when.is_always() {
        true => action(plan, route),
        false => format!("if {}: {}", route.when, action(plan, route)),
    }
}

/// What a route does, in a line.
pub(super) fn action(plan: &Plan, route: &RouteSpec) -> String {
    match &route.action {
        ActionSpec::Passthrough { upstream } => {
            let servers = plan.upstreams.iter().find(|u| u.name == *upstream).map(|u| &u.servers);
            let urls: Vec<String> = servers.into_iter().flatten().map(ToString::to_string).collect();
            match urls.as_slice() {
                [url] if *url == **upstream => format!("TLS passed through to {url}"),
                urls => format!("TLS passed through to {upstream} ({})", urls.join(", ")),
            }
        }
        ActionSpec::Forward(to) => forward(plan, route, to),
        ActionSpec::Redirect(to) => {
            let rest = to.path.as_deref().unwrap_or(" + path and query");
            let of = to.pattern.as_ref().map(|pattern| format!(", from {pattern}")).unwrap_or_default();
            format!("redirect {} to {}{rest}{of}", to.status, to.origin)
        }
        ActionSpec::Respond { status, body: None, .. } => format!("answer {status}"),
        ActionSpec::Respond { status, body: Some(body), content_type } => {
            let kind = content_type.as_ref().map(|kind| format!(" of {kind}")).unwrap_or_default();
            format!("answer {status} with {}{kind}", count(body.len(), "byte"))
        }
    }
}

fn forward(plan: &Plan, route: &RouteSpec, to: &ForwardSpec) -> String {
    let upstream = |name: &str| {
        let servers = plan.upstreams.iter().find(|u| *u.name == *name).map(|u| &u.servers);
        let urls: Vec<String> = servers.into_iter().flatten().map(ToString::to_string).collect();
        match urls.as_slice() {
            [url] if *url == *name => url.clone(),
            urls => format!("{name} ({})", urls.join(", ")),
        }
    };
    let mut text = match to.to.as_slice() {
        [one] => format!("-> {}", upstream(&one.upstream)),
        several => {
            let shares =
                several.iter().map(|share| format!("{} {}", share.weight, upstream(&share.upstream)));
            format!("-> by weight {}", shares.collect::<Vec<_>>().join(", "))
        }
    };
    match &to.stick {
        Some(StickSpec::Client) => text.push_str(", one for each client address"),
        Some(StickSpec::Cookie(name)) => text.push_str(&format!(", one for each value of the cookie {name}")),
        None => {}
    }
    if to.strip_prefix {
        text.push_str(&format!(", without {}", route.path));
    }
    if let Some(rewrite) = &to.rewrite {
        text.push_str(&format!(", {} becomes {}", rewrite.pattern, rewrite.to));
    }
    if let Some(mirror) = &to.mirror {
        text.push_str(&format!(", copies of {} % to {}", mirror.percent, upstream(&mirror.upstream)));
    }
    text
}

pub(super) fn names(certificate: &CertificatePlan) -> String {
    certificate.names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Where it comes from: who signs, and how names are proven.
pub(super) fn issuer(issuer: &IssuerPlan) -> String {
    if let IssuerPlan::Files(from) = issuer {
        return format!("from {}, which someone else renews", from.files.cert.display());
    }
    let IssuerPlan::Acme(AcmePlan { acme, fallback, dns, challenge }) = issuer else {
        return "signed by the local CA: only clients that trust its root accept it".to_owned();
    };
    let mut ca = format!("signed by {}", authority(acme));
    for other in fallback {
        let _ = write!(ca, ", else by {}", authority(other));
    }
    if acme.rehearse {
        ca.push_str(", rehearsed at its staging");
    }
    let by = |kind: &ChallengeKind| match kind {
        ChallengeKind::Dns01 => "DNS-01".to_owned(),
        ChallengeKind::Http01 => "http-01 (the CA comes to port 80 of each name)".to_owned(),
        ChallengeKind::TlsAlpn01 => "tls-alpn-01 (the CA comes to port 443 of each name)".to_owned(),
        ChallengeKind::DnsAccount01 => "dns-account-01".to_owned(),
        ChallengeKind::DnsPersist01 => {
            "dns-persist-01: a record that you add once, nothing is written".to_owned()
        }
    };
    let ways = challenge.iter().map(by).collect::<Vec<_>>().join(", else ");
    let Some(dns) = dns.as_ref().filter(|_| challenge.iter().any(|kind| kind.writes_records())) else {
        return format!("{ca}, by {ways}");
    };
    let answerer = match &dns.kind {
        ProviderKind::Builtin => "the built-in responder answers".to_owned(),
        ProviderKind::Rfc2136 { server, .. } => format!("DNS UPDATE to {server}"),
        ProviderKind::Exec { program } => format!("the program {}", program.display()),
        ProviderKind::Httpreq { endpoint, .. } => format!("httpreq at {endpoint}"),
        ProviderKind::AcmeDns { endpoint, .. } => format!("acme-dns at {endpoint}"),
        ProviderKind::Vendor { name, .. } => (*name).to_owned(),
    };
    format!("{ca}, by {ways}: {answerer}")
}

/// A CA as a person knows it, with what was asked of it.
fn authority(acme: &AcmeSpec) -> String {
    let mut text = match acme.known() {
        Some(known) if known.word == "letsencrypt-staging" => format!("{} (nobody trusts it)", known.title),
        Some(known) => known.title.to_owned(),
        None => acme.directory.clone(),
    };
    if let Some(profile) = &acme.profile {
        let _ = write!(text, " (profile {profile})");
    }
    text
}

/// Why a certificate is held.
fn reason(plan: &Plan, certificate: &CertificatePlan) -> String {
    let covered = |route: &&RouteSpec| match &route.host {
        RouteHost::Pattern(host) => certificate.names.iter().any(|name| name.covers(host)),
        RouteHost::Any => false,
    };
    let mut hosts: Vec<String> = Vec::new();
    for route in plan.proxy.routes.iter().filter(covered) {
        if let RouteHost::Pattern(host) = &route.host {
            let host: String = HostPattern::to_string(host);
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
    }
    match hosts.as_slice() {
        [] => "no route; it is listed in [[certificates]]".to_owned(),
        [one] => format!("route {one}"),
        many if many.len() > 6 => format!("routes {} and {} more", many[..5].join(", "), many.len() - 5),
        many => format!("routes {}", many.join(", ")),
    }
}

fn dns_records(out: &mut String, plan: &Plan, accounts: &KnownAccounts) {
    let records = records::to_add(plan);
    if records.is_empty() {
        return;
    }
    let _ = writeln!(out, "\nRecords to add at your DNS, once");
    for line in records {
        let _ = writeln!(out, "{}", format!("  {line}").trim_end());
    }
    let caa = records::caa(plan, accounts);
    if !caa.is_empty() {
        let _ = writeln!(
            out,
            "\nWhoever holds the responder's address can issue for these names. To keep others out, add as well"
        );
        for line in &caa {
            let _ = writeln!(out, "  {line}");
        }
        if caa.iter().any(|line| line.contains("accounturi=ACCOUNT")) {
            let _ = writeln!(out, "  ; ACCOUNT: {UNKNOWN_ACCOUNT}");
        }
    }
}

/// The outcome of every `[[expect]]`, and how many failed.
fn expectations(plan: &Plan, expects: &[Expect]) -> (String, usize) {
    if expects.is_empty() {
        return (String::new(), 0);
    }
    let router = Router::new(&plan.proxy.routes);
    let mut out = "\nExpectations\n".to_owned();
    let mut failed = 0;
    for expect in expects {
        let judged = verdict::judge(plan, &router, &expect.request);
        let request = &expect.request;
        let scheme = if request.tls { "https" } else { "http" };
        let port = request.port.map(|port| format!(":{port}")).unwrap_or_default();
        let url = format!(
            "{} {scheme}://{}{port}{}",
            request.method,
            verdict::in_url(&request.host),
            request.target
        );
        match judged.outcome.check(&expect.want) {
            Ok(()) => {
                let _ = writeln!(out, "  ok    line {}: {url} {}", expect.line, judged.outcome);
            }
            Err(instead) => {
                failed += 1;
                let route = judged.route.map(|route| format!(" (route {})", route.key)).unwrap_or_default();
                let _ = writeln!(out, "  FAIL  line {}: {url} {instead}{route}", expect.line);
            }
        }
    }
    (out, failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, parse};

    const FILE: &str = r#"
dns = "builtin"

[responder]
listen = ["127.0.0.1:5353"]
nameservers = [{ name = "ns.example.net", addresses = ["203.0.113.7"] }]

[[certificates]]
names = ["example.com", "*.example.com"]

[routes]
"app.example.com" = "app"
"app.example.com/api" = { to = "http://10.0.0.9:1", strip_prefix = true }
"example.com" = { redirect = "https://app.example.com" }
"db.internal" = { respond = 200, body = "x" }

[upstreams.app]
servers = ["http://10.0.0.1:3000", "http://10.0.0.2:3000"]

[[expect]]
request = "GET https://app.example.com/api/x"
to = "http://10.0.0.9:1"

[[expect]]
request = "GET https://app.example.com/x"
status = 404
"#;

    #[test]
    fn the_report_says_what_would_be_served() {
        let env = Environment { state_dir: "/state".into(), runtime_dir: "/runtime".into() };
        let loaded = parse(FILE, "starlock.toml", &env).unwrap_or_else(|p| panic!("{p}"));
        let text = report(Path::new("starlock.toml"), &loaded, &KnownAccounts::default());
        for line in [
            "starlock.toml is good: 4 routes, 2 upstreams, 2 certificates",
            "  https  [::]:443",
            "  http   [::]:80  redirects to https",
            "  app.example.com      -> app (http://10.0.0.1:3000, http://10.0.0.2:3000)",
            "  app.example.com/api  -> http://10.0.0.9:1, without /api",
            "  example.com          redirect 308 to https://app.example.com + path and query",
            "  db.internal          answer 200 with 1 byte",
            "    signed by Let's Encrypt, by DNS-01: the built-in responder answers",
            "    for routes app.example.com, example.com",
            "    signed by the local CA: only clients that trust its root accept it",
            "  _acme-challenge.example.com.  NS  ns.example.net.",
        ] {
            assert!(text.lines().any(|l| l == line), "{line:?} is not in\n{text}");
        }
        let (text, failed) = expectations(&loaded.plan, &loaded.expects);
        assert_eq!(failed, 1);
        assert!(
            text.contains("ok    line 21: GET https://app.example.com/api/x goes to http://10.0.0.9:1 as /x"),
            "{text}"
        );
        assert!(
            text.contains(
                "FAIL  line 25: GET https://app.example.com/x goes to app as /x (route app.example.com)"
            ),
            "{text}"
        );
    }

    #[test]
    fn the_report_says_how_names_are_proven() {
        let env = Environment { state_dir: "/state".into(), runtime_dir: "/runtime".into() };
        for (top, line) in [
            (
                "",
                "    signed by Let's Encrypt, by tls-alpn-01 (the CA comes to port 443 of each name), else http-01 (the CA comes to port \
                 80 of each name)",
            ),
            (
                "acme.challenge = \"http-01\"",
                "    signed by Let's Encrypt, by http-01 (the CA comes to port 80 of each name)",
            ),
            (
                "acme.challenge = \"dns-persist-01\"",
                "  _validation-persist.example.com.  TXT  \"letsencrypt.org; accounturi=ACCOUNT\"",
            ),
        ] {
            let text = format!("{top}\nroutes.\"example.com\" = {{ respond = 200 }}");
            let loaded = parse(&text, "starlock.toml", &env).unwrap_or_else(|p| panic!("{p}"));
            let text = report(Path::new("starlock.toml"), &loaded, &KnownAccounts::default());
            assert!(text.lines().any(|l| l == line), "{line:?} is not in\n{text}");
        }
    }
}
