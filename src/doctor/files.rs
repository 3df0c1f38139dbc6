//! Files and directories: rights, durability, room. Secrets and roots readable.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::finding::{About, Finding, Note};
use crate::config::{AcmePlan, IssuerPlan, Plan};
use crate::dns::{ProviderKind, ProviderSpec, VendorValue};
use crate::secret::SecretSource;

/// Below this no certificate may fit any more.
const LITTLE_ROOM: u64 = 16 << 20;
const SOME_ROOM: u64 = 128 << 20;
/// `/proc/self/mountinfo` of a machine with many containers.
const MAX_MOUNTS: usize = 8 << 20;

/// What the system says of the state directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StateFacts {
    pub(super) path: PathBuf,
    /// Of the directory; `None` if it does not exist yet.
    pub(super) rights: Option<Rights>,
    /// A file where a directory has to be.
    pub(super) in_the_way: Option<PathBuf>,
    /// Whether this user may write there (or, if it does not exist, make it).
    pub(super) writable: bool,
    pub(super) filesystem: Option<String>,
    /// Bytes that this user may still write.
    pub(super) free: Option<u64>,
    pub(super) uid: u32,
}

/// Mode and owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rights {
    pub(super) mode: u32,
    pub(super) uid: u32,
}

fn rights(path: &Path) -> Option<Rights> {
    let meta = fs::metadata(path).ok()?;
    Some(Rights { mode: meta.mode() & 0o777, uid: meta.uid() })
}

/// Looks, and makes nothing. Blocking.
pub(super) fn gather_state(path: &Path) -> StateFacts {
    let nearest = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let real = fs::canonicalize(nearest).unwrap_or_else(|_| nearest.to_owned());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    StateFacts {
        path: path.to_owned(),
        rights: rights(path),
        in_the_way: (!real.is_dir()).then(|| nearest.to_owned()),
        writable: rustix::fs::access(&real, access).is_ok(),
        filesystem: filesystem(mounts.get(..MAX_MOUNTS).unwrap_or(&mounts), &real),
        free: rustix::fs::statvfs(&real).ok().map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize)),
        uid: rustix::process::geteuid().as_raw(),
    }
}

/// The kind of file system that `path` lies on, by `/proc/self/mountinfo`: the longest mount point, the last of equal ones.
fn filesystem(mountinfo: &str, path: &Path) -> Option<String> {
    let mut best: Option<(usize, String)> = None;
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (Some(point), Some(kind)) = (left.split(' ').nth(4), right.split(' ').next()) else { continue };
        let point = PathBuf::from(point.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\"));
        let depth = point.components().count();
        if path.starts_with(&point) && best.as_ref().is_none_or(|(found, _)| depth >= *found) {
            best = Some((depth, kind.to_owned()));
        }
    }
    best.map(|(_, kind)| kind)
}

pub(super) fn judge_state(facts: &StateFacts) -> Vec<Finding> {
    let (about, path) = (About::State(facts.path.display().to_string()), facts.path.display());
    let mut notes = Vec::new();
    if let Some(file) = &facts.in_the_way {
        let what = format!("{} is a file, and {path} has to be a directory", file.display());
        notes.push(
            Note::failure("state.not-a-directory", what)
                .why("certificates, keys and accounts are kept in it: Starlock does not start without it")
                .fix("name a directory that is Starlock's alone: [storage] path = \"/var/lib/starlock\""),
        );
        // Rights and room of a file that is somebody else's are nothing to mend.
        return notes.into_iter().map(|note| note.place("[storage] path").about(&about)).collect();
    }
    if !facts.writable {
        let fix = match facts.rights {
            Some(rights) => format!("chown -R {} {path}, or run Starlock as uid {}", facts.uid, rights.uid),
            None => format!("install -d -m 0700 -o {} {path}", facts.uid),
        };
        notes.push(
            Note::failure("state.unwritable", format!("uid {} cannot write to {path}", facts.uid))
                .why("certificates, keys and accounts are kept there: Starlock does not start without it")
                .fix(fix),
        );
    }
    if let Some(rights) = facts.rights {
        if rights.mode & 0o077 != 0 {
            notes.push(
                Note::warning(
                    "state.rights",
                    format!("{path} has mode {:04o}, so others can look into it", rights.mode),
                )
                .why("private keys lie there")
                .fix(format!("chmod 0700 {path}")),
            );
        }
        if rights.uid != facts.uid && facts.uid != 0 {
            notes.push(
                Note::warning(
                    "state.owner",
                    format!("{path} belongs to uid {}, and this is uid {}", rights.uid, facts.uid),
                )
                .why("files that one of them writes may be out of the other's reach")
                .fix(format!(
                    "run the doctor as the user that Starlock runs as: sudo -u '#{}' starlock doctor",
                    rights.uid
                )),
            );
        }
    }
    if let Some(kind) =
        facts.filesystem.as_deref().filter(|kind| ["tmpfs", "ramfs", "overlay"].contains(kind))
    {
        let (what, fix) = match kind {
            "overlay" => (
                "in a container's own layer (overlay)",
                format!("mount a volume there: -v starlock-state:{path}"),
            ),
            _ => ("in memory", "put it on a disk: [storage] path = \"/var/lib/starlock\"".to_owned()),
        };
        notes.push(
            Note::warning("state.not-durable", format!("{path} lies {what}"))
                .why("certificates are lost with it and ordered again, and CAs limit that: five a week for one set of names at Let's Encrypt")
                .fix(fix),
        );
    }
    if let Some(free) = facts.free.filter(|free| *free < SOME_ROOM) {
        let full = free < LITTLE_ROOM;
        notes.push(
            Note::failure_if(full, "state.room", format!("{path} has room for {} MiB more", free >> 20))
                .why("a certificate that cannot be stored is lost, and the CA has counted it")
                .fix(format!("make room: df -h {path}")),
        );
    }
    if notes.is_empty() {
        let what = if facts.rights.is_some() { "is private, durable and has room" } else { "can be made" };
        notes.push(Note::ok("state.good", format!("{path} {what}")));
    }
    notes.into_iter().map(|note| note.place("[storage] path").about(&about)).collect()
}

