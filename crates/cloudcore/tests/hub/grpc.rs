//! The gRPC service for users' programs, against a stand-in for our own edge.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use cloudcore::cloudstream::grpc::v1::cloud_stream_client::CloudStreamClient;
use cloudcore::cloudstream::grpc::v1::{
    CloseStdin, ExecRequest, LogsRequest, LogsResponse, MetricsRequest, OpenLog, Page, StartExec, TerminalSize,
    exec_request, exec_response, logs_request, logs_response, metrics_response,
};
use futures_util::stream;
use http::StatusCode;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Streaming};

use crate::cloud::{Cloud, SOON};
use crate::edge::{Client, node_with_pod, own_edge};

const LOG: &str = "/containerLogs/default/p1/main";

async fn connect(client: &Client) -> Result<Channel> {
    let (address, mut tls) = (client.address, (*client.tls).clone());
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let tls = tokio_rustls::TlsConnector::from(Arc::new(tls));
    let dial = tower::service_fn(move |_| {
        let tls = tls.clone();
        async move {
            let tcp = tokio::net::TcpStream::connect(address).await?;
            let tls = tls.connect(address.ip().into(), tcp).await?;
            // The server has chosen HTTP/2.
            match tls.get_ref().1.alpn_protocol() {
                Some(b"h2") => Ok(TokioIo::new(tls)),
                _ => Err(std::io::Error::other("no h2")),
            }
        }
    });
    Ok(Endpoint::from_static("http://cloudcore").connect_with_connector(dial).await?)
}

fn by<T>(client: &Client, message: T) -> Result<Request<T>> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {}", client.token).parse()?);
    Ok(request)
}

async fn next<T>(stream: &mut Streaming<T>) -> Result<Option<T>> {
    Ok(tokio::time::timeout(SOON, stream.message()).await.context("nothing comes")??)
}

/// What the call fails with.
async fn failure<T>(stream: Result<tonic::Response<Streaming<T>>, tonic::Status>) -> Result<tonic::Status> {
    match stream {
        Err(status) => Ok(status),
        Ok(answer) => {
            let first = tokio::time::timeout(SOON, answer.into_inner().message()).await.context("nothing comes")?;
            first.err().context("it does not fail")
        }
    }
}

fn open(id: &str, pod: &str, container: &str, follow: bool) -> LogsRequest {
    let (namespace, pod, container) = ("default".to_owned(), pod.to_owned(), container.to_owned());
    let log = OpenLog { id: id.to_owned(), namespace, pod, container, follow, ..OpenLog::default() };
    LogsRequest { action: Some(logs_request::Action::Open(log)) }
}

fn start(container: &str, stdin: bool, tty: bool) -> ExecRequest {
    let (namespace, pod, container) = ("default".to_owned(), "p1".to_owned(), container.to_owned());
    let start = StartExec { namespace, pod, container, command: vec!["cat".into(), "a b&c".into()], stdin, tty };
    ExecRequest { action: Some(exec_request::Action::Start(start)) }
}

/// The end of a log: its id, and the code of what is wrong.
fn ended(answer: &LogsResponse) -> Option<(&str, Code, &str)> {
    let Some(logs_response::Content::End(end)) = &answer.content else { return None };
    let (code, text) = end.error.as_ref().map_or((0, ""), |error| (error.code, &error.text));
    Some((&answer.id, Code::from(code), text))
}

