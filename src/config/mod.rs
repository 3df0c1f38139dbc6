//! From a file to a plan: everything wrong with a configuration is found here, at once, with its place.
//!
//! Text becomes a spanned tree (`syntax`), the tree is walked along static tables of keys (`sections`, `table`, `decode`), and
//! what was read becomes a plan (`resolve` and the files for each idea). Every step records problems and goes on.

mod accounts;
mod admission;
mod answers;
mod balancing;
mod blame;
mod certificate_files;
mod certificates;
mod challenge;
mod conditions;
mod decode;
mod environment;
mod error;
mod expect;
mod forwarding;
mod issuer;
mod mask;
mod mtls;
mod passed;
mod passing;
mod plan;
mod policies;
mod references;
mod replies;
mod resolve;
mod responder;
mod routes;
mod scalar;
mod schema;
mod secrets;
mod sections;
mod syntax;
mod table;
mod text;
mod upstreams;
mod value;

use std::path::{Path, PathBuf};

pub use environment::Environment;
pub use error::{LoadError, Problem, Problems, Severity};
pub use expect::{Expect, ExpectRequest, Want};
pub use plan::{AcmePlan, CertificatePlan, FilesPlan, IssuerPlan, Plan};
pub use references::{Fault, ReferenceKind, References};
pub use schema::{json_schema, reference};

/// What a good file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// What to do.
    pub plan: Plan,
    /// What a person should know; may be empty.
    pub warnings: Problems,
    /// Tests of the routes.
    pub expects: Vec<Expect>,
    /// Secrets and roots that lie elsewhere; nothing of them has been read.
    pub references: References,
}

/// A configuration is no larger than this.
const MAX_BYTES: u64 = 8 << 20;

/// Reads the file at `path`, with the default places of this process. Blocking; secrets are not read.
pub fn load(path: &Path) -> Result<Loaded, LoadError> {
    let unreadable = |reason: String| LoadError::Unreadable { path: path.to_owned(), reason };
    let size = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?.len();
    if size > MAX_BYTES {
        return Err(unreadable(format!("{size} bytes is over the limit of {MAX_BYTES}")));
    }
    let bytes = std::fs::read(path).map_err(|error| unreadable(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let line =
            1 + error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count();
        unreadable(format!("line {line} is not UTF-8"))
    })?;
    parse(&text, &path.display().to_string(), &Environment::of_process()).map_err(LoadError::Problems)
}

/// Reads a configuration. Pure: nothing but `text`, its name for messages, and default places.
pub fn parse(text: &str, file_name: &str, env: &Environment) -> Result<Loaded, Problems> {
    let (root, errors) = syntax::tree(text);
    let mut decoder = decode::Decoder::new(text);
    let file = decoder.section(root.get_ref(), 0..0, &sections::FILE, sections::FILE.name);
    let shown = mask::masked(text, &decoder.secrets);
    let syntax::Explained { mut problems, usable } = syntax::explain(&shown, &errors, root.get_ref());
    if !usable {
        return Err(Problems::new(file_name, &shown, problems));
    }
    let (plan, expects) = resolve::resolve(&mut decoder, &file, env);
    let line =
        |problem: &Problem| text.get(..problem.span().start).map(|before| before.matches('\n').count());
    let broken: Vec<_> = problems.iter().map(line).collect();
    problems.extend(decoder.problems.into_iter().filter(|problem| !broken.contains(&line(problem))));
    if problems.iter().any(|problem| problem.severity() == Severity::Error) {
        problems.retain(|problem| problem.severity() == Severity::Error);
        return Err(Problems::new(file_name, &shown, problems));
    }
    let references = References::new(file_name, &shown, decoder.references);
    Ok(Loaded { plan, warnings: Problems::new(file_name, &shown, problems), expects, references })
}

