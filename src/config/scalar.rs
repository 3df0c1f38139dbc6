//! Texts that stand for something: durations, sizes, addresses, URLs. Pure; an error is what a person reads.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::balance::{ServerHost, ServerSpec, Transport};
use crate::name::{DnsName, HostPattern, NameError};

/// What is wrong with a text, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    /// For the carets.
    pub(super) why: String,
    /// For the help line.
    pub(super) fix: Option<String>,
    /// Whether it is right but its feature does not exist yet; then `why` is the feature.
    pub(super) later: bool,
}

impl Wrong {
    pub(super) fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), fix: None, later: false }
    }

    pub(super) fn later(what: impl Into<String>) -> Self {
        Self { why: what.into(), fix: None, later: true }
    }

    pub(super) fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

/// The longest duration that makes sense anywhere.
const MAX_DURATION: Duration = Duration::from_secs(366 * 86_400);

/// Parses `10s`, `1h30m`, `250ms`.
pub(super) fn duration(text: &str) -> Result<Duration, Wrong> {
    let units: &[(&str, u64)] =
        &[("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    let example = "durations are written like \"500ms\", \"10s\", \"5m\", \"1h30m\", \"2d\"";
    let mut rest = text.trim();
    let mut total: u64 = 0;
    if rest.is_empty() {
        return Err(Wrong::new("this is empty").fix(example));
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let letters = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, tail) = tail.split_at(letters);
        if digits == 0 {
            return Err(Wrong::new("this is not a duration").fix(example));
        }
        if unit.is_empty() {
            return Err(match tail {
                "" => Wrong::new("a unit is missing").fix(format!("write \"{text}s\" for seconds")),
                _ => Wrong::new("this is not a duration").fix(example),
            });
        }
        let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
            return Err(Wrong::new(format!("`{unit}` is not a unit of time")).fix("units are ms, s, m, h, d"));
        };
        total = number
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(*factor))
            .and_then(|n| n.checked_add(total))
            .ok_or_else(|| Wrong::new("this is too long"))?;
        rest = tail;
    }
    match Duration::from_millis(total) {
        long if long > MAX_DURATION => Err(Wrong::new("this is longer than a year")),
        fine => Ok(fine),
    }
}

/// Parses `32KiB`, `10MB`, `512B`.
pub(super) fn size(text: &str) -> Result<u64, Wrong> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        _ if digits == 0 => {
            return Err(
                Wrong::new("this is not a size").fix("sizes are written like \"512B\", \"32KiB\", \"10MB\"")
            );
        }
        "" => {
            let bytes = number.parse().unwrap_or(u64::MAX);
            return Err(Wrong::new("a unit is missing").fix(format!("write \"{}\"", human_size(bytes))));
        }
        "b" => 1,
        "kb" => 1_000,
        "kib" => 1 << 10,
        "mb" => 1_000_000,
        "mib" => 1 << 20,
        "gb" => 1_000_000_000,
        "gib" => 1 << 30,
        _ => {
            return Err(Wrong::new(format!("`{unit}` is not a unit of size"))
                .fix("units are B, KB, KiB, MB, MiB, GB, GiB"));
        }
    };
    match number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)) {
        Some(0) => Err(Wrong::new("nothing at all would fit")),
        Some(bytes) if bytes <= 1 << 50 => Ok(bytes),
        _ => Err(Wrong::new("this is too large")),
    }
}

/// `bytes` with the largest binary unit that divides it.
pub(super) fn human_size(bytes: u64) -> String {
    for (unit, factor) in [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes >= factor && bytes.is_multiple_of(factor) {
            return format!("{}{unit}", bytes / factor);
        }
    }
    format!("{bytes}B")
}

/// Parses `[::]:443`; a missing port becomes `port` if there is one to take. `usual` is the port in examples.
pub(super) fn address(text: &str, port: Option<u16>, usual: u16) -> Result<SocketAddr, Wrong> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return match port {
            Some(port) => Ok(SocketAddr::new(ip, port)),
            None => {
                let with_port = SocketAddr::new(ip, usual).to_string();
                Err(Wrong::new("the port is missing").fix(format!("write for example \"{with_port}\"")))
            }
        };
    }
    if let Some(port) = text.strip_prefix(':').or_else(|| text.strip_prefix("*:")) {
        return Err(match port.parse::<u16>() {
            Ok(port) => {
                Wrong::new("the address is missing").fix(format!("for every address write \"[::]:{port}\""))
            }
            Err(_) => Wrong::new("this is not an address with a port"),
        });
    }
    if text.parse::<u16>().is_ok() {
        return Err(Wrong::new("this is only a port").fix(format!("for every address write \"[::]:{text}\"")));
    }
    Err(match text.rsplit_once(':') {
        Some((host, tail)) if host.parse::<IpAddr>().is_ok() => {
            Wrong::new(format!("`{tail}` is not a port")).fix("ports are numbers up to 65535")
        }
        Some((host, tail)) if tail.parse::<u16>().is_ok() && !host.contains(':') => {
            Wrong::new(format!("`{host}` is not an IP address"))
                .fix("names are not looked up here: write the address")
        }
        _ => Wrong::new("this is not an address with a port"),
    })
}

