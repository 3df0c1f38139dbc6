//! A certificate from files: looked at every few seconds, swapped when they change, never given up for a bad one.
//!
//! Looking is by polling rather than by the kernel's notices: those do not come from network disks and bind mounts, and say
//! nothing when a link above the file is swapped, which is how Kubernetes renews a secret.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::manager::{News, Update};
use super::policy::Held;
use super::record::CertId;
use super::view::{CertView, Phase, Reason};
use super::worker::Shared;
use crate::clock;
use crate::issuer::IssuerId;
use crate::name::HostPattern;
use crate::task::{self, Shutdown};
use crate::tls::{Bundle, CertFiles, Stamp};

/// The files are looked at this often.
const LOOK: Duration = Duration::from_secs(3);
/// They are read at every so-manieth look even if they look the same: clocks of file systems are coarse.
const READ_ANYWAY: u32 = 10;

/// A certificate that somebody else renews.
#[derive(Clone, Debug)]
pub struct WantedFiles {
    /// Where it is.
    pub files: CertFiles,
    /// What it has to be for; empty if that is left to the files.
    pub names: Arc<[HostPattern]>,
    /// What the files held when the configuration was read.
    pub first: Arc<Bundle>,
}

impl WantedFiles {
    pub(super) fn id(&self) -> CertId {
        let digest = Sha256::digest(format!("{}\0{}", self.files.cert.display(), self.files.key.display()));
        CertId::of_files(self.first.names(), &digest)
    }

    pub(super) fn fingerprint(&self) -> String {
        format!("{:?} {:?}", self.files, self.names)
    }
}

/// What one look at the files came to.
enum Look {
    Same,
    New(Arc<Bundle>, [u8; 32]),
    Bad(String),
}

pub(super) struct Watcher {
    shared: Shared,
    wanted: WantedFiles,
    id: CertId,
    number: u64,
    stop: Shutdown,
    current: Arc<Bundle>,
    digest: Option<[u8; 32]>,
    stamp: Option<Stamp>,
    /// What is wrong with the files; told once it was seen twice, as both cannot be replaced in one moment.
    bad: Option<String>,
    told: bool,
    /// How little was left when it was warned of.
    warned: Option<Left>,
}

/// How little of a certificate is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Tenth,
    Nothing,
}

impl Watcher {
    pub(super) fn new(shared: Shared, wanted: WantedFiles, number: u64, stop: Shutdown) -> Self {
        let (id, current) = (wanted.id(), wanted.first.clone());
        Self {
            shared,
            wanted,
            id,
            number,
            stop,
            current,
            digest: None,
            stamp: None,
            bad: None,
            told: false,
            warned: None,
        }
    }

    pub(super) async fn run(mut self) {
        let stop = self.stop.clone();
        self.publish().await;
        for looks in 0u32.. {
            let look = tokio::select! {
                look = self.look(looks.is_multiple_of(READ_ANYWAY)) => look,
                () = stop.wait() => return,
            };
            self.take(look).await;
            self.warn();
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = stop.wait() => return,
            }
        }
    }

    async fn look(&mut self, read: bool) -> Look {
        let (files, known) = (self.wanted.files.clone(), self.stamp.clone());
        let again = read || self.bad.is_some();
        let (stamp, found) = task::blocking(move || {
            let stamp = files.stamp();
            let changed = again || known.as_ref() != Some(&stamp);
            (stamp, changed.then(|| files.read()))
        })
        .await;
        self.stamp = Some(stamp);
        match found {
            None => Look::Same,
            Some(Err(reason)) => Look::Bad(reason),
            Some(Ok(found)) if self.digest == Some(found.digest) && self.bad.is_none() => Look::Same,
            Some(Ok(found)) if !found.bundle.covers(&self.wanted.names) => Look::Bad(format!(
                "{} is for {:?} and not for all of {:?}",
                self.wanted.files.cert.display(),
                found.bundle.names(),
                self.wanted.names
            )),
            Some(Ok(found)) => Look::New(Arc::new(found.bundle), found.digest),
        }
    }

    async fn take(&mut self, look: Look) {
        match look {
            Look::Same => {}
            Look::New(bundle, digest) => {
                let (first, mended) = (self.digest.is_none(), self.bad.take().is_some());
                self.digest = Some(digest);
                self.told = false;
                let same = bundle.serial() == self.current.serial();
                self.current = bundle;
                self.warned = None;
                if !(first && same) {
                    tracing::info!(
                        certificate = %self.id, names = ?self.current.names(), serial = self.current.serial(), mended,
                        not_after = clock::rfc3339(self.current.not_after()), "certificate taken from its files"
                    );
                    self.shared.observer.ordered(self.current.names(), true);
                }
                self.publish().await;
            }
            Look::Bad(reason) => {
                if self.bad.as_ref() == Some(&reason) && !self.told {
                    self.told = true;
                    tracing::error!(certificate = %self.id, "{reason}. What was served before stays; the files are looked at again by themselves");
                    self.shared.observer.ordered(self.current.names(), false);
                    self.bad = Some(reason);
                    self.show();
                } else {
                    self.told &= self.bad.as_ref() == Some(&reason);
                    self.bad = Some(reason);
                }
            }
        }
    }

    /// Nobody but whoever writes the files can renew it: that is said in time.
    fn warn(&mut self) {
        let (now, end) = (self.shared.clock.now(), self.current.not_after());
        let held = Held::signed((self.current.not_before(), end), now, 0, 0, None);
        let left = match now {
            now if end <= now => Some(Left::Nothing),
            now if held.floor() <= now => Some(Left::Tenth),
            _ => None,
        };
        if left.is_none() || left == self.warned {
            return;
        }
        self.warned = left;
        let cert = self.wanted.files.cert.display();
        if left == Some(Left::Nothing) {
            tracing::error!(certificate = %self.id, "{cert} has expired: {}", words(end));
        } else {
            tracing::warn!(certificate = %self.id, "{cert} is about to expire: {}", words(end));
        }
        self.show();
    }

    async fn publish(&self) {
        let news = News::Held(self.current.clone());
        let update = Update { id: self.id.clone(), worker: self.number, news };
        if self.shared.updates.send(update).await.is_err() {
            tracing::debug!(certificate = %self.id, "the certificate manager has ended");
        }
        self.show();
    }

    fn show(&self) {
        let end = self.current.not_after();
        let expired = (end <= self.shared.clock.now()).then(|| words(end));
        let error = self.bad.clone().filter(|_| self.told).or(expired);
        let view = CertView {
            id: self.id.clone(),
            names: self.current.names().clone(),
            issuer: IssuerId::new("files"),
            phase: if error.is_some() { Phase::Parked } else { Phase::Valid },
            serial: Some(self.current.serial().to_owned()),
            validity: Some((self.current.not_before(), end)),
            next_at: None,
            reason: Some(Reason::Files),
            explanation: None,
            failures: 0,
            last_error: error,
            step: None,
        };
        if self.shared.views.put(view.clone(), &self.stop) {
            self.shared.observer.changed(&view);
        }
    }
}

fn words(end: SystemTime) -> String {
    format!("valid until {}; whoever writes the file has to renew it", clock::rfc3339(end))
}
