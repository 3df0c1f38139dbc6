//! A certificate and its key in files that somebody else renews.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::bundle::Bundle;

/// A chain of a few certificates is a few KiB.
const MAX_FILE: u64 = 1 << 20;

/// Where they are. Links are followed at each look, so that whole directories may be swapped.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CertFiles {
    /// PEM, leaf first.
    pub cert: PathBuf,
    /// PEM.
    pub key: PathBuf,
}

/// What a file system says of both: when this changes, they are worth reading. Two equal ones may still hide a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp([Option<[i64; 5]>; 2]);

/// Both files as they were read.
#[derive(Debug)]
pub struct FromFiles {
    /// What they hold.
    pub bundle: Bundle,
    /// Of both contents: the same for the same bytes.
    pub digest: [u8; 32],
}

impl CertFiles {
    /// Reads both and proves that they belong together. Blocking; 1 MiB of each at most. The error is for a person.
    pub fn read(&self) -> Result<FromFiles, String> {
        let (chain, key) = (text(&self.cert)?, text(&self.key)?);
        let bundle = Bundle::from_pem(&chain, &key)
            .map_err(|error| format!("{} and {}: {error}", self.cert.display(), self.key.display()))?;
        let digest = Sha256::new().chain_update(&chain).chain_update([0]).chain_update(&key).finalize();
        Ok(FromFiles { bundle, digest: digest.into() })
    }

    /// Looks at both without reading them. Blocking.
    pub fn stamp(&self) -> Stamp {
        Stamp([&self.cert, &self.key].map(|path| std::fs::metadata(path).ok().map(|meta| marks(&meta))))
    }
}

fn marks(meta: &Metadata) -> [i64; 5] {
    [
        meta.dev().cast_signed(),
        meta.ino().cast_signed(),
        meta.size().cast_signed(),
        meta.mtime(),
        meta.mtime_nsec(),
    ]
}

fn text(path: &Path) -> Result<String, String> {
    let failed = |reason: String| format!("cannot read {}: {reason}", path.display());
    let file = File::open(path).map_err(|e| failed(e.to_string()))?;
    let mut text = String::new();
    let size = file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|e| failed(e.to_string()))?;
    if size as u64 > MAX_FILE {
        return Err(failed("it is larger than 1 MiB, which no certificate is".to_owned()));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_files_is_said_with_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let files = CertFiles { cert: dir.path().join("cert.pem"), key: dir.path().join("key.pem") };
        assert!(files.read().unwrap_err().contains("cert.pem: No such file"));
        let pair = |host: &str| {
            let key = rcgen::KeyPair::generate().unwrap();
            let params = rcgen::CertificateParams::new(vec![host.to_owned()]).unwrap();
            (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
        };
        let ((chain, key), (_, other)) = (pair("a.example"), pair("b.example"));
        std::fs::write(&files.cert, &chain).unwrap();
        std::fs::write(&files.key, &other).unwrap();
        let before = files.stamp();
        assert!(files.read().unwrap_err().contains("does not belong"));
        std::fs::write(&files.key, format!("{key}\n")).unwrap();
        assert_ne!(files.stamp(), before);
        let read = files.read().unwrap();
        assert_eq!(read.bundle.names().len(), 1);
        assert_eq!(files.read().unwrap().digest, read.digest);
        std::fs::write(&files.cert, vec![b'x'; (1 << 20) + 1]).unwrap();
        assert!(files.read().unwrap_err().contains("larger than 1 MiB"));
    }
}
