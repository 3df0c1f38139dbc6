//! What happens to certificates, as metrics: one series for each name.

use std::sync::Arc;

use crate::certs::{CertObserver, CertView};
use crate::name::HostPattern;
use crate::telemetry::Metrics;

pub(super) struct CertMetrics(pub(super) Arc<Metrics>);

impl CertObserver for CertMetrics {
    fn ordered(&self, names: &[HostPattern], ok: bool) {
        for name in labels(names) {
            self.0.certificate_renewals(&name, if ok { "success" } else { "failure" }).inc();
        }
    }

    fn changed(&self, view: &CertView) {
        for name in labels(&view.names) {
            if let Some((_, not_after)) = view.validity {
                self.0.certificate_not_after(&name, not_after);
            }
            if let Some(at) = view.next_at {
                self.0.certificate_next_action(&name, at);
            }
        }
    }

    fn forgotten(&self, names: &[HostPattern]) {
        for name in labels(names) {
            self.0.forget_certificate(&name);
        }
    }
}

fn labels(names: &[HostPattern]) -> impl Iterator<Item = Arc<str>> {
    names.iter().map(|name| name.to_string().into())
}
