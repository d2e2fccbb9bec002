//! `modules.cloudStream.collect`: which logs are brought to the cloud, and to where. An extension of ours; absent means off.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::document::Document;

/// Where it stands in the document.
pub(super) const PATH: &str = "modules.cloudStream.collect";
/// Where positions are kept unless the file says otherwise.
const POSITIONS: &str = "/var/lib/kubeedge/collect";
const MAX_SIZE: u64 = 64 << 20;
const LEAST_SIZE: u64 = 64 << 10;
const MAX_FILES: u64 = 5;

/// What is collected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collect {
    /// Of these namespaces; empty means all.
    pub namespaces: Vec<String>,
    /// Of pods with these labels, as the Kubernetes API selects them; empty means all.
    pub label_selector: String,
    /// The folder where it is remembered how far each output has come.
    pub positions: PathBuf,
    /// Into files.
    pub files: Option<Files>,
    /// Into Loki.
    pub loki: Option<Loki>,
    /// To an OpenTelemetry collector: the URL, to which `/v1/logs` is added.
    pub otlp: Option<String>,
}

/// Files of cloudcore's machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Below it lie `NAMESPACE/POD/CONTAINER.log`.
    pub directory: PathBuf,
    /// Bytes after which a file is put aside.
    pub max_size: u64,
    /// Files of one container, the current one included.
    pub max_files: u64,
}

/// A Loki.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loki {
    /// To which `/loki/api/v1/push` is added.
    pub url: String,
    /// `X-Scope-OrgID`; empty when there are no tenants.
    pub tenant: String,
}

/// The settings; `None` when nothing is collected. Only of a checked document.
pub(super) fn read(document: &Document) -> Option<Collect> {
    let at = |key: &str| format!("{PATH}.{key}");
    document.get(PATH).as_object().filter(|keys| !keys.is_empty())?;
    let has = |key: &str| document.get(&at(key)).is_object();
    let number = |key: &str, default: u64| document.get(&at(key)).as_u64().unwrap_or(default);
    let positions = document.text(&at("positions"));
    Some(Collect {
        namespaces: document.texts(&at("namespaces")),
        label_selector: document.text(&at("labelSelector")),
        positions: if positions.is_empty() { POSITIONS.into() } else { positions.into() },
        files: has("outputs.files").then(|| Files {
            directory: document.text(&at("outputs.files.directory")).into(),
            max_size: number("outputs.files.maxSize", MAX_SIZE),
            max_files: number("outputs.files.maxFiles", MAX_FILES),
        }),
        loki: has("outputs.loki").then(|| Loki {
            url: document.text(&at("outputs.loki.url")),
            tenant: document.text(&at("outputs.loki.tenant")),
        }),
        otlp: has("outputs.otlp").then(|| document.text(&at("outputs.otlp.url"))),
    })
}

/// What is wrong with it.
pub(super) fn validate(document: &mut Document) {
    let collect = document.get(PATH).clone();
    if collect.is_null() {
        return;
    }
    let mut check = Check { document };
    if !check.keys(&collect, "", &["namespaces", "labelSelector", "positions", "outputs"]) {
        return;
    }
    match &collect["namespaces"] {
        Value::Null => {}
        Value::Array(names) => {
            for (index, name) in names.iter().enumerate() {
                if !name.as_str().is_some_and(is_label) {
                    check.mistake(&format!(".namespaces[{index}]"), &format!("{name} is no namespace's name"));
                }
            }
        }
        _ => check.mistake(".namespaces", "must be a list of names"),
    }
    let is_selector = |text: &str| text.len() <= 1024 && text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if !collect["labelSelector"].is_null() && !collect["labelSelector"].as_str().is_some_and(is_selector) {
        check.mistake(".labelSelector", "must be a text such as app=web,tier!=x");
    }
    check.absolute(&collect["positions"], ".positions", true);
    let outputs = &collect["outputs"];
    if !check.keys(outputs, ".outputs", &["files", "loki", "otlp"]) {
        return;
    }
    if outputs.as_object().is_some_and(|outputs| outputs.values().all(Value::is_null)) {
        check.mistake(".outputs", "name at least one of files, loki, otlp");
    }
    let files = &outputs["files"];
    if !files.is_null() && check.keys(files, ".outputs.files", &["directory", "maxSize", "maxFiles"]) {
        check.absolute(&files["directory"], ".outputs.files.directory", false);
        let is_least = |value: &Value, least: u64| value.is_null() || value.as_u64().is_some_and(|n| n >= least);
        if !is_least(&files["maxSize"], LEAST_SIZE) {
            check.mistake(".outputs.files.maxSize", &format!("must be a number of bytes, {LEAST_SIZE} or more"));
        }
        if !is_least(&files["maxFiles"], 1) || files["maxFiles"].as_u64().is_some_and(|number| number > 1000) {
            check.mistake(".outputs.files.maxFiles", "must be a number from 1 to 1000");
        }
    }
    for (name, keys) in [("loki", &["url", "tenant"][..]), ("otlp", &["url"][..])] {
        let (output, at) = (&outputs[name], format!(".outputs.{name}"));
        if !output.is_null() && check.keys(output, &at, keys) {
            let url = output["url"].as_str().unwrap_or_default();
            let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")).unwrap_or_default();
            let is_bad = |byte: u8| !byte.is_ascii_graphic() || b"?#@".contains(&byte);
            if rest.is_empty() || rest.starts_with('/') || rest.bytes().any(is_bad) {
                check.mistake(&format!("{at}.url"), "must be http://HOST:PORT or https://HOST:PORT, a path may follow");
            }
            let is_header = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
            if !output["tenant"].is_null() && !output["tenant"].as_str().is_some_and(is_header) {
                check.mistake(&format!("{at}.tenant"), "must be a text without blanks");
            }
        }
    }
}

