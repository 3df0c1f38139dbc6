//! From signed to served: stored first as unproven, then a handshake with ourselves, then published.

use std::sync::Arc;
use std::time::SystemTime;

use super::generations::Unproven;
use super::record::HeldCert;
use super::state::Event;
use super::worker::{Pending, Worker};
use crate::clock;
use crate::issuer::{FailureClass, IssueError, IssueRequest, IssuedCert, Issuer, IssuerId, Retry};
use crate::name::HostPattern;
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

    /// Keeps what was signed and cannot be served at all: the CA has counted it, so that ordering another is for a person to decide.
    pub(super) async fn keep_useless(
        &mut self,
        issuer: &dyn Issuer,
        request: &IssueRequest,
        issued: &IssuedCert,
        reason: &str,
    ) -> Event {
        let (names, now) = (&*request.names, self.shared.clock.now());
        let under = (&*self.wanted.fingerprint, now);
        match self.shared.records.store_useless(issuer.id(), &self.id, (issued, names), under).await {
            Ok(()) => issuer.stored(request).await,
            Err(error) => tracing::error!(
                certificate = %self.id, %error, "signed, and it cannot be stored either: its order is looked at again"
            ),
        }
        self.useless(issuer.id(), reason)
    }

    fn useless(&mut self, issuer: &IssuerId, reason: &str) -> Event {
        let message = format!(
            "{:?}: signed by {issuer}, but it cannot be served: {reason}. The CA has counted it. It is kept, what was served before \
             stays, and nothing is ordered again by itself. Find out why it is not what was asked for; then, to order another: \
             `starlock certs renew`, or change the configuration and `starlock reload`",
            self.wanted.names
        );
        self.unproven = Some(message.clone());
        Event::HeldBack(IssueError::new(FailureClass::Config, Retry::Park, message))
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
                Ok(Some(Unproven::Cert(issued, cert))) => (issued, cert),
                Ok(Some(Unproven::Useless { config, reason })) if config == self.wanted.fingerprint => {
                    return Some(self.useless(issuer.id(), &reason));
                }
                Ok(Some(Unproven::Useless { .. })) => {
                    self.set_aside(issuer.id()).await;
                    continue;
                }
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

    /// The configuration has changed since nothing could be made of what was signed: another may be ordered.
    async fn set_aside(&mut self, issuer: &IssuerId) {
        self.unproven = None;
        match self.shared.records.set_unproven_aside(issuer, &self.id).await {
            Ok(place) => tracing::warn!(
                certificate = %self.id, place,
                "the configuration has changed: a certificate that could not be served is set aside, and another one is ordered"
            ),
            Err(error) => {
                tracing::warn!(certificate = %self.id, %error, "a certificate that could not be served stays in storage");
            }
        }
    }

    /// It is served even if it cannot be stored: the CA has counted it, and what is held may not last until the disk works again.
    async fn prove_and_serve(&mut self, signed: Pending, unstored: Option<StorageError>) -> Event {
        let now = self.shared.clock.now();
        let proven = self.prove(&signed.cert, &signed.request.names).await.map(|warning| {
            if let Some(warning) = warning.filter(|_| !signed.issuer.is_instant()) {
                tracing::warn!(certificate = %self.id, issuer = %signed.issuer.id(), "{warning}");
            }
        });
        if let Err(why) = proven {
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

    /// Shakes hands with ourselves. A root that this machine does not know is only a warning.
    pub(super) async fn prove(
        &self,
        cert: &HeldCert,
        names: &[HostPattern],
    ) -> Result<Option<String>, String> {
        let roots = self.shared.roots.get_or_init(|| task::blocking(Roots::system)).await;
        canary(&cert.bundle, names, self.shared.clock.now(), roots).await
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
