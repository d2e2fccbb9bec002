//! The three files of a node's identity: read, checked, and replaced so that a power cut never parts a certificate from its key.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use link::files::{FileError, read_bounded, to_pem, write_private};
use link::identity::Identity;
use link::key::to_sec1;
use link::rustls::pki_types::pem::PemObject;
use link::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use link::tls::Certificate;

use super::CertificateError;

/// No certificate or token is longer.
pub(super) const MAX_FILE: u64 = 64 << 10;

/// Where the files lie.
#[derive(Clone)]
pub(super) struct Files {
    pub(super) ca: PathBuf,
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
}

/// What is in them.
pub(super) struct Loaded {
    pub(super) ca: CertificateDer<'static>,
    pub(super) own: Certificate,
    pub(super) identity: Identity,
}

impl Files {
    /// The identity of this node; `None` when it has none yet. Whether it has expired is for the caller to look at.
    pub(super) fn load(&self, node: &str) -> Result<Option<Loaded>, CertificateError> {
        self.complete()?;
        self.read(node)
    }

    /// The same for one who must not touch the files: a replacement that was interrupted stays so.
    pub(super) fn read(&self, node: &str) -> Result<Option<Loaded>, CertificateError> {
        if [&self.ca, &self.cert, &self.key].iter().any(|path| !path.exists()) {
            return Ok(None);
        }
        let certificate = |path: &PathBuf| {
            CertificateDer::from_pem_slice(&read(path)?).map_err(|_| CertificateError::Pem(path.clone()))
        };
        let (ca, own) = (certificate(&self.ca)?, certificate(&self.cert)?);
        let key =
            PrivateKeyDer::from_pem_slice(&read(&self.key)?).map_err(|_| CertificateError::Pem(self.key.clone()))?;
        let key = to_sec1(key.secret_der()).map_err(|error| CertificateError::Key(self.key.clone(), error))?;
        let identity = Identity::read(&own).map_err(CertificateError::Unreadable)?;
        if identity.node() != Some(node) {
            return Err(self.other_node(&identity, node));
        }
        Ok(Some(Loaded { ca, own: Certificate { certificate: own, key }, identity }))
    }

    /// Replaces the identity. Certificate and key are first written beside the old ones; from the moment when both are there
    /// the new pair counts, and [`Files::complete`] finishes what a power cut leaves undone.
    pub(super) fn save(&self, ca: &[u8], certificate: &[u8], key: &[u8]) -> Result<(), CertificateError> {
        let write = |path: &Path, label: &str, der: &[u8]| {
            write_private(path, to_pem(label, der).as_bytes()).map_err(CertificateError::File)
        };
        write(&self.ca, "CERTIFICATE", ca)?;
        write(&next(&self.key), "EC PRIVATE KEY", key)?;
        write(&next(&self.cert), "CERTIFICATE", certificate)?;
        self.complete()
    }

    /// Finishes or undoes a replacement that was interrupted. The certificate is written last and renamed last, so that it
    /// tells how far it came.
    fn complete(&self) -> Result<(), CertificateError> {
        let (next_key, next_cert) = (next(&self.key), next(&self.cert));
        if !next_cert.exists() {
            if next_key.exists() {
                std::fs::remove_file(&next_key).map_err(|e| unwritten(&next_key, e))?;
            }
            return Ok(());
        }
        if next_key.exists() {
            rename(&next_key, &self.key)?;
        }
        rename(&next_cert, &self.cert)
    }

    pub(super) fn other_node(&self, identity: &Identity, node: &str) -> CertificateError {
        CertificateError::OtherNode {
            cert: self.cert.clone(),
            found: identity.common_name.clone(),
            node: node.to_owned(),
        }
    }
}

impl Loaded {
    pub(super) fn has_expired(&self) -> bool {
        SystemTime::now() > self.identity.not_after
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    read_bounded(path, MAX_FILE).map_err(CertificateError::File)
}

fn next(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".next");
    name.into()
}

/// Durable before the next step.
fn rename(from: &Path, to: &Path) -> Result<(), CertificateError> {
    let dir = to.parent().unwrap_or(Path::new("/"));
    std::fs::rename(from, to).and_then(|()| std::fs::File::open(dir)?.sync_all()).map_err(|e| unwritten(to, e))
}

fn unwritten(path: &Path, error: std::io::Error) -> CertificateError {
    CertificateError::File(FileError::Write(path.to_path_buf(), error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use link::ca::{CertificateAuthority, LONG_VALIDITY, node_request};
    use std::os::unix::fs::PermissionsExt;

    struct Pair {
        certificate: Vec<u8>,
        key: Vec<u8>,
    }

    fn files() -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().expect("dir");
        let at = |name: &str| dir.path().join("certs").join(name);
        let files = Files { ca: at("rootCA.crt"), cert: at("server.crt"), key: at("server.key") };
        (dir, files)
    }

    fn pair(ca: &CertificateAuthority) -> Pair {
        let request = node_request("n1").expect("request");
        let certificate = ca.sign_node(&request.request, "n1", &[2], LONG_VALIDITY).expect("signed").to_vec();
        Pair { certificate, key: request.key }
    }

    fn save(files: &Files, ca: &CertificateAuthority, pair: &Pair) {
        files.save(ca.certificate(), &pair.certificate, &pair.key).expect("saved");
    }

    /// Which pair is in force; the key must be the certificate's.
    fn loaded(files: &Files) -> Vec<u8> {
        let loaded = files.load("n1").expect("readable").expect("there");
        link::tls::client(&loaded.ca, Some(&loaded.own)).expect("the key is the certificate's");
        loaded.own.certificate.to_vec()
    }

    #[test]
    fn the_files_are_their_owners_alone_and_nothing_is_left_over() {
        let ca = CertificateAuthority::generate().expect("ca");
        let (_dir, files) = files();
        assert!(files.load("n1").expect("nothing yet").is_none());
        let one = pair(&ca);
        save(&files, &ca, &one);
        assert_eq!(loaded(&files), one.certificate);
        let dir = files.cert.parent().expect("dir");
        let entries: Vec<_> = std::fs::read_dir(dir).expect("dir").map(|entry| entry.expect("entry")).collect();
        assert_eq!(entries.len(), 3);
        for entry in entries {
            assert_eq!(entry.metadata().expect("metadata").permissions().mode() & 0o777, 0o600, "{entry:?}");
        }
        assert!(matches!(files.load("n2"), Err(CertificateError::OtherNode { .. })));
    }

    #[test]
    fn a_power_cut_at_any_moment_leaves_one_whole_pair() {
        let ca = CertificateAuthority::generate().expect("ca");
        let (old, new) = (pair(&ca), pair(&ca));
        let (key, cert) = (to_pem("EC PRIVATE KEY", &new.key), to_pem("CERTIFICATE", &new.certificate));
        for (step, expected) in [(0, &old), (1, &old), (2, &new), (3, &new)] {
            let (_dir, files) = files();
            save(&files, &ca, &old);
            if step >= 1 {
                write_private(&next(&files.key), key.as_bytes()).expect("key beside");
            }
            if step >= 2 {
                write_private(&next(&files.cert), cert.as_bytes()).expect("certificate beside");
            }
            if step >= 3 {
                std::fs::rename(next(&files.key), &files.key).expect("key in place");
            }
            assert_eq!(loaded(&files), expected.certificate, "cut after step {step}");
            assert!(!next(&files.key).exists() && !next(&files.cert).exists());
        }
    }
}
