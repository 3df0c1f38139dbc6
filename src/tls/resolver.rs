//! Hands the bundle that was chosen for a connection to rustls.

use std::future::Future;
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::bundle::Bundle;

tokio::task_local! {
    static CHOSEN: Arc<CertifiedKey>;
}

/// Answers with the bundle that [`with`] put in place.
///
/// The table is read once for each handshake, so what is served and what is recorded of it are the same by construction,
/// even when the table is swapped in between; and the `ServerConfig`, with its ticket keys, outlives every swap.
#[derive(Debug)]
pub(super) struct ChosenCert;

impl ResolvesServerCert for ChosenCert {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        CHOSEN.try_with(Arc::clone).ok()
    }
}

/// Makes a handshake and drives it with `bundle` as its certificate (a hello may be resolved twice: HelloRetryRequest).
pub(super) async fn with<Fut: Future>(bundle: &Bundle, make: impl FnOnce() -> Fut) -> Fut::Output {
    let key = bundle.certified_key().clone();
    let handshake = CHOSEN.sync_scope(key.clone(), make);
    CHOSEN.scope(key, handshake).await
}
