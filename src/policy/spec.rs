//! What the configuration says about the policies of a route.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::access::Access;
use super::basic::BasicAuthSpec;
use super::client_cert::ClientCertSpec;
use super::compress::Coding;
use super::concurrency::ConcurrencySpec;
use super::fields::FieldsSpec;
use super::forward_auth::ForwardAuthSpec;
use super::pages::PagesSpec;
use super::rate::RateSpec;

/// The policies of a route. The default asks for nothing and adds nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicySpec {
    /// Who may come.
    pub access: AccessSpec,
    /// Which of its hosts ask for a client certificate.
    pub client_certs: Vec<ClientCertSpec>,
    /// How often a client may come.
    pub rate: Option<RateSpec>,
    /// How many requests there may be at a time.
    pub concurrency: Option<ConcurrencySpec>,
    /// Who may come, by name and password.
    pub basic_auth: Option<BasicAuthSpec>,
    /// Who else decides; never together with `basic_auth`.
    pub forward_auth: Option<ForwardAuthSpec>,
    /// Whether browsers are told to come by https only.
    pub hsts: Option<HstsSpec>,
    /// Larger request bodies are 413; `None`: what `[limits]` says.
    pub max_body: Option<u64>,
    /// Changes to the fields of requests.
    pub request_headers: FieldsSpec,
    /// Changes to the fields of answers.
    pub response_headers: FieldsSpec,
    /// Codings for answers, the preferred one first; empty: none is compressed.
    pub compress: Vec<Coding>,
    /// What errors look like.
    pub pages: PagesSpec,
}

impl PolicySpec {
    /// What it does, for people: a line each, in the order in which a request meets them.
    pub fn steps(&self) -> Vec<String> {
        let nets = |nets: &[IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let mut steps = Vec::new();
        for spec in &self.client_certs {
            steps.push(format!("client certificate  {spec}"));
        }
        if !self.access.deny.is_empty() {
            steps.push(format!("deny   {}", nets(&self.access.deny)));
        }
        if !self.access.allow.is_empty() {
            steps.push(format!("allow  only {}", nets(&self.access.allow)));
        }
        if let Some(RateSpec { requests, per, burst, by }) = &self.rate {
            steps.push(format!("rate_limit  {requests} in {per:?}, {burst} at once, by {by}"));
        }
        if let Some(ConcurrencySpec { requests, by_ip }) = &self.concurrency {
            let by = if *by_ip { "ip" } else { "route" };
            steps.push(format!("concurrency  {requests} at a time, by {by}"));
        }
        if let Some(spec) = &self.basic_auth {
            let file = spec.file.as_ref().map(|file| format!("those in {}", file.display()));
            let inline = (!spec.users.is_empty())
                .then(|| spec.users.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", "));
            let who = inline.into_iter().chain(file).collect::<Vec<_>>().join(" and ");
            steps.push(format!("basic_auth  {who}"));
        }
        if let Some(spec) = &self.forward_auth {
            steps.push(format!(
                "forward_auth  asks {}{}, at most {:?}",
                spec.upstream, spec.target, spec.timeout
            ));
        }
        if let Some(bytes) = self.max_body {
            steps.push(format!("max_body  {bytes} bytes"));
        }
        if !self.request_headers.is_empty() {
            steps.push(format!("request_headers  {}", self.request_headers));
        }
        if !self.pages.files.is_empty() {
            let files = self.pages.files.iter().map(|(wanted, path)| format!("{wanted} {}", path.display()));
            let whose = if self.pages.upstream { ", also for the server's" } else { "" };
            steps.push(format!("error_pages  {}{whose}", files.collect::<Vec<_>>().join(", ")));
        }
        if !self.compress.is_empty() {
            let codings: Vec<&str> = self.compress.iter().map(|coding| coding.name()).collect();
            steps.push(format!("compress  {}", codings.join(", ")));
        }
        if let Some(hsts) = &self.hsts {
            steps.push(format!("hsts   {} days", hsts.max_age.as_secs() / 86_400));
        }
        if !self.response_headers.is_empty() {
            steps.push(format!("response_headers  {}", self.response_headers));
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

impl AccessSpec {
    /// Why `client` may not use the route, for a person; `None` if it may.
    pub fn refusal(&self, client: IpAddr) -> Option<String> {
        Access::new(self).admit(client).err()?;
        let denied = self.deny.iter().find(|net| net.contains(&client.to_canonical()));
        Some(match denied {
            Some(net) => format!("{client} is in {net}, which `deny` lists"),
            None => format!("{client} is in none of the networks that `allow` lists"),
        })
    }
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
