//! `/exec`, `/attach`, `/portForward` and `/run`.
//!
//! SPDY goes to the runtime as it is, and so do the older WebSocket protocols, which the runtime speaks itself. `v4` and `v5`
//! WebSockets are translated (see `websocket`): only so the end of standard input can be told. kubectl's port-forward puts
//! SPDY into a WebSocket, which is unpacked.

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header};
use hyper_util::rt::TokioIo;
use link::http_server::Body;

use super::query::Query;
use super::websocket::{self, Remote};
use super::{Api, answer};
use crate::access::{Access, AccessError, ContainerName, ExecOptions};
use crate::streams::dial::passed_on;
use crate::streams::remote::{Streams, V4};
use link::remote_command::V5;
use link::splice::splice;

/// SPDY's frames in binary messages.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// Headers of the runtime's answer that the client needs.
const ANSWERED: [&str; 5] =
    ["connection", "upgrade", "x-stream-protocol-version", "sec-websocket-accept", "sec-websocket-protocol"];

/// What a stream leads to.
pub enum Target {
    /// A new process.
    Exec(ContainerName),
    /// A container's own process.
    Attach(ContainerName),
    /// Ports of a pod.
    PortForward {
        /// Namespace of the pod.
        namespace: String,
        /// The pod.
        pod: String,
        /// Its UID, when that very one is meant.
        uid: Option<String>,
    },
}

/// How a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// As the runtime does.
    Through,
    /// The remote command protocol over a WebSocket.
    Translate(&'static str),
    /// SPDY within a WebSocket.
    Unpack,
}

/// Runs a command to its end.
pub async fn run(access: &Access, name: &ContainerName, query: &Query) -> Response<Body> {
    let command: Vec<String> =
        query.get("cmd").unwrap_or_default().split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect();
    if command.is_empty() {
        return answer::text(StatusCode::BAD_REQUEST, "cmd: a command is needed, for example cmd=ls%20/");
    }
    let text = command.join(" ");
    match access.run_command(name, command).await {
        Ok((0, output)) => answer::text(StatusCode::OK, output),
        Ok((code, output)) => {
            answer::text(StatusCode::INTERNAL_SERVER_ERROR, format!("command '{text}' exited with {code}: {output}"))
        }
        Err(error) => answer::error(&error),
    }
}

/// Opens a stream: asks the runtime first, so that a refusal is a plain answer.
pub async fn stream(api: &Api, access: &Access, target: Target, query: &Query, request: Request<()>) -> Response<Body> {
    let way = match way(&request, matches!(target, Target::PortForward { .. })) {
        Ok(way) => way,
        Err(text) => return answer::text(StatusCode::BAD_REQUEST, text),
    };
    match open(api, access, &target, query, way, request).await {
        Ok(answer) => answer,
        Err(error) => answer::error(&error),
    }
}

async fn open(
    api: &Api,
    access: &Access,
    target: &Target,
    query: &Query,
    way: Way,
    request: Request<()>,
) -> Result<Response<Body>, AccessError> {
    let (url, streams) = match target {
        Target::Exec(name) => {
            let command: Vec<String> = query.all("command").map(str::to_owned).collect();
            if command.is_empty() {
                return Err(AccessError::Refused("command: a command is needed".into()));
            }
            let options = ExecOptions { command, streams: streams(query)? };
            (access.exec_url(name, &options).await?, options.streams)
        }
        Target::Attach(name) => {
            let streams = streams(query)?;
            (access.attach_url(name, streams).await?, streams)
        }
        Target::PortForward { namespace, pod, uid } => {
            let url = access.port_forward_url(namespace, pod, uid.as_deref(), ports(query)?).await?;
            (url, Streams::default())
        }
    };
    let idle = access.settings.streaming_idle_timeout;
    let stopping = access.stopping().clone();
    match way {
        Way::Through => {
            let upgraded = access.upgrade(&url, passed_on(request.headers())).await?;
            let mut answer = answer::empty(StatusCode::SWITCHING_PROTOCOLS);
            let passed = upgraded.head.headers.iter().filter(|(name, _)| ANSWERED.contains(&name.as_str()));
            answer.headers_mut().extend(passed.map(|(name, value)| (name.clone(), value.clone())));
            api.streams.spawn(stopping.run_until_cancelled_owned(async move {
                if let Ok(client) = hyper::upgrade::on(request).await {
                    splice(TokioIo::new(client), upgraded.io, idle).await;
                }
            }));
            Ok(answer)
        }
        Way::Translate(protocol) => {
            let session = access.session(&url, streams).await?;
            let answer = websocket::accept(request.headers(), Some(protocol))?;
            api.streams.spawn(stopping.run_until_cancelled_owned(async move {
                if let Ok(client) = hyper::upgrade::on(request).await {
                    Remote { session, streams, has_close: protocol == V5 }.run(client, idle).await;
                }
            }));
            Ok(answer)
        }
        Way::Unpack => {
            let headers = [
                ("connection", "Upgrade"),
                ("upgrade", "SPDY/3.1"),
                ("x-stream-protocol-version", "portforward.k8s.io"),
            ];
            let headers =
                headers.map(|(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_static(value)));
            let upgraded = access.upgrade(&url, HeaderMap::from_iter(headers)).await?;
            let answer = websocket::accept(request.headers(), Some(TUNNEL))?;
            api.streams.spawn(stopping.run_until_cancelled_owned(async move {
                if let Ok(client) = hyper::upgrade::on(request).await {
                    websocket::unpack(client, upgraded.io, idle).await;
                }
            }));
            Ok(answer)
        }
    }
}

