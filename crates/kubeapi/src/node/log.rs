//! The options of a log (`PodLogOptions`): read, checked, and written as the kubelet takes them.

use serde_json::json;

use super::route::Parameters;
use crate::ApiError;
use crate::error::Cause;
use crate::http::target::Query;

/// The only values of `stream`.
const STREAMS: [&str; 3] = ["All", "Stdout", "Stderr"];

/// The kubelet's parameters for these options of a pod's log.
///
/// # Errors
/// 422 with every option that is wrong, 400 for one that cannot be read.
pub(super) fn parameters(pod: &str, query: &Query) -> Result<Parameters, ApiError> {
    let mut causes = Vec::new();
    let mut at_least = |name: &'static str, least: i64, rule: &str| {
        let number = query.whole(name)?;
        if let Some(value) = number.filter(|value| *value < least) {
            causes.push(Cause::invalid(name, &json!(value), rule));
        }
        Ok::<_, ApiError>(number)
    };
    let tail = at_least("tailLines", 0, "must be greater than or equal to 0")?;
    let bytes = at_least("limitBytes", 1, "must be greater than 0")?;
    let seconds = at_least("sinceSeconds", 1, "must be greater than 0")?;
    let time = query.get("sinceTime");
    if !time.is_empty() {
        if seconds.is_some() {
            causes.push(Cause::forbidden("", "at most one of `sinceTime` or `sinceSeconds` may be specified"));
        }
        time.parse::<jiff::Timestamp>().map_err(|error| {
            ApiError::bad_request(format!("sinceTime {time:?} is no time such as 2026-11-24T12:00:00Z: {error}"))
        })?;
    }
    let stream = query.get("stream");
    if !stream.is_empty() {
        if !STREAMS.contains(&stream) {
            causes.push(Cause::not_supported("stream", &json!(stream), &STREAMS));
        } else if stream != "All" && tail.is_some() {
            causes.push(Cause::forbidden("", "`tailLines` and specific `stream` are mutually exclusive for now"));
        }
    }
    if !causes.is_empty() {
        return Err(ApiError::invalid("PodLogOptions", "", pod, &causes));
    }
    let mut parameters = Parameters::default();
    for name in ["follow", "previous", "timestamps"] {
        if query.says(name) {
            parameters.add(name, "true");
        }
    }
    for (name, number) in [("tailLines", tail), ("limitBytes", bytes), ("sinceSeconds", seconds)] {
        if let Some(number) = number {
            parameters.add(name, &number.to_string());
        }
    }
    for (name, text) in [("sinceTime", time), ("stream", stream)] {
        if !text.is_empty() {
            parameters.add(name, text);
        }
    }
    Ok(parameters)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<String, String> {
        let query = Query::parse(query).expect("a query");
        parameters("p", &query).map(|p| p.text()).map_err(|error| format!("{} {}", error.code, error.message))
    }

    #[test]
    fn options_of_a_log() {
        assert_eq!(read("").expect("fine"), "");
        let all =
            "container=c&follow=true&tailLines=0&previous=1&timestamps&limitBytes=9&sinceTime=2026-11-24T12:00:00Z";
        let told =
            "follow=true&previous=true&timestamps=true&tailLines=0&limitBytes=9&sinceTime=2026-11-24T12%3A00%3A00Z";
        assert_eq!(read(all).expect("fine"), told);
        assert_eq!(read("stream=Stdout&sinceSeconds=3&follow=0").expect("fine"), "sinceSeconds=3&stream=Stdout");
        for (wrong, why) in [
            (
                "tailLines=-1",
                "422 PodLogOptions \"p\" is invalid: tailLines: Invalid value: -1: must be greater than or",
            ),
            (
                "limitBytes=0",
                "422 PodLogOptions \"p\" is invalid: limitBytes: Invalid value: 0: must be greater than 0",
            ),
            (
                "sinceSeconds=1&sinceTime=2026-11-24T12:00:00Z",
                "422 PodLogOptions \"p\" is invalid: : Forbidden: at most",
            ),
            ("stream=Stdin", "422 PodLogOptions \"p\" is invalid: stream: Unsupported value: \"Stdin\""),
            ("stream=Stderr&tailLines=1", "422 PodLogOptions \"p\" is invalid: : Forbidden: `tailLines` and"),
            ("tailLines=x", "400 invalid tailLines: \"x\""),
            ("sinceTime=now", "400 sinceTime \"now\""),
        ] {
            let said = read(wrong).expect_err(wrong);
            assert!(said.starts_with(why), "{said}");
        }
    }
}
