//! What a person asks of one certificate: renew, rehearse, revoke, go back, export.

use tokio::sync::oneshot;

use super::jobs::Job;
use super::record::cert_key;
use super::state::{Action, Event, Machine, State};
use super::worker::Worker;
use crate::backoff;
use crate::clock;
use crate::secret::Secret;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Order a new one now. Without `force` the CA's limits and the minimum gap are kept.
    Renew {
        /// Whatever the limits say.
        force: bool,
    },
    /// Order one at the CA's staging and serve nothing of it.
    Rehearse,
    /// Have the served one revoked, with a reason of RFC 5280 section 5.3.1, and order a new one.
    Revoke {
        /// The reason's number.
        reason: u8,
    },
    /// Serve the one before, until the next renewal.
    RollBack,
}

/// A certificate with its key, for a person who may have both.
#[derive(Clone, Debug)]
pub struct Exported {
    /// PEM, leaf first.
    pub chain_pem: String,
    /// PKCS#8 PEM.
    pub key_pem: Secret,
}

/// A command on its way to a worker.
#[derive(Debug)]
pub(super) enum Command {
    Do(Verb, Job),
    Export(oneshot::Sender<Result<Exported, String>>),
}

impl Command {
    pub(super) fn refuse(self, why: &str) {
        match self {
            Self::Do(_, job) => job.end(Err(why.to_owned())),
            Self::Export(answer) => drop(answer.send(Err(why.to_owned()))),
        }
    }
}

impl Worker {
    pub(super) async fn obey(&mut self, machine: &mut Machine, command: Command) {
        match command {
            Command::Export(answer) => {
                if answer.send(self.export().await).is_err() {
                    tracing::debug!(certificate = %self.id, "whoever asked for the export has gone");
                }
            }
            Command::Do(verb, job) => {
                tracing::info!(certificate = %self.id, ?verb, "asked for by a person");
                self.job = Some(job);
                let outcome = match verb {
                    Verb::Renew { force } => self.renew(machine, force).await,
                    Verb::Rehearse => self.dry_run().await,
                    Verb::Revoke { reason } => self.revoke(machine, reason).await,
                    Verb::RollBack => self.roll_back(machine).await,
                };
                self.forced = false;
                if let Some(job) = self.job.take() {
                    job.end(outcome);
                }
            }
        }
    }

    fn tell(&self, text: impl Into<String>) {
        if let Some(job) = &self.job {
            job.step(text);
        }
    }

    async fn renew(&mut self, machine: &mut Machine, force: bool) -> Result<String, String> {
        let now = self.shared.clock.now();
        let due = match machine.state() {
            State::Valid { due } => due.at <= now,
            _ => true,
        };
        if let Some(held) = machine.held().filter(|held| !force && !due && !held.rolled_back) {
            let limited = self.wanted.issuers.get(usize::from(held.issuer)).filter(|i| i.budget().is_some());
            let ends = held.gap_ends(now);
            if let Some(issuer) = limited.filter(|_| ends > now) {
                return Err(format!(
                    "the served certificate was stored at {} and {} counts: not renewed before {}. With --force it is, and the CA may \
                     refuse the next ones",
                    clock::rfc3339(held.stored_at),
                    issuer.id(),
                    clock::rfc3339(ends)
                ));
            }
        }
        self.forced = force;
        self.forget_unproven().await;
        machine.step(Event::Asked, now, backoff::dice());
        self.order_now(machine).await
    }

    /// Attempts at once, at every CA whose turn it is at once.
    async fn order_now(&mut self, machine: &mut Machine) -> Result<String, String> {
        let mut last = "nothing was to be done".to_owned();
        // Each CA is asked once; the bound is for a clock that jumps.
        for _ in 0..=self.wanted.issuers.len() {
            let Action::Order(ca) = machine.next(self.shared.clock.now()) else { break };
            if let Some(issuer) = self.wanted.issuers.get(ca) {
                self.tell(format!("ordering at {}", issuer.id()));
            }
            let event = self.attempt(machine, ca).await;
            let outcome = match &event {
                Event::Renewed(_) => Ok(()),
                Event::Failed(_, error) | Event::HeldBack(error) => Err(error.message.clone()),
                Event::Refused(_, _, message) | Event::StorageLost(message) => Err(message.clone()),
                _ => Err("another process is ordering it; its certificate is taken from storage".to_owned()),
            };
            self.take(machine, event).await;
            match outcome {
                Ok(()) => return Ok(self.served()),
                Err(message) => {
                    self.tell(message.clone());
                    last = message;
                }
            }
        }
        Err(last)
    }

