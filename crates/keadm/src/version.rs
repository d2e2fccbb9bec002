//! `keadm version`.

use serde_json::{Value, json};

use crate::cli::VersionOutput;

/// The KubeEdge version whose files, flags and protocol these programs speak.
pub const GIT_VERSION: &str = "v1.23.1";
/// The part of it that decides what fits together.
pub const MINOR: &str = "1.23";

/// The answer of `keadm version`. The keys are upstream's; `compiler` and `goVersion` tell that this is another program.
pub fn text(output: Option<VersionOutput>) -> String {
    let info = info();
    match output {
        Some(VersionOutput::Short) => GIT_VERSION.to_owned(),
        Some(VersionOutput::Json) => serde_json::to_string_pretty(&info).unwrap_or_default(),
        Some(VersionOutput::Yaml) => api::document::to_yaml(&info).trim_end().to_owned(),
        None => format!("version: {GIT_VERSION} (ferroedge {}, {})", env!("CARGO_PKG_VERSION"), platform()),
    }
}

fn info() -> Value {
    let (major, minor) = MINOR.split_once('.').unwrap_or((MINOR, ""));
    json!({
        "major": major,
        "minor": minor,
        "gitVersion": GIT_VERSION,
        "gitCommit": option_env!("FERROEDGE_COMMIT").unwrap_or_default(),
        "gitTreeState": "",
        "buildDate": "",
        "goVersion": "none",
        "compiler": concat!("ferroedge ", env!("CARGO_PKG_VERSION")),
        "platform": platform(),
    })
}

fn platform() -> String {
    let machine = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("{}/{machine}", std::env::consts::OS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_tell_the_same_version() {
        assert_eq!(text(Some(VersionOutput::Short)), GIT_VERSION);
        let json: Value = serde_json::from_str(&text(Some(VersionOutput::Json))).expect("JSON");
        let yaml = api::document::parse(&text(Some(VersionOutput::Yaml))).expect("YAML");
        assert_eq!(json, yaml);
        assert_eq!(json["gitVersion"], GIT_VERSION);
        assert_eq!(json["minor"], "23");
        assert!(text(None).contains(GIT_VERSION));
        assert!(edged::node::status::KUBELET_VERSION.ends_with(GIT_VERSION), "the node tells the same");
    }
}
