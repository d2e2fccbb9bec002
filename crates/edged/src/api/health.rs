//! `/healthz`.

use http::{Response, StatusCode};
use link::http_server::Body;

use super::answer;
use super::route::Check;
use crate::access::Access;

/// Carries out the checks: `ok`, or each with its result.
pub async fn check(access: &Access, check: Check) -> Response<Body> {
    // Whoever reads this answer has proof of the first; the log goes to standard error, which fails no one.
    let always = matches!(check, Check::Ping | Check::Log);
    if always || access.main_loop_is_alive().await {
        return answer::text(StatusCode::OK, "ok");
    }
    let text = match check {
        Check::All => {
            "[+]ping ok\n[+]log ok\n[-]syncloop failed: sync Loop took longer than expected\nhealthz check failed"
        }
        _ => "sync Loop took longer than expected",
    };
    answer::text(StatusCode::INTERNAL_SERVER_ERROR, text)
}
