//! Who may speak with the broker inside edgecore: the file `mqttUsersFile`.
//!
//! Of what is in it only names and topics get into messages, for somebody may have written a password where none belongs.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use link::files::{FileError, read_bounded};
use mqtt::{Access, AccessError, Password, Rule, User};
use serde_json::Value;

/// A longer file is refused.
const MAX_FILE: u64 = 1 << 20;
/// How a user is written down.
const FORM: &str =
    "write `users:` and below it for each one `- name:`, `password:`, and lists of topics `read:` and `write:`";

/// Users cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UsersError {
    #[error("the MQTT users cannot be read: does mqttUsersFile name the right file?")]
    Read(#[source] FileError),
    #[error("{path} has mode {mode:o}, others than its owner can use it: run `chmod 600 {path}`", path = .path.display())]
    Mode { path: PathBuf, mode: u32 },
    #[error("{path}: {why}", path = .path.display())]
    Content { path: PathBuf, why: String },
    #[error(transparent)]
    Access(#[from] AccessError),
}

/// Reads the users; there is one at least.
pub(crate) fn read(path: &Path) -> Result<Vec<User>, UsersError> {
    let text = read_bounded(path, MAX_FILE).map_err(UsersError::Read)?;
    let metadata = std::fs::metadata(path);
    let metadata = metadata.map_err(|error| UsersError::Read(FileError::Read(path.to_path_buf(), error)))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(UsersError::Mode { path: path.to_path_buf(), mode });
    }
    parse(&String::from_utf8_lossy(&text)).map_err(|why| UsersError::Content { path: path.to_path_buf(), why })
}

fn parse(text: &str) -> Result<Vec<User>, String> {
    let document = api::document::parse(text).map_err(|_| "is not valid YAML, or a key is there twice".to_owned())?;
    only(&document, &["users"], "it")?;
    let users = document.get("users").and_then(Value::as_array).filter(|users| !users.is_empty());
    let users = users.ok_or_else(|| format!("it names no users: {FORM}"))?;
    users.iter().enumerate().map(|(index, entry)| user(index + 1, entry)).collect()
}

fn user(number: usize, entry: &Value) -> Result<User, String> {
    let text = |key: &str| entry.get(key).and_then(Value::as_str);
    let name = text("name").filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| format!("user {number} has no name: {FORM}"))?;
    let who = format!("user {name:?}");
    only(entry, &["name", "password", "read", "write"], &who)?;
    let password = text("password").filter(|password| password.starts_with("$7$")).ok_or_else(|| {
        format!("the password of {who} is missing or not hashed: put what mosquitto_passwd writes after the name there, it begins with $7$")
    })?;
    let mut rules = Vec::new();
    for (key, access) in [("read", Access::Read), ("write", Access::Write)] {
        let filters = match entry.get(key) {
            None | Some(Value::Null) => continue,
            Some(filters) => filters.as_array().ok_or_else(|| format!("{key} of {who} must be a list of topics"))?,
        };
        for filter in filters {
            let filter = filter.as_str().ok_or_else(|| format!("{key} of {who}: a topic must be a text"))?;
            rules.push(Rule { access, filter: filter.to_owned() });
        }
    }
    Ok(User { name: name.to_owned(), password: Password::Hashed(password.to_owned()), rules })
}

/// A misspelt key would give nobody the right that it was meant to give.
fn only(value: &Value, known: &[&str], what: &str) -> Result<(), String> {
    let map = value.as_object().ok_or_else(|| format!("{what} is no map: {FORM}"))?;
    match map.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(format!("{what} has a key {key:?}, which is not known: {}", known.join(", "))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "users:\n- name: sensor\n  password: $7$101$c2FsdA==$aGFzaA==\n  read: [down/sensor]\n  write: ['$hw/events/device/default/sensor/#', up/+]\n- {name: guest, password: '$7$x'}\n";

    #[test]
    fn users_with_hashes_and_topics() {
        let users = parse(GOOD).expect("valid");
        assert_eq!(users.iter().map(|user| user.name.as_str()).collect::<Vec<_>>(), ["sensor", "guest"]);
        let rules: Vec<_> = users[0].rules.iter().map(|rule| (rule.access, rule.filter.as_str())).collect();
        let device = "$hw/events/device/default/sensor/#";
        assert_eq!(rules, [(Access::Read, "down/sensor"), (Access::Write, device), (Access::Write, "up/+")]);
        assert!(users[1].rules.is_empty());
    }

    #[test]
    fn mistakes_are_named_and_no_secret_with_them() {
        for (text, why) in [
            ("", "it is no map"),
            ("users: []", "names no users"),
            ("users: [geheim]", "user 1 has no name"),
            ("users: {a: geheim}", "names no users"),
            ("user: [geheim]", "has a key \"user\""),
            ("users: [{name: a, password: geheim}]", "not hashed"),
            ("users: [{name: a, password: 5, }]", "not hashed"),
            ("users: [{name: a, password: $7$geheim, topic: x}]", "has a key \"topic\""),
            ("users: [{name: a, password: $7$geheim, read: x}]", "read of user \"a\" must be a list"),
            ("users: [{name: a, password: $7$geheim", "not valid YAML"),
            ("users: [{name: a, name: geheim}]", "not valid YAML"),
        ] {
            let told = parse(text).expect_err(text);
            assert!(told.contains(why) && !told.contains("geheim"), "{text}: {told}");
        }
    }

    #[test]
    fn only_its_owner_may_read_the_file() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("users.yaml");
        assert!(matches!(read(&path), Err(UsersError::Read(_))));
        std::fs::write(&path, GOOD).expect("written");
        for mode in [0o640, 0o604, 0o620] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set");
            let told = read(&path).expect_err("open").to_string();
            assert!(told.contains("chmod 600"), "{told}");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("set");
        assert_eq!(read(&path).expect("valid").len(), 2);
    }
}