    fn served(&self) -> String {
        self.current.as_ref().map_or_else(String::new, |current| {
            let bundle = &current.bundle;
            format!("serving {} until {}", bundle.serial(), clock::rfc3339(bundle.not_after()))
        })
    }

    async fn dry_run(&mut self) -> Result<String, String> {
        let Some(rehearsal) = self.wanted.rehearsal.clone() else {
            return Err(format!(
                "no staging is known for {}: nothing can be ordered without counting",
                self.wanted.issuer().id()
            ));
        };
        self.tell(format!("ordering at {}", rehearsal.id()));
        let _permit = self.shared.orders.at(&*rehearsal).await;
        self.rehearse(&*rehearsal).await.map_err(|error| error.message)
    }

    async fn revoke(&mut self, machine: &mut Machine, reason: u8) -> Result<String, String> {
        let Some(current) = &self.current else {
            return Err("nothing is served that could be revoked".to_owned());
        };
        let Some(issuer) = self.wanted.issuers.get(usize::from(current.held.issuer)).cloned() else {
            return Err("the CA that signed it is not configured any more".to_owned());
        };
        let (leaf, serial) = (current.leaf(), current.bundle.serial().to_owned());
        issuer.revoke(&leaf, reason).await.map_err(|error| error.message)?;
        tracing::warn!(certificate = %self.id, serial, reason, "revoked; a new one is ordered");
        self.tell(format!("{serial} is revoked"));
        self.forget_unproven().await;
        machine.step(Event::Revoked, self.shared.clock.now(), backoff::dice());
        self.keep_ari(machine, &serial).await;
        self.order_now(machine).await.map_err(|error| {
            format!("it is revoked, and there is no new one yet: {error}\nIt is tried again by itself; the revoked one is served on")
        })
    }

    async fn roll_back(&mut self, machine: &mut Machine) -> Result<String, String> {
        let Some(current) = &self.current else { return Err("nothing is served yet".to_owned()) };
        let now = self.shared.clock.now();
        let (number, serial) = (current.held.issuer, current.bundle.serial().to_owned());
        let issuer = self.wanted.issuers.get(usize::from(number)).unwrap_or(self.wanted.issuer()).clone();
        // Two processes must not write one certificate at a time.
        let lease = self.shared.records.storage.try_lease(&cert_key(self.preferred(), &self.id)).await;
        let Some(_lease) = lease.map_err(|e| e.to_string())? else {
            return Err("another process is ordering it: go back when that has ended".to_owned());
        };
        let back =
            self.shared.records.roll_back(issuer.id(), &self.id, &self.wanted.names, number, now).await;
        let Some(cert) = back.map_err(|e| e.to_string())? else {
            return Err("there is no previous generation that is still valid".to_owned());
        };
        self.forget_unproven().await;
        self.pending = None;
        tracing::warn!(certificate = %self.id, from = serial, to = cert.bundle.serial(), "rolled back");
        let held = cert.held;
        self.publish(cert).await;
        self.take(machine, Event::Renewed(held)).await;
        let renewed = match machine.state() {
            State::Valid { due } => format!("; it is renewed at {}", clock::rfc3339(due.at)),
            _ => String::new(),
        };
        Ok(format!("{}{renewed}, or by `starlock certs renew`", self.served()))
    }

    async fn export(&self) -> Result<Exported, String> {
        let Some(current) = &self.current else { return Err("nothing is served yet".to_owned()) };
        if let Some(pending) = &self.pending {
            let issued = &pending.issued;
            return Ok(Exported { chain_pem: issued.chain_pem.clone(), key_pem: issued.key_pem.clone() });
        }
        let issuer = self.wanted.issuers.get(usize::from(current.held.issuer));
        let issuer = issuer.unwrap_or(self.wanted.issuer()).id();
        let found = self.shared.records.pem(issuer, &self.id).await.map_err(|e| e.to_string())?;
        let issued = found.ok_or("it is not in storage any more")?;
        Ok(Exported { chain_pem: issued.chain_pem, key_pem: issued.key_pem })
    }
}
