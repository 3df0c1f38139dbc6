//! The admin socket: who may talk to it, what it answers, and whose the path is.

use std::fmt;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use tokio::net::{UnixListener, UnixStream};

use super::http::{Answer, json, refuse, serve};
use super::{Begun, CertificateVerb, Control, Health, accounts, upstreams};
use crate::backoff::Backoff;
use crate::task::{OnExit, Supervisor};

/// How long a client waits for a reload.
const RELOAD_LIMIT: Duration = Duration::from_secs(60);
const RESTART: Backoff = Backoff::new(&[Duration::from_secs(1), Duration::from_secs(10)]);
/// What the kernel takes as the path of a socket, without the final NUL.
const MAX_PATH: usize = 107;

/// Why the socket cannot be there. Says what to do.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody answers on it.
    #[error("another starlock is running: it answers on {0} (`listen.admin` names another socket)")]
    Running(PathBuf),
    /// Something else has the name.
    #[error("{0} is there and is not a socket; move it away, or name another path in `listen.admin`")]
    NotASocket(PathBuf),
    /// The kernel takes no such path.
    #[error("{0} is too long for a socket ({MAX_PATH} bytes at most); name a shorter path in `listen.admin`")]
    TooLong(PathBuf),
    /// Rights, space, a missing directory.
    #[error("cannot make the admin socket {path}: {error}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// A bound admin socket. Dropping it, or the end of [`AdminServer::serve`], removes it from the file system.
#[derive(Debug)]
pub struct AdminServer {
    listener: UnixListener,
    place: Place,
}

/// The name in the file system, as long as it is ours.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The path to bind first, if `path` can be a socket's and nobody has it.
fn free(path: &Path) -> Result<PathBuf, BindError> {
    let nameless = || io::Error::other("the path names no file");
    let mut fresh = path
        .file_name()
        .ok_or_else(|| BindError::Io { path: path.to_owned(), error: nameless() })?
        .to_owned();
    fresh.push(format!(".{}", std::process::id()));
    let fresh = path.with_file_name(fresh);
    if fresh.as_os_str().len() > MAX_PATH {
        return Err(BindError::TooLong(path.to_owned()));
    }
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => Err(BindError::NotASocket(path.to_owned())),
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            Err(BindError::Running(path.to_owned()))
        }
        _ => Ok(fresh),
    }
}

impl AdminServer {
    /// Binds `path` with mode 0660, making its directory (0750) if it is missing. A socket that a dead process left is replaced;
    /// a live one is refused. Must be called inside a runtime. Blocking for microseconds.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let io = |error: io::Error| BindError::Io { path: path.to_owned(), error };
        let fresh = free(path)?;
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::DirBuilder::new().recursive(true).mode(0o750).create(parent).map_err(io)?;
        }
        // Bound beside its place and renamed over it: there is no moment with the wrong mode, nor one without a socket.
        let _ = std::fs::remove_file(&fresh);
        let listener = UnixListener::bind(&fresh).map_err(io)?;
        let placed = std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o660))
            .and_then(|()| std::fs::symlink_metadata(&fresh))
            .and_then(|meta| std::fs::rename(&fresh, path).map(|()| (meta.dev(), meta.ino())));
        match placed {
            Ok(inode) => Ok(Self { listener, place: Place { path: path.to_owned(), inode } }),
            Err(error) => {
                let _ = std::fs::remove_file(&fresh);
                Err(io(error))
            }
        }
    }

    /// Whether [`AdminServer::bind`] would succeed, as far as that can be seen without making anything. Blocking.
    pub fn could_bind(path: &Path) -> Result<(), BindError> {
        let io = |error: io::Error| BindError::Io { path: path.to_owned(), error };
        free(path)?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let nearest = parent.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("."));
        if !nearest.is_dir() {
            return Err(io(io::Error::other(format!("{} is no directory", nearest.display()))));
        }
        let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
        let writable = rustix::fs::access(nearest, access);
        writable.map_err(|error| {
            let error = io::Error::from(error);
            io(io::Error::new(error.kind(), format!("nothing can be made in {}: {error}", nearest.display())))
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.place.path
    }

    /// Answers in the background until the supervisor's shutdown, then removes the socket.
    pub fn serve(self, supervisor: &Supervisor, control: Arc<dyn Control>) {
        let this = Arc::new(self);
        supervisor.spawn("admin".into(), OnExit::Restart(RESTART), move |shutdown| {
            let this = this.clone();
            let control = control.clone();
            async move {
                let answer = |method: Method, path: String| answer(control.clone(), method, path);
                serve(shutdown, || this.accept(), answer).await;
            }
        });
    }

    async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            let peer = stream.peer_cred()?;
            let ours = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            if may_talk((peer.uid(), peer.gid()), ours) {
                return Ok(stream);
            }
            tracing::warn!(uid = peer.uid(), gid = peer.gid(), "refused a stranger on the admin socket");
        }
    }
}

