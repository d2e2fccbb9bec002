//! Addresses of names. The system looks them up, on threads of their own; a name server may hang, and nobody can end that.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

/// At a time.
const MAX_LOOKUPS: usize = 16;

static LOOKUPS: Semaphore = Semaphore::const_new(MAX_LOOKUPS);

/// The addresses of a host.
///
/// # Errors
/// It has none, or the system could not find out.
pub(crate) async fn addresses(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let host = host.to_owned();
    look_up(&LOOKUPS, move || (host.as_str(), port).to_socket_addrs().map(Iterator::collect)).await
}

/// Its permit is held until the lookup itself ends, even if nobody waits for it any more.
async fn look_up<T: Send + 'static>(
    limit: &'static Semaphore,
    lookup: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let permit = limit.acquire().await.map_err(io::Error::other)?;
    let looked_up = spawn_blocking(move || {
        let _permit = permit;
        lookup()
    });
    looked_up.await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn addresses_of_names_and_of_addresses() {
        for (host, expected) in [("127.0.0.1", "127.0.0.1:7"), ("::1", "[::1]:7")] {
            assert_eq!(addresses(host, 7).await.expect("an address"), [expected.parse().expect("an address")]);
        }
        assert!(addresses("localhost", 7).await.expect("known").iter().all(|address| address.ip().is_loopback()));
    }

    #[tokio::test]
    async fn a_lookup_that_hangs_counts_until_it_ends() {
        static ONE: Semaphore = Semaphore::const_new(1);
        let (end, ended) = mpsc::channel::<()>();
        let hangs = look_up(&ONE, move || {
            let _ = ended.recv();
            Ok(())
        });
        timeout(Duration::from_millis(50), hangs).await.expect_err("it hangs");
        assert_eq!(ONE.available_permits(), 0);
        drop(end);
        timeout(Duration::from_secs(30), look_up(&ONE, || Ok(()))).await.expect("in time").expect("looked up");
    }
}
