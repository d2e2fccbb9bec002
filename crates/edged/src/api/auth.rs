//! Who may use the API.
//!
//! - `/healthz…` is for everybody.
//! - A bearer token: the content of a file below the agent's root folder that only root reads ([`Auth::token_file`]), made at
//!   the first start. It is read at each request, so that writing another token into it takes effect at once.
//! - A client certificate, over TLS: issued by the CA of the hub that this node trusts, for somebody in `system:masters`.
//!   A certificate of a node is refused, this node's own too: a node may not command another.
//!
//! The server's certificate is issued at each start by a CA of this node alone, whose certificate lies beside the token.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderMap, header};
use link::ca::{CaError, CertificateAuthority};
use link::files::{FileError, read_bounded, to_pem, write_private};
use link::http_server::Peer;
use link::identity::verify_client;
use link::rustls::ServerConfig;
use link::rustls::pki_types::pem::PemObject;
use link::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use link::tls::{Certificate, ClientAuth, TlsError, server};
use rand::RngExt;

use crate::settings::Settings;

/// The group whose certificates may do everything, in Kubernetes and here.
pub const MASTERS: &str = "system:masters";
/// No token, certificate or key is longer.
const MAX_FILE: u64 = 64 << 10;
/// Bytes of a token that is made here.
const TOKEN_BYTES: usize = 32;

/// Checks who asks.
#[derive(Debug)]
pub struct Auth {
    folder: PathBuf,
    client_ca: PathBuf,
}

/// Somebody may not.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Who is it?
    #[error("Unauthorized: {0}")]
    Unauthorized(String),
    /// It is known who, and that is the reason.
    #[error("Forbidden: {0}")]
    Forbidden(String),
}

