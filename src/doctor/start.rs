//! What a start would refuse: the admin socket, and what the file only points to.

use std::path::Path;

use super::finding::{About, Finding, Note};
use crate::admin::{AdminServer, BindError};
use crate::config::{Plan, ReferenceKind, References};
use crate::notify::Notifier;
use crate::proxy::Snapshot;
use crate::task;
use crate::telemetry::{AccessLogSpec, Metrics};
use crate::tls::ClientAuth;
use crate::upstream::client_tls;

const STARTS: &str = "Starlock does not start with it";

/// The admin socket, unless the running Starlock has it. Blocking.
pub(super) fn judge_admin(path: &Path, running: bool) -> Finding {
    let about = About::Listener(format!("admin {}", path.display()));
    let parent = path.parent().unwrap_or(path).display();
    let note = match AdminServer::could_bind(path) {
        Ok(()) => Note::ok("admin.free", format!("{} can be made", path.display())),
        Err(BindError::Running(_)) if running => {
            Note::ok("admin.ours", format!("{} is held by the running Starlock", path.display()))
        }
        Err(error) => {
            let fix = match &error {
                BindError::Running(_) => "stop the other one, or give each a socket of its own: [listen] admin = \"/run/starlock-2/admin.sock\"".to_owned(),
                BindError::NotASocket(path) => format!("see what it is: ls -l {0}; move it away: mv {0} {0}.old", path.display()),
                BindError::TooLong(_) => "[listen] admin = \"/run/starlock/admin.sock\"".to_owned(),
                BindError::Io { .. } => format!(
                    "under systemd: RuntimeDirectory=starlock\nelse: install -d -m 0750 -o (the user that Starlock runs as) {parent}; or name another path: [listen] admin"
                ),
            };
            Note::failure("admin.unusable", error.to_string())
                .why("Starlock does not start without its admin socket: `status`, `certs` and `reload` speak through it")
                .fix(fix)
        }
    };
    note.place("[listen] admin").about(&about)
}

/// Everything that the file points to, and what is made of it at a start. Secrets that `known` tells of already are left out.
pub(super) async fn judge_pointed(plan: &Plan, references: &References, known: &[String]) -> Vec<Note> {
    let pointed = references.clone();
    let faults = task::blocking(move || pointed.faults_by_kind()).await;
    let mut notes = Vec::new();
    for (kind, fault) in &faults {
        // The CA's own root is judged with the CA, a certificate from files by itself.
        let (id, fix) = match kind {
            ReferenceKind::Root | ReferenceKind::Files => continue,
            ReferenceKind::Secret if known.contains(&fault.what) => continue,
            ReferenceKind::Secret => {
                ("secret.unreadable", "put the secret there, readable for the user that Starlock runs as")
            }
            ReferenceKind::ClientCa => ("client-ca.unusable", fault.fix),
            ReferenceKind::Users => (
                "users.unusable",
                "mend the file; starlock hash-password makes the second half of a line `user:hash`",
            ),
            ReferenceKind::Certificates => (
                "upstream-ca.unusable",
                "put a PEM file there, readable for the user that Starlock runs as, or name another one",
            ),
            ReferenceKind::Page => (
                "page.unusable",
                "put the page there, readable for the user that Starlock runs as, or take the line out",
            ),
        };
        notes.push(Note::failure(id, fault.what.clone()).why(fault.why).fix(fix).place(fault.place.clone()));
    }
    // What is made of files that cannot be read was said.
    let is_whole = |kind: ReferenceKind| faults.iter().all(|(other, _)| *other != kind);
    if is_whole(ReferenceKind::Certificates)
        && is_whole(ReferenceKind::Secret)
        && let Err(error) = client_tls().0.prepare(&plan.upstreams).await
    {
        let fix = "the certificate and the key of a client have to belong together, in PEM: openssl x509 -noout -pubkey -in CERT; openssl pkey -pubout -in KEY";
        notes.push(
            Note::failure("upstream-tls.unusable", error.to_string())
                .why(STARTS)
                .fix(fix)
                .place("[upstreams]"),
        );
    }
    if is_whole(ReferenceKind::ClientCa)
        && let Err(error) = client_auth(plan).await
    {
        let fix = "put a PEM file with the certificates of those who sign the clients' there";
        notes.push(Note::failure("client-ca.unusable", error).why(STARTS).fix(fix).place("[routes]"));
    }
    if is_whole(ReferenceKind::Secret)
        && let Err(error) = notify(plan).await
    {
        let fix = "mend what it says, or take [notify] out";
        notes.push(Note::failure("notify.unusable", error).why(STARTS).fix(fix).place("[notify]"));
    }
    let wants =
        [ReferenceKind::Secret, ReferenceKind::Users, ReferenceKind::Page, ReferenceKind::Certificates];
    if wants.into_iter().all(is_whole)
        && let Err(error) = routes(plan).await
    {
        let fix = "mend what it says; starlock check shows what is read from where";
        notes.push(
            Note::failure("routes.unusable", error).why(STARTS).fix(fix).place("[routes], [upstreams]"),
        );
    }
    notes.extend(access_log(plan));
    notes
}

/// As a start makes them; dropped at once.
async fn routes(plan: &Plan) -> Result<(), String> {
    let (proxy, upstreams) = (plan.proxy.clone(), plan.upstreams.clone());
    task::blocking(move || {
        let made = Snapshot::build(&proxy, &upstreams, None, None, &Metrics::new(""));
        made.map(drop).map_err(|error| error.to_string())
    })
    .await
}

async fn client_auth(plan: &Plan) -> Result<(), String> {
    let specs = plan.client_auth.clone();
    let made = task::blocking(move || ClientAuth::default().next(&specs).map(drop)).await;
    made.map_err(|error| error.to_string())
}

async fn notify(plan: &Plan) -> Result<(), String> {
    let spec = plan.notify.clone();
    task::blocking(move || Notifier::prepare(spec.as_ref()).map(drop)).await
}

/// Whether the file of the access log can be appended to. Makes nothing.
fn access_log(plan: &Plan) -> Option<Note> {
    let AccessLogSpec::File(path) = &plan.telemetry.access else { return None };
    let may = |path: &Path, access| rustix::fs::access(path, access).map_err(std::io::Error::from);
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let writable = match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Err(std::io::ErrorKind::IsADirectory.into()),
        Ok(_) => may(path, rustix::fs::Access::WRITE_OK),
        Err(_) => may(parent, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK),
    };
    let error = writable.err()?;
    let what = format!("the access log cannot be written to {}: {error}", path.display());
    let fix = format!(
        "make its directory writable for the user that Starlock runs as (under systemd: LogsDirectory=starlock), or name another file: ls -ld {}",
        parent.display()
    );
    Some(
        Note::failure("access-log.unwritable", what)
            .why("Starlock does not start without it")
            .fix(fix)
            .place("[log] access"),
    )
}
