//! The keys and certificates of the embedded Kubernetes: its CA, its serving certificate, the key that signs ServiceAccount
//! tokens, and kubeconfigs with client certificates. Everything secret is in the data directory with mode 0600.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use link::ca::{CaError, CertificateAuthority, Issued};
use link::files::{FileError, read_bounded, write_private};
use link::tls::Certificate;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The CA's name.
const CA_NAME: &str = "ferroedge-kubernetes";
const CA_CERTIFICATE: &str = "kubernetes-ca.crt";
const CA_KEY: &str = "kubernetes-ca.key";
const TOKEN_KEY: &str = "service-account.key";
/// Files of this directory are small.
const FILE_LIMIT: u64 = 64 * 1024;
/// The name and group of the API server as a client of kubelets.
const KUBELET_CLIENT: (&str, &str) = ("kube-apiserver-kubelet-client", "system:masters");
/// How long a client certificate is good for; each start issues new ones, and so does [`Kubeconfigs::renew`].
const CLIENT_VALIDITY: Duration = Duration::from_secs(365 * 24 * 3600);
/// When new ones are issued: long before the old ones end.
const RENEWAL: Duration = Duration::from_secs(CLIENT_VALIDITY.as_secs() / 3);
/// After a renewal that failed.
const RENEWAL_RETRY: Duration = Duration::from_secs(3600);
/// The names under which the API server is known, besides its addresses.
const SERVER_NAMES: [&str; 6] = [
    "localhost",
    "127.0.0.1",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];

/// The keys could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("{0}")]
    File(String, #[source] FileError),
    /// A certificate or key could not be made or used.
    #[error("{0}")]
    Certificate(&'static str, #[source] CaError),
    /// A stored file is not what it should be.
    #[error("{0} is damaged: restore it from a backup, or remove the data directory to start anew")]
    Damaged(PathBuf),
}

/// The keys of one installation.
pub struct Pki {
    authority: CertificateAuthority,
    /// SEC 1 DER of the key that signs ServiceAccount tokens.
    pub token_key: Vec<u8>,
}

impl Pki {
    /// Reads the keys from the data directory, or makes them.
    ///
    /// # Errors
    /// The directory cannot be used or a file in it is damaged.
    pub fn open(dir: &Path) -> Result<Self, PkiError> {
        let authority = match (read(dir, CA_CERTIFICATE)?, read(dir, CA_KEY)?) {
            (Some(certificate), Some(key)) => {
                let certificate = from_pem(&certificate).ok_or_else(|| PkiError::Damaged(dir.join(CA_CERTIFICATE)))?;
                let key = from_pem(&key).ok_or_else(|| PkiError::Damaged(dir.join(CA_KEY)))?;
                CertificateAuthority::from_der(certificate, &key).map_err(|_| PkiError::Damaged(dir.join(CA_KEY)))?
            }
            (None, None) => {
                let made = CertificateAuthority::generate_named(CA_NAME, None)
                    .map_err(|e| PkiError::Certificate("making the CA of the API server failed", e))?;
                // The key first: without its certificate it is simply made anew after a crash.
                write(dir, CA_KEY, &pem("EC PRIVATE KEY", made.key()))?;
                write(dir, CA_CERTIFICATE, &pem("CERTIFICATE", made.certificate()))?;
                made
            }
            (None, Some(_)) => {
                // A crash between the two writes above; nothing was issued yet.
                std::fs::remove_file(dir.join(CA_KEY)).map_err(|_| PkiError::Damaged(dir.join(CA_KEY)))?;
                return Self::open(dir);
            }
            (Some(_), None) => return Err(PkiError::Damaged(dir.join(CA_KEY))),
        };
        let token_key = match read(dir, TOKEN_KEY)? {
            Some(text) => from_pem(&text).ok_or_else(|| PkiError::Damaged(dir.join(TOKEN_KEY)))?,
            None => {
                let made = authority
                    .issue_client("service-account-signer", "", CLIENT_VALIDITY)
                    .map_err(|e| PkiError::Certificate("making the key for tokens failed", e))?;
                write(dir, TOKEN_KEY, &pem("EC PRIVATE KEY", &made.key))?;
                made.key
            }
        };
        Ok(Self { authority, token_key })
    }

    /// The CA certificate, DER.
    pub fn ca_der(&self) -> &[u8] {
        self.authority.certificate()
    }

    /// The CA certificate, PEM.
    pub fn ca_pem(&self) -> String {
        pem("CERTIFICATE", self.authority.certificate())
    }

    /// A serving certificate for the usual names, the listening address and these further names.
    ///
    /// # Errors
    /// A name cannot stand in a certificate.
    pub fn server(&self, listen: IpAddr, further: &[String]) -> Result<Issued, PkiError> {
        let mut names: Vec<String> = SERVER_NAMES.iter().map(|n| (*n).to_owned()).collect();
        if !listen.is_unspecified() {
            names.push(listen.to_string());
        }
        names.extend(further.iter().cloned());
        names.sort();
        names.dedup();
        self.authority
            .issue_server("kube-apiserver", CA_NAME, &names)
            .map_err(|e| PkiError::Certificate("issuing the API server's certificate failed", e))
    }

    /// A fresh certificate with which the API server shows itself to kubelets.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn kubelet_client(&self) -> Result<Arc<Certificate>, PkiError> {
        let issued = self.issue_client(KUBELET_CLIENT.0, KUBELET_CLIENT.1)?;
        Ok(Arc::new(Certificate { certificate: issued.certificate, key: issued.key }))
    }

    fn issue_client(&self, user: &str, group: &str) -> Result<Issued, PkiError> {
        self.authority
            .issue_client(user, group, CLIENT_VALIDITY)
            .map_err(|e| PkiError::Certificate("issuing a client certificate failed", e))
    }

    /// Writes a kubeconfig with a fresh client certificate for this user and group.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_kubeconfig(&self, path: &Path, server: SocketAddr, user: &str, group: &str) -> Result<(), PkiError> {
        let issued = self.issue_client(user, group)?;
        let text = kubeconfig(
            server,
            &self.ca_pem(),
            user,
            &pem("CERTIFICATE", &issued.certificate),
            &pem("EC PRIVATE KEY", &issued.key),
        );
        write_private(path, text.as_bytes()).map_err(|e| PkiError::File("the kubeconfig cannot be written".into(), e))
    }
}

