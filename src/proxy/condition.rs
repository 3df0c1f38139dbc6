//! `when`: conditions on method, header fields and query, for routes that share one key. Pure.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use http::Method;
use http::header::{HeaderMap, HeaderName};
use percent_encoding::percent_decode_str;

/// What a request must be for a route. The default is met by every request; all that is said must be met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConditionSpec {
    /// One of these; empty: any. HEAD is a method of its own.
    pub methods: Vec<Method>,
    /// Fields of the request as the client sent them.
    pub headers: Vec<(HeaderName, Wanted)>,
    /// Parameters of the query, by their decoded names.
    pub query: Vec<(Arc<str>, Wanted)>,
}

/// What a field or a parameter must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// There, whatever it says.
    Present,
    /// Not there.
    Absent,
    /// There, and one of its values is exactly one of these.
    OneOf(Vec<Arc<str>>),
}

/// What conditions look at.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The method.
    pub method: &'a Method,
    /// The fields as the client sent them.
    pub headers: &'a HeaderMap,
    /// The query as it came, without `?`.
    pub query: Option<&'a str>,
}

/// The part of a condition that a request does not meet, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmet(String);

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl ConditionSpec {
    /// Whether every request meets it.
    pub fn is_always(&self) -> bool {
        self.methods.is_empty() && self.headers.is_empty() && self.query.is_empty()
    }

    /// Whether a request meets it. Allocates only for a query with escapes.
    pub fn is_met(&self, facts: &Facts<'_>) -> bool {
        self.method_fits(facts)
            && self.headers.iter().all(|(name, wanted)| field_fits(name, wanted, facts))
            && self.query.iter().all(|(name, wanted)| parameter_fits(name, wanted, facts))
    }

    /// The first part that a request does not meet. For people.
    pub fn unmet(&self, facts: &Facts<'_>) -> Option<Unmet> {
        if !self.method_fits(facts) {
            return Some(Unmet(format!("the method must be {}, not {}", self.method_list(), facts.method)));
        }
        let field = self.headers.iter().find(|(name, wanted)| !field_fits(name, wanted, facts));
        if let Some((name, wanted)) = field {
            return Some(Unmet(format!("the header {name} must be {wanted}")));
        }
        let parameter = self.query.iter().find(|(name, wanted)| !parameter_fits(name, wanted, facts));
        parameter.map(|(name, wanted)| Unmet(format!("the query's {name} must be {wanted}")))
    }

    fn method_fits(&self, facts: &Facts<'_>) -> bool {
        self.methods.is_empty() || self.methods.contains(facts.method)
    }

    fn method_list(&self) -> String {
        self.methods.iter().map(Method::as_str).collect::<Vec<_>>().join(" or ")
    }
}

/// As a person says it: `method GET or HEAD, header x-beta "1"`.
impl fmt::Display for ConditionSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let method = (!self.methods.is_empty()).then(|| format!("method {}", self.method_list()));
        let headers = self.headers.iter().map(|(name, wanted)| format!("header {name} {wanted}"));
        let query = self.query.iter().map(|(name, wanted)| format!("query {name} {wanted}"));
        f.write_str(&method.into_iter().chain(headers).chain(query).collect::<Vec<_>>().join(", "))
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present => f.write_str("there"),
            Self::Absent => f.write_str("absent"),
            Self::OneOf(values) => {
                let values: Vec<String> = values.iter().map(|value| format!("{value:?}")).collect();
                f.write_str(&values.join(" or "))
            }
        }
    }
}

impl Wanted {
    fn fits<V>(&self, mut values: impl Iterator<Item = V>, same: impl Fn(&V, &str) -> bool) -> bool {
        match self {
            Self::Present => values.next().is_some(),
            Self::Absent => values.next().is_none(),
            Self::OneOf(wanted) => values.any(|value| wanted.iter().any(|one| same(&value, one))),
        }
    }
}

fn field_fits(name: &HeaderName, wanted: &Wanted, facts: &Facts<'_>) -> bool {
    wanted.fits(facts.headers.get_all(name).iter(), |value, one| value.as_bytes() == one.as_bytes())
}

fn parameter_fits(name: &str, wanted: &Wanted, facts: &Facts<'_>) -> bool {
    let pairs = facts.query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    let values = pairs.filter_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(key) == name.as_bytes()).then_some(value)
    });
    wanted.fits(values, |value, one| decoded(value) == one.as_bytes())
}

/// As forms are encoded: `+` is a space, `%XX` a byte.
fn decoded(text: &str) -> Cow<'_, [u8]> {
    if text.contains('+') {
        return Cow::Owned(percent_decode_str(&text.replace('+', " ")).collect());
    }
    percent_decode_str(text).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(value: &str) -> Wanted {
        Wanted::OneOf(vec![value.into()])
    }

    #[test]
    fn everything_that_is_said_must_be_met() {
        let condition = ConditionSpec {
            methods: vec![Method::GET, Method::HEAD],
            headers: vec![
                (HeaderName::from_static("x-beta"), Wanted::OneOf(vec!["1".into(), "yes".into()])),
                (HeaderName::from_static("x-old"), Wanted::Absent),
            ],
            query: vec![("v".into(), one("a b")), ("debug".into(), Wanted::Present)],
        };
        for (method, fields, query, unmet) in [
            (Method::GET, &[("x-beta", "1")][..], Some("v=a+b&debug"), None),
            (Method::HEAD, &[("x-beta", "0"), ("x-beta", "yes")], Some("debug=&v=x&%76=a%20b"), None),
            (
                Method::POST,
                &[("x-beta", "1")],
                Some("v=a+b&debug"),
                Some("the method must be GET or HEAD, not POST"),
            ),
            (Method::GET, &[], Some("v=a+b&debug"), Some("the header x-beta must be \"1\" or \"yes\"")),
            (
                Method::GET,
                &[("x-beta", "10")],
                Some("v=a+b&debug"),
                Some("the header x-beta must be \"1\" or \"yes\""),
            ),
            (
                Method::GET,
                &[("x-beta", "1"), ("x-old", "")],
                Some("v=a+b&debug"),
                Some("the header x-old must be absent"),
            ),
            (Method::GET, &[("x-beta", "1")], Some("v=a&debug"), Some("the query's v must be \"a b\"")),
            (Method::GET, &[("x-beta", "1")], Some("v=a+b"), Some("the query's debug must be there")),
            (Method::GET, &[("x-beta", "1")], None, Some("the query's v must be \"a b\"")),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, value.parse().unwrap());
            }
            let facts = Facts { method: &method, headers: &headers, query };
            assert_eq!(
                condition.unmet(&facts).map(|u| u.to_string()).as_deref(),
                unmet,
                "{method} {fields:?} {query:?}"
            );
            assert_eq!(condition.is_met(&facts), unmet.is_none());
            assert!(ConditionSpec::default().is_met(&facts) && ConditionSpec::default().is_always());
        }
        assert_eq!(
            condition.to_string(),
            "method GET or HEAD, header x-beta \"1\" or \"yes\", header x-old absent, query v \"a b\", query debug there"
        );
    }
}
