//! What decoding gives: values with their places, and tables of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::error::Span;
use crate::name::{DnsName, HostName, HostPattern};
use crate::secret::SecretSource;

/// A value and its place.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) span: Span,
}

/// What a key gave.
#[derive(Clone, Debug)]
pub(super) enum Slot<T> {
    /// It is not there.
    Absent,
    /// It is there and wrong; that was said.
    Broken,
    /// It is there.
    Given(At<T>),
}

impl<T> Slot<T> {
    /// The value, if it is there and right.
    pub(super) fn given(self) -> Option<At<T>> {
        match self {
            Self::Given(at) => Some(at),
            _ => None,
        }
    }

    /// The bare value, if it is there and right.
    pub(super) fn value(self) -> Option<T> {
        self.given().map(|at| at.value)
    }
}

/// A decoded value.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Text(String),
    Flag(bool),
    Number(u64),
    Duration(Duration),
    Path(PathBuf),
    Address(SocketAddr),
    Ip(IpAddr),
    Net(IpNet),
    Host(HostName),
    Dns(DnsName),
    Pattern(HostPattern),
    Secret(SecretSource),
    Word(&'static str),
    List(Vec<At<Value>>),
    Table(Fields),
    Map(Vec<Entry>),
}

/// An entry of a table whose keys the author chose.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: At<String>,
    /// `None` if it is wrong; that was said.
    pub(super) value: Option<Value>,
}

macro_rules! from_value {
    ($($variant:ident => $type:ty),* $(,)?) => {$(
        impl From<Value> for Option<$type> {
            fn from(value: Value) -> Self {
                match value {
                    Value::$variant(inner) => Some(inner),
                    _ => None,
                }
            }
        }
    )*};
}

from_value! {
    Text => String, Flag => bool, Number => u64, Duration => Duration, Path => PathBuf, Address => SocketAddr, Ip => IpAddr,
    Net => IpNet, Host => HostName, Dns => DnsName, Pattern => HostPattern, Secret => SecretSource, Word => &'static str,
    List => Vec<At<Value>>, Table => Fields, Map => Vec<Entry>,
}

/// A decoded table.
#[derive(Clone, Debug)]
pub(super) struct Fields {
    /// The header, the braces, or the scalar that stands for it.
    pub(super) span: Span,
    /// The keys that are there; `None` if the value is wrong.
    pub(super) entries: BTreeMap<&'static str, At<Option<Value>>>,
}

impl Fields {
    /// A table that is not in the file.
    pub(super) fn empty() -> Self {
        Self { span: 0..0, entries: BTreeMap::new() }
    }

    /// The value of `key`. The type must be the one that the key's kind decodes to.
    pub(super) fn slot<T>(&self, key: &str) -> Slot<T>
    where
        Option<T>: From<Value>,
    {
        match self.entries.get(key) {
            None => Slot::Absent,
            Some(At { value: None, .. }) => Slot::Broken,
            Some(At { value: Some(value), span }) => match Option::<T>::from(value.clone()) {
                Some(value) => Slot::Given(At { value, span: span.clone() }),
                None => {
                    debug_assert!(false, "`{key}` decodes to another type");
                    Slot::Broken
                }
            },
        }
    }

    /// The value of `key` if it is there and right.
    pub(super) fn value<T>(&self, key: &str) -> Option<T>
    where
        Option<T>: From<Value>,
    {
        self.slot(key).value()
    }

    /// The right elements of the list `key`; `None` if there is no list.
    pub(super) fn list<T>(&self, key: &str) -> Option<Vec<At<T>>>
    where
        Option<T>: From<Value>,
    {
        let list = self.value::<Vec<At<Value>>>(key)?;
        let element = |at: At<Value>| Some(At { value: Option::<T>::from(at.value)?, span: at.span });
        Some(list.into_iter().filter_map(element).collect())
    }

    /// Whether `key` is there, right or wrong.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Where the value of `key` stands; the table's place if it is not there.
    pub(super) fn span_of(&self, key: &str) -> Span {
        self.entries.get(key).map_or_else(|| self.span.clone(), |at| at.span.clone())
    }

    /// The value of `key` whatever it is.
    pub(super) fn any(&self, key: &str) -> Option<&Value> {
        self.entries.get(key)?.value.as_ref()
    }
}