struct Check<'a> {
    document: &'a mut Document,
}

impl Check<'_> {
    fn mistake(&mut self, below: &str, why: &str) {
        self.document.mistake(&format!("{PATH}{below}"), why);
    }

    /// Whether it is a map; unknown keys of it are told.
    fn keys(&mut self, value: &Value, at: &str, known: &[&str]) -> bool {
        let Some(map) = value.as_object() else {
            self.mistake(at, &format!("must be a map with {}", known.join(", ")));
            return false;
        };
        for key in map.keys().filter(|key| !known.contains(&key.as_str())) {
            let known = known.join(", ");
            self.document.warnings.push(format!("{PATH}{at}.{key} is not known and has no effect: known are {known}"));
        }
        true
    }

    fn absolute(&mut self, value: &Value, at: &str, optional: bool) {
        let is_path = value.as_str().is_some_and(|text| Path::new(text).is_absolute());
        if !(is_path || optional && value.is_null()) {
            self.mistake(at, "must be an absolute path");
        }
    }
}

/// RFC 1123, as namespaces are named.
fn is_label(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.len() <= 63 && text.bytes().all(is_inner) && !text.starts_with('-') && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;
    use crate::document::ConfigError;

    fn parse(collect: &str) -> Result<Config, ConfigError> {
        Config::parse(&format!("modules: {{cloudStream: {{enable: true, collect: {collect}}}}}"), Path::new("c.yaml"))
    }

    #[test]
    fn defaults_and_what_is_wrong() {
        assert_eq!(Config::parse("", Path::new("c.yaml")).expect("valid").collect(), None);
        let config = parse(
            "{namespaces: [a], typo: 1, outputs: {files: {directory: /logs}, loki: {url: 'http://l:3100', tenant: t}}}",
        );
        let config = config.expect("valid");
        assert!(config.document.warnings[0].starts_with("modules.cloudStream.collect.typo is not known"));
        let collect = config.collect().expect("on");
        assert_eq!(collect.files, Some(Files { directory: "/logs".into(), max_size: 64 << 20, max_files: 5 }));
        assert_eq!(collect.loki, Some(Loki { url: "http://l:3100".into(), tenant: "t".into() }));
        assert_eq!((collect.otlp, collect.positions), (None, POSITIONS.into()));

        let wrong = "{namespaces: [A/b], labelSelector: 3, outputs: {files: {directory: rel, maxSize: 5, maxFiles: 0}, loki: {url: 'ftp://x'}, otlp: 7}}";
        let Err(ConfigError::Invalid { mistakes, .. }) = parse(wrong) else { panic!("accepted") };
        let paths: Vec<&str> = mistakes.iter().filter_map(|mistake| mistake.split(": ").next()).collect();
        let below = [
            "namespaces[0]",
            "labelSelector",
            "outputs.files.directory",
            "outputs.files.maxSize",
            "outputs.files.maxFiles",
            "outputs.loki.url",
            "outputs.otlp",
        ];
        assert_eq!(paths, below.map(|below| format!("{PATH}.{below}")));
        for wrong in ["{}", "{outputs: {}}", "[]", "{outputs: {loki: {url: 'http://u:p@h'}}}"] {
            parse(wrong).expect_err(wrong);
        }
    }
}