fn way<B>(request: &Request<B>, port_forward: bool) -> Result<Way, String> {
    let headers = request.headers();
    let upgrade = headers.get(header::UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if request.version() != Version::HTTP_11 {
        return Err("streams need HTTP/1.1".into());
    }
    if upgrade.eq_ignore_ascii_case("SPDY/3.1") {
        return Ok(Way::Through);
    }
    if !upgrade.eq_ignore_ascii_case("websocket") || !headers.contains_key(header::SEC_WEBSOCKET_KEY) {
        return Err(
            "Upgrade request required: send \"Connection: Upgrade\" and \"Upgrade: SPDY/3.1\", or a WebSocket".into()
        );
    }
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let offered = offered.flat_map(|value| value.split(',').map(str::trim));
    let known = if port_forward { &[TUNNEL][..] } else { &[V5, V4] };
    let chosen = offered.into_iter().find_map(|name| known.iter().find(|known| **known == name));
    Ok(match chosen {
        Some(&TUNNEL) => Way::Unpack,
        Some(protocol) => Way::Translate(protocol),
        None => Way::Through,
    })
}

/// The kubelet's names of the streams: `input`, `output`, `error`, `tty`.
fn streams(query: &Query) -> Result<Streams, AccessError> {
    let flag = |name: &str| query.flag(name).map_err(AccessError::Refused);
    let streams = Streams { stdin: flag("input")?, stdout: flag("output")?, stderr: flag("error")?, tty: flag("tty")? };
    if !streams.stdin && !streams.stdout && !streams.stderr {
        let text = "you must specify at least 1 of stdin, stdout, stderr (input=1, output=1, error=1)";
        return Err(AccessError::Refused(text.into()));
    }
    Ok(streams)
}

fn ports(query: &Query) -> Result<Vec<i32>, AccessError> {
    let port = |text: &str| match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(i32::from(port)),
        _ => Err(AccessError::Refused(format!("port: {text:?} is no port"))),
    };
    query.all("port").flat_map(|ports| ports.split(',')).map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(headers: &[(&'static str, &'static str)], port_forward: bool) -> Result<Way, String> {
        let mut request = Request::new(());
        for (name, value) in headers {
            request.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        way(&request, port_forward)
    }

    #[test]
    fn how_a_client_speaks() {
        let socket = ("upgrade", "WebSocket");
        let key = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        let protocol = |names| ("sec-websocket-protocol", names);
        assert_eq!(asked(&[("upgrade", "spdy/3.1")], false), Ok(Way::Through));
        assert_eq!(asked(&[socket, key, protocol("v5.channel.k8s.io")], false), Ok(Way::Translate(V5)));
        assert_eq!(
            asked(&[socket, key, protocol("x, v4.channel.k8s.io,v5.channel.k8s.io")], false),
            Ok(Way::Translate(V4))
        );
        assert_eq!(asked(&[socket, key, protocol("base64.channel.k8s.io")], false), Ok(Way::Through));
        assert_eq!(asked(&[socket, key], false), Ok(Way::Through));
        assert_eq!(asked(&[socket, key, protocol(TUNNEL)], true), Ok(Way::Unpack));
        assert_eq!(asked(&[socket, key, protocol("v4.channel.k8s.io")], true), Ok(Way::Through));
        assert_eq!(asked(&[socket, key, protocol(TUNNEL)], false), Ok(Way::Through));
        for wrong in [&[][..], &[socket], &[("upgrade", "h2c")]] {
            assert!(asked(wrong, false).unwrap_err().starts_with("Upgrade request required"));
        }
    }

    #[test]
    fn streams_and_ports() {
        let query = |text: &str| Query::parse(text);
        let all = streams(&query("input=1&output=1&tty=1")).unwrap();
        assert_eq!(all, Streams { stdin: true, stdout: true, stderr: false, tty: true });
        assert!(streams(&query("tty=1")).unwrap_err().to_string().contains("at least 1 of"));
        assert_eq!(ports(&query("port=80&port=81,443")).unwrap(), [80, 81, 443]);
        assert_eq!(ports(&query("")).unwrap(), [0_i32; 0]);
        for wrong in ["port=0", "port=65536", "port=http", "port="] {
            assert!(ports(&query(wrong)).is_err(), "{wrong}");
        }
    }
}
