//! Where in a JSON text an error lies: serde names line and column, users look for a field.

/// One level of nesting around the place.
enum Level {
    Object(Option<String>),
    Array(usize),
}

/// The path of the value that holds this place, as `spec.containers[0].image`. Lines and columns count from 1, in bytes.
pub(super) fn at(text: &[u8], line: usize, column: usize) -> String {
    let start =
        text.split_inclusive(|byte| *byte == b'\n').take(line.saturating_sub(1)).map(<[u8]>::len).sum::<usize>();
    let end = start.saturating_add(column).min(text.len());
    let mut levels: Vec<Level> = Vec::new();
    let mut rest = text[..end].iter().enumerate();
    while let Some((index, byte)) = rest.next() {
        match byte {
            b'{' => levels.push(Level::Object(None)),
            b'[' => levels.push(Level::Array(0)),
            // The last byte may close what the error is about.
            b'}' | b']' if index + 1 < end => drop(levels.pop()),
            b',' => {
                if let Some(Level::Array(index)) = levels.last_mut() {
                    *index += 1;
                }
            }
            b'"' => {
                let mut escaped = false;
                let mut string = Vec::new();
                for (_, byte) in rest.by_ref() {
                    match byte {
                        b'"' if !escaped => break,
                        _ => escaped = *byte == b'\\' && !escaped,
                    }
                    string.push(*byte);
                }
                let is_key =
                    text[index..].iter().skip(string.len() + 2).find(|byte| !byte.is_ascii_whitespace()) == Some(&b':');
                if is_key && let Some(Level::Object(key)) = levels.last_mut() {
                    *key = Some(String::from_utf8_lossy(&string).into_owned());
                }
            }
            _ => {}
        }
    }
    levels.iter().fold(String::new(), |path, level| match level {
        Level::Object(Some(key)) if path.is_empty() => key.clone(),
        Level::Object(Some(key)) => format!("{path}.{key}"),
        Level::Object(None) => path,
        Level::Array(index) => format!("{path}[{index}]"),
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    #[test]
    fn names_the_field_that_serde_does_not_like() {
        for (text, path) in [
            (r#"{"spec":{"containers":[{"name":"a"},{"name":"b","image":5}]}}"#, "spec.containers[1].image"),
            (r#"{"metadata":{"name":"a,{\"b"},"spec":{"nodeName":"x","hostNetwork":"yes"}}"#, "spec.hostNetwork"),
            ("{\"spec\":\n {\"priority\": 1e300,\n\"containers\":[]}}", "spec.priority"),
            (r#"{"spec":{"containers":{}}}"#, "spec.containers"),
        ] {
            let error = serde_json::from_str::<Pod>(text).unwrap_err();
            assert_eq!(at(text.as_bytes(), error.line(), error.column()), path, "{error}");
        }
        assert_eq!(at(b"", 3, 9), "");
    }
}
