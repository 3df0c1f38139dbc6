//! What is worth telling: pure, over what was told before.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::NotifySpec;
use crate::certs::{CertView, Phase};

/// Why somebody is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// An attempt failed; the next one comes by itself.
    RenewalFailed,
    /// Nothing will get better without a person.
    Parked,
    /// It works again.
    Recovered,
    /// The end of what is served comes near.
    Expiring,
    /// What is served has expired.
    Expired,
}

impl Kind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::RenewalFailed => "renewal_failed",
            Self::Parked => "parked",
            Self::Recovered => "recovered",
            Self::Expiring => "expiring",
            Self::Expired => "expired",
        }
    }
}

/// What was told of one certificate. Kept over restarts: a process that crashes in a loop must not tell in a loop.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Told {
    /// A failure was told and its end was not.
    failing: bool,
    parked: bool,
    /// When a failure was last told, in seconds since 1970.
    failure_at: u64,
    /// Of the certificate whose end was told of.
    serial: String,
    /// How near its end was then: 0 is not at all.
    urgency: u8,
}

/// Looks at a certificate; changes `told` by what it gives.
pub(super) fn decide(told: &mut Told, view: &CertView, spec: &NotifySpec, now: SystemTime) -> Vec<Kind> {
    let mut kinds = Vec::new();
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    match view.phase {
        Phase::Waiting | Phase::Parked if view.last_error.is_some() => {
            let parked = view.phase == Phase::Parked;
            let again = seconds.saturating_sub(told.failure_at) >= spec.repeat.as_secs();
            if !told.failing || (parked && !told.parked) || again {
                kinds.push(if parked { Kind::Parked } else { Kind::RenewalFailed });
                told.failure_at = seconds;
            }
            (told.failing, told.parked) = (true, parked);
        }
        Phase::Valid => {
            if std::mem::take(&mut told.failing) {
                kinds.push(Kind::Recovered);
            }
            told.parked = false;
        }
        // An attempt that is under way, or a peer's: its end says more.
        _ => {}
    }
    if let (Some(serial), Some((from, to))) = (&view.serial, view.validity) {
        if *serial != told.serial {
            (told.serial, told.urgency) = (serial.clone(), 0);
        }
        let urgency = urgency(from, to, spec.before_expiry, now);
        if urgency > told.urgency {
            told.urgency = urgency;
            kinds.push(if urgency == EXPIRED { Kind::Expired } else { Kind::Expiring });
        }
    }
    kinds
}

const EXPIRED: u8 = 4;

/// How near the end is. A certificate that is renewed in time (a third left, a half of short ones) never gets to 1.
fn urgency(from: SystemTime, to: SystemTime, last: Duration, now: SystemTime) -> u8 {
    let lifetime = to.duration_since(from).unwrap_or_default();
    let Ok(left) = to.duration_since(now) else { return EXPIRED };
    // A day is no warning for a certificate that lives for two.
    let last = last.min(lifetime / 20);
    match () {
        () if left.is_zero() => EXPIRED,
        () if left <= last => 3,
        () if left <= lifetime / 20 => 2,
        () if left <= lifetime / 6 => 1,
        () => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs::CertId;
    use crate::issuer::IssuerId;
    use crate::name::HostPattern;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn start() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn view(phase: Phase, serial: &str, days: u32) -> CertView {
        let names = [HostPattern::parse("a.test").unwrap()];
        let failed = matches!(phase, Phase::Waiting | Phase::Parked);
        CertView {
            id: CertId::of(&names),
            names: names.into(),
            issuer: IssuerId::new("ca"),
            phase,
            serial: Some(serial.to_owned()),
            validity: Some((start(), start() + DAY * days)),
            next_at: None,
            reason: None,
            explanation: None,
            failures: u32::from(failed),
            last_error: failed.then(|| "no".to_owned()),
            step: None,
        }
    }

    fn spec() -> NotifySpec {
        NotifySpec { webhook: String::new(), secret: None, ca_root: None, repeat: DAY, before_expiry: DAY }
    }

    #[test]
    fn a_failure_is_told_once_and_then_daily_and_its_end_once() {
        let mut told = Told::default();
        let mut at = |phase, hours: u32| {
            decide(&mut told, &view(phase, "1", 90), &spec(), start() + Duration::from_secs(3600) * hours)
        };
        assert_eq!(at(Phase::Valid, 0), []);
        assert_eq!(at(Phase::Waiting, 1), [Kind::RenewalFailed]);
        assert_eq!(at(Phase::Ordering, 2), []);
        assert_eq!(at(Phase::Waiting, 3), []);
        assert_eq!(at(Phase::Waiting, 25), [Kind::RenewalFailed]);
        assert_eq!(at(Phase::Parked, 26), [Kind::Parked], "this is another matter: at once");
        assert_eq!(at(Phase::Parked, 30), []);
        assert_eq!(at(Phase::Parked, 50), [Kind::Parked]);
        assert_eq!(at(Phase::Ordering, 51), []);
        assert_eq!(at(Phase::Valid, 52), [Kind::Recovered]);
        assert_eq!(at(Phase::Valid, 53), []);
    }

    #[test]
    fn the_end_is_told_at_each_threshold_and_anew_for_another_certificate() {
        let mut told = Told::default();
        let mut at = |serial: &str, days: f64| {
            let now = start() + Duration::from_secs_f64(days * 86400.0);
            decide(&mut told, &view(Phase::Valid, serial, 90), &spec(), now)
        };
        assert_eq!(at("1", 60.0), []);
        assert_eq!(at("1", 75.0), [Kind::Expiring]);
        assert_eq!(at("1", 80.0), []);
        assert_eq!(at("1", 86.0), [Kind::Expiring]);
        assert_eq!(at("1", 89.1), [Kind::Expiring]);
        assert_eq!(at("1", 89.9), []);
        assert_eq!(at("1", 90.0), [Kind::Expired]);
        assert_eq!(at("1", 91.0), []);
        assert_eq!(at("2", 10.0), []);
        assert_eq!(at("2", 89.5), [Kind::Expiring], "what was passed over is told as one");
    }

    #[test]
    fn short_lives_are_measured_by_themselves() {
        let (from, to) = (start(), start() + Duration::from_secs(3600));
        let at = |minutes: u64| urgency(from, to, DAY, start() + Duration::from_secs(minutes * 60));
        assert_eq!([at(0), at(30), at(50), at(57), at(60), at(90)], [0, 0, 1, 3, 4, 4]);
    }
}