/// The client certificates of one installation, most of them in kubeconfigs.
pub struct Kubeconfigs {
    /// Issues their certificates.
    pub pki: Pki,
    /// Where the API is served.
    pub server: SocketAddr,
    /// File, user and group of each.
    pub files: Vec<(PathBuf, &'static str, &'static str)>,
    /// The certificate for kubelets, which is in no file.
    pub kubelet_client: watch::Sender<Arc<Certificate>>,
}

impl Kubeconfigs {
    /// Writes all of them with fresh certificates.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self) -> Result<(), PkiError> {
        self.files.iter().try_for_each(|(path, user, group)| self.pki.write_kubeconfig(path, self.server, user, group))
    }

    /// Writes them anew as long as it runs, well before their certificates end, and tells each time.
    pub async fn renew(self, renewed: watch::Sender<()>, stop: CancellationToken) {
        let mut pause = RENEWAL;
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
            match self.write().and_then(|()| self.pki.kubelet_client()) {
                Ok(for_kubelets) => {
                    info!("the kubeconfigs have new client certificates");
                    self.kubelet_client.send_replace(for_kubelets);
                    pause = RENEWAL;
                    renewed.send_replace(());
                }
                Err(error) => {
                    warn!(error = &error as &dyn std::error::Error, "client certificates not renewed; trying again");
                    pause = RENEWAL_RETRY;
                }
            }
        }
    }
}