/// What was seen of the configuration's own files.
#[derive(Clone, Debug, Default)]
pub(super) struct FileFacts {
    pub(super) config: PathBuf,
    pub(super) config_rights: Option<Rights>,
    pub(super) plain_secrets: usize,
    /// Each secret that lies elsewhere.
    pub(super) secrets: Vec<SecretFacts>,
}

/// A secret that the file only points to.
#[derive(Clone, Debug)]
pub(super) struct SecretFacts {
    pub(super) key: String,
    /// Why it cannot be read.
    pub(super) read: Result<(), String>,
    pub(super) file: Option<(PathBuf, Rights)>,
}

/// Reads every secret, and keeps none. Blocking.
pub(super) fn gather_files(config: &Path, plan: &Plan) -> FileFacts {
    let mut facts =
        FileFacts { config: config.to_owned(), config_rights: rights(config), ..FileFacts::default() };
    let mut seen: Vec<&SecretSource> = Vec::new();
    for certificate in &plan.certificates {
        let IssuerPlan::Acme(acme) = &certificate.issuer else { continue };
        for (key, source) in secrets(acme) {
            if seen.contains(&source) {
                continue;
            }
            seen.push(source);
            if matches!(source, SecretSource::Plain(_)) {
                facts.plain_secrets += 1;
                continue;
            }
            let read = source.resolve().map(drop).map_err(|error| error.to_string());
            let file = match source {
                SecretSource::File(path) => rights(path).map(|rights| (path.clone(), rights)),
                _ => None,
            };
            facts.secrets.push(SecretFacts { key, read, file });
        }
    }
    facts
}

/// The secrets that a certificate needs, by key.
fn secrets(acme: &AcmePlan) -> Vec<(String, &SecretSource)> {
    let bound = std::iter::once(&acme.acme).chain(&acme.fallback).filter_map(|spec| spec.eab.as_ref());
    let mut all: Vec<_> = bound.map(|eab| ("[acme] eab.hmac".to_owned(), &eab.hmac)).collect();
    let provider = acme.dns.iter().flat_map(provider_secrets);
    all.extend(provider.map(|(key, source)| (format!("[dns] {key}"), source)));
    all
}

