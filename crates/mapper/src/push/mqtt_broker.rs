//! Pushing to an MQTT broker: the client of crate `mqtt`, which connects again by itself and has a bounded queue.

use std::time::Duration;

use mqtt::{Client, ClientConfig, StartError};

use super::PushError;

/// Without a port in the address.
const USUAL_PORT: u16 = 1883;
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Host and port of `tcp://HOST:PORT`, `mqtt://HOST:PORT` or `HOST:PORT`.
pub(super) fn address(address: &str) -> Result<(String, u16), PushError> {
    let wrong = || PushError::Address("mqtt", address.to_owned(), "address: write tcp://HOST:PORT");
    let rest = match address.split_once("://") {
        None => address,
        Some(("tcp" | "mqtt", rest)) => rest,
        Some(("ssl" | "tls" | "mqtts" | "tcps", _)) => return Err(PushError::Tls("mqtt", address.to_owned())),
        Some(_) => return Err(wrong()),
    };
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| wrong())?),
        _ => (rest, USUAL_PORT),
    };
    let host = host.trim_matches(['[', ']']);
    if host.is_empty() || host.contains(['/', '@']) {
        return Err(wrong());
    }
    Ok((host.to_owned(), port))
}

pub(super) fn connect(host: &str, port: u16) -> Result<Client, StartError> {
    let config = ClientConfig {
        host: host.to_owned(),
        port,
        tls: None,
        client_id: format!("mapper-{}", uuid::Uuid::new_v4()),
        keep_session: false,
        user: None,
        keep_alive: KEEP_ALIVE,
        connect_timeout: KEEP_ALIVE,
    };
    // Nothing is subscribed, so nothing comes.
    Client::start(config, &[]).map(|(client, _)| client)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let table = [
            ("tcp://127.0.0.1:1884", Some(("127.0.0.1", 1884))),
            ("mqtt://broker", Some(("broker", 1883))),
            ("broker:99", Some(("broker", 99))),
            ("tcp://[::1]:1883", Some(("::1", 1883))),
            ("[::1]", Some(("::1", 1883))),
            ("ws://broker:80", None),
            ("tcp://:1883", None),
            ("tcp://broker:x", None),
            ("tcp://broker:1883/path", None),
        ];
        for (text, expected) in table {
            let found = address(text).ok();
            assert_eq!(found, expected.map(|(host, port)| (host.to_owned(), port)), "{text}");
        }
        assert!(matches!(address("ssl://broker:8883"), Err(PushError::Tls(..))));
    }
}
