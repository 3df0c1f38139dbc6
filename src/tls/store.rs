//! The table being served: one writer, any number of readers, two different types.

use std::fmt;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use super::table::CertTable;

/// Makes an empty store.
pub fn cert_store() -> (CertPublisher, CertResolver) {
    let table = Arc::new(ArcSwap::from_pointee(CertTable::default()));
    (CertPublisher(table.clone()), CertResolver(table))
}

/// Replaces the table. There is one for each store, and its owner alone decides what is served.
pub struct CertPublisher(Arc<ArcSwap<CertTable>>);

impl CertPublisher {
    /// Handshakes that begin after this returns see the new table; connections that exist keep what they have.
    pub fn publish(&mut self, table: CertTable) {
        self.0.store(Arc::new(table));
    }
}

/// Reads the table. Cloning is cheap.
#[derive(Clone)]
pub struct CertResolver(Arc<ArcSwap<CertTable>>);

impl CertResolver {
    /// The table of this moment, without a lock.
    pub fn table(&self) -> Guard<Arc<CertTable>> {
        self.0.load()
    }
}

impl fmt::Debug for CertPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CertPublisher({} names)", self.0.load().len())
    }
}

impl fmt::Debug for CertResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CertResolver({} names)", self.0.load().len())
    }
}
