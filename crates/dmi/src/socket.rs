//! Unix sockets of edgecore and of mappers.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixListener;
use tonic::transport::{Channel, Endpoint};

/// How long connecting may take; a unix socket answers at once or never.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A channel to the server at this path. It connects with its first call, and again after a failure.
///
/// # Errors
/// The path cannot be one of a socket.
pub fn channel(path: &str) -> Result<Channel, tonic::transport::Error> {
    Ok(Endpoint::from_shared(format!("unix://{path}"))?.connect_timeout(CONNECT_LIMIT).connect_lazy())
}

/// Creates the folder of a socket (0750) if it is not there.
///
/// # Errors
/// It cannot be created.
pub fn make_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    std::fs::DirBuilder::new().recursive(true).mode(0o750).create(folder)
}

/// Listens at this path, for the owner alone (0600). The folder is created (0750) if it is not there; a socket of before is replaced at
/// once, so that there is always one.
///
/// # Errors
/// The folder cannot be used, or something else than a socket has this path.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    make_folder(path)?;
    if std::fs::symlink_metadata(path).is_ok_and(|found| !is_socket(&found)) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is something that is no socket"));
    }
    let mut own = path.as_os_str().to_owned();
    own.push(format!(".{}", std::process::id()));
    let own = Path::new(&own);
    let _ = std::fs::remove_file(own);
    let listener = UnixListener::bind(own)?;
    std::fs::set_permissions(own, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(own, path)?;
    Ok(listener)
}

fn is_socket(found: &std::fs::Metadata) -> bool {
    std::os::unix::fs::FileTypeExt::is_socket(&found.file_type())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_of_before_is_replaced() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("sub/dmi.sock");
        let first = listen(&path).expect("free");
        let second = listen(&path).expect("replaced");
        drop(first);
        let (connected, accepted) = tokio::join!(tokio::net::UnixStream::connect(&path), second.accept());
        assert!(connected.is_ok() && accepted.is_ok());
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_file_is_not_replaced() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("dmi.sock");
        std::fs::write(&path, "mine").expect("written");
        assert!(listen(&path).is_err());
        assert_eq!(std::fs::read(&path).expect("there"), b"mine");
    }
}
