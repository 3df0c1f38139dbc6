//! The local CA signs for single names while handshakes wait, on the control plane's thread.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use crate::backoff::Backoff;
use crate::issuer::{IssueRequest, Issuer, Progress, Step};
use crate::name::HostPattern;
use crate::task::{OnExit, Supervisor};
use crate::tls::{Bundle, Mint, MintReader, mint};

/// After each signature: a client that makes up names gets no more than a hundred a second.
const PAUSE: Duration = Duration::from_millis(10);
const RESTART: Backoff = Backoff::new(&[Duration::from_secs(1), Duration::from_secs(30)]);

/// Nobody watches single names.
struct Unwatched;

impl Progress for Unwatched {
    fn step(&self, _step: Step) {}
}

/// Starts the task; handshakes ask by the reader.
pub(super) fn start(ca: impl Issuer + 'static, supervisor: &Supervisor) -> MintReader {
    let (mint, reader) = mint();
    let (mint, ca) = (Arc::new(Mutex::new(mint)), Arc::new(ca));
    supervisor.spawn("mint".into(), OnExit::Restart(RESTART), move |shutdown| {
        let (mint, ca) = (mint.clone(), ca.clone());
        async move {
            tokio::select! {
                () = shutdown.wait() => {}
                () = async { sign(&mut *mint.lock().await, &*ca).await } => {}
            }
        }
    });
    reader
}

async fn sign(mint: &mut Mint, ca: &dyn Issuer) {
    while let Some(job) = mint.next().await {
        let request = IssueRequest::new(Arc::new([HostPattern::Exact(job.name().clone())]));
        let bundle = match ca.issue(&request, &Unwatched).await {
            Ok(issued) => {
                Bundle::from_pem(&issued.chain_pem, issued.key_pem.expose()).map_err(|e| e.to_string())
            }
            Err(error) => Err(error.message),
        };
        match bundle {
            Ok(bundle) => {
                tracing::debug!(name = %job.name(), "the local CA signed for one name");
                job.made(Arc::new(bundle));
            }
            Err(error) => {
                tracing::warn!(name = %job.name(), error, "the local CA cannot sign; the wildcard is served, which browsers refuse");
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}
