//! How much runs at once at each CA.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::issuer::{Issuer, IssuerId};

/// So many at each CA: one that takes its time keeps nobody from asking another.
#[derive(Debug)]
pub(super) struct Turns {
    each: usize,
    cas: Mutex<HashMap<IssuerId, Arc<Semaphore>>>,
}

impl Turns {
    pub(super) fn new(each: usize) -> Self {
        Self { each, cas: Mutex::default() }
    }

    /// Waits for a turn at the CA of `issuer`, whatever the profile. Turns are given in the order in which they are asked for.
    ///
    /// Whoever has one must not wait for another.
    pub(super) async fn at(&self, issuer: &dyn Issuer) -> Option<OwnedSemaphorePermit> {
        let ca = issuer.budget().map_or_else(|| issuer.id(), |budget| &budget.ca);
        self.of(ca).acquire_owned().await.ok()
    }

    fn of(&self, ca: &IssuerId) -> Arc<Semaphore> {
        let mut cas = self.cas.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turns) = cas.get(ca) {
            return turns.clone();
        }
        // CAs of former configurations, at which nobody asks any more.
        cas.retain(|_, turns| Arc::strong_count(turns) > 1);
        cas.entry(ca.clone()).or_insert_with(|| Arc::new(Semaphore::new(self.each))).clone()
    }
}
