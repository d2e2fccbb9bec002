//! `/containerLogs/{namespace}/{pod}/{container}`.

use std::sync::Arc;

use http::Response;
use jiff::{SignedDuration, Timestamp};
use link::http_server::Body;

use super::answer;
use super::query::Query;
use crate::access::{Access, AccessError, ContainerName, LogOptions};

/// The log, in pieces.
pub async fn answer(access: &Arc<Access>, name: &ContainerName, query: &Query) -> Response<Body> {
    let stream = match options(query, Timestamp::now()) {
        Ok((options, previous)) => access.logs(name, options, previous).await,
        Err(error) => Err(error),
    };
    match stream {
        Ok(stream) => answer::stream(stream),
        Err(error) => answer::error(&error),
    }
}

/// Reads the options; true when the previous instance is meant.
fn options(query: &Query, now: Timestamp) -> Result<(LogOptions, bool), AccessError> {
    let refused = AccessError::Refused;
    let number = |name: &str| match query.get(name).map(|text| (text, text.parse::<i64>())) {
        None => Ok(None),
        Some((_, Ok(number))) => Ok(Some(number)),
        Some((text, Err(_))) => Err(refused(format!("{name}: {text:?} is no number"))),
    };
    let at_least = |name: &str, least: i64, number: Option<i64>| match number.map(|n| (n, u64::try_from(n))) {
        Some((n, Ok(number))) if n >= least => Ok(Some(number)),
        Some((n, _)) => Err(AccessError::Invalid(format!("{name}: Invalid value: {n}: must be at least {least}"))),
        None => Ok(None),
    };
    let tail = match query.get("tail") {
        Some("all") => None,
        Some(_) => number("tail")?,
        None => number("tailLines")?,
    };
    let seconds = number("sinceSeconds")?;
    let time = query.get("sinceTime").map(|text| {
        let wrong = |_| refused(format!("sinceTime: {text:?} is no time: write for example 2026-01-02T15:04:05Z"));
        text.parse::<Timestamp>().map_err(wrong)
    });
    let time = time.transpose()?;
    let flag = |name: &str| query.flag(name).map_err(refused);
    let (follow, timestamps, previous) = (flag("follow")?, flag("timestamps")?, flag("previous")?);
    let limit_bytes = at_least("limitBytes", 1, number("limitBytes")?)?;
    if seconds.is_some() && time.is_some() {
        let text = "sinceTime, sinceSeconds: at most one of `sinceTime` or `sinceSeconds` may be specified";
        return Err(AccessError::Invalid(text.into()));
    }
    let ago = at_least("sinceSeconds", 1, seconds)?.map(|_| SignedDuration::from_secs(seconds.unwrap_or_default()));
    let ago = ago.map(|ago| now.saturating_sub(ago).unwrap_or(Timestamp::MIN));
    let options =
        LogOptions { tail: at_least("tailLines", 0, tail)?, since: time.or(ago), timestamps, limit_bytes, follow };
    Ok((options, previous))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_and_what_is_wrong_with_them() {
        let now: Timestamp = "2026-01-02T15:04:05Z".parse().unwrap();
        let read = |text: &str| options(&Query::parse(text), now);
        let nothing = LogOptions::default();
        assert_eq!(read("").unwrap(), (nothing.clone(), false));
        assert_eq!(read("tailLines=5&tail=all&previous=true").unwrap(), (nothing, true));
        let (all, previous) =
            read("follow=true&tail=3&timestamps=1&limitBytes=10&sinceSeconds=65&previous=false").unwrap();
        let since = Some("2026-01-02T15:03:00Z".parse().unwrap());
        let expected = LogOptions { tail: Some(3), since, timestamps: true, limit_bytes: Some(10), follow: true };
        assert_eq!((all, previous), (expected, false));
        let time = read("sinceTime=2026-01-01T00:00:00%2B02:00&tailLines=0").unwrap().0;
        assert_eq!((time.since.unwrap().to_string().as_str(), time.tail), ("2025-12-31T22:00:00Z", Some(0)));
        assert_eq!(read("sinceSeconds=9223372036854775807").unwrap().0.since, Some(Timestamp::MIN));
        for (text, status, part) in [
            ("tailLines=x", 400, "tailLines: \"x\" is no number"),
            ("tail=99999999999999999999", 400, "tail: "),
            ("follow=maybe", 400, "follow: \"maybe\""),
            ("sinceTime=yesterday", 400, "sinceTime: \"yesterday\" is no time"),
            ("tailLines=-1", 422, "tailLines: Invalid value: -1: must be at least 0"),
            ("limitBytes=0", 422, "limitBytes: Invalid value: 0: must be at least 1"),
            ("sinceSeconds=0", 422, "sinceSeconds: Invalid value: 0"),
            ("sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z", 422, "at most one of"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.to_string().contains(part), "{text}: {error}");
            assert_eq!(answer::error(&error).status(), status, "{text}");
        }
    }
}
