//! `starlock simulate`: the configuration's certificates over months of model CAs, in seconds.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Args;

use super::options::ConfigArgs;
use super::simulate_from::{self, Origin};
use super::{FAILURE, count, fail, json, print};
use crate::acme::{AcmeIssuer, AcmeSpec};
use crate::clock::{self, Clock, SystemClock};
use crate::config::{IssuerPlan, Plan};
use crate::issuer::CaLimits;
use crate::simulate::{
    Beginning, CaModel, Outcome, Scenario, SimulatedCert, calendar, lets_encrypt, public_ca, run,
};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// The longest outage that is thrown in.
const LONGEST_OUTAGE: Duration = Duration::from_secs(5 * 24 * 3600);
/// Questions and renewals of so many certificates over so many days take a minute or two.
const MOST_CERTIFICATE_DAYS: u64 = 20_000_000;

#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigArgs,
    /// How many days, from now on.
    #[arg(long, value_name = "DAYS", default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=4000))]
    days: u32,
    /// The same seed is the same run.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// The share of the time in which the preferred CA is down, in outages of up to five days.
    #[arg(long, value_name = "PERCENT", default_value_t = 1.0)]
    down: f64,
    /// How often Starlock is killed and started again.
    #[arg(long, value_name = "TIMES", default_value_t = 12, value_parser = clap::value_parser!(u16).range(0..=10_000))]
    restarts: u16,
    /// As if nothing were held yet, whatever the state directory holds.
    #[arg(long)]
    empty: bool,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run_verb(arguments: &Arguments) -> ExitCode {
    if !(0.0..=50.0).contains(&arguments.down) {
        return fail(super::USAGE, "--down is a percentage from 0 to 50");
    }
    let (path, loaded) = match arguments.config.load() {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let now = SystemClock.now();
    let (mut scenario, specs) = scenario(&loaded.plan, arguments, now);
    let others = loaded.plan.certificates.len() - scenario.certificates.len();
    if scenario.certificates.is_empty() {
        let text =
            format!("{} has no certificate from an ACME CA: there is nothing to simulate", path.display());
        return fail(FAILURE, &text);
    }
    let size = scenario.certificates.len() as u64 * u64::from(arguments.days);
    if size > MOST_CERTIFICATE_DAYS {
        let days = MOST_CERTIFICATE_DAYS / scenario.certificates.len() as u64;
        return fail(
            FAILURE,
            &format!("that would take very long: --days {days} is the most for so many certificates"),
        );
    }
    let from = match arguments.empty {
        true => Ok((Origin::Asked, Beginning::default())),
        false => simulate_from::read(&loaded.plan, &specs, &scenario.certificates, now),
    };
    let from = match from {
        Ok((from, begins)) => {
            scenario.begins = begins;
            from
        }
        Err(error) => return fail(FAILURE, &error),
    };
    let outcome = run(&scenario);
    let code = if arguments.json {
        json(&summary(&scenario, &outcome, &from))
    } else {
        print(&text(&scenario, &outcome, &from, others))
    };
    if is_good(&outcome) { code } else { ExitCode::from(FAILURE) }
}

/// Whether everything came as it has to.
fn is_good(outcome: &Outcome) -> bool {
    outcome.expired.is_empty() && outcome.violations.is_empty() && outcome.late.is_empty()
}

fn text(scenario: &Scenario, outcome: &Outcome, from: &Origin, others: usize) -> String {
    let mut text = format!("{}\n\n{}", from.line(scenario.certificates.len()), calendar(scenario, outcome));
    if others > 0 {
        let left_out = count(others, "certificate");
        text.push_str(&format!("\n{left_out} of the local CA or from files left out\n"));
    }
    text.push_str("\nA model: CAs, outages and luck are made up from the seed; the decisions are those of `starlock run`.\n");
    text
}

/// Nothing is held in it. The CAs are those of the specs beside it.
fn scenario(plan: &Plan, arguments: &Arguments, now: SystemTime) -> (Scenario, Vec<AcmeSpec>) {
    let mut specs: Vec<AcmeSpec> = Vec::new();
    // Kinds of keys and chains make no other CA of it.
    let same = |a: &AcmeSpec, b: &AcmeSpec| a.directory == b.directory && a.profile == b.profile;
    let mut certificates = Vec::new();
    for certificate in &plan.certificates {
        let IssuerPlan::Acme(acme) = &certificate.issuer else { continue };
        let cas = std::iter::once(&acme.acme).chain(&acme.fallback).map(|spec| {
            specs.iter().position(|known| same(known, spec)).unwrap_or_else(|| {
                specs.push(spec.clone());
                specs.len() - 1
            })
        });
        let cas = cas.collect();
        certificates.push(SimulatedCert { names: certificate.names.clone().into(), cas });
    }
    let cas = specs.iter().map(model).collect();
    let length = DAY * arguments.days;
    let scenario = Scenario::calm(arguments.seed, now, length, certificates, cas);
    let scenario = scenario.with_outages(0, arguments.down / 100.0, LONGEST_OUTAGE.min(length / 20));
    let scenario = scenario.with_restarts(usize::from(arguments.restarts));
    (Scenario { keep_renewals: true, ..scenario }, specs)
}

/// What is known of a CA: its limits by configuration or documentation; lifetimes and windows as published.
fn model(spec: &AcmeSpec) -> CaModel {
    let limits = AcmeIssuer::budget_of(spec).map_or_else(CaLimits::default, |budget| budget.limits);
    let title = spec.known().map_or_else(|| spec.directory.clone(), |known| known.title.to_owned());
    let profile = spec.profile.as_deref().unwrap_or("classic");
    if title.starts_with("Let's Encrypt") {
        return CaModel { name: format!("{title} ({profile})"), limits, ..lets_encrypt(profile) };
    }
    let windows = title.starts_with("Google");
    CaModel { limits, windows, ..public_ca(&title) }
}

fn summary(scenario: &Scenario, outcome: &Outcome, from: &Origin) -> serde_json::Value {
    let renewals = outcome.renewals.iter().map(|renewal| {
        let certificate = scenario.certificates.get(renewal.certificate);
        let names = certificate.map(|c| c.names.iter().map(ToString::to_string).collect::<Vec<_>>());
        serde_json::json!({
            "names": names.unwrap_or_default(),
            "ca": scenario.cas.get(renewal.ca).map(|ca| ca.name.as_str()),
            "at": clock::rfc3339(renewal.at),
            "not_after": clock::rfc3339(renewal.not_after),
        })
    });
    let (busiest_hour, mean_hour) = outcome.spread();
    serde_json::json!({
        "seed": scenario.seed,
        "from": from.json(),
        "certificates": scenario.certificates.len(),
        "orders": outcome.issued,
        "expired": outcome.expired.len(),
        "violations": outcome.violations,
        "late": outcome.late.len(),
        "held_back": outcome.held_back,
        "failed_down": outcome.failed_down,
        "fallen_back": outcome.fallen_back,
        "polls": outcome.polls,
        "restarts": outcome.restarts,
        "least_left": outcome.closest,
        "busiest_hour": busiest_hour,
        "mean_hour": mean_hour,
        "renewals": renewals.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, parse};

    #[test]
    fn a_configuration_becomes_a_scenario_and_goes_well() {
        let text = "dns = { provider = \"exec\", program = \"/hook\" }\n\
                    acme = { ca = \"letsencrypt\", profile = \"shortlived\", fallback = [{ ca = \"https://ca.example.net/dir\" }] }\n\
                    [[certificates]]\nnames = [\"*.example.com\", \"example.com\"]\n\
                    [routes]\n\"a.example.com\" = { respond = 200 }\n\"b.localhost\" = { respond = 200 }\n\
                    \"other.example.net\" = { respond = 200 }\n";
        let env = Environment { state_dir: "/s".into(), runtime_dir: "/r".into() };
        let plan = parse(text, "f", &env).unwrap_or_else(|p| panic!("{p}")).plan;
        let arguments = Arguments {
            config: ConfigArgs::default(),
            days: 100,
            seed: 3,
            down: 2.0,
            restarts: 5,
            empty: true,
            json: false,
        };
        let now = SystemTime::UNIX_EPOCH + DAY * 20_800;
        let (scenario, _) = scenario(&plan, &arguments, now);
        assert_eq!(scenario.certificates.len(), 2, "the local CA's is left out");
        assert_eq!(scenario.certificates[0].cas, [0, 1]);
        let outcome = run(&scenario);
        assert!(outcome.expired.is_empty() && outcome.violations.is_empty(), "{outcome:?}");
        let shown = super::text(&scenario, &outcome, &Origin::Asked, 1);
        for part in
            ["Let's Encrypt (shortlived): 160 h", "2026-12", "*.example.com", "served after their end    0"]
        {
            assert!(shown.contains(part), "{part} in\n{shown}");
        }
        assert!(is_good(&outcome));
        for bad in [
            Outcome { late: vec![(0, DAY)], ..outcome.clone() },
            Outcome { expired: vec![(1, DAY)], ..outcome.clone() },
            Outcome { violations: [("domain".to_owned(), 1)].into(), ..outcome.clone() },
        ] {
            assert!(!is_good(&bad), "{bad:?}");
        }
        let late = Outcome { late: vec![(0, DAY * 2)], ..outcome.clone() };
        let shown = calendar(&scenario, &late);
        assert!(shown.contains("Late for the CA's window: example.com, *.example.com by 48.0 h"), "{shown}");
        assert_eq!(summary(&scenario, &outcome, &Origin::Asked)["orders"], outcome.issued);
    }
}