/// The API has no secrets to begin with.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// A file cannot be read or written.
    #[error("a file of the API cannot be used")]
    File(#[from] FileError),
    /// A file holds something else.
    #[error("{} holds no usable PEM: remove it, and a new one is made at the next start", .0.display())]
    Pem(PathBuf),
    /// A certificate cannot be made.
    #[error("the API's certificate cannot be made")]
    Certificate(#[from] CaError),
    /// TLS refuses it.
    #[error("the API's certificate cannot be used")]
    Tls(#[from] TlsError),
}

impl Auth {
    /// As configured; nothing is read yet.
    pub fn new(settings: &Settings) -> Self {
        Self { folder: settings.root_dir.join("pki"), client_ca: settings.client_ca_file.clone() }
    }

    /// The file with the token.
    pub fn token_file(&self) -> PathBuf {
        self.folder.join("api-token")
    }

    /// The certificate of the CA that issues the server's.
    fn ca_file(&self) -> PathBuf {
        self.folder.join("api-ca.crt")
    }

    /// Makes what is missing and gives the server's TLS configuration.
    ///
    /// # Errors
    /// The folder cannot be written, or a file in it is damaged.
    pub fn prepare(&self, node: &str, addresses: &[IpAddr]) -> Result<Arc<ServerConfig>, AuthError> {
        if !self.token_file().exists() {
            let token: [u8; TOKEN_BYTES] = rand::rng().random();
            let token: String = token.iter().map(|byte| format!("{byte:02x}")).collect();
            write_private(&self.token_file(), token.as_bytes())?;
        }
        let ca = self.ca()?;
        let mut hosts = vec![node.to_owned(), "localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        hosts.extend(addresses.iter().map(ToString::to_string));
        let issued = ca.issue_server(node, "edged", &hosts)?;
        let own = Certificate { certificate: issued.certificate, key: issued.key };
        // Asked for without naming a CA and verified afterwards: so the answer can say what is wrong.
        Ok(server(&own, ClientAuth::Requested, &[b"http/1.1"])?)
    }

    fn ca(&self) -> Result<CertificateAuthority, AuthError> {
        let (certificate_file, key_file) = (self.ca_file(), self.folder.join("api-ca.key"));
        if certificate_file.exists() && key_file.exists() {
            let bad = |path: &Path| AuthError::Pem(path.to_path_buf());
            let certificate = read_certificate(&certificate_file)?.ok_or_else(|| bad(&certificate_file))?;
            let key = read_bounded(&key_file, MAX_FILE)?;
            let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| bad(&key_file))?;
            return Ok(CertificateAuthority::from_der(certificate.to_vec(), key.secret_der())?);
        }
        let ca = CertificateAuthority::generate_named("edged API of this node", None)?;
        write_private(&key_file, to_pem("EC PRIVATE KEY", ca.key()).as_bytes())?;
        write_private(&certificate_file, to_pem("CERTIFICATE", ca.certificate()).as_bytes())?;
        Ok(ca)
    }

    /// Whether this request may be answered.
    ///
    /// # Errors
    /// It may not; the text says how it might.
    pub fn check(&self, headers: &HeaderMap, peer: &Peer) -> Result<(), Denied> {
        if let Some(value) = headers.get(header::AUTHORIZATION) {
            let given = value.to_str().ok().and_then(|value| value.split_once(' '));
            let Some((_, given)) = given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")) else {
                return Err(Denied::Unauthorized(format!("use a bearer token; {}", self.cure())));
            };
            return self.check_token(given.trim());
        }
        match &peer.certificate {
            Some(certificate) => self.check_certificate(certificate),
            None => Err(Denied::Unauthorized(format!("neither a token nor a client certificate; {}", self.cure()))),
        }
    }

    fn check_token(&self, given: &str) -> Result<(), Denied> {
        let file = self.token_file();
        let known = read_bounded(&file, MAX_FILE).unwrap_or_default();
        let known = known.trim_ascii();
        if known.is_empty() {
            let text = format!(
                "{} cannot be read or is empty; remove it, and edgecore makes a new one at its next start",
                file.display()
            );
            return Err(Denied::Unauthorized(text));
        }
        if same(known, given.as_bytes()) {
            Ok(())
        } else {
            Err(Denied::Unauthorized(format!("the token is not the one in {}", file.display())))
        }
    }

    fn check_certificate(&self, certificate: &CertificateDer<'_>) -> Result<(), Denied> {
        let ca = read_certificate(&self.client_ca).ok().flatten().ok_or_else(|| {
            let text = format!(
                "client certificates cannot be checked without the hub's CA in {}; {}",
                self.client_ca.display(),
                self.cure()
            );
            Denied::Unauthorized(text)
        })?;
        let identity = verify_client(&ca, certificate, SystemTime::now()).map_err(|error| {
            let text = format!("{error} (CA: {}); {}", self.client_ca.display(), self.cure());
            Denied::Unauthorized(text)
        })?;
        let name = &identity.common_name;
        let is_node = identity.organisations.iter().any(|group| group == link::identity::NODE_GROUP);
        if is_node || name.starts_with(link::identity::NODE_PREFIX) {
            let text =
                format!("{name} is a node, and nodes may not use each other's API nor their own; {}", self.cure());
            return Err(Denied::Forbidden(text));
        }
        if identity.organisations.iter().any(|group| group == MASTERS) {
            return Ok(());
        }
        let groups = identity.organisations.join(", ");
        Err(Denied::Forbidden(format!("{name} (groups: {groups}) is not in {MASTERS}; {}", self.cure())))
    }

    fn cure(&self) -> String {
        format!(
            "send \"Authorization: Bearer TOKEN\" with the token in {} (root can read it), or use https and a client certificate of the hub's CA for group {MASTERS}",
            self.token_file().display()
        )
    }
}

/// `None` when the file holds no certificate.
fn read_certificate(path: &Path) -> Result<Option<CertificateDer<'static>>, FileError> {
    Ok(CertificateDer::from_pem_slice(&read_bounded(path, MAX_FILE)?).ok())
}