/// The admin socket that a configuration names, or the default one. Asks for no more than that: a file with problems in it must
/// not keep its author from talking to the process that still runs on the former one.
pub fn admin_socket(text: &str, env: &Environment) -> PathBuf {
    let (root, _) = syntax::tree(text);
    let listen = root.get_ref().get("listen").and_then(|listen| listen.get_ref().as_table());
    let named = listen.and_then(|listen| listen.get("admin")).and_then(|admin| admin.get_ref().as_str());
    named.filter(|path| !path.is_empty()).map_or_else(|| env.admin_socket(), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::ProviderKind;
    use crate::proxy::{ActionSpec, RouteHost};

    fn env() -> Environment {
        Environment { state_dir: "/state".into(), runtime_dir: "/runtime".into() }
    }

    fn load(text: &str) -> Loaded {
        parse(text, "starlock.toml", &env()).unwrap_or_else(|problems| panic!("{problems}"))
    }

    fn names(plan: &Plan) -> Vec<String> {
        let join =
            |c: &CertificatePlan| c.names.iter().map(ToString::to_string).collect::<Vec<_>>().join("+");
        plan.certificates.iter().map(join).collect()
    }

    #[test]
    fn one_route_is_enough() {
        let public = load("routes.\"app.example.com\" = \"http://127.0.0.1:3000\"");
        assert!(public.warnings.is_empty() && public.plan.certificates.len() == 1, "{}", public.warnings);
        let loaded = load("routes.\"app.localhost\" = \"http://127.0.0.1:3000\"");
        let plan = &loaded.plan;
        assert_eq!(plan.listen.https, ["[::]:443".parse().unwrap()]);
        assert_eq!(plan.listen.http, ["[::]:80".parse().unwrap()]);
        assert_eq!(plan.admin, Path::new("/runtime/admin.sock"));
        assert_eq!(plan.storage.path, Path::new("/state"));
        assert_eq!(plan.upstreams.len(), 1);
        assert_eq!(&*plan.upstreams[0].name, "http://127.0.0.1:3000");
        assert_eq!(plan.certificates[0].issuer, IssuerPlan::Local);
        assert_eq!(loaded.warnings.len(), 1, "the local CA is told about: {}", loaded.warnings);
        assert!(
            load("acme.ca = \"local\"\nroutes.\"a.localhost\" = \"http://127.0.0.1\"").warnings.is_empty()
        );
    }

    #[test]
    fn certificates_are_derived_from_what_nothing_covers() {
        let plan = load(
            r#"
            dns = { provider = "exec", program = "/hook" }
            [[certificates]]
            names = ["*.example.com", "example.com"]
            [routes]
            "app.example.com" = { respond = 200 }
            "app.example.com/api" = { respond = 200 }
            "a.b.example.com" = { respond = 200 }
            "*.example.net" = { respond = 200 }
            "www.example.net" = { respond = 200 }
            "example.net" = { respond = 200 }
            "x.localhost" = { respond = 200 }
            "192.0.2.1" = { respond = 200 }
            "*" = { respond = 404 }
            "#,
        )
        .plan;
        let expected = [
            "a.b.example.com",
            "example.com+*.example.com",
            "example.net",
            "x.localhost",
            "*.example.net",
            "192.0.2.1",
        ];
        assert_eq!(names(&plan), expected);
        let local = plan.certificates.iter().filter(|c| c.issuer == IssuerPlan::Local).count();
        assert_eq!(local, 2);
        assert!(plan.proxy.routes.iter().any(|route| route.host == RouteHost::Any));
    }

    #[test]
    fn how_names_are_proven() {
        let of = |top: &str, rest: &str| {
            let file = format!("{top}\nroutes.\"app.example.com\" = {{ respond = 200 }}\n{rest}");
            let plan = load(&file).plan;
            let certificate = plan.certificates.iter().find(|c| c.names[0].to_string() == "app.example.com");
            let Some(IssuerPlan::Acme(acme)) = certificate.map(|c| &c.issuer) else { panic!("{file}") };
            acme.challenge.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(" ")
        };
        let dns = "dns = { provider = \"exec\", program = \"/hook\" }";
        for (top, ways) in [
            ("", "tls-alpn-01 http-01"),
            ("listen.http = []", "tls-alpn-01"),
            ("listen.https = [\"[::]:8443\"]", "http-01 tls-alpn-01"),
            ("listen.https = [\"[::]:8443\"]\nlisten.http = [\"[::]:8080\"]", "tls-alpn-01 http-01"),
            ("acme.challenge = \"http-01\"", "http-01"),
            ("acme.challenge = \"dns-persist-01\"", "dns-persist-01"),
            (dns, "dns-01"),
            (&format!("acme.challenge = \"tls-alpn-01\"\n{dns}"), "tls-alpn-01"),
            (&format!("acme.challenge = \"dns-account-01\"\n{dns}"), "dns-account-01"),
        ] {
            assert_eq!(of(top, ""), ways, "{top}");
        }
        let listed = |more: &str| format!("[[certificates]]\nnames = [\"app.example.com\"]\n{more}");
        assert_eq!(of(dns, &listed("acme = { challenge = \"http-01\" }")), "http-01");
        assert_eq!(
            of("acme.challenge = \"http-01\"", &listed("acme = \"letsencrypt\"")),
            "tls-alpn-01 http-01"
        );
        assert_eq!(of("acme.challenge = \"http-01\"", &listed("")), "http-01");
    }

    #[test]
    fn nothing_is_derived_in_clear() {
        let plan = load("listen.https = []\nroutes.\"app.example.com\" = { respond = 200 }").plan;
        assert!(plan.certificates.is_empty());
        assert_eq!(plan.listen.http.len(), 1);
    }

    #[test]
    fn own_acme_and_dns_replace_the_defaults_and_the_responder_knows_its_names() {
        let plan = load(
            r#"
            dns = "builtin"
            acme = { email = "ops@example.org", key = "p384" }
            responder = { listen = ["127.0.0.1:0"], nameservers = [{ name = "ns.example.net" }] }
            [[certificates]]
            names = ["example.org"]
            dns = { provider = "rfc2136", server = "192.0.2.53", key_name = "k.", secret = { env = "K" } }
            acme = { ca = "https://ca.internal/dir" }
            [routes]
            "*.example.com" = { respond = 200 }
            "example.com" = { respond = 200 }
            "example.org" = { respond = 200 }
            "#,
        )
        .plan;
        let challenge: Vec<_> =
            plan.responder.unwrap().challenge_names.iter().map(ToString::to_string).collect();
        assert_eq!(challenge, ["_acme-challenge.example.com"]);
        let own = plan.certificates.iter().find(|c| c.names[0].to_string() == "example.org").unwrap();
        let IssuerPlan::Acme(AcmePlan { acme, dns: Some(dns), .. }) = &own.issuer else { panic!("{own:?}") };
        assert_eq!((acme.directory.as_str(), acme.email.as_deref()), ("https://ca.internal/dir", None));
        assert_eq!(acme.key, crate::issuer::KeyKind::P256, "nothing is inherited");
        assert!(matches!(&dns.kind, ProviderKind::Rfc2136 { server, .. } if server.port() == 53));
        let default = plan.certificates.iter().find(|c| c.names[0].to_string() == "example.com").unwrap();
        assert!(matches!(&default.issuer, IssuerPlan::Acme(plan) if plan.acme.email.is_some()));
    }

    #[test]
    fn time_outs_of_an_upstream_replace_the_general_ones_one_by_one() {
        let plan = load(
            r#"
            acme = "local"
            timeouts = { connect = "7s", response = "8s" }
            upstreams.a = { servers = ["http://10.0.0.1"], timeouts = { connect = "1s" } }
            routes."a.localhost" = { to = "a", strip_prefix = false }
            routes."b.localhost/x" = { to = "http://10.0.0.2", strip_prefix = true }
            "#,
        )
        .plan;
        let seconds: Vec<_> = plan
            .upstreams
            .iter()
            .map(|u| (u.timeouts.connect.as_secs(), u.timeouts.response.as_secs()))
            .collect();
        assert_eq!(seconds, [(1, 8), (7, 8)]);
        let strip = plan.proxy.routes.iter().find(|r| &*r.path == "/x").map(|r| &r.action);
        assert!(matches!(strip, Some(ActionSpec::Forward(spec)) if spec.strip_prefix));
    }

    #[test]
    fn equal_texts_make_equal_plans_whatever_their_order() {
        let one = load("acme = \"local\"\nlisten.http = []\nroutes.\"a.localhost\" = { respond = 200 }");
        let two = load("routes.\"a.localhost\".respond = 200\n[listen]\nhttp = []\n[acme]\nca = \"local\"");
        assert_eq!(one.plan, two.plan);
    }

    /// A good value of a vendor's key.
    fn vendor_value(key: &crate::dns::VendorKey) -> String {
        use crate::dns::VendorKind;
        match (key.secret, key.kind) {
            (true, _) => "{ env = \"X\" }".to_owned(),
            (_, VendorKind::Text) => "\"x\"".to_owned(),
            (_, VendorKind::Number) => "4".to_owned(),
            (_, VendorKind::Bool) => "true".to_owned(),
            (_, VendorKind::Choice(words)) => format!("{:?}", words[0]),
        }
    }

    #[test]
    fn every_vendor_can_be_configured_and_misses_what_it_needs() {
        for vendor in crate::dns::vendors() {
            let text = |skip: &str| {
                let excluded = |name| vendor.excludes.iter().any(|(_, other)| *other == name);
                let keys = vendor.keys.iter().filter(|key| key.name != skip && !excluded(key.name));
                let lines: String =
                    keys.map(|key| format!("{} = {}\n", key.name, vendor_value(key))).collect();
                format!(
                    "[dns]\nprovider = \"{}\"\n{lines}[routes]\n\"a.example.com\" = {{ respond = 200 }}",
                    vendor.name
                )
            };
            let loaded = load(&text(""));
            let IssuerPlan::Acme(AcmePlan { dns: Some(dns), .. }) = &loaded.plan.certificates[0].issuer
            else {
                panic!("{}", vendor.name)
            };
            let ProviderKind::Vendor { name, keys } = &dns.kind else { panic!("{}", vendor.name) };
            assert_eq!((*name, keys.len() + vendor.excludes.len()), (vendor.name, vendor.keys.len()));
            for key in vendor.keys.iter().filter(|key| key.required) {
                let problems = parse(&text(key.name), "starlock.toml", &env()).unwrap_err().to_string();
                assert!(
                    problems.contains(&format!("provider `{}` needs `{}`", vendor.name, key.name)),
                    "{problems}"
                );
            }
            for key in vendor.keys {
                let common = sections::DNS.keys.iter().any(|common| common.name == key.name);
                assert!(!common, "{}: `{}` is a key of every provider", vendor.name, key.name);
            }
        }
    }

    #[test]
    fn the_socket_is_found_in_a_broken_file_too() {
        let of = |text: &str| admin_socket(text, &env()).display().to_string();
        assert_eq!(of("[listen]\nadmin = \"/x.sock\"\nbogus = 1\n[routes\n"), "/x.sock");
        assert_eq!(of("listen = 5"), "/runtime/admin.sock");
    }

    #[test]
    fn a_file_that_cannot_be_read_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("starlock.toml");
        assert!(super::load(&path).unwrap_err().to_string().contains("cannot read"));
        std::fs::write(&path, b"# one\n\xff\n").unwrap();
        assert!(super::load(&path).unwrap_err().to_string().contains("line 2 is not UTF-8"));
    }
}
