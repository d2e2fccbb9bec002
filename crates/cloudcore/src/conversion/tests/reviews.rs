//! What the API server asks.

use super::super::webhook::review;
use super::*;

#[tokio::test]
async fn reviews_are_answered_in_order_or_refused_as_a_whole() {
    let ask = |objects: Value| {
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "request": {"uid": "u\"1", "desiredAPIVersion": BETA, "objects": objects}}).to_string()
    };
    let answer = async |text: String| -> Value {
        serde_json::from_str(&review(text.as_bytes()).await.expect("answered")).expect("JSON")
    };
    let mut second = thermometer();
    second["metadata"]["name"] = json!("e");
    let good = answer(ask(json!([sensor_tag(), second]))).await;
    assert_eq!(good["response"]["uid"], "u\"1");
    assert_eq!(good["response"]["result"]["status"], "Success");
    let names: Vec<&Value> =
        good["response"]["convertedObjects"].as_array().expect("list").iter().map(|o| &o["metadata"]["name"]).collect();
    assert_eq!(names, ["d", "e"]);
    let bad = answer(ask(json!([sensor_tag(), 7]))).await;
    assert_eq!(
        (&bad["response"]["result"]["status"], &bad["response"]["convertedObjects"]),
        (&json!("Failure"), &json!([]))
    );
    let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
    let text = ask(json!(["DEEP"])).replace("\"DEEP\"", &deep);
    match review(text.as_bytes()).await {
        Ok(answer) => assert!(answer.contains("Failure"), "{answer}"),
        Err(error) => assert!(error.to_string().contains("recursion"), "{error}"),
    }
    review(b"{}").await.expect_err("no review");
}