async fn started(node_online: bool) -> Result<(Cloud, Client, Arc<AtomicUsize>, Option<tokio::task::JoinSet<()>>)> {
    let cloud = Cloud::start().await?;
    let credentials = node_with_pod(&cloud, "n1", "p1").await?;
    let client = Client::new(&cloud).await?;
    let streams = Arc::<AtomicUsize>::default();
    if !node_online {
        return Ok((cloud, client, streams, None));
    }
    let edge = own_edge(&cloud, &credentials, "n1", streams.clone()).await?;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p2", "namespace": "default"},
        "spec": {"nodeName": "n1", "containers": [{"name": "main", "image": "i"}]},
    });
    cloud.create("/api/v1/namespaces/default/pods", &pod).await?;
    let is_up = || async { Ok(client.text(LOG, &[]).await?.0 == StatusCode::OK) };
    cloud.cluster.wait("the tunnel", SOON, is_up).await?;
    Ok((cloud, client, streams, Some(edge)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_logs_in_one_call_and_one_ends() -> Result<()> {
    let (_cloud, client, _, _edge) = started(true).await?;
    let mut calls = CloudStreamClient::new(connect(&client).await?);
    let (to, requests) = mpsc::channel(8);
    let requests = stream::unfold(requests, |mut requests| async { Some((requests.recv().await?, requests)) });
    to.send(open("endless", "p1", "main", true)).await?;
    to.send(open("short", "p2", "main", false)).await?;
    to.send(open("none", "p1", "missing", false)).await?;
    let mut answers = calls.logs(by(&client, requests)?).await?.into_inner();
    let (mut short, mut ends, mut endless) = (Vec::new(), Vec::new(), 0);
    while ends.len() < 2 || endless == 0 {
        let answer = next(&mut answers).await?.context("the call ended")?;
        if let Some((id, code, text)) = ended(&answer) {
            ends.push((id.to_owned(), code, text.to_owned()));
        } else if let Some(logs_response::Content::Data(data)) = answer.content {
            match &*answer.id {
                "short" => short.extend(data),
                "endless" => endless += data.len(),
                id => anyhow::bail!("data of {id}"),
            }
        }
    }
    ends.sort_by(|one, other| one.0.cmp(&other.0));
    ensure!(short == b"/containerLogs/default/p2/main", "{short:?}");
    ensure!(
        (&*ends[0].0, ends[0].1) == ("none", Code::NotFound) && ends[0].2.contains("container not found"),
        "{ends:?}"
    );
    ensure!((&*ends[1].0, ends[1].1) == ("short", Code::Ok), "{ends:?}");

    to.send(LogsRequest { action: Some(logs_request::Action::Close("endless".into())) }).await?;
    drop(to);
    loop {
        let answer = next(&mut answers).await?.context("the call ended before the log")?;
        if let Some((id, code, _)) = ended(&answer) {
            ensure!((id, code) == ("endless", Code::Ok));
            break;
        }
    }
    ensure!(next(&mut answers).await?.is_none());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_gets_its_input_and_its_exit_code_is_told() -> Result<()> {
    let (cloud, client, streams, _edge) = started(true).await?;
    let mut calls = CloudStreamClient::new(connect(&client).await?);
    let action = |action| ExecRequest { action: Some(action) };
    let requests = [
        start("main", true, true),
        action(exec_request::Action::Resize(TerminalSize { width: 80, height: 24 })),
        action(exec_request::Action::Stdin(vec![b'i'; 50_000])),
        action(exec_request::Action::CloseStdin(CloseStdin {})),
    ];
    let mut answers = calls.exec(by(&client, stream::iter(requests))?).await?.into_inner();
    let (mut output, mut errors, mut exit) = (Vec::new(), Vec::new(), None);
    while let Some(answer) = next(&mut answers).await? {
        match answer.content.context("empty")? {
            exec_response::Content::Stdout(bytes) => output.extend(bytes),
            exec_response::Content::Stderr(bytes) => errors.extend(bytes),
            exec_response::Content::Exit(found) => exit = Some(found),
        }
    }
    ensure!(output == vec![b'i'; 50_000], "{} bytes", output.len());
    ensure!(serde_json::from_slice::<serde_json::Value>(&errors)? == json!({"Width": 80, "Height": 24}));
    let exit = exit.context("no exit")?;
    ensure!(exit.code == 3 && exit.text.contains("exit code 3"), "{exit:?}");

    // Who goes away ends the command.
    let requests = stream::StreamExt::chain(stream::iter([start("main", true, false)]), stream::pending());
    let input = action(exec_request::Action::Stdin(b"there".to_vec()));
    let requests = stream::select(requests, stream::iter([input]));
    // A program of its own, so that its end is one of the connection.
    let program = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (tell, told) = tokio::sync::oneshot::channel();
    program.spawn(async move {
        let mut calls = CloudStreamClient::new(connect(&client).await?);
        let mut answers = calls.exec(by(&client, requests)?).await?.into_inner();
        let _ = tell.send(next(&mut answers).await?.is_some());
        std::future::pending::<Result<()>>().await
    });
    ensure!(told.await? && streams.load(Ordering::SeqCst) == 1);
    program.shutdown_background();
    let is_over = || async { Ok(streams.load(Ordering::SeqCst) == 0) };
    cloud.cluster.wait("the command to end", SOON, is_over).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_have_their_codes() -> Result<()> {
    let (cloud, client, _, _edge) = started(true).await?;
    let channel = connect(&client).await?;
    let mut calls = CloudStreamClient::new(channel.clone());
    let mut exec = async |client: &Client, request| {
        let requests = stream::StreamExt::chain(stream::iter([request]), stream::pending());
        failure(calls.exec(by(client, requests)?).await).await
    };
    let missing = exec(&client, start("missing", false, false)).await?;
    ensure!(missing.code() == Code::NotFound && missing.message().contains("node n1"), "{missing}");
    ensure!(exec(&client, start("../x", false, false)).await?.code() == Code::InvalidArgument);
    let first = ExecRequest { action: Some(exec_request::Action::Stdin(Vec::new())) };
    ensure!(exec(&client, first).await?.code() == Code::InvalidArgument);

    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "stranger"}});
    cloud.create("/api/v1/namespaces/default/serviceaccounts", &account).await?;
    let stranger = Client::of(&cloud, "stranger").await?;
    let denied = exec(&stranger, start("main", false, false)).await?;
    ensure!(denied.code() == Code::PermissionDenied && denied.message().contains("pods, subresource=exec"), "{denied}");
    let nobody = Client { token: "x".into(), ..client };
    ensure!(exec(&nobody, start("main", false, false)).await?.code() == Code::Unauthenticated);
    let all = calls.metrics(by(&stranger, MetricsRequest::default())?).await;
    ensure!(failure(all).await?.code() == Code::PermissionDenied);

    let mut logs = calls.logs(by(&stranger, stream::iter([open("a", "p1", "main", false)]))?).await?.into_inner();
    let answer = next(&mut logs).await?.context("no end")?;
    ensure!(ended(&answer).is_some_and(|(_, code, _)| code == Code::PermissionDenied), "{answer:?}");
    // The right for logs is that of Kubernetes, and gives no commands.
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "reads", "namespace": "default"},
        "rules": [{"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]}],
    });
    cloud.create("/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles", &role).await?;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "reader"}});
    cloud.create("/api/v1/namespaces/default/serviceaccounts", &account).await?;
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "reads", "namespace": "default"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reads"},
        "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": "default"}],
    });
    cloud.create("/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", &binding).await?;
    let reader = Client::of(&cloud, "reader").await?;
    let mut logs = calls.logs(by(&reader, stream::iter([open("a", "p1", "main", false)]))?).await?.into_inner();
    let answer = next(&mut logs).await?.context("nothing")?;
    ensure!(answer.content == Some(logs_response::Content::Data(LOG.into())), "{answer:?}");
    let requests = stream::iter([start("main", false, false)]);
    ensure!(failure(calls.exec(by(&reader, requests)?).await).await?.code() == Code::PermissionDenied);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_of_nodes_and_of_one_that_is_offline() -> Result<()> {
    let (_cloud, client, _, _edge) = started(true).await?;
    let mut calls = CloudStreamClient::new(connect(&client).await?);
    let asked = MetricsRequest { page: Page::Resource.into(), ..MetricsRequest::default() };
    let mut answers = calls.metrics(by(&client, asked.clone())?).await?.into_inner();
    let answer = next(&mut answers).await?.context("no node")?;
    let page = metrics_response::Result::Content(b"/metrics/resource".to_vec());
    ensure!(answer.node == "n1" && answer.time.is_some() && answer.result == Some(page.clone()), "{answer:?}");
    ensure!(next(&mut answers).await?.is_none());

    let asked = MetricsRequest { nodes: vec!["n1".into(), "n2".into()], ..asked };
    let mut answers = calls.metrics(by(&client, asked)?).await?.into_inner();
    let mut found = Vec::new();
    while let Some(answer) = next(&mut answers).await? {
        found.push((answer.node, answer.result.context("no result")?));
    }
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    ensure!(found.len() == 2 && found[0] == ("n1".to_owned(), page), "{found:?}");
    let metrics_response::Result::Error(error) = &found[1].1 else { anyhow::bail!("{found:?}") };
    ensure!(
        Code::from(error.code) == Code::Unavailable && error.text.contains("node n2 has not connected"),
        "{error:?}"
    );
    let too_often = MetricsRequest { interval_seconds: 1, ..MetricsRequest::default() };
    ensure!(failure(calls.metrics(by(&client, too_often)?).await).await?.code() == Code::InvalidArgument);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_tunnel_is_unavailable() -> Result<()> {
    let (_cloud, client, ..) = started(false).await?;
    let mut calls = CloudStreamClient::new(connect(&client).await?);
    let status = failure(calls.exec(by(&client, stream::iter([start("main", false, false)]))?).await).await?;
    ensure!(status.code() == Code::Unavailable && status.message().contains("node n1 has not connected"), "{status}");
    let mut logs = calls.logs(by(&client, stream::iter([open("a", "none", "main", false)]))?).await?.into_inner();
    let answer = next(&mut logs).await?.context("no end")?;
    ensure!(ended(&answer).is_some_and(|(_, code, _)| code == Code::NotFound), "{answer:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reflection_lists_the_service_and_http2_has_no_upgrades() -> Result<()> {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let (_cloud, client, ..) = started(false).await?;
    let channel = connect(&client).await?;
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let list = ServerReflectionRequest { host: String::new(), message_request };
    let mut calls = ServerReflectionClient::new(channel.clone());
    let mut answers = calls.server_reflection_info(by(&client, stream::iter([list]))?).await?.into_inner();
    let answer = next(&mut answers).await?.context("nothing")?;
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        anyhow::bail!("{answer:?}")
    };
    ensure!(list.service.iter().any(|service| service.name == "ferroedge.cloudstream.v1.CloudStream"), "{list:?}");

    let mut channel = channel;
    let request = http::Request::get("http://cloudcore/exec/default/p1/main?command=sh");
    let request =
        request.header("authorization", format!("Bearer {}", client.token)).body(tonic::body::Body::empty())?;
    std::future::poll_fn(|cx| tower::Service::poll_ready(&mut channel, cx)).await?;
    let answer = tower::Service::call(&mut channel, request).await?;
    ensure!(answer.status() == StatusCode::BAD_REQUEST, "{answer:?}");
    Ok(())
}