/// Root, our user, and members of our group.
fn may_talk(peer: (u32, u32), ours: (u32, u32)) -> bool {
    peer.0 == 0 || peer.0 == ours.0 || peer.1 == ours.1
}

async fn answer(control: Arc<dyn Control>, method: Method, path: String) -> Answer {
    if let Some(rest) = path.strip_prefix("/certificates/") {
        return certificate(&*control, &method, rest).await;
    }
    if let Some(number) = path.strip_prefix("/jobs/").and_then(|number| number.parse().ok()) {
        return match control.job(number).await {
            Some(job) => json(StatusCode::OK, &job),
            None => refuse(StatusCode::NOT_FOUND, "nothing is known of it (any more)"),
        };
    }
    if let Some(rest) = path.strip_prefix("/accounts").filter(|rest| rest.is_empty() || rest.starts_with('/'))
    {
        return accounts::answer(control, &method, rest).await;
    }
    if let Some(rest) =
        path.strip_prefix("/upstreams").filter(|rest| rest.is_empty() || rest.starts_with('/'))
    {
        return upstreams::answer(&*control, &method, rest).await;
    }
    let wanted = match path.as_str() {
        "/status" | "/certificates" | "/health" => Method::GET,
        "/reload" => Method::POST,
        _ => {
            let known =
                "GET /status, GET /certificates, GET /health, POST /reload, GET /accounts, GET /upstreams";
            return refuse(StatusCode::NOT_FOUND, &format!("there is no {path}; there are {known}"));
        }
    };
    if method != wanted {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, &format!("{path} takes {wanted} only"));
    }
    match path.as_str() {
        "/status" => json(StatusCode::OK, &control.status().await),
        "/certificates" => json(StatusCode::OK, &control.certificates().await),
        "/health" => {
            let health: Health = control.health().await;
            json(if health.healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &health)
        }
        _ => match tokio::time::timeout(RELOAD_LIMIT, control.reload()).await {
            Ok(Ok(report)) => json(StatusCode::OK, &report),
            Ok(Err(error)) => refuse(StatusCode::UNPROCESSABLE_ENTITY, &error),
            Err(_) => {
                let error = "the reload takes longer than a minute; `starlock status` shows its outcome";
                refuse(StatusCode::GATEWAY_TIMEOUT, error)
            }
        },
    }
}

