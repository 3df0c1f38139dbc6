//! What the configuration says about the policies of a route.

use std::time::Duration;

use ipnet::IpNet;

/// The policies of a route. The default asks for nothing and adds nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicySpec {
    /// Who may come.
    pub access: AccessSpec,
    /// Whether browsers are told to come by https only.
    pub hsts: Option<HstsSpec>,
    /// Larger request bodies are 413; `None`: what `[limits]` says.
    pub max_body: Option<u64>,
}

impl PolicySpec {
    /// What it does, for people: a line each, in the order in which a request meets them.
    pub fn steps(&self) -> Vec<String> {
        let nets = |nets: &[IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let mut steps = Vec::new();
        if !self.access.deny.is_empty() {
            steps.push(format!("deny   {}", nets(&self.access.deny)));
        }
        if !self.access.allow.is_empty() {
            steps.push(format!("allow  only {}", nets(&self.access.allow)));
        }
        if let Some(bytes) = self.max_body {
            steps.push(format!("max_body  {bytes} bytes"));
        }
        if let Some(hsts) = &self.hsts {
            steps.push(format!("hsts   {} days", hsts.max_age.as_secs() / 86_400));
        }
        steps
    }
}

/// Which addresses may use a route: those that are not in `deny`, and, if there is an `allow`, are in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessSpec {
    /// Empty: all.
    pub allow: Vec<IpNet>,
    /// Comes before `allow`.
    pub deny: Vec<IpNet>,
}

/// `Strict-Transport-Security` (RFC 6797).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HstsSpec {
    /// In whole seconds.
    pub max_age: Duration,
    /// Whether it holds for all names below, too.
    pub subdomains: bool,
    /// Whether the host may be put on the lists that browsers ship.
    pub preload: bool,
}
