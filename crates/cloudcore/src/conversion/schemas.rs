//! What the API server's schemas (`deploy/crds.yaml`) say of objects. The server checks what people write in the version in which they
//! write it, and nothing that a conversion adds: an annotation, which anybody may write, must bring nothing in that the server would refuse.

use std::sync::LazyLock;

use serde_json::Value;

use super::parts::Fields;

struct Schema {
    version: String,
    kind: String,
    schema: Value,
}

static SCHEMAS: LazyLock<Vec<Schema>> = LazyLock::new(|| {
    let documents = include_str!("../../../../deploy/crds.yaml").split("\n---\n");
    documents.flat_map(|text| of_definition(&serde_saphyr::from_str(text).expect("a test reads them"))).collect()
});

fn of_definition(definition: &Value) -> Vec<Schema> {
    let spec = &definition["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let schema = |version: &Value| Schema {
        version: format!("{}/{}", text(&spec["group"]), text(&version["name"])),
        kind: text(&spec["names"]["kind"]),
        schema: version["schema"]["openAPIV3Schema"].clone(),
    };
    spec["versions"].as_array().into_iter().flatten().map(schema).collect()
}

/// What of an object is not as its schema has it, in words.
pub fn misfits(version: &str, kind: &str, body: &Fields) -> Vec<String> {
    let found = SCHEMAS.iter().find(|schema| schema.version == version && schema.kind == kind);
    let mut causes = Vec::new();
    if let Some(found) = found {
        kubeapi::schema::validate(&found.schema, &Value::Object(body.clone()), &mut causes);
    }
    causes.into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{ALPHA, BETA};
    use super::*;
    use serde_json::json;

    #[test]
    fn every_kind_has_a_schema_in_both_versions() {
        for kind in ["Device", "DeviceModel", "DeviceStatus"] {
            for version in [ALPHA, BETA] {
                let odd = Fields::from_iter([("spec".to_owned(), json!([])), ("twins".to_owned(), json!({}))]);
                assert!(!misfits(version, kind, &odd).is_empty(), "{version} {kind}");
                assert_eq!(misfits(version, kind, &Fields::new()), Vec::<String>::new());
            }
        }
    }
}
