//! Names of images: `[registry[:port]/]path[:tag][@digest]`, as the reference library of Docker defines them.

/// A name that no registry can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("couldn't parse image name {name:?}: invalid reference format{detail}")]
pub struct ParseReferenceError {
    name: String,
    detail: &'static str,
}

/// The name with `:latest` where it has neither tag nor digest.
///
/// # Errors
/// It is no name of an image.
pub fn with_default_tag(name: &str) -> Result<String, ParseReferenceError> {
    let error = |detail| ParseReferenceError { name: name.to_owned(), detail };
    let (rest, digest) = name.split_once('@').map_or((name, None), |(rest, digest)| (rest, Some(digest)));
    // A colon after the last slash starts a tag; one before it belongs to a registry's port.
    let after_slash = rest.rfind('/').map_or(0, |at| at + 1);
    let colon = rest[after_slash..].find(':').map(|at| at + after_slash);
    let (path, tag) = colon.map_or((rest, None), |at| (&rest[..at], Some(&rest[at + 1..])));
    let (registry, path) = match path.split_once('/') {
        Some((first, path)) if is_registry(first) => (Some(first), path),
        _ => (None, path),
    };
    if registry.is_some_and(|registry| !is_host(registry)) || path.is_empty() || path.len() > 255 {
        return Err(error(""));
    }
    if path.chars().any(|c| c.is_ascii_uppercase()) {
        return Err(error(": repository name must be lowercase"));
    }
    if !path.split('/').all(is_component) || !tag.is_none_or(is_tag) || !digest.is_none_or(is_digest) {
        return Err(error(""));
    }
    Ok(if tag.is_none() && digest.is_none() { format!("{name}:latest") } else { name.to_owned() })
}

/// The registry and path of a valid name: `docker.io` and `library/` are what short names mean.
pub fn registry_and_path(name: &str) -> (String, String) {
    let rest = name.split('@').next().unwrap_or_default();
    let after_slash = rest.rfind('/').map_or(0, |at| at + 1);
    let end = rest[after_slash..].find(':').map_or(rest.len(), |at| at + after_slash);
    match rest[..end].split_once('/') {
        Some((first, path)) if is_registry(first) => (first.to_owned(), path.to_owned()),
        Some(_) => ("docker.io".to_owned(), rest[..end].to_owned()),
        None => ("docker.io".to_owned(), format!("library/{}", &rest[..end])),
    }
}

fn is_registry(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.chars().any(|c| c.is_ascii_uppercase())
}

fn is_host(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']'))
}

/// Lower-case letters and digits, with single separators (`.`, `_`, `__`, dashes) between them.
fn is_component(text: &str) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
    ends(text.chars().next())
        && ends(text.chars().last())
        && text.chars().all(allowed)
        && !["..", "___", "._", "_.", "-.", ".-", "-_", "_-"].iter().any(|pair| text.contains(pair))
}

fn is_tag(text: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.len() <= 128 && text.starts_with(word) && text.chars().all(|c| word(c) || matches!(c, '.' | '-'))
}

fn is_digest(text: &str) -> bool {
    text.split_once(':').is_some_and(|(algorithm, hex)| {
        !algorithm.is_empty() && hex.len() >= 32 && hex.chars().all(|c| c.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_and_refusals() {
        let digest = format!("a@sha256:{}", "0".repeat(64));
        for (name, with_tag) in [
            ("busybox", "busybox:latest"),
            ("busybox:1", "busybox:1"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("my.registry:443/a_b/c-d.e:v1.2", "my.registry:443/a_b/c-d.e:v1.2"),
            (&digest, &digest),
        ] {
            assert_eq!(with_default_tag(name).as_deref(), Ok(with_tag));
        }
        for name in ["", "UPPER", "a/UPPER:1", "a b", "a:", "a:-x", "/a", "a//b", "-a", "a@x", "a..b", "a@sha256:zz"] {
            assert!(with_default_tag(name).is_err(), "{name}");
        }
        let text = with_default_tag("Nginx").unwrap_err().to_string();
        assert!(text.ends_with("repository name must be lowercase"), "{text}");
    }

    #[test]
    fn registries() {
        for (name, registry, path) in [
            ("busybox:1", "docker.io", "library/busybox"),
            ("a/b", "docker.io", "a/b"),
            ("r.example:5000/a/b:1", "r.example:5000", "a/b"),
        ] {
            assert_eq!(registry_and_path(name), (registry.to_owned(), path.to_owned()));
        }
    }
}