/// Compares in a time that tells only the length.
fn same(a: &[u8], b: &[u8]) -> bool {
    let differences = a.iter().zip(b).fold(0, |differences, (a, b)| differences | (a ^ b));
    std::hint::black_box(differences) == 0 && a.len() == b.len()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use link::ca::node_request;

    use super::*;

    struct Fixture {
        _directory: tempfile::TempDir,
        auth: Auth,
        hub: CertificateAuthority,
    }

    fn fixture() -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let mut settings = Settings::new("n1");
        settings.root_dir = directory.path().join("kubelet");
        settings.client_ca_file = directory.path().join("rootCA.crt");
        let hub = CertificateAuthority::generate().unwrap();
        std::fs::write(&settings.client_ca_file, to_pem("CERTIFICATE", hub.certificate())).unwrap();
        let auth = Auth::new(&settings);
        auth.prepare("n1", &["192.0.2.2".parse().unwrap()]).unwrap();
        Fixture { _directory: directory, auth, hub }
    }

    fn check(auth: &Auth, authorization: Option<&str>, certificate: Option<CertificateDer<'static>>) -> String {
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        }
        let peer = Peer { address: "127.0.0.1:1".parse().unwrap(), certificate };
        auth.check(&headers, &peer).err().map(|denied| denied.to_string()).unwrap_or_default()
    }

    #[test]
    fn the_token_of_the_file_and_no_other() {
        let Fixture { _directory, auth, .. } = fixture();
        let file = auth.token_file();
        let token = std::fs::read_to_string(&file).unwrap();
        assert_eq!(token.len(), 2 * TOKEN_BYTES);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(check(&auth, Some(&format!("Bearer {token}")), None), "");
        assert_eq!(check(&auth, Some(&format!("bearer  {token} ")), None), "");
        let path = file.display().to_string();
        for wrong in [&token[1..], "", &format!("{token}0"), &token.replace(&token[..1], "z")] {
            let text = check(&auth, Some(&format!("Bearer {wrong}")), None);
            assert_eq!(text, format!("Unauthorized: the token is not the one in {path}"), "{wrong}");
        }
        for (header, expected) in
            [(None, "neither a token nor a client certificate"), (Some("Basic eDp5"), "use a bearer token")]
        {
            let text = check(&auth, header, None);
            assert!(text.starts_with(&format!("Unauthorized: {expected}")) && text.contains(&path), "{text}");
        }
        // A start keeps what is there; another token takes effect at once, and none lets nobody in.
        auth.prepare("n1", &[]).unwrap();
        assert_eq!(check(&auth, Some(&format!("Bearer {token}")), None), "");
        std::fs::write(&file, "mine\n").unwrap();
        assert_eq!(check(&auth, Some("Bearer mine"), None), "");
        std::fs::write(&file, "\n").unwrap();
        assert!(check(&auth, Some("Bearer "), None).contains("remove it"));
    }

    #[test]
    fn certificates_of_masters_and_no_nodes() {
        let Fixture { _directory, auth, hub } = fixture();
        let hour = Duration::from_secs(3600);
        let of = |ca: &CertificateAuthority, name: &str, group: &str| {
            Some(ca.issue_client(name, group, hour).unwrap().certificate)
        };
        assert_eq!(check(&auth, None, of(&hub, "admin", MASTERS)), "");
        let text = check(&auth, None, of(&hub, "bob", "dev"));
        assert!(text.starts_with("Forbidden: bob (groups: dev) is not in system:masters; send "), "{text}");
        let request = node_request("n1").unwrap();
        let node = hub.sign_node(&request.request, "n1", &[2], hour).unwrap();
        let text = check(&auth, None, Some(node));
        assert!(text.starts_with("Forbidden: system:node:n1 is a node"), "{text}");
        assert!(check(&auth, None, of(&hub, "system:node:n1", MASTERS)).starts_with("Forbidden: "));
        let stranger = CertificateAuthority::generate().unwrap();
        let text = check(&auth, None, of(&stranger, "admin", MASTERS));
        assert!(text.starts_with("Unauthorized: the certificate of admin was not issued by this CA"), "{text}");
        // A good certificate does not help a wrong token.
        assert!(check(&auth, Some("Bearer x"), of(&hub, "admin", MASTERS)).starts_with("Unauthorized"));
        std::fs::remove_file(&auth.client_ca).unwrap();
        assert!(check(&auth, None, of(&hub, "admin", MASTERS)).contains("without the hub's CA"));
    }
}
