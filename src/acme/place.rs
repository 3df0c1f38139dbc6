//! Making an order (RFC 8555 section 7.4), as a successor where the CA knows such a thing, and counting what the CA counts.

use std::sync::PoisonError;

use instant_acme::{AuthorizationStatus, Error, Identifier, NewOrder, Order};

use super::journal::PendingOrder;
use super::order::{OrderError, OrderRun};
use super::{problem, renewal, signed};
use crate::issuer::Spent;
use crate::name::HostName;
use crate::storage::StorageError;

/// A new order that was not made, or cannot be used.
struct Refused {
    error: OrderError,
    /// Whether the CA has said so: then there is no order.
    definite: bool,
}

impl From<OrderError> for Refused {
    fn from(error: OrderError) -> Self {
        Self { error, definite: false }
    }
}

impl From<StorageError> for Refused {
    fn from(error: StorageError) -> Self {
        Self { error: error.into(), definite: false }
    }
}

impl OrderRun<'_> {
    /// Makes the order, as the successor of the certificate that it replaces if the CA knows such a thing (RFC 9773 section 5).
    /// A CA that refuses it as a successor, for whatever reason, is asked once more without: a renewal must not fail over it.
    pub(super) async fn place(&self, pending: &mut PendingOrder) -> Result<Order, OrderError> {
        let identifiers = self.identifiers()?;
        let knows_ari = self.session.directory.renewal_info.is_some();
        let replaces = self.request.replaces.as_deref().filter(|_| knows_ari).and_then(renewal::identifier);
        let mut new_order = NewOrder::new(&identifiers);
        if let Some(profile) = &self.spec.profile {
            new_order = new_order.profile(profile);
        }
        let Some(replaces) = replaces else {
            return self.place_one(&new_order, false, pending).await.map_err(|refused| refused.error);
        };
        let mut successor = NewOrder::new(&identifiers).replaces(replaces);
        if let Some(profile) = &self.spec.profile {
            successor = successor.profile(profile);
        }
        match self.place_one(&successor, true, pending).await {
            // Whether there is an order now is not known, or the CA wants to be left alone: asking at once would be wrong.
            Err(Refused { error, definite: false }) => Err(error),
            Err(Refused { error: OrderError::Verdict(error), .. }) => {
                tracing::warn!(names = self.names, %error, "the CA refused the order as a renewal; ordering without `replaces`");
                self.place_one(&new_order, false, pending).await.map_err(|refused| refused.error)
            }
            result => result.map_err(|refused| refused.error),
        }
    }

    /// Asks for one order. Its URL is kept even when the rest of the answer is of no use: it exists, and is not paid for twice.
    async fn place_one(
        &self,
        new_order: &NewOrder<'_>,
        as_successor: bool,
        pending: &mut PendingOrder,
    ) -> Result<Order, Refused> {
        let result = signed!(self.account.new_order(new_order));
        let url = match (&result, self.client.created()) {
            (Ok(order), _) => order.url().to_owned(),
            (Err(_), Some(url)) => url,
            (Err(error), None) => {
                let wait = ["accountDoesNotExist", "rateLimited", "badNonce", "userActionRequired"];
                let definite = matches!(error, Error::Api(p) if !wait.contains(&problem::kind(p)));
                return Err(Refused { error: self.judge(error, "creating the order"), definite });
            }
        };
        self.count(|spent| spent.ordered = true);
        pending.url = Some(url.clone());
        self.journal.save(pending).await?;
        let mut order = match result {
            Ok(order) => order,
            // Most likely a CA that does not echo `replaces`, which it must where it has taken it in.
            Err(error) => {
                tracing::debug!(%error, url, "the answer to a new order is odd; the order is read again");
                signed!(self.account.order(url.clone()))
                    .map_err(|e| self.judge(&e, "reading the order that was just made"))?
            }
        };
        let taken = as_successor && order.state().replaces.is_some();
        self.count(|spent| spent.replaced = taken);
        Ok(order)
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut Spent)) {
        change(&mut self.spent.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn failed(&self, name: &HostName) {
        self.count(|spent| {
            if !spent.failed.contains(name) {
                spent.failed.push(name.clone());
            }
        });
    }

    /// One failed name ends an order; the CA has looked at the others too, and counts each. Best effort: the order is lost anyway.
    pub(super) async fn count_failures(&self, order: &mut Order) {
        let mut authorizations = order.authorizations();
        while let Some(Ok(mut authorization)) = authorizations.next().await {
            let Ok(state) = authorization.refresh().await else { return };
            if state.status == AuthorizationStatus::Invalid
                && let Identifier::Dns(name) = state.identifier().identifier
                && let Ok(name) = HostName::parse(name)
            {
                self.failed(&name);
            }
        }
    }
}
