//! The validated configuration, made of the components' own Spec types.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::acme::AcmeSpec;
use crate::balance::UpstreamSpec;
use crate::challenge::ChallengeKind;
use crate::deploy::DeploySpec;
use crate::dns::{ProviderKind, ProviderSpec};
use crate::listen::ListenSpec;
use crate::name::HostPattern;
use crate::notify::NotifySpec;
use crate::proxy::ProxySpec;
use crate::responder::ResponderSpec;
use crate::storage::StorageSpec;
use crate::telemetry::TelemetrySpec;
use crate::tls::{CertFiles, ClientAuthSpec};

/// What Starlock is to do. Two equal plans need no reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where clients come in.
    pub listen: ListenSpec,
    /// The admin socket.
    pub admin: PathBuf,
    /// Where balancers may ask whether to send requests.
    pub ready: Option<SocketAddr>,
    /// How long everything is served on after that has been answered with no.
    pub lame_duck: Duration,
    /// Routes and whom to trust.
    pub proxy: ProxySpec,
    /// Hosts that ask for client certificates, sorted.
    pub client_auth: Vec<ClientAuthSpec>,
    /// Every upstream that a route names, sorted by name.
    pub upstreams: Vec<UpstreamSpec>,
    /// Every certificate to hold: listed ones, and one for each route host that no listed one covers. Sorted by first name.
    pub certificates: Vec<CertificatePlan>,
    /// Present if some certificate is proven by the built-in responder.
    pub responder: Option<ResponderSpec>,
    /// Who is told of dangers.
    pub notify: Option<NotifySpec>,
    /// Where state lies.
    pub storage: StorageSpec,
    /// Logs and metrics.
    pub telemetry: TelemetrySpec,
}

/// One certificate to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificatePlan {
    /// Sorted, without duplicates, at least one.
    pub names: Vec<HostPattern>,
    /// Who signs it.
    pub issuer: IssuerPlan,
    /// Whom it is passed on to.
    pub deploy: Vec<DeploySpec>,
}

/// How a certificate is got by ACME.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcmePlan {
    /// Which CA and as whom.
    pub acme: AcmeSpec,
    /// Tried in this order when the CA is down or refuses.
    pub fallback: Vec<AcmeSpec>,
    /// Who writes TXT records, where the challenge needs them; its resolvers serve dns-persist-01 too.
    pub dns: Option<ProviderSpec>,
    /// How names are proven, best first; never empty. An order takes the first that the CA offers.
    pub challenge: Vec<ChallengeKind>,
}

impl AcmePlan {
    /// Whether the built-in responder answers.
    pub fn is_builtin(&self) -> bool {
        self.challenge == [ChallengeKind::Dns01]
            && self.dns.as_ref().is_some_and(|dns| dns.kind == ProviderKind::Builtin)
    }
}

/// A certificate in files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilesPlan {
    /// Where it is.
    pub files: CertFiles,
    /// Whether the configuration says what it has to be for; else its names are those that it had when it was read.
    pub named: bool,
}

/// Who signs a certificate.
#[allow(clippy::large_enum_variant, reason = "one for each certificate, made once")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IssuerPlan {
    /// A CA, by ACME.
    Acme(AcmePlan),
    /// The local CA.
    Local,
    /// Somebody else, into files.
    Files(FilesPlan),
}
