//! Topics, filters, and the tree that finds the filters of a topic. Rules of MQTT 5, chapter 4.7; the same in 3.1.1.

use std::collections::HashMap;

/// Levels of a topic or filter at most, as in mosquitto: the tree is walked level by level.
const MAX_LEVELS: usize = 200;

/// Whether a client may publish to it.
pub fn is_topic(text: &str) -> bool {
    !text.is_empty() && !text.contains(['+', '#', '\0']) && text.split('/').count() <= MAX_LEVELS
}

/// Whether one may subscribe to it.
pub fn is_filter(text: &str) -> bool {
    let levels = || text.split('/');
    let last = levels().count() - 1;
    let is_good = |(index, level): (usize, &str)| match level {
        "#" => index == last,
        "+" => true,
        level => !level.contains(['+', '#', '\0']),
    };
    !text.is_empty() && last < MAX_LEVELS && levels().enumerate().all(is_good)
}

/// Whether a filter takes in all that another one does: what an access rule allows.
pub fn covers(rule: &str, filter: &str) -> bool {
    let hides = filter.starts_with('$') && rule.starts_with(['+', '#']);
    let (mut rule, mut filter) = (rule.split('/'), filter.split('/'));
    loop {
        match (rule.next(), filter.next()) {
            (Some("#"), _) => return !hides,
            (None, None) => return !hides,
            (Some("+"), Some(level)) if level != "#" => {}
            (Some(rule), Some(level)) if rule == level => {}
            _ => return false,
        }
    }
}

/// Subscriptions by their filters. `K` tells those of one filter apart.
pub(crate) struct Tree<K, V> {
    children: HashMap<Box<str>, Tree<K, V>>,
    here: Vec<(K, V)>,
}

impl<K, V> Default for Tree<K, V> {
    fn default() -> Self {
        Self { children: HashMap::new(), here: Vec::new() }
    }
}

impl<K: PartialEq, V> Tree<K, V> {
    /// Puts a subscription in; the one that was there before comes back.
    pub(crate) fn insert(&mut self, filter: &str, key: K, value: V) -> Option<V> {
        let mut node = self;
        for level in filter.split('/') {
            node = node.children.entry(level.into()).or_default();
        }
        match node.here.iter_mut().find(|(other, _)| *other == key) {
            Some((_, old)) => Some(std::mem::replace(old, value)),
            None => {
                node.here.push((key, value));
                None
            }
        }
    }

    /// Takes a subscription out.
    pub(crate) fn remove(&mut self, filter: &str, key: &K) -> Option<V> {
        let (level, rest) = match filter.split_once('/') {
            Some((level, rest)) => (level, Some(rest)),
            None => (filter, None),
        };
        let child = self.children.get_mut(level)?;
        let removed = match rest {
            Some(rest) => child.remove(rest, key),
            None => {
                let index = child.here.iter().position(|(other, _)| other == key)?;
                Some(child.here.swap_remove(index).1)
            }
        };
        if child.here.is_empty() && child.children.is_empty() {
            self.children.remove(level);
        }
        removed
    }

    /// Shows the subscriptions that a topic matches.
    pub(crate) fn matches<'a>(&'a self, topic: &str, see: &mut impl FnMut(&'a K, &'a V)) {
        self.walk(Some(topic), !topic.starts_with('$'), see);
    }

    fn walk<'a>(&'a self, topic: Option<&str>, wild: bool, see: &mut impl FnMut(&'a K, &'a V)) {
        if wild && let Some(all) = self.children.get("#") {
            all.here.iter().for_each(|(key, value)| see(key, value));
        }
        let Some(topic) = topic else {
            self.here.iter().for_each(|(key, value)| see(key, value));
            return;
        };
        let (level, rest) = match topic.split_once('/') {
            Some((level, rest)) => (level, Some(rest)),
            None => (topic, None),
        };
        if let Some(child) = self.children.get(level) {
            child.walk(rest, true, see);
        }
        if wild && let Some(child) = self.children.get("+") {
            child.walk(rest, true, see);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_match_filters() {
        for (filter, topic, expected) in [
            ("a/b", "a/b", true),
            ("a/b", "a/b/c", false),
            ("a/+", "a/b", true),
            ("a/+", "a", false),
            ("a/+", "a/", true),
            ("+/+", "/a", true),
            ("a/#", "a", true),
            ("a/#", "a/b/c", true),
            ("#", "a/b", true),
            ("#", "$hw/a", false),
            ("+/a", "$hw/a", false),
            ("$hw/#", "$hw/a", true),
            ("$hw/+", "$hw/a", true),
            ("+/user/#", "x/user/y", true),
        ] {
            let mut tree = Tree::default();
            assert_eq!(tree.insert(filter, 1, ()), None);
            let mut found = 0;
            tree.matches(topic, &mut |_, ()| found += 1);
            assert_eq!(found == 1, expected, "{filter} {topic}");
            assert_eq!(covers(filter, topic), expected, "{filter} covers {topic}");
            assert_eq!(tree.remove(filter, &2), None);
            assert_eq!(tree.remove(filter, &1), Some(()));
            assert!(tree.children.is_empty());
        }
    }

    #[test]
    fn rules_cover_filters() {
        for (rule, filter, expected) in [
            ("a/#", "a/+/b", true),
            ("a/+", "a/#", false),
            ("a/+", "a/+", true),
            ("#", "#", true),
            ("#", "$hw/#", false),
            ("+", "#", false),
        ] {
            assert_eq!(covers(rule, filter), expected, "{rule} {filter}");
        }
    }

    #[test]
    fn wildcards_stand_alone() {
        for (filter, good) in
            [("a/#/b", false), ("a#", false), ("a+/b", false), ("", false), ("+", true), ("/", true), ("a//#", true)]
        {
            assert_eq!(is_filter(filter), good, "{filter}");
        }
        assert!(is_topic("/") && !is_topic("a/+") && !is_topic("") && !is_topic(&"/".repeat(300)));
    }
}
