//! `/devices…`: what the node knows of its devices. DeviceTwin answers; here questions are read and answers given a shape.

use std::sync::Arc;

use http::{Response, StatusCode};
use jiff::Timestamp;
use link::http_server::Body;
use serde_json::{Value, json};
use wire::Status;

use super::answer;
use super::query::Query;

/// Items on a page, unless the question says otherwise.
const USUAL: usize = 500;
/// Items on a page at most.
const MOST: usize = 1000;

/// Answers questions about devices with a JSON object, or says why not. It may block for some milliseconds.
pub type DevicePages = Arc<dyn Fn(&DeviceQuestion) -> Result<Value, Box<Status>> + Send + Sync>;

/// A question about devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceQuestion {
    /// Which there are.
    List(Page),
    /// One, with all its properties.
    Twin(DeviceName),
    /// What was reported of a property.
    History {
        /// Of this device.
        device: DeviceName,
        /// The property.
        property: String,
        /// Not what was reported before.
        since: Option<Timestamp>,
        /// Which part.
        page: Page,
    },
}

/// A device by its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Items at most, 1 to 1,000.
    pub limit: usize,
    /// What the page before named as the place to go on.
    pub from: Option<String>,
}

/// What a path asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DevicePath {
    /// `/devices`.
    List,
    /// `/devices/{namespace}/{name}/twin`.
    Twin(DeviceName),
    /// `/devices/{namespace}/{name}/history`.
    History(DeviceName),
}

/// The answer to a question.
pub async fn answer(pages: Option<&DevicePages>, path: DevicePath, query: &Query) -> Response<Body> {
    match page_of(pages, path, query).await {
        Ok(page) => answer::json(&page),
        Err(status) => refusal(&status),
    }
}

async fn page_of(pages: Option<&DevicePages>, path: DevicePath, query: &Query) -> Result<Value, Box<Status>> {
    let why = "DeviceTwin does not run on this node: see modules.deviceTwin of edgecore.yaml";
    let pages = pages.ok_or_else(|| Box::new(Status::failure(404, "NotFound", why)))?.clone();
    let question = question(path, query)?;
    let page = tokio::task::spawn_blocking(move || pages(&question)).await;
    page.unwrap_or_else(|_| Err(Box::new(Status::failure(500, "InternalError", "the answer could not be read"))))
}

fn question(path: DevicePath, query: &Query) -> Result<DeviceQuestion, Box<Status>> {
    Ok(match path {
        DevicePath::List => DeviceQuestion::List(page(query)?),
        DevicePath::Twin(device) => DeviceQuestion::Twin(device),
        DevicePath::History(device) => {
            let property = query.get("property").ok_or_else(|| bad("property: say which, property=NAME".to_owned()))?;
            let since = query.get("since").map(|text| {
                let example = "2026-01-31T12:00:00Z ('+' is %2B in a URL)";
                text.parse().map_err(|_| bad(format!("since: {text:?} is no time as RFC 3339 writes it, {example}")))
            });
            DeviceQuestion::History {
                device,
                property: property.to_owned(),
                since: since.transpose()?,
                page: page(query)?,
            }
        }
    })
}

fn page(query: &Query) -> Result<Page, Box<Status>> {
    let limit = query.get("limit").map(|text| {
        let limit = text.parse().ok().filter(|limit| (1..=MOST).contains(limit));
        limit.ok_or_else(|| bad(format!("limit: {text:?} is no number from 1 to {MOST}")))
    });
    Ok(Page { limit: limit.transpose()?.unwrap_or(USUAL), from: query.get("continue").map(str::to_owned) })
}

fn bad(why: String) -> Box<Status> {
    Box::new(Status::failure(400, "BadRequest", why))
}

fn refusal(status: &Status) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let object = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": status.status,
        "message": status.message, "reason": status.reason, "code": status.code,
    });
    let mut answer = answer::json(&object);
    *answer.status_mut() = code;
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_waits_for_the_database_holds_nobody_up() {
        // The answer comes when this thread, the only one of the runtime, does something else.
        let (go_on, wait) = std::sync::mpsc::channel();
        let wait = std::sync::Mutex::new(wait);
        let pages: DevicePages = Arc::new(move |_| {
            let went_on = wait.lock().expect("one at a time").recv_timeout(std::time::Duration::from_secs(20));
            Ok(json!({"wentOn": went_on.is_ok()}))
        });
        let query = Query::default();
        let answering = page_of(Some(&pages), DevicePath::List, &query);
        let (page, _) = tokio::join!(answering, async { go_on.send(()) });
        assert_eq!(page.expect("a page"), json!({"wentOn": true}));
    }

    #[test]
    fn questions() {
        let device = DeviceName { namespace: "n".to_owned(), name: "d".to_owned() };
        let ask = |query: &str| question(DevicePath::History(device.clone()), &Query::parse(query));
        let found = ask("property=a%23b&since=2026-01-31T13:00:00%2B01:00&limit=1000&continue=1.7").expect("good");
        let page = Page { limit: 1000, from: Some("1.7".to_owned()) };
        let since = "2026-01-31T12:00:00Z".parse().ok();
        let expected = DeviceQuestion::History { device: device.clone(), property: "a#b".to_owned(), since, page };
        assert_eq!(found, expected);
        let list = question(DevicePath::List, &Query::default()).expect("good");
        assert_eq!(list, DeviceQuestion::List(Page { limit: 500, from: None }));
        for (query, why) in [
            ("", "property: "),
            ("property=a&since=yesterday", "since: \"yesterday\""),
            ("property=a&since=2026-01-31T13:00:00+01:00", "%2B"),
            ("property=a&limit=0", "limit: \"0\""),
            ("property=a&limit=1001", "limit: \"1001\""),
            ("property=a&limit=-1", "limit: \"-1\""),
        ] {
            let status = ask(query).expect_err(query);
            assert_eq!((status.code, status.reason.as_str()), (400, "BadRequest"));
            assert!(status.message.contains(why), "{query}: {}", status.message);
        }
    }
}
