//! `/stats/summary` and the pages of metrics, in Prometheus's text format.
//!
//! `text` writes the format, `resource` is what autoscaling and `kubectl top` read, `cadvisor` what dashboards read, `agent`
//! tells about the agent itself. All are made of one [`Summary`], which is sampled when
//! somebody asks. A metrics crate would bring a registry that nothing here needs.

mod agent;
mod cadvisor;
mod resource;
mod text;

use http::{Response, StatusCode};
use link::http_server::Body;

use super::query::Query;
use super::{answer, route::Metrics};
use crate::access::Access;
use crate::stats::Detail;
use crate::stats::summary::Summary;

/// The page that is asked for.
pub async fn answer(access: &Access, metrics: Metrics) -> Response<Body> {
    let page = match metrics {
        Metrics::Agent => agent::page(access).await,
        Metrics::Cadvisor => match access.stats().summary(Detail::Everything).await {
            Ok(summary) => cadvisor::page(&summary, &access.pods().await, &access.runtime.cgroups().await),
            Err(error) => return answer::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        },
        Metrics::Resource => {
            let summary = access.stats().summary(Detail::CpuAndMemory).await;
            if let Err(error) = &summary {
                tracing::warn!(%error, "usage cannot be measured");
            }
            resource::page(summary.ok().as_deref())
        }
        Metrics::Probes => agent::probes(&access.probe_counters),
        Metrics::Slis => agent::health(access.main_loop_is_alive().await),
    };
    let mut answer = answer::text(StatusCode::OK, page.into_text());
    let kind = http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    answer.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    answer
}

/// `/stats/summary`.
pub async fn summary(access: &Access, query: &Query) -> Response<Body> {
    let detail = match query.flag("only_cpu_and_memory") {
        Ok(true) => Detail::CpuAndMemory,
        Ok(false) => Detail::Everything,
        Err(text) => return answer::text(StatusCode::BAD_REQUEST, text),
    };
    match access.stats().summary(detail).await {
        // Somebody who has just asked for everything leaves more than was wanted.
        Ok(summary) if detail == Detail::CpuAndMemory => answer::json(&reduced(&summary)),
        Ok(summary) => answer::json(&*summary),
        Err(error) => answer::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// Processors, memory and swap alone.
fn reduced(summary: &Summary) -> Summary {
    let mut summary = summary.clone();
    let node = &mut summary.node.usage;
    (node.fs, node.network, node.rlimit, node.runtime) = (None, None, None, None);
    for pod in &mut summary.pods {
        (pod.usage.network, pod.usage.ephemeral_storage, pod.usage.process_stats) = (None, None, None);
        pod.volumes.clear();
        for container in &mut pod.containers {
            (container.usage.rootfs, container.usage.logs) = (None, None);
        }
    }
    summary
}