/// The secrets of a provider, by key.
fn provider_secrets(dns: &ProviderSpec) -> Vec<(&str, &SecretSource)> {
    match &dns.kind {
        ProviderKind::Rfc2136 { secret, .. } => vec![("secret", secret)],
        ProviderKind::Httpreq { password, .. } => password.iter().map(|p| ("password", p)).collect(),
        ProviderKind::Vendor { keys, .. } => keys
            .iter()
            .filter_map(|(key, value)| match value {
                VendorValue::Secret(source) => Some((*key, source)),
                VendorValue::Text(_) => None,
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// `pointed`: what is wrong with what the file points to besides.
pub(super) fn judge_files(facts: &FileFacts, pointed: Vec<Note>) -> Vec<Finding> {
    let (about, path) = (About::Configuration(facts.config.display().to_string()), facts.config.display());
    let mut notes = pointed;
    if let Some(rights) =
        facts.config_rights.filter(|rights| rights.mode & 0o004 != 0 && facts.plain_secrets > 0)
    {
        notes.push(
            Note::warning(
                "config.secrets-exposed",
                format!("{path} holds secrets and everybody may read it (mode {:04o})", rights.mode),
            )
            .why("whoever has the secret can change your DNS")
            .fix(format!("chmod o-r {path}"))
            .place(path.to_string()),
        );
    }
    for SecretFacts { key, read, file } in &facts.secrets {
        if let Err(reason) = read {
            notes.push(
                Note::failure("secret.unreadable", reason.clone())
                    .why("Starlock does not start without it")
                    .fix("put the secret there, readable for the user that Starlock runs as; or name another place: { file = \"...\" }, { env = \"...\" }, { credential = \"...\" }")
                    .place(key.as_str()),
            );
        }
        if let Some((path, rights)) = file
            && rights.mode & 0o004 != 0
        {
            notes.push(
                Note::warning(
                    "secret.exposed",
                    format!("everybody may read the secret in {} (mode {:04o})", path.display(), rights.mode),
                )
                .why("whoever has the secret can change your DNS")
                .fix(format!("chmod 0600 {}", path.display()))
                .place(key.as_str()),
            );
        }
    }
    if notes.is_empty() {
        let many = facts.secrets.len();
        let what = if many == 0 { String::new() } else { format!(", and its secrets ({many}) can be read") };
        notes.push(Note::ok("config.good", format!("{path} is valid{what}")).place(path.to_string()));
    }
    notes.into_iter().map(|note| note.about(&about)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;

    const MOUNTS: &str = "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n22 21 0:5 / /run rw shared:2 - tmpfs tmpfs rw\n\
        23 21 0:6 / /var/lib/my\\040state rw - overlay overlay rw\n24 21 0:7 / /srv rw - tmpfs x rw\n25 24 8:2 / /srv rw - xfs y rw\n";

    #[test]
    fn the_innermost_mount_counts_and_the_last_of_equal_ones() {
        for (path, kind) in [
            ("/var/lib/starlock", "ext4"),
            ("/run/x", "tmpfs"),
            ("/running", "ext4"),
            ("/var/lib/my state/x", "overlay"),
            ("/srv/x", "xfs"),
        ] {
            assert_eq!(filesystem(MOUNTS, Path::new(path)).as_deref(), Some(kind), "{path}");
        }
    }

    #[test]
    fn the_state_directory_is_private_durable_and_has_room() {
        let good = || StateFacts {
            path: "/var/lib/starlock".into(),
            rights: Some(Rights { mode: 0o700, uid: 7 }),
            in_the_way: None,
            writable: true,
            filesystem: Some("ext4".into()),
            free: Some(1 << 40),
            uid: 7,
        };
        type Change = fn(&mut StateFacts);
        let cases: &[(Change, &str, Severity, &str)] = &[
            (|_| {}, "state.good", Severity::Ok, ""),
            (|f| f.rights = None, "state.good", Severity::Ok, ""),
            (|f| f.uid = 0, "state.good", Severity::Ok, ""),
            (|f| f.writable = false, "state.unwritable", Severity::Failure, "chown -R"),
            (
                |f| f.rights = Some(Rights { mode: 0o755, uid: 7 }),
                "state.rights",
                Severity::Warning,
                "chmod 0700 /var/lib/starlock",
            ),
            (|f| f.uid = 8, "state.owner", Severity::Warning, "sudo -u '#7' starlock doctor"),
            (
                |f| f.filesystem = Some("tmpfs".into()),
                "state.not-durable",
                Severity::Warning,
                "[storage] path",
            ),
            (
                |f| f.filesystem = Some("overlay".into()),
                "state.not-durable",
                Severity::Warning,
                "-v starlock-state:/var/lib/starlock",
            ),
            (|f| f.free = Some(100 << 20), "state.room", Severity::Warning, "df -h"),
            (|f| f.free = Some(1 << 20), "state.room", Severity::Failure, "df -h"),
            (
                |f| {
                    f.in_the_way = Some("/var/lib/starlock".into());
                    f.rights = Some(Rights { mode: 0o644, uid: 0 });
                    f.writable = false;
                },
                "state.not-a-directory",
                Severity::Failure,
                "name a directory",
            ),
        ];
        for (change, id, severity, fix) in cases {
            let mut facts = good();
            change(&mut facts);
            let findings = judge_state(&facts);
            assert_eq!(findings.len(), 1, "{findings:?}");
            let note = &findings[0].note;
            assert!((note.id, note.severity) == (id, *severity) && note.fix.contains(fix), "{note:?}");
        }
    }

    #[test]
    fn a_file_in_the_way_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        for (path, wanted) in [
            (file.clone(), Some(file.clone())),
            (file.join("state"), Some(file.clone())),
            (dir.path().join("state/below"), None),
        ] {
            assert_eq!(gather_state(&path).in_the_way, wanted, "{}", path.display());
        }
    }

    #[test]
    fn a_readable_file_is_only_wrong_with_secrets_in_it() {
        let facts = |mode, plain_secrets| FileFacts {
            config: "/etc/starlock.toml".into(),
            config_rights: Some(Rights { mode, uid: 0 }),
            plain_secrets,
            secrets: vec![],
        };
        let id = |facts: &FileFacts| judge_files(facts, vec![])[0].note.id;
        assert_eq!(id(&facts(0o644, 0)), "config.good");
        assert_eq!(id(&facts(0o640, 1)), "config.good");
        assert_eq!(id(&facts(0o644, 1)), "config.secrets-exposed");
        let mut unreadable = facts(0o600, 0);
        unreadable.secrets.push(SecretFacts {
            key: "[dns] token".into(),
            read: Err("gone".into()),
            file: None,
        });
        let note = judge_files(&unreadable, vec![]).remove(0).note;
        assert_eq!((note.id, note.place.as_str()), ("secret.unreadable", "[dns] token"));
    }
}
