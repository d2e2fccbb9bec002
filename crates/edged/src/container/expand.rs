//! `$(NAME)` references in commands, arguments and environment values (Kubernetes' grammar).

/// Replaces `$(NAME)` by its value; unknown ones and everything malformed stay as they are, `$$` becomes `$`.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&rest[at..=at + name.len() + 2]),
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grammar() {
        let lookup = |name: &str| match name {
            "A" => Some("x".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        for (text, expanded) in [
            ("$(A)$(A)", "xx"),
            ("-$(NO)-", "-$(NO)-"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$x"),
            ("$$$$(A)", "$$(A)"),
            ("a$(EMPTY)b", "ab"),
            ("$A $(A", "$A $(A"),
            ("$", "$"),
            ("$()", "$()"),
            ("é$(A)é", "éxé"),
        ] {
            assert_eq!(expand(text, lookup), expanded, "{text}");
        }
    }
}
