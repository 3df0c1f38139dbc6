//! Certificates for `localhost`, `.internal` and addresses, signed by a CA of our own that lives in storage.
//!
//! Two roots at most. The first may sign what is nobody's in public (RFC 6761 and its like, private addresses) and nothing else:
//! whoever trusts it risks no name of the world, even when its key is stolen. The second is made only when the configuration
//! asks the local CA for another name; no client could know beforehand which, so it is limited through its intermediate alone.

mod mint;
mod scope;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;

use self::mint::{Facts, Judgement, StoredIntermediate, StoredRoot};
use self::scope::Scope;
use crate::clock::{self, SharedClock};
use crate::issuer::{FailureClass, IssueError, IssueRequest, IssuedCert, Issuer, IssuerId, Progress, Retry};
use crate::name::HostPattern;
use crate::storage::{Expect, Key, Storage, StorageError, json_fault};

/// The local CA. Its roots are made at the first signature and kept; trust them once and every certificate is trusted.
#[derive(Debug)]
pub struct LocalCa {
    id: IssuerId,
    storage: Arc<dyn Storage>,
    clock: SharedClock,
    /// What the configuration asks of it.
    names: Vec<HostPattern>,
}

/// A root for a person to trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalRoot {
    /// Its common name: unique to it.
    pub label: String,
    /// The certificate.
    pub pem: String,
    /// SHA-256 of the certificate's DER, lower-case hex.
    pub fingerprint: String,
    /// Whether it can only vouch for names that are nobody's in public.
    pub limited: bool,
}

/// Which of the two roots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Private,
    Any,
}

impl Line {
    fn root(self) -> Key {
        Key::new(&["local-ca", if self == Self::Private { "root" } else { "root-for-any-name" }])
    }

    fn intermediate(self) -> Key {
        let name = if self == Self::Private { "intermediate" } else { "intermediate-for-any-name" };
        Key::new(&["local-ca", name])
    }
}

impl LocalCa {
    /// Touches nothing yet. `names` is everything that will be asked of it: outside of what is private it signs nothing else.
    pub fn new(storage: Arc<dyn Storage>, clock: SharedClock, names: Vec<HostPattern>) -> Self {
        Self { id: IssuerId::new("local"), storage, clock, names }
    }

    /// The roots that exist. Makes none.
    pub async fn roots(&self) -> Result<Vec<LocalRoot>, StorageError> {
        let mut roots = Vec::new();
        for line in [Line::Private, Line::Any] {
            let key = line.root();
            if let Some(found) = self.storage.load(&key).await? {
                let (root, facts) = read_root(&key, &found.value)?;
                let Facts { label, fingerprint, limited, .. } = facts;
                roots.push(LocalRoot { label, pem: root.certificate, fingerprint, limited });
            }
        }
        Ok(roots)
    }

    /// The roots that the configuration needs, made if they are missing, so that they can be trusted before the first start.
    pub async fn needed_roots(&self) -> Result<Vec<LocalRoot>, StorageError> {
        let (_, first) = self.root(Line::Private).await?;
        let private = Scope::private();
        if first.may_have_intermediates && self.names.iter().any(|name| !private.permits(name)) {
            self.root(Line::Any).await?;
        }
        self.roots().await
    }

    /// Signs once. The old kind of root, which may have no intermediate and is limited to nothing, signs by itself: who has
    /// trusted it is not asked again.
    async fn sign(&self, names: &[HostPattern]) -> Result<IssuedCert, StorageError> {
        let failed = |e: rcgen::Error| failed(e.to_string());
        let now = self.clock.now();
        let private = Scope::private();
        let (mut root, mut facts) = self.root(Line::Private).await?;
        if !facts.may_have_intermediates {
            return mint::signed(&root, names, now).map_err(failed);
        }
        let mut line = Line::Private;
        if !names.iter().all(|name| private.permits(name)) {
            line = Line::Any;
            (root, facts) = self.root(line).await?;
        }
        let intermediate = self.intermediate(line, &root, &facts, names).await?;
        mint::leaf(&intermediate, names, now).map_err(failed)
    }