/// Parses an IP address, with or without brackets.
pub(super) fn ip(text: &str) -> Result<IpAddr, Wrong> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    bare.parse().map_err(|_| match text.parse::<SocketAddr>() {
        Ok(address) => Wrong::new("this has a port").fix(format!("write \"{}\"", address.ip())),
        Err(_) => Wrong::new("this is not an IP address"),
    })
}

/// Parses `10.0.0.0/8`; a single address is a network of one.
pub(super) fn net(text: &str) -> Result<IpNet, Wrong> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address));
    }
    let net: IpNet = text.parse().map_err(|_| {
        Wrong::new("this is not a network")
            .fix("networks are written like \"10.0.0.0/8\" or \"2001:db8::/32\"")
    })?;
    if net.trunc() != net {
        return Err(Wrong::new("there are bits set beyond the prefix")
            .fix(format!("did you mean \"{}\"?", net.trunc())));
    }
    Ok(net)
}

/// Words for a name that is none.
pub(super) fn bad_name(error: &NameError) -> Wrong {
    Wrong::new(error.to_string())
}

/// Parses a DNS name, which an address is not.
pub(super) fn dns_name(text: &str) -> Result<DnsName, Wrong> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Err(bad_name(&NameError::Address(address)));
    }
    DnsName::parse(text).map_err(|error| bad_name(&error))
}

/// An absolute URL with `http` or `https`, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WebUrl {
    /// Whether it is `https`.
    pub(super) tls: bool,
    /// Where it goes.
    pub(super) host: HostPattern,
    /// Its port, if written.
    pub(super) port: Option<u16>,
    /// Path and query as written; empty if there are none.
    pub(super) path: String,
}

impl WebUrl {
    /// `scheme://host[:port]`.
    pub(super) fn origin(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        let host = match &self.host {
            HostPattern::Ip(IpAddr::V6(address)) => format!("[{address}]"),
            host => host.to_string(),
        };
        match self.port {
            Some(port) => format!("{scheme}://{host}:{port}"),
            None => format!("{scheme}://{host}"),
        }
    }
}

struct Parts<'a> {
    scheme: &'a str,
    host: &'a str,
    port: Option<u16>,
    path: &'a str,
}

/// Takes `scheme://host[:port][/path]` apart without judging scheme, host and path.
fn parts(text: &str) -> Result<Parts<'_>, Wrong> {
    let (scheme, rest) = text.split_once("://").ok_or_else(|| Wrong::new("this is not a URL"))?;
    if let Some(bad) =
        text.chars().find(|c| c.is_whitespace() || c.is_control() || "<>\"\\^`{|}".contains(*c))
    {
        return Err(Wrong::new(format!("a URL cannot hold {bad:?}")));
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if path.contains('#') {
        return Err(Wrong::new("servers never see what follows `#`").fix("leave it off"));
    }
    if authority.contains('@') {
        return Err(Wrong::new("a user or password does not belong into this URL"));
    }
    let (host, port) = match authority.strip_prefix('[').and_then(|a| a.split_once(']')) {
        Some((address, tail)) => (address, tail),
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => None,
        Some(digits) => Some(
            digits
                .parse::<u16>()
                .ok()
                .filter(|port| *port != 0 && digits.bytes().all(|b| b.is_ascii_digit()))
                .ok_or_else(|| {
                    Wrong::new(format!("`{digits}` is not a port")).fix("ports are numbers from 1 to 65535")
                })?,
        ),
        None => return Err(Wrong::new("this is not a host")),
    };
    if host.is_empty() {
        return Err(Wrong::new("the host is missing"));
    }
    Ok(Parts { scheme, host, port, path })
}

