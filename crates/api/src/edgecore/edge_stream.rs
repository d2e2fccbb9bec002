//! `modules.edgeStream` of `edgecore.yaml`.

use std::time::Duration;

use super::{Config, addresses, is_host_port};
use crate::document::Document;

/// Upstream's default of `server`, which is of use only where cloud and edge are one machine.
const NOWHERE: &str = "127.0.0.1:10004";
/// The port of the tunnel.
const PORT: u16 = 10004;
/// When the file names none.
const HANDSHAKE: Duration = Duration::from_secs(30);

/// What EdgeStream is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeStream {
    /// `host:port` of the tunnel: one cloudcore or several, which are tried in turn.
    pub servers: Vec<String>,
    /// For TCP, TLS and the upgrade together.
    pub handshake_timeout: Duration,
}

impl Config {
    /// `modules.edgeStream`, unless it is off: upstream's file says so, ours and one that leaves it out do not. It needs EdgeHub, which
    /// gets the certificate.
    pub fn edge_stream(&self) -> Option<EdgeStream> {
        let hub = self.edge_hub();
        if !self.document.flag("modules.edgeStream.enable") || !hub.enable {
            return None;
        }
        let servers = match self.document.text("modules.edgeStream.server").trim() {
            "" | NOWHERE => hub.servers.iter().map(|server| beside(server)).collect(),
            named => addresses(named),
        };
        let handshake_timeout = self.seconds("modules.edgeStream.handshakeTimeout");
        let handshake_timeout = if handshake_timeout.is_zero() { HANDSHAKE } else { handshake_timeout };
        Some(EdgeStream { servers, handshake_timeout })
    }
}

/// The same host, the tunnel's port.
fn beside(server: &str) -> String {
    let host = server.rsplit_once(':').map_or(server, |(host, _)| host);
    format!("{host}:{PORT}")
}

pub(super) fn validate(document: &mut Document) {
    let server = document.text("modules.edgeStream.server");
    let wrong = addresses(&server).into_iter().find(|address| !is_host_port(address));
    if let Some(wrong) = wrong.filter(|_| !server.trim().is_empty() && document.flag("modules.edgeStream.enable")) {
        let why = format!("{wrong:?} is not host:port; leave it empty for port {PORT} of EdgeHub's servers");
        document.mistake("modules.edgeStream.server", &why);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn read(text: &str) -> Option<EdgeStream> {
        Config::parse(text, Path::new("edgecore.yaml")).expect("a configuration").edge_stream()
    }

    #[test]
    fn it_is_on_unless_the_file_says_no() {
        let default = read("").expect("on");
        assert_eq!(default.servers, ["127.0.0.1:10004"]);
        assert_eq!(default.handshake_timeout, Duration::from_secs(30));
        assert!(read("modules: {edgeStream: {enable: true, handshakeTimeout: 0}}") == Some(default));
        assert_eq!(read("modules: {edgeStream: {enable: false}}"), None);
        assert_eq!(read("modules: {edgeHub: {enable: false}}"), None);
    }

    #[test]
    fn it_finds_its_server_beside_the_hub() {
        let hub = "edgeHub: {websocket: {server: 'cloud:10000, [2001:db8::1]:11000'}}";
        for own in ["{}", "{server: '127.0.0.1:10004'}", "{server: ''}"] {
            let found = read(&format!("modules: {{{hub}, edgeStream: {own}}}")).expect("on");
            assert_eq!(found.servers, ["cloud:10004", "[2001:db8::1]:10004"], "{own}");
        }
        let named = read(&format!("modules: {{{hub}, edgeStream: {{server: 'a:1, b:2'}}}}")).expect("on");
        assert_eq!(named.servers, ["a:1", "b:2"]);
        let wrong = Config::parse("modules: {edgeStream: {server: 'a:1, b'}}", Path::new("x"));
        assert!(wrong.expect_err("no port").to_string().contains("modules.edgeStream.server: \"b\""));
    }
}
