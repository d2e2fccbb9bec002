//! Taints and tolerations (Kubernetes API v1), used by the scheduler, the DaemonSet controller and the node life cycle.

use serde_json::Value;

/// Whether a pod that tolerates `tolerations` is indifferent to `taint`.
pub fn tolerates(tolerations: &[Value], taint: &Value) -> bool {
    tolerations.iter().any(|t| tolerates_one(t, taint))
}

/// Whether this one toleration covers the taint.
pub fn tolerates_one(toleration: &Value, taint: &Value) -> bool {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let effect = text(&toleration["effect"]);
    if !effect.is_empty() && effect != text(&taint["effect"]) {
        return false;
    }
    let (key, operator) = (text(&toleration["key"]), text(&toleration["operator"]));
    if key.is_empty() {
        return operator == "Exists";
    }
    key == text(&taint["key"])
        && match operator.as_str() {
            "Exists" => true,
            "" | "Equal" => text(&toleration["value"]) == text(&taint["value"]),
            _ => false,
        }
}

/// The first taint with one of these effects that is not tolerated.
pub fn untolerated<'a>(taints: &'a [Value], tolerations: &[Value], effects: &[&str]) -> Option<&'a Value> {
    taints
        .iter()
        .filter(|t| effects.contains(&t["effect"].as_str().unwrap_or_default()))
        .find(|t| !tolerates(tolerations, t))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tolerations() {
        let taint = json!({"key": "k", "value": "v", "effect": "NoSchedule"});
        for (toleration, expected) in [
            (json!({"operator": "Exists"}), true),
            (json!({"key": "k", "operator": "Exists"}), true),
            (json!({"key": "k", "value": "v"}), true),
            (json!({"key": "k", "value": "w"}), false),
            (json!({"key": "k", "value": "v", "effect": "NoExecute"}), false),
            (json!({"key": "k", "value": "v", "effect": "NoSchedule"}), true),
            (json!({"key": "", "operator": "Equal"}), false),
        ] {
            assert_eq!(tolerates(std::slice::from_ref(&toleration), &taint), expected, "{toleration}");
        }
    }
}
