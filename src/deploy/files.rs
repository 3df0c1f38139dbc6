//! The four files, under the names that certbot made usual.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::DeploySpec;
use crate::certs::Exported;

/// A file of ours is never larger.
const MAX_FILE: u64 = 1024 * 1024;
const MAX_ACCOUNTS: u64 = 4 * 1024 * 1024;
const END: &str = "-----END CERTIFICATE-----";

/// Whether anything there is not as it should be. Blocking. The error is for a person.
pub(super) fn differ(dir: &Path, spec: &DeploySpec, pem: &Exported) -> Result<bool, String> {
    let owner = spec.owner.as_deref().map(owner).transpose()?;
    Ok(!contents(pem).iter().all(|(name, text)| is_there(&dir.join(name), text, spec.mode, owner)))
}

/// Writes all four. Blocking. The error is for a person.
pub(super) fn write(dir: &Path, spec: &DeploySpec, pem: &Exported) -> Result<(), String> {
    let owner = spec.owner.as_deref().map(owner).transpose()?;
    let files = contents(pem);
    let failed = |path: &Path, error: io::Error| {
        let hint = match error.kind() {
            io::ErrorKind::PermissionDenied => "; may the user that runs Starlock write there?",
            io::ErrorKind::ReadOnlyFilesystem => "; under systemd, ReadWritePaths= must name it",
            _ => "",
        };
        format!("{}: {error}{hint}", path.display())
    };
    DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(|e| failed(dir, e))?;
    let directory = File::open(dir).map_err(|e| failed(dir, e))?;
    // All are written before the first is put in place: readers see a pair that does not match for as long as four renames
    // take, and none that is cut off.
    let mut ready: Vec<(PathBuf, PathBuf)> = Vec::new();
    let written = files.iter().try_for_each(|(name, text)| {
        let temporary = dir.join(format!(".starlock-{:016x}", rand::random::<u64>()));
        ready.push((temporary.clone(), dir.join(name)));
        put(&temporary, text, spec.mode, owner).map_err(|e| failed(&dir.join(name), e))
    });
    let placed = written.and_then(|()| {
        ready.iter().try_for_each(|(from, to)| fs::rename(from, to).map_err(|e| failed(to, e)))
    });
    if let Err(error) = placed {
        for (temporary, _) in &ready {
            // Those that were renamed, or never made, are not there.
            drop(fs::remove_file(temporary));
        }
        return Err(error);
    }
    directory.sync_all().map_err(|e| failed(dir, e))
}

fn put(path: &Path, text: &str, mode: u32, owner: Option<(Option<u32>, Option<u32>)>) -> io::Result<()> {
    let mut file = OpenOptions::new().mode(0o600).create_new(true).write(true).open(path)?;
    file.write_all(text.as_bytes())?;
    if let Some((user, group)) = owner {
        std::os::unix::fs::fchown(&file, user, group)?;
    }
    // Not through `open`: the umask of the process has no say in it.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()
}

fn is_there(path: &Path, text: &str, mode: u32, owner: Option<(Option<u32>, Option<u32>)>) -> bool {
    let Ok(meta) = fs::metadata(path) else { return false };
    let owned = owner.is_none_or(|(user, group)| {
        user.is_none_or(|user| user == meta.uid()) && group.is_none_or(|group| group == meta.gid())
    });
    let mut found = String::new();
    meta.is_file()
        && meta.mode() & 0o7777 == mode
        && owned
        && File::open(path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut found)).is_ok()
        && found == text
}

/// The key first: a server that reads the chain has the key already.
fn contents(pem: &Exported) -> [(&'static str, String); 4] {
    let chain = pem.chain_pem.as_str();
    let split = chain.find(END).map_or(chain.len(), |at| (at + END.len() + 1).min(chain.len()));
    let (leaf, rest) = chain.split_at(split);
    [
        ("privkey.pem", pem.key_pem.expose().to_owned()),
        ("fullchain.pem", chain.to_owned()),
        ("cert.pem", leaf.to_owned()),
        ("chain.pem", rest.trim_start().to_owned()),
    ]
}

/// `user`, `user:group`, `:group` as numbers.
fn owner(text: &str) -> Result<(Option<u32>, Option<u32>), String> {
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    let find = |name: &str, file: &str, what: &str| -> Result<Option<u32>, String> {
        if name.is_empty() {
            return Ok(None);
        }
        if let Ok(number) = name.parse() {
            return Ok(Some(number));
        }
        let mut accounts = String::new();
        let read = File::open(file).and_then(|f| f.take(MAX_ACCOUNTS).read_to_string(&mut accounts));
        read.map_err(|e| format!("{file}: {e}"))?;
        accounts
            .lines()
            .map(|line| line.split(':'))
            .find_map(|mut fields| {
                (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
            })
            .map(Some)
            .ok_or_else(|| format!("`owner`: there is no {what} `{name}` in {file}"))
    };
    Ok((find(user, "/etc/passwd", "user")?, find(group, "/etc/group", "group")?))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::secret::Secret;

    fn spec(mode: u32, owner: Option<&str>) -> DeploySpec {
        let owner = owner.map(ToOwned::to_owned);
        DeploySpec { dir: None, run: Vec::new(), owner, mode, timeout: Duration::from_secs(1) }
    }

    fn pem(text: &str) -> Exported {
        let one = |n: u8| format!("-----BEGIN CERTIFICATE-----\n{text}{n}\n{END}\n");
        Exported { chain_pem: one(1) + &one(2), key_pem: Secret::new("key\n") }
    }

    #[test]
    fn four_files_are_written_once_and_mended_when_they_differ() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("a/b");
        let spec = spec(0o640, None);
        let mend = |text: &str| {
            assert_eq!(differ(&place, &spec, &pem(text)), Ok(true));
            assert_eq!(write(&place, &spec, &pem(text)), Ok(()));
            assert_eq!(differ(&place, &spec, &pem(text)), Ok(false));
        };
        mend("x");
        let read = |name: &str| fs::read_to_string(place.join(name)).unwrap();
        assert_eq!(read("cert.pem") + &read("chain.pem"), read("fullchain.pem"));
        assert_eq!(read("chain.pem").matches("BEGIN").count(), 1);
        assert_eq!(fs::metadata(place.join("privkey.pem")).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(fs::read_dir(&place).unwrap().count(), 4, "no temporary file is left");
        fs::set_permissions(place.join("cert.pem"), fs::Permissions::from_mode(0o600)).unwrap();
        mend("x");
        fs::remove_file(place.join("chain.pem")).unwrap();
        mend("x");
        mend("y");
        assert!(read("fullchain.pem").contains("y1"));
    }

    #[test]
    fn what_cannot_be_written_says_where_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("cert.pem")).unwrap();
        let error = write(dir.path(), &spec(0o600, None), &pem("x")).unwrap_err();
        assert!(error.contains("cert.pem"), "{error}");
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().starts_with('.')), "{left:?}");
        let error = write(dir.path(), &spec(0o600, Some("no-such-user")), &pem("x")).unwrap_err();
        assert!(error.contains("no user `no-such-user`"), "{error}");
    }

    #[test]
    fn owners_are_names_or_numbers() {
        assert_eq!(owner("root"), Ok((Some(0), None)));
        assert_eq!(owner("root:0"), Ok((Some(0), Some(0))));
        assert_eq!(owner(":root"), Ok((None, Some(0))));
        assert_eq!(owner("123:456"), Ok((Some(123), Some(456))));
    }
}
