//! The probe over gRPC: `Check` of `grpc.health.v1.Health`, whose two messages are written out here.

use hyper::http::uri::PathAndQuery;
use tonic::{Code, Request, Status, client::Grpc, transport::Endpoint};
use tonic_prost::ProstCodec;

use super::USER_AGENT;
use crate::http::join_host_port;

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

const SERVING: i32 = 1;
/// Largest answer; a good one has two bytes.
const MAX_ANSWER: usize = 4 << 10;

/// Asks the server at this address. The error is the text of the event.
pub(super) async fn check(host: &str, port: u16, service: &str) -> Result<(), String> {
    let address = join_host_port(host, port);
    let connect = async {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?.user_agent(USER_AGENT)?;
        endpoint.connect().await
    };
    let channel = connect.await.map_err(|error| {
        let cause = innermost(&error);
        format!("error: failed to connect service at {address:?}: {cause}")
    })?;
    let mut client = Grpc::new(channel).max_decoding_message_size(MAX_ANSWER);
    let ready = client.ready().await;
    ready.map_err(|error| format!("error: failed to connect service at {address:?}: {}", innermost(&error)))?;
    let request = Request::new(HealthCheckRequest { service: service.to_owned() });
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec: ProstCodec<HealthCheckRequest, HealthCheckResponse> = ProstCodec::default();
    match client.unary(request, path, codec).await {
        Ok(answer) => healthy(answer.get_ref().status),
        Err(status) => Err(refusal(&status)),
    }
}

fn healthy(status: i32) -> Result<(), String> {
    let name = match status {
        SERVING => return Ok(()),
        0 => "UNKNOWN",
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        other => return Err(format!("service unhealthy (responded with \"{other}\")")),
    };
    Err(format!("service unhealthy (responded with {name:?})"))
}

fn refusal(status: &Status) -> String {
    match status.code() {
        Code::Unimplemented => format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
            status.message()
        ),
        code => format!("error: health rpc probe failed: rpc error: code = {code:?} desc = {}", status.message()),
    }
}

/// What lies at the bottom of an error of the transport: `Connection refused`.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
