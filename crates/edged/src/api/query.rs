//! Query parameters. Their number is bounded by the longest head of a request.

use percent_encoding::percent_decode_str;

/// The parameters of a request, in order.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads `a=b&c=d`; what has no value has an empty one.
    pub fn parse(text: &str) -> Self {
        let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        Self(pairs.map(|(name, value)| (decode(name), decode(value))).collect())
    }

    /// The first value of a parameter; empty counts as absent.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(own, _)| own == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// All values of a parameter.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// A flag as Go writes it. Anything else that is there is an error, with the value.
    pub fn flag(&self, name: &str) -> Result<bool, String> {
        match self.get(name) {
            None | Some("0" | "f" | "F" | "false" | "False" | "FALSE") => Ok(false),
            Some("1" | "t" | "T" | "true" | "True" | "TRUE") => Ok(true),
            Some(other) => Err(format!("{name}: {other:?} is neither true nor false")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters() {
        let query = Query::parse("&a=b&&c&command=sh&command=-c&command=echo%20%22x%22+y&t=1&f=no&e=&%zz=1&=x");
        assert_eq!((query.get("a"), query.get("c"), query.get("x")), (Some("b"), None, None));
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["sh", "-c", "echo \"x\" y"]);
        assert_eq!((query.flag("t"), query.flag("e"), query.flag("none")), (Ok(true), Ok(false), Ok(false)));
        assert_eq!(query.flag("f"), Err("f: \"no\" is neither true nor false".to_owned()));
    }
}