/// `ID/export` and `ID/VERB`.
async fn certificate(control: &dyn Control, method: &Method, path: &str) -> Answer {
    let unknown = "there are GET /certificates/ID/export and POST /certificates/ID/ with renew, renew-force, rehearse, rollback \
                   or revoke/REASON";
    let Some((id, word)) = path.split_once('/') else { return refuse(StatusCode::NOT_FOUND, unknown) };
    if word == "export" && method == Method::GET {
        return match control.export(id).await {
            Ok(exported) => json(StatusCode::OK, &exported),
            Err(error) => refuse(StatusCode::UNPROCESSABLE_ENTITY, &error),
        };
    }
    match CertificateVerb::parse(word) {
        Some(verb) if method == Method::POST => match control.command(id, verb).await {
            Ok(job) => json(StatusCode::OK, &Begun { job }),
            Err(error) => refuse(StatusCode::UNPROCESSABLE_ENTITY, &error),
        },
        _ => refuse(StatusCode::NOT_FOUND, unknown),
    }
}

impl fmt::Display for AdminServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place.path.display().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use async_trait::async_trait;

    use super::super::{
        AccountCommand, AccountStatus, CertificateStatus, Client, ClientError, ExportedCertificate,
        JobStatus, ReloadReport, Status, UpstreamStatus,
    };
    use super::*;
    use crate::task::Shutdown;

    struct Fake {
        healthy: bool,
    }

    #[async_trait]
    impl Control for Fake {
        async fn status(&self) -> Status {
            Status { version: "1.2.3".into(), pid: 7, ..Status::default() }
        }

        async fn certificates(&self) -> Vec<CertificateStatus> {
            vec![CertificateStatus { names: vec!["example.com".into()], ..CertificateStatus::default() }]
        }

        async fn reload(&self) -> Result<ReloadReport, String> {
            if self.healthy {
                return Ok(ReloadReport { changed: true, ..ReloadReport::default() });
            }
            Err("error: two\nlines".into())
        }

        async fn accounts(&self) -> Vec<AccountStatus> {
            vec![AccountStatus { ca: "letsencrypt".into(), ..AccountStatus::default() }]
        }

        async fn account(&self, ca: &str, command: AccountCommand) -> Result<AccountStatus, String> {
            match self.healthy {
                true => Ok(AccountStatus { ca: format!("{ca} {command:?}"), ..AccountStatus::default() }),
                false => Err("no".into()),
            }
        }

        async fn upstreams(&self) -> Vec<UpstreamStatus> {
            vec![UpstreamStatus { name: "app".into(), ..UpstreamStatus::default() }]
        }

        async fn drain(&self, upstream: &str, server: &str, drained: bool) -> Result<UpstreamStatus, String> {
            match upstream {
                "app" => {
                    Ok(UpstreamStatus { name: format!("{server} {drained}"), ..UpstreamStatus::default() })
                }
                _ => Err("there is none".into()),
            }
        }

        async fn health(&self) -> Health {
            Health { healthy: self.healthy, reason: (!self.healthy).then(|| "no listener".into()) }
        }

        async fn command(&self, id: &str, verb: CertificateVerb) -> Result<u64, String> {
            match verb {
                CertificateVerb::Revoke { reason: 1 } if id == "example.com-1" => Ok(7),
                _ => Err(format!("{id} {verb:?}")),
            }
        }

        async fn job(&self, number: u64) -> Option<JobStatus> {
            (number == 7).then(|| JobStatus { steps: vec!["one".into()], ..JobStatus::default() })
        }

        async fn export(&self, _id: &str) -> Result<ExportedCertificate, String> {
            Ok(ExportedCertificate { chain: "chain".into(), key: "key".into() })
        }
    }

    /// Serves on a socket and runs the blocking `client` beside it.
    fn with_server<T: Send + 'static>(
        healthy: bool,
        client: impl FnOnce(PathBuf) -> T + Send + 'static,
    ) -> T {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/admin.sock");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let supervisor = Supervisor::new(Shutdown::new());
            let server = AdminServer::bind(&path).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
            server.serve(&supervisor, Arc::new(Fake { healthy }));
            let client_path = path.clone();
            let result = crate::task::blocking(move || client(client_path)).await;
            supervisor.shutdown().trigger();
            assert!(supervisor.join(Duration::from_secs(5)).await);
            assert!(!path.exists(), "the socket is removed");
            assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
            result
        })
    }

    #[test]
    fn the_client_gets_what_the_control_says() {
        with_server(true, |path| {
            let client = Client::new(path);
            assert_eq!(client.status().unwrap().version, "1.2.3");
            assert_eq!(client.certificates().unwrap()[0].names, ["example.com"]);
            assert!(client.reload().unwrap().changed);
            assert_eq!(client.upstreams().unwrap()[0].name, "app");
            assert_eq!(client.drain("app", "http://a/#b", true).unwrap().name, "http://a/#b true");
            assert_eq!(client.drain("x", "y", false).unwrap_err().to_string(), "there is none");
            let revoke = CertificateVerb::Revoke { reason: 1 };
            assert_eq!(client.command("example.com-1", revoke).unwrap(), 7);
            assert_eq!(client.job(7).unwrap().steps, ["one"]);
            assert!(client.job(8).is_err());
            let error = client.command("other", CertificateVerb::Renew { force: true }).unwrap_err();
            assert_eq!(error.to_string(), "other Renew { force: true }");
            assert_eq!(client.export("other").unwrap().key, "key");
            assert!(client.health().unwrap().healthy);
            assert_eq!(client.accounts().unwrap()[0].ca, "letsencrypt");
            let contact = AccountCommand::Contact(Some("a@b.test".into()));
            let account = client.account("https://ca.test/dir", &contact).unwrap();
            assert_eq!(account.ca, "https://ca.test/dir Contact(Some(\"a@b.test\"))");
        });
        with_server(false, |path| {
            let client = Client::new(path);
            let error = client.reload().unwrap_err();
            assert!(matches!(&error, ClientError::Refused(text) if text == "error: two\nlines"), "{error}");
            let health = client.health().unwrap();
            assert_eq!((health.healthy, health.reason.as_deref()), (false, Some("no listener")));
        });
    }

    #[test]
    fn odd_requests_get_an_answer_or_the_door() {
        with_server(true, |path| {
            let ask = |text: &[u8]| {
                let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
                stream.write_all(text).unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                answer.lines().next().unwrap_or_default().to_owned()
            };
            assert_eq!(ask(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"), "HTTP/1.1 404 Not Found");
            assert_eq!(ask(b"GET /reload HTTP/1.1\r\nHost: x\r\n\r\n"), "HTTP/1.1 405 Method Not Allowed");
            assert_eq!(ask(b"garbage\r\n\r\n"), "HTTP/1.1 400 Bad Request");
            let large = [
                b"POST /reload HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n".as_slice(),
                &[b'x'; 5000],
            ]
            .concat();
            assert_eq!(ask(&large), "HTTP/1.1 413 Payload Too Large");
        });
    }

    #[tokio::test]
    async fn a_live_socket_is_refused_and_a_dead_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let first = AdminServer::bind(&path).unwrap();
        assert!(matches!(AdminServer::bind(&path), Err(BindError::Running(_))));
        // What a killed process leaves: a name that nobody listens on.
        let dead = std::os::unix::net::UnixListener::bind(dir.path().join("dead.sock")).unwrap();
        drop(dead);
        let second = AdminServer::bind(&dir.path().join("dead.sock")).unwrap();
        drop(second);
        drop(first);
        assert!(!path.exists());
        std::fs::write(&path, "text").unwrap();
        assert!(matches!(AdminServer::bind(&path), Err(BindError::NotASocket(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "text", "never removed");
        let long = dir.path().join("x".repeat(120));
        assert!(matches!(AdminServer::bind(&long), Err(BindError::TooLong(_))));
    }

    #[test]
    fn strangers_may_not_talk() {
        let ours = (500, 600);
        assert!(may_talk((0, 0), ours) && may_talk((500, 7), ours) && may_talk((8, 600), ours));
        assert!(!may_talk((8, 7), ours));
    }
}