fn kubeconfig(server: SocketAddr, ca: &str, user: &str, certificate: &str, key: &str) -> String {
    let host = match server.ip() {
        ip if ip.is_unspecified() => "127.0.0.1".to_owned(),
        IpAddr::V6(ip) => format!("[{ip}]"),
        IpAddr::V4(ip) => ip.to_string(),
    };
    let encode = |text: &str| STANDARD.encode(text);
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: ferroedge\n  cluster:\n    server: https://{host}:{port}\n    \
         certificate-authority-data: {ca}\nusers:\n- name: {user}\n  user:\n    client-certificate-data: {certificate}\n    \
         client-key-data: {key}\ncontexts:\n- name: ferroedge\n  context:\n    cluster: ferroedge\n    user: {user}\n\
         current-context: ferroedge\npreferences: {{}}\n",
        port = server.port(),
        ca = encode(ca),
        certificate = encode(certificate),
        key = encode(key),
    )
}

fn read(dir: &Path, name: &str) -> Result<Option<String>, PkiError> {
    let path = dir.join(name);
    if !path.exists() {
        return Ok(None);
    }
    let bytes = read_bounded(&path, FILE_LIMIT).map_err(|e| PkiError::File(format!("{name} cannot be read"), e))?;
    String::from_utf8(bytes).map(Some).map_err(|_| PkiError::Damaged(path))
}

fn write(dir: &Path, name: &str, text: &str) -> Result<(), PkiError> {
    write_private(&dir.join(name), text.as_bytes()).map_err(|e| PkiError::File(format!("{name} cannot be written"), e))
}

/// A PEM block.
pub fn pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        text.extend(line.iter().map(|b| char::from(*b)));
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

fn from_pem(text: &str) -> Option<Vec<u8>> {
    let body: String = text
        .lines()
        .skip_while(|l| !l.starts_with("-----BEGIN"))
        .skip(1)
        .take_while(|l| !l.starts_with("-----END"))
        .collect();
    STANDARD.decode(body).ok().filter(|der| !der.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_start_finds_the_keys_of_the_first() {
        let dir = tempfile::tempdir().expect("dir");
        let first = Pki::open(dir.path()).expect("first");
        let second = Pki::open(dir.path()).expect("second");
        assert_eq!(first.ca_der(), second.ca_der());
        assert_eq!(first.token_key, second.token_key);
        std::fs::write(dir.path().join(CA_KEY), "nonsense").expect("write");
        assert!(matches!(Pki::open(dir.path()), Err(PkiError::Damaged(path)) if path.ends_with(CA_KEY)));
    }

    #[tokio::test(start_paused = true)]
    async fn kubeconfigs_are_renewed_before_their_certificates_end() {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("admin.kubeconfig");
        let files = vec![(file.clone(), "admin", "system:masters")];
        let pki = Pki::open(dir.path()).expect("keys");
        let kubelet_client = watch::Sender::new(pki.kubelet_client().expect("issued"));
        let mut for_kubelets = kubelet_client.subscribe();
        let configs = Kubeconfigs { pki, server: "127.0.0.1:6443".parse().expect("address"), files, kubelet_client };
        configs.write().expect("written");
        let read = || std::fs::read_to_string(&file).expect("there");
        let first = read();
        let (sender, mut renewed) = watch::channel(());
        let began = tokio::time::Instant::now();
        let renewal = configs.renew(sender, CancellationToken::new());
        let look = async {
            renewed.changed().await.expect("told");
            assert!(began.elapsed() < CLIENT_VALIDITY / 2);
            let second = read();
            assert_ne!(first, second);
            assert!(for_kubelets.has_changed().expect("there"), "the one for kubelets too");
            for_kubelets.mark_unchanged();
            renewed.changed().await.expect("told again");
            assert_ne!(second, read());
        };
        tokio::select! {
            () = renewal => panic!("it goes on"),
            () = look => {}
        }
    }

    #[test]
    fn pem_round_trip() {
        let der: Vec<u8> = (0..=200).collect();
        assert_eq!(from_pem(&pem("X", &der)), Some(der));
        assert_eq!(from_pem("nothing"), None);
    }
}