    /// The root of a line, made if there is none that can be used. One that cannot be read is never replaced by itself.
    async fn root(&self, line: Line) -> Result<(StoredRoot, Facts), StorageError> {
        let (key, now) = (line.root(), self.clock.now());
        // More rounds only when another process makes the root between our look and our store, or when one was set aside.
        for _ in 0..3 {
            if let Some(found) = self.storage.load(&key).await? {
                let (root, facts) = read_root(&key, &found.value)?;
                let end = clock::rfc3339(facts.not_after);
                let why = match mint::judge(&facts, now) {
                    Judgement::Good => return Ok((root, facts)),
                    Judgement::Ending => {
                        tracing::warn!(
                            root = facts.label,
                            end,
                            "the local CA's root ends soon; a new one will be made then and has to be trusted"
                        );
                        return Ok((root, facts));
                    }
                    Judgement::WrongClock => return Err(wrong_clock(now)),
                    Judgement::Over => format!("its last day is {end}"),
                    Judgement::Future => format!(
                        "it begins at {}, which is later than now: the clock of this machine was far ahead when it was made",
                        clock::rfc3339(facts.not_before)
                    ),
                };
                let place = self.storage.set_aside(&key).await?;
                tracing::warn!(
                    root = facts.label,
                    place,
                    "the local CA's root is set aside and a new one made, which clients have to trust anew (`starlock trust`): {why}"
                );
            }
            if mint::is_wrong(now) {
                return Err(wrong_clock(now));
            }
            let scope = (line == Line::Private).then(Scope::private);
            let root = mint::root(now, scope.as_ref()).map_err(|e| failed(e.to_string()))?;
            match self.storage.store(&key, &encode(&root)?, Expect::Absent).await {
                Ok(_) => {
                    let facts = Facts::read(&root.certificate).map_err(failed)?;
                    let limits = match line {
                        Line::Private => "it can vouch for private names and addresses only",
                        Line::Any => {
                            "the configuration asks the local CA for names outside of what is private, so this root can vouch for any name: trust it only where its key is safe"
                        }
                    };
                    tracing::info!(
                        root = facts.label,
                        "made the local CA's root; `starlock trust` prints or installs it. {limits}"
                    );
                    return Ok((root, facts));
                }
                Err(StorageError::Conflict(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(StorageError::Conflict(key))
    }

    /// The intermediate of a line, made when there is none that is good for `names`. What the former one has signed carries it
    /// along in its chain and stays valid.
    async fn intermediate(
        &self,
        line: Line,
        root: &StoredRoot,
        facts: &Facts,
        names: &[HostPattern],
    ) -> Result<StoredIntermediate, StorageError> {
        let (key, now) = (line.intermediate(), self.clock.now());
        for _ in 0..3 {
            let expect = match self.storage.load(&key).await? {
                None => Expect::Absent,
                Some(found) => {
                    // One that cannot be read is no loss: nobody trusts an intermediate by itself.
                    let stored = serde_json::from_slice::<StoredIntermediate>(&found.value);
                    match stored {
                        Ok(stored) if stored.is_good(facts, names, now) => return Ok(stored),
                        _ => Expect::Revision(found.revision),
                    }
                }
            };
            let scope = match line {
                Line::Private => Some(Scope::private()),
                Line::Any => Scope::of(self.names.iter().chain(names)),
            };
            let made =
                mint::intermediate(root, facts, scope.as_ref(), now).map_err(|e| failed(e.to_string()))?;
            match self.storage.store(&key, &encode(&made)?, expect).await {
                Ok(_) => {
                    tracing::info!(root = facts.label, "made a new intermediate of the local CA");
                    return Ok(made);
                }
                Err(StorageError::Conflict(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(StorageError::Conflict(key))
    }
}

#[async_trait]
impl Issuer for LocalCa {
    fn id(&self) -> &IssuerId {
        &self.id
    }

    fn is_instant(&self) -> bool {
        true
    }

    async fn issue(
        &self,
        request: &IssueRequest,
        _progress: &dyn Progress,
    ) -> Result<IssuedCert, IssueError> {
        self.sign(&request.names).await.map_err(|error| {
            let message =
                format!("{:?}: the local CA cannot sign: {error}. Tried again by itself.", request.names);
            IssueError::new(FailureClass::Config, Retry::Backoff, message)
        })
    }

    async fn stored(&self, _request: &IssueRequest) {}
}

fn read_root(key: &Key, value: &[u8]) -> Result<(StoredRoot, Facts), StorageError> {
    let damaged = |reason: String| StorageError::Damaged { key: key.clone(), reason };
    let root: StoredRoot = serde_json::from_slice(value).map_err(|e| damaged(json_fault(&e)))?;
    let facts = Facts::read(&root.certificate).map_err(damaged)?;
    Ok((root, facts))
}

fn encode(value: &impl serde::Serialize) -> Result<Vec<u8>, StorageError> {
    serde_json::to_vec(value).map_err(|e| failed(e.to_string()))
}

fn failed(reason: String) -> StorageError {
    StorageError::Io { what: "the local CA".into(), reason }
}

fn wrong_clock(now: std::time::SystemTime) -> StorageError {
    failed(format!(
        "the clock of this machine says {}, which is before Starlock was written. Set it; no root is made or judged by it",
        clock::rfc3339(now)
    ))
}
