//! From signed to served: stored first as unproven, then a handshake with ourselves, then published.

use std::sync::Arc;
use std::time::SystemTime;

use super::record::HeldCert;
use super::state::Event;
use super::worker::{Pending, Worker};
use crate::clock;
use crate::issuer::{FailureClass, IssueError, IssueRequest, IssuedCert, Issuer, Retry};
use crate::storage::StorageError;
use crate::task;
use crate::tls::{Roots, canary};

impl Worker {
    /// Stores what was signed, before anything else can go wrong, and serves it if clients will get on with it.
    pub(super) async fn keep(
        &mut self,
        issuer: Arc<dyn Issuer>,
        request: IssueRequest,
        issued: IssuedCert,
        cert: HeldCert,
    ) -> Event {
        let stored = self.shared.records.store_unproven(issuer.id(), &self.id, &issued, &cert).await;
        if stored.is_ok() {
            issuer.stored(&request).await;
        }
        self.prove_and_serve(Pending { issuer, request, issued, cert }, stored.err()).await
    }

    /// Whether [`Self::settle_unproven`] has something to look after, or storage does not say.
    pub(super) async fn may_have_unproven(&self) -> bool {
        for issuer in self.wanted.issuers.iter() {
            if self.shared.records.has_unproven(issuer.id(), &self.id).await.unwrap_or(true) {
                return true;
            }
        }
        false
    }

    /// Looks after what was signed and not served: it is proven now, or makes way if it has grown old. Never a reason to order.
    pub(super) async fn settle_unproven(&mut self, now: SystemTime) -> Option<Event> {
        let names = self.wanted.names.clone();
        for (issuer, number) in self.wanted.issuers.clone().iter().zip(0u8..) {
            let found = self.shared.records.unproven(issuer.id(), &self.id, &names, number).await;
            let (issued, cert) = match found {
                Ok(Some(found)) => found,
                Ok(None) => continue,
                Err(error) => {
                    let message = format!("{error}. Nothing is ordered while it cannot be read");
                    return Some(Event::StorageLost(message));
                }
            };
            let served = self.current.as_ref().is_some_and(|c| c.bundle.serial() == cert.bundle.serial());
            if served || cert.held.is_due_by_its_dates(now) {
                self.forget_unproven().await;
                continue;
            }
            let request = IssueRequest::new(names);
            return Some(
                self.prove_and_serve(Pending { issuer: issuer.clone(), request, issued, cert }, None).await,
            );
        }
        None
    }

    /// It is served even if it cannot be stored: the CA has counted it, and what is held may not last until the disk works again.
    async fn prove_and_serve(&mut self, signed: Pending, unstored: Option<StorageError>) -> Event {
        let now = self.shared.clock.now();
        if let Err(why) = self.prove(&signed, now).await {
            let names = &signed.request.names;
            if self.current.as_ref().is_some_and(|current| current.held.not_after > now) {
                let message = format!(
                    "{names:?}: signed by {}, but {why}. It is kept, what was served before stays, and nothing is ordered again by \
                     itself: it is looked at again, and served when the old one is over. To order another: `starlock certs renew`",
                    signed.issuer.id()
                );
                self.unproven = Some(message.clone());
                return Event::HeldBack(IssueError::new(FailureClass::Config, Retry::Park, message));
            }
            tracing::error!(
                certificate = %self.id, ?names, serial = signed.cert.bundle.serial(),
                "the new certificate is served although {why}: there is nothing better"
            );
        }
        self.unproven = None;
        let Pending { issuer, request, issued, cert } = &signed;
        let stored = match unstored {
            None => self.shared.records.store(issuer.id(), &self.id, issued, cert).await,
            Some(error) => Err(error),
        };
        let (held, cert) = (cert.held, cert.clone());
        match stored {
            Ok(()) => {
                tracing::info!(
                    certificate = %self.id, names = ?request.names, issuer = %issuer.id(), serial = cert.bundle.serial(),
                    not_after = clock::rfc3339(cert.bundle.not_after()), "certificate stored"
                );
                self.forget_unproven().await;
            }
            Err(error) => {
                tracing::error!(
                    certificate = %self.id, names = ?request.names, serial = cert.bundle.serial(), %error,
                    "signed, but it cannot be stored: it is served from memory and stored as soon as the state directory can be \
                     written; a restart before that fetches or orders it again"
                );
                self.pending = Some(signed);
            }
        }
        self.publish(cert).await;
        Event::Renewed(held)
    }

    /// Shakes hands with ourselves. A root that this machine does not know is only told of.
    async fn prove(&self, signed: &Pending, now: SystemTime) -> Result<(), String> {
        let roots = self.shared.roots.get_or_init(|| task::blocking(Roots::system)).await;
        let bundle = &signed.cert.bundle;
        if let Some(warning) = canary(bundle, &signed.request.names, now, roots).await?
            && !signed.issuer.is_instant()
        {
            tracing::warn!(certificate = %self.id, issuer = %signed.issuer.id(), "{warning}");
        }
        Ok(())
    }

    /// What was signed and never served is not waited for any more.
    pub(super) async fn forget_unproven(&mut self) {
        self.unproven = None;
        for issuer in self.wanted.issuers.iter() {
            if let Err(error) = self.shared.records.forget_unproven(issuer.id(), &self.id).await {
                tracing::debug!(certificate = %self.id, %error, "an old unproven certificate stays in storage");
            }
        }
    }

    /// A new set of names is ordered at the CA's staging first, if that is wanted.
    pub(super) async fn rehearsed_first(&mut self, signers: &[u8]) -> Result<(), Event> {
        if !self.wanted.rehearse || self.rehearsed || self.current.is_some() || !signers.is_empty() {
            return Ok(());
        }
        let Some(rehearsal) = self.wanted.rehearsal.clone() else { return Ok(()) };
        match self.rehearse(&*rehearsal).await {
            Ok(words) => {
                tracing::info!(certificate = %self.id, "{words}");
                self.rehearsed = true;
                Ok(())
            }
            Err(error) => {
                let retry = match error.class {
                    FailureClass::CaDown | FailureClass::RateLimited => error.retry,
                    _ => Retry::Park,
                };
                let message = format!(
                    "the rehearsal at {} failed, so nothing was ordered at {}: {}",
                    rehearsal.id(),
                    self.wanted.issuer().id(),
                    error.message
                );
                Err(Event::HeldBack(IssueError { retry, message, ..error }))
            }
        }
    }

    /// Stores what could not be stored before.
    pub(super) async fn store_pending(&mut self) {
        let Some(Pending { issuer, request, issued, cert }) = self.pending.take() else { return };
        match self.shared.records.store(issuer.id(), &self.id, &issued, &cert).await {
            Ok(()) => {
                issuer.stored(&request).await;
                self.forget_unproven().await;
                tracing::info!(certificate = %self.id, serial = cert.bundle.serial(), "certificate stored at last");
            }
            Err(error) => {
                tracing::debug!(certificate = %self.id, %error, "it still cannot be stored");
                self.pending = Some(Pending { issuer, request, issued, cert });
            }
        }
    }
}
