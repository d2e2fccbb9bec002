//! Life cycle hooks.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::told::{has_event, main_status, script, until_term, waiting};
use crate::{Site, pod_with};

#[tokio::test]
async fn t44_a_failing_post_start_hook_kills_its_container() {
    let site = Site::start().await;
    let bad = pod_with("bad", |pod| {
        pod["spec"]["containers"][0]["lifecycle"] =
            json!({"postStart": {"exec": {"command": ["sh", "-c", "echo oh >&2; exit 3"]}}});
        pod["spec"]["containers"].as_array_mut().unwrap().push(script("beside", &until_term(0)));
    });
    site.cloud.create(bad).await;
    let tcp = pod_with("tcp", |pod| {
        pod["spec"]["containers"][0]["lifecycle"] = json!({"postStart": {"tcpSocket": {"port": 80}}});
    });
    site.cloud.create(tcp).await;
    // Both at once: the state passes soon.
    let failed = |pod: &Value| waiting(main_status(pod, "main")) == "PostStartHookError";
    let (told, refused) = tokio::join!(site.until("bad", "told", failed), site.until("tcp", "refused", failed));
    assert_eq!(
        main_status(&told, "main")["state"]["waiting"]["message"],
        "Exec lifecycle hook ([sh -c echo oh >&2; exit 3]) for Container \"main\" in Pod \"bad_default(uid-bad)\" failed - \
         error: command 'sh -c echo oh >&2; exit 3' exited with 3: oh\n, message: \"oh\\n\""
    );
    site.until("bad", "killed", |pod| main_status(pod, "main")["lastState"]["terminated"].is_object()).await;
    site.until("bad", "the other runs", |pod| main_status(pod, "beside")["ready"] == true).await;
    let backoff = site.until("bad", "back-off", |pod| waiting(main_status(pod, "main")) == "CrashLoopBackOff").await;
    assert!(main_status(&backoff, "main")["restartCount"].as_i64().unwrap() >= 1);
    assert!(has_event(&site, "bad", "FailedPostStartHook", "PostStartHook failed"));
    assert!(has_event(&site, "bad", "Killing", "FailedPostStartHook"));
    let message = main_status(&refused, "main")["state"]["waiting"]["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with("Cannot run handler: invalid handler"), "{message}");
    // A pod whose hook hangs can be deleted at once.
    let slow = pod_with("slow", |pod| {
        pod["spec"]["containers"][0]["lifecycle"] = json!({"postStart": {"sleep": {"seconds": 300}}});
    });
    site.cloud.create(slow).await;
    site.eventually("started", async || !site.containers("slow").await.is_empty()).await;
    for name in ["bad", "tcp", "slow"] {
        site.cloud.delete(name, 2).await;
    }
    for name in ["bad", "tcp", "slow"] {
        site.until_gone(name).await;
    }
}

/// Deletes the pod and measures how long it takes until its container has said this.
async fn until_said(site: &Site, name: &str, grace: i64, said: &str) -> Duration {
    let began = Instant::now();
    site.cloud.delete(name, grace).await;
    site.eventually("said", async || site.log(name, "main", 0).contains(said)).await;
    began.elapsed()
}

#[tokio::test]
async fn t45_pre_stop_comes_before_the_signal_within_the_grace() {
    let site = Site::start().await;
    let short = pod_with("short", |pod| {
        pod["spec"]["terminationGracePeriodSeconds"] = json!(30);
        pod["spec"]["containers"][0]["command"][2] = json!(until_term(1));
        pod["spec"]["containers"][0]["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 5}}});
    });
    let long = pod_with("long", |pod| {
        pod["spec"]["terminationGracePeriodSeconds"] = json!(10);
        pod["spec"]["containers"][0]["command"][2] = json!("trap 'echo TERM' TERM; while :; do sleep 0.1; done");
        pod["spec"]["containers"][0]["lifecycle"] =
            json!({"preStop": {"exec": {"command": ["sh", "-c", "echo hook > /proc/1/fd/1; sleep 60"]}}});
    });
    tokio::join!(site.run(short), site.run(long));
    let (short, long) = tokio::join!(until_said(&site, "short", 30, "TERM"), async {
        let began = Instant::now();
        let term = until_said(&site, "long", 10, "TERM").await;
        assert!(site.log("long", "main", 0).contains("hook"), "the hook came before");
        site.until("long", "killed", |pod| pod.is_null() || pod["status"]["phase"] == "Failed").await;
        (term, began.elapsed())
    });
    assert!((5.0..8.0).contains(&short.as_secs_f64()), "the signal after the hook: {short:?}");
    assert!((10.0..11.9).contains(&long.0.as_secs_f64()), "the signal when the grace is used up: {long:?}");
    assert!((12.0..16.0).contains(&long.1.as_secs_f64()), "killed two seconds later: {long:?}");
    for name in ["short", "long"] {
        site.until_gone(name).await;
    }
}

#[tokio::test]
async fn t45_hooks_over_http_and_hooks_that_fail() {
    let site = Site::start().await;
    let server = |name: &str, scheme: &str| {
        pod_with(name, |pod| {
            pod["spec"]["terminationGracePeriodSeconds"] = json!(20);
            pod["spec"]["containers"][0]["command"][2] = json!(
                "trap 'echo TERM; sleep 1; exit 0' TERM; httpd -f -vv -p 8080 2>&1 & while :; do sleep 0.1; done"
            );
            pod["spec"]["containers"][0]["ports"] = json!([{"name": "web", "containerPort": 8080}]);
            // Ready when the server listens.
            pod["spec"]["containers"][0]["readinessProbe"] = json!({"tcpSocket": {"port": "web"}, "periodSeconds": 1});
            pod["spec"]["containers"][0]["lifecycle"] =
                json!({"preStop": {"httpGet": {"port": "web", "path": "/bye", "scheme": scheme}}});
        })
    };
    let wrong = pod_with("wrong", |pod| {
        pod["spec"]["containers"][0]["lifecycle"] = json!({"preStop": {"exec": {"command": ["false"]}}});
    });
    tokio::join!(site.run(server("web", "HTTP")), site.run(server("tls", "HTTPS")), site.run(wrong));
    for name in ["web", "tls"] {
        // What answers 404 has answered: that is success.
        until_said(&site, name, 20, "TERM").await;
        let log = site.log(name, "main", 0);
        assert!(log.find("/bye").is_some_and(|hook| hook < log.find("TERM").unwrap()), "{log}");
        assert!(!has_event(&site, name, "FailedPreStopHook", "PreStopHook failed"));
    }
    site.eventually("a server without TLS was asked without", async || {
        site.cloud.events("tls").iter().any(|reason| reason == "LifecycleHTTPFallback")
    })
    .await;
    site.cloud.delete("wrong", 2).await;
    for name in ["web", "tls", "wrong"] {
        site.until_gone(name).await;
    }
    assert!(has_event(&site, "wrong", "FailedPreStopHook", "PreStopHook failed"));
}
