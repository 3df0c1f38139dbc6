//! `/upstreams`: servers and their health, over the admin socket.

use http::{Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use super::Control;
use super::http::{Answer, json, refuse};

/// An element of `GET /upstreams`, and the answer to the rest below it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpstreamStatus {
    /// Its name in the configuration, or the URL of a route.
    pub name: String,
    /// How a server is chosen.
    pub balance: String,
    /// In the order of the configuration; a name has a line for each of its addresses.
    pub servers: Vec<ServerStatus>,
}

/// A server of an upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerStatus {
    /// Its URL, and after `#` the address that its name resolved to.
    pub server: String,
    /// `up`, `down`, `ejected` or `drained`.
    pub condition: String,
    /// Requests in flight.
    pub requests: u64,
    /// Open connections.
    pub connections: u64,
}

/// The path of a command.
pub(super) fn path(upstream: &str, server: &str, drained: bool) -> String {
    let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let verb = if drained { "drain" } else { "undrain" };
    format!("/upstreams/{}/{verb}/{}", encoded(upstream), encoded(server))
}

fn parse(segments: &[&str]) -> Option<(String, String, bool)> {
    let decoded = |segment: &str| percent_decode_str(segment).decode_utf8_lossy().into_owned();
    match segments {
        [upstream, verb @ ("drain" | "undrain"), server] => {
            Some((decoded(upstream), decoded(server), *verb == "drain"))
        }
        _ => None,
    }
}

/// Answers what is below `/upstreams`; `rest` is what follows that.
pub(super) async fn answer(control: &dyn Control, method: &Method, rest: &str) -> Answer {
    let segments: Vec<&str> = rest.split('/').filter(|segment| !segment.is_empty()).collect();
    match (method, segments.as_slice(), parse(&segments)) {
        (&Method::GET, [], _) => json(StatusCode::OK, &control.upstreams().await),
        (&Method::POST, _, Some((upstream, server, drained))) => {
            match control.drain(&upstream, &server, drained).await {
                Ok(status) => json(StatusCode::OK, &status),
                Err(error) => refuse(StatusCode::UNPROCESSABLE_ENTITY, &error),
            }
        }
        _ => refuse(
            StatusCode::NOT_FOUND,
            "there are GET /upstreams and POST /upstreams/NAME/drain/SERVER or .../undrain/SERVER",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_survives_its_path() {
        for drained in [true, false] {
            let path = path("http://10.0.0.1:80", "http://[::1]:80#::1", drained);
            let segments: Vec<&str> = path.split('/').skip(2).collect();
            let expected = ("http://10.0.0.1:80".to_owned(), "http://[::1]:80#::1".to_owned(), drained);
            assert_eq!(parse(&segments), Some(expected), "{path}");
        }
        assert_eq!(parse(&["a", "delete", "b"]), None);
    }
}
