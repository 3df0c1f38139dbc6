//! What a state directory is like: whose it is, who may look into it, whether it lasts.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::StorageError;
use super::fs::io_error;

/// Narrows the rights of a directory that is ours. Warnings are for a person.
pub(super) fn narrow(path: &Path) -> Result<Vec<String>, StorageError> {
    let meta = fs::metadata(path).map_err(|e| io_error("cannot read the rights of", path, &e))?;
    let (mode, ours) = (meta.mode() & 0o777, rustix::process::geteuid().as_raw());
    if meta.uid() != ours {
        let owner = meta.uid();
        let text = format!(
            "the state directory {} belongs to uid {owner}, this process runs as {ours}",
            path.display()
        );
        return Ok(vec![text]);
    }
    let mut warnings: Vec<String> = foreign_value(path, ours)?.into_iter().collect();
    if mode & 0o077 == 0 {
        return Ok(warnings);
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
        .map_err(|e| io_error("cannot narrow the rights of", path, &e))?;
    let path = path.display();
    warnings
        .push(format!("the state directory {path} had mode {mode:04o} and holds private keys: set to 0700"));
    Ok(warnings)
}

/// The first value of somebody else's. It is served as far as it can be read; who wrote it can change it at any time.
fn foreign_value(path: &Path, ours: u32) -> Result<Option<String>, StorageError> {
    let mut foreign: Option<(PathBuf, u32)> = None;
    let mut count = 0usize;
    each_file(path, |path| {
        let owner = fs::symlink_metadata(path).map_or(ours, |meta| meta.uid());
        if owner != ours {
            count += 1;
            foreign.get_or_insert_with(|| (path.to_owned(), owner));
        }
        Ok(())
    })?;
    Ok(foreign.map(|(path, owner)| {
        let more = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
        format!(
            "{}{more} belongs to uid {owner}, this process runs as {ours}: that user can change it, and this process may not be \
             able to. Make it ours: chown -R {ours} {}",
            path.display(),
            path.display()
        )
    }))
}

/// A place that does not outlive the machine or the container.
pub(super) fn volatile(path: &Path) -> Option<String> {
    const TMPFS: i64 = 0x0102_1994;
    const RAMFS: i64 = 0x8584_58f6;
    const OVERLAY: i64 = 0x794c_7630;
    #[allow(clippy::unnecessary_cast, reason = "the type differs between targets")]
    let kind = rustix::fs::statfs(path).ok()?.f_type as i64;
    let name = match kind {
        TMPFS | RAMFS => "memory",
        OVERLAY => "a container's own layer",
        _ => return None,
    };
    let path = path.display();
    Some(format!(
        "the state directory {path} lies in {name}: certificates are lost with it and ordered again, which a CA limits; \
         mount a durable volume there"
    ))
}

/// Every file below `root`.
pub(super) fn each_file(
    root: &Path,
    mut look: impl FnMut(&Path) -> Result<(), StorageError>,
) -> Result<(), StorageError> {
    let mut stack = vec![root.to_path_buf()];
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(&dir).map_err(|e| io_error("cannot list", &dir, &e))? {
            let path = entry.map_err(|e| io_error("cannot list", &dir, &e))?.path();
            if path.is_dir() {
                stack.push(path);
            } else {
                look(&path)?;
            }
        }
    }
    Ok(())
}
