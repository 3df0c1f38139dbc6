//! What happens to certificates, as metrics.

use std::sync::Arc;

use crate::certs::{CertId, CertObserver, CertView};
use crate::telemetry::Metrics;

pub(super) struct CertMetrics(pub(super) Arc<Metrics>);

impl CertObserver for CertMetrics {
    fn ordered(&self, id: &CertId, ok: bool) {
        self.0.certificate_renewals(&label(id), if ok { "success" } else { "failure" }).inc();
    }

    fn changed(&self, view: &CertView) {
        let name = label(&view.id);
        if let Some((_, not_after)) = view.validity {
            self.0.certificate_not_after(&name, not_after);
        }
        if let Some(at) = view.next_at {
            self.0.certificate_next_action(&name, at);
        }
    }

    fn forgotten(&self, id: &CertId) {
        self.0.forget_certificate(&label(id));
    }
}

fn label(id: &CertId) -> Arc<str> {
    id.as_str().into()
}