/// Parses an absolute `http` or `https` URL, as clients see it.
pub(super) fn web_url(text: &str) -> Result<WebUrl, Wrong> {
    let parts = parts(text).map_err(|wrong| match text {
        _ if text.contains("://") || text.contains('@') => wrong,
        path if path.starts_with('/') => {
            wrong.fix(format!("write \"https://example.com{path}\" with the right host"))
        }
        host => wrong.fix(format!("write \"https://{host}\"")),
    })?;
    let tls = match parts.scheme.to_ascii_lowercase().as_str() {
        "https" => true,
        "http" => false,
        other => return Err(Wrong::new(format!("`{other}://` is not a web address")).fix("use https://")),
    };
    let host = HostPattern::parse(parts.host).map_err(|error| bad_name(&error))?;
    if host.is_wildcard() {
        return Err(Wrong::new("a URL has no `*`"));
    }
    if let Some(query) = parts.path.strip_prefix('?') {
        return Ok(WebUrl { tls, host, port: parts.port, path: format!("/?{query}") });
    }
    Ok(WebUrl { tls, host, port: parts.port, path: parts.path.to_owned() })
}

/// Parses where a server is: `http://host[:port]`, `https://`, `h2c://`, `srv://_service._proto.name`, or `unix:/path`. TLS is as it
/// is without a `tls` table.
pub(super) fn server(text: &str) -> Result<ServerSpec, Wrong> {
    if let Some(path) = text.strip_prefix("unix:") {
        return socket(path);
    }
    if !text.contains("://") {
        let wrong = Wrong::new("this is not a URL");
        return Err(match text.contains('@') {
            true => wrong,
            false => wrong.fix(format!("write \"http://{}\"", text.trim_start_matches('/'))),
        });
    }
    let parts = parts(text)?;
    let (transport, port) = match parts.scheme.to_ascii_lowercase().as_str() {
        "http" => (Transport::Http, 80),
        "https" => (Transport::Tls(Arc::default()), 443),
        "h2c" => (Transport::H2c, 80),
        "srv" => return service(&parts, Transport::Http),
        "srv+https" => return service(&parts, Transport::Tls(Arc::default())),
        "srv+h2c" => return service(&parts, Transport::H2c),
        "grpc" => return Err(Wrong::new("`grpc://` is not a scheme").fix("write h2c:// or https://")),
        other => {
            return Err(Wrong::new(format!("`{other}://` is not a way to reach a server"))
                .fix("write http://, https:// or h2c:// with host and port, or unix:/path"));
        }
    };
    if !matches!(parts.path, "" | "/") {
        return Err(Wrong::new(format!("a server has no path, and `{}` is one", parts.path))
            .fix("the request's own path is sent; put a path into the route, and `strip_prefix = true` to take it off"));
    }
    let host = match parts.host.parse::<IpAddr>() {
        Ok(address) => ServerHost::Ip(address),
        // Names of containers and of SRV owners have underscores, which host names do not.
        Err(_) => ServerHost::Name(dns_name(parts.host)?.as_str().into()),
    };
    Ok(ServerSpec { transport, ..ServerSpec::new(host, parts.port.unwrap_or(port)) })
}

fn service(parts: &Parts<'_>, transport: Transport) -> Result<ServerSpec, Wrong> {
    if parts.port.is_some() || !matches!(parts.path, "" | "/") {
        return Err(Wrong::new("a service has neither port nor path")
            .fix("ports come from its SRV records; write \"srv://_http._tcp.example.com\""));
    }
    let host = ServerHost::Service(dns_name(parts.host)?.as_str().into());
    Ok(ServerSpec { transport, ..ServerSpec::new(host, 0) })
}

/// Parses the path of a socket.
fn socket(path: &str) -> Result<ServerSpec, Wrong> {
    let path = path.strip_prefix("//").unwrap_or(path);
    // What the system's address of a socket has room for.
    const LONGEST: usize = 107;
    if !path.starts_with('/') {
        return Err(Wrong::new("the path of a socket starts with `/`").fix("write \"unix:/run/app.sock\""));
    }
    if path.len() > LONGEST {
        return Err(Wrong::new(format!("the path of a socket has at most {LONGEST} bytes")));
    }
    if path.contains(|c: char| c.is_control()) {
        return Err(Wrong::new("a path cannot hold control characters"));
    }
    Ok(ServerSpec::new(ServerHost::Unix(Path::new(path).into()), 0))
}

