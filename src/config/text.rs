//! Values that are written as texts.

use std::time::Duration;

use super::scalar::{self, Wrong};
use super::table::{Kind, Words, nearest};
use super::value::Value;
use crate::dns::VendorKind;
use crate::name::{HostName, HostPattern};

/// The value that `text` is for `kind`.
pub(super) fn text_value(text: &str, kind: Kind) -> Result<Value, Wrong> {
    if text.trim().is_empty() {
        return Err(Wrong::new("this is empty"));
    }
    if text.trim() != text && !matches!(kind, Kind::Text | Kind::Vendor(_)) {
        return Err(Wrong::new("there is white space around it"));
    }
    match kind {
        Kind::Text => Ok(Value::Text(text.to_owned())),
        Kind::Vendor(wanted) => match wanted.check(text) {
            Ok(()) => Ok(Value::Text(text.to_owned())),
            Err(_) => Err(match wanted {
                VendorKind::Choice(words) => not_a_word(text, words.iter().copied()),
                _ => Wrong::new("this is not one"),
            }),
        },
        Kind::Path if text.contains('\0') => Err(Wrong::new("a path cannot hold a NUL")),
        Kind::Path => Ok(Value::Path(text.into())),
        Kind::Duration { zero } => match scalar::duration(text)? {
            Duration::ZERO if !zero => Err(Wrong::new("this is no time at all")),
            duration => Ok(Value::Duration(duration)),
        },
        Kind::Size => scalar::size(text).map(Value::Number),
        Kind::Listen(usual) => scalar::address(text, None, usual).map(Value::Address),
        Kind::Server(port) => match scalar::address(text, Some(port), port)? {
            address if address.port() == 0 => Err(Wrong::new("port 0 is nowhere")),
            address => Ok(Value::Address(address)),
        },
        Kind::Ip => scalar::ip(text).map(Value::Ip),
        Kind::Net => scalar::net(text).map(Value::Net),
        Kind::Host => HostName::parse(text).map(Value::Host).map_err(|e| scalar::bad_name(&e)),
        Kind::Dns => scalar::dns_name(text).map(Value::Dns),
        Kind::Pattern => HostPattern::parse(text).map(Value::Pattern).map_err(|e| scalar::bad_name(&e)),
        Kind::Word(words) => word(text, words),
        Kind::Flag if text == "true" || text == "false" => {
            Err(Wrong::new("this is a text").fix(format!("write {text} without quotes")))
        }
        Kind::Count { .. } if text.bytes().all(|b| b.is_ascii_digit()) => {
            Err(Wrong::new("this is a text").fix(format!("write {text} without quotes")))
        }
        Kind::List(Kind::Table(_)) => Err(Wrong::new("this is a text")),
        Kind::List(_) => Err(Wrong::new("this is a single value").fix(format!("write [{text:?}]"))),
        _ => Err(Wrong::new("this is a text")),
    }
}

fn word(text: &str, words: &'static Words) -> Result<Value, Wrong> {
    if let Some(word) = words.now.iter().find(|word| **word == text) {
        return Ok(Value::Word(word));
    }
    if words.later.contains(&text) {
        let now = words.now.join(", ");
        return Err(Wrong::later(format!("`{text}`")).fix(match words.now {
            [one] => format!("for now there is only {one}"),
            _ => format!("for now it is one of {now}"),
        }));
    }
    Err(not_a_word(text, words.all()))
}

fn not_a_word(text: &str, words: impl Iterator<Item = &'static str>) -> Wrong {
    match nearest(text, words) {
        Some(near) => Wrong::new(format!("did you mean \"{near}\"?")),
        None => Wrong::new("this is none of them"),
    }
}
