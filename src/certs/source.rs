//! Where a wanted certificate comes from.

use std::sync::Arc;

use super::files::WantedFiles;
use super::manager::Wanted;
use super::record::CertId;
use crate::issuer::Budget;
use crate::name::HostPattern;

pub(super) enum Source {
    Issued(Wanted),
    Files(WantedFiles),
}

impl Source {
    pub(super) fn id(&self) -> CertId {
        match self {
            Self::Issued(wanted) => CertId::of(&wanted.names),
            Self::Files(files) => files.id(),
        }
    }

    pub(super) fn names(&self) -> &Arc<[HostPattern]> {
        match self {
            Self::Issued(wanted) => &wanted.names,
            Self::Files(files) => files.first.names(),
        }
    }

    pub(super) fn is_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Issued(a), Self::Issued(b)) => a.fingerprint == b.fingerprint,
            (Self::Files(a), Self::Files(b)) => a.fingerprint() == b.fingerprint(),
            _ => false,
        }
    }

    /// What the CAs allow that it may be ordered from.
    pub(super) fn budgets(&self) -> Vec<&Budget> {
        match self {
            Self::Issued(wanted) => {
                let rehearsal = wanted.rehearsal.iter().filter(|_| wanted.rehearse);
                wanted.issuers.iter().chain(rehearsal).filter_map(|issuer| issuer.budget()).collect()
            }
            Self::Files(_) => Vec::new(),
        }
    }
}