/// Parses where a server is whose protocol is not ours: `host:port`, or `tcp://host:port`.
pub(super) fn tcp_server(text: &str) -> Result<ServerSpec, Wrong> {
    let url = if text.contains("://") { text.to_owned() } else { format!("tcp://{text}") };
    let parts = parts(&url)?;
    if !parts.scheme.eq_ignore_ascii_case("tcp") {
        return Err(Wrong::new(format!("`{}://` is not passed through", parts.scheme))
            .fix("write host:port, for example \"10.0.0.5:5432\""));
    }
    if !parts.path.is_empty() {
        return Err(Wrong::new(format!("`{}` is too much: there are no paths", parts.path)));
    }
    let port =
        parts.port.ok_or_else(|| Wrong::new("the port is missing").fix(format!("write \"{text}:443\"")))?;
    let host = match parts.host.parse::<IpAddr>() {
        Ok(address) => ServerHost::Ip(address),
        Err(_) => ServerHost::Name(dns_name(parts.host)?.as_str().into()),
    };
    Ok(ServerSpec::new(host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_units() {
        assert_eq!(duration("1h30m").unwrap(), Duration::from_secs(5400));
        assert_eq!(duration("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(duration("10").unwrap_err().fix.unwrap(), "write \"10s\" for seconds");
        for bad in ["", "s", "1x", "-1s", "1.5s", "99999999999999999999s", "400d", "1s1", "1 s", "٣s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_need_units() {
        assert_eq!(size("32KiB").unwrap(), 32_768);
        assert_eq!(size("10 MB").unwrap(), 10_000_000);
        assert_eq!(size("32768").unwrap_err().fix.unwrap(), "write \"32KiB\"");
        for bad in ["", "KiB", "0B", "1TB", "99999999999999999GiB", "1.5MB", "-1B"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_say_what_is_missing() {
        assert!(address("[::]:443", None, 443).is_ok());
        assert_eq!(address("192.0.2.1", Some(53), 53).unwrap().port(), 53);
        assert!(address(":80", None, 80).unwrap_err().fix.unwrap().contains("[::]:80"));
        assert!(address("443", None, 443).unwrap_err().fix.unwrap().contains("[::]:443"));
        assert!(address("localhost:80", None, 80).unwrap_err().why.contains("localhost"));
        assert!(address("192.0.2.1:99999", None, 80).unwrap_err().why.contains("99999"));
        assert!(address("::1", None, 443).unwrap_err().fix.unwrap().contains("[::1]:443"));
        assert!(net("10.1.0.0/8").unwrap_err().fix.unwrap().contains("10.0.0.0/8"));
    }

    #[test]
    fn urls_of_servers() {
        let good = |text: &str| server(text).unwrap().to_string();
        assert_eq!(good("http://10.0.0.1"), "http://10.0.0.1:80");
        assert_eq!(good("http://My_App:3000/"), "http://my_app:3000");
        assert_eq!(good("http://[::1]:3000"), "http://[::1]:3000");
        assert_eq!(good("https://a"), "https://a:443");
        assert_eq!(good("h2c://[::1]:50051"), "h2c://[::1]:50051");
        assert_eq!(good("unix:/run/x.sock"), "unix:/run/x.sock");
        assert_eq!(good("unix:///run/x.sock"), "unix:/run/x.sock");
        let long = format!("unix:/{}", "x".repeat(107));
        for bad in ["unix:run/x", "unix:", "unix:/a\n", "https://a/b", "grpc://a:1", &long] {
            assert!(server(bad).is_err(), "{bad}");
        }
        for bad in [
            "http://",
            "http://a:0",
            "http://a:99999",
            "http://a/b",
            "http://u@a",
            "http://a?x",
            "http://a b",
            "ftp://a",
            "a:3000",
            "http://[::1",
            "http://[::1]x",
            "http://a:+80",
            "http://:80",
            "http://a:b:c",
        ] {
            assert!(server(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn urls_of_the_web() {
        let url = web_url("https://Bücher.example:8443/x?y").unwrap();
        assert_eq!(
            (url.origin().as_str(), url.path.as_str()),
            ("https://xn--bcher-kva.example:8443", "/x?y")
        );
        assert_eq!(web_url("http://[::1]").unwrap().origin(), "http://[::1]");
        assert_eq!(web_url("https://a.example?q").unwrap().path, "/?q");
        assert_eq!(web_url("a.example").unwrap_err().fix.unwrap(), "write \"https://a.example\"");
        for bad in ["https://*.example.com", "ws://a", "https://a#b", "https://", "//a"] {
            assert!(web_url(bad).is_err(), "{bad}");
        }
    }
}
