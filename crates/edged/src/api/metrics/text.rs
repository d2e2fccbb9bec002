//! Prometheus's text format, version 0.0.4.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::measures::Histogram;
use crate::stats::summary::Time;

/// Names and values of labels.
pub type Labels<'a> = [(&'a str, &'a str)];

/// What kind of number it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// A page of metrics: samples may be added in any order, those of one metric stand together.
#[derive(Debug, Default)]
pub struct Page {
    metrics: BTreeMap<&'static str, String>,
}

impl Page {
    /// Adds a sample; `time` when it was measured, if that matters.
    pub fn add(
        &mut self,
        (name, kind, help): (&'static str, Kind, &'static str),
        labels: &Labels<'_>,
        value: f64,
        time: Option<Time>,
    ) {
        let text = self.metrics.entry(name).or_insert_with(|| {
            let kind = if kind == Kind::Counter { "counter" } else { "gauge" };
            format!("# HELP {name} {help}\n# TYPE {name} {kind}\n")
        });
        text.push_str(name);
        for (index, (label, value)) in labels.iter().enumerate() {
            let open = if index == 0 { '{' } else { ',' };
            // Writing to a text does not fail.
            let _ = write!(text, "{open}{label}=\"{}\"", Escaped(value));
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = write!(text, "{close} {value}");
        if let Some(Time(time)) = time {
            let _ = write!(text, " {}", time.as_millisecond());
        }
        text.push('\n');
    }

    /// Adds a sample whose value may not be known.
    pub fn add_known(
        &mut self,
        metric: (&'static str, Kind, &'static str),
        labels: &Labels<'_>,
        value: Option<u64>,
        time: Option<Time>,
    ) {
        if let Some(value) = value {
            self.add(metric, labels, number(value), time);
        }
    }

    /// Adds durations in seconds.
    pub fn add_histogram(&mut self, name: &'static str, help: &str, histogram: &Histogram) {
        let (rows, count, sum) = histogram.read();
        let mut text = format!("# HELP {name} {help}\n# TYPE {name} histogram\n");
        for (bound, count) in rows {
            let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let _ = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(text, "{name}_sum {}\n{name}_count {count}", sum.as_secs_f64());
        self.metrics.insert(name, text);
    }

    /// The whole page.
    pub fn into_text(self) -> String {
        self.metrics.into_values().collect()
    }
}

/// Numbers of this format are floating.
#[allow(clippy::cast_precision_loss, reason = "bytes and counts beyond 2^53 lose what nobody can see")]
pub fn number(value: u64) -> f64 {
    value as f64
}

/// Nanoseconds as seconds.
pub fn seconds(nanoseconds: u64) -> f64 {
    number(nanoseconds) / 1e9
}

struct Escaped<'a>(&'a str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '\\' => to.write_str("\\\\"),
            '"' => to.write_str("\\\""),
            '\n' => to.write_str("\\n"),
            c => to.write_char(c),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page() {
        let mut page = Page::default();
        let bytes = ("b_bytes", Kind::Gauge, "Bytes.");
        page.add(
            bytes,
            &[("pod", "p\"\\\n"), ("ns", "")],
            1.5e10,
            Some(Time("1970-01-01T00:00:01.234Z".parse().unwrap())),
        );
        page.add(("a_total", Kind::Counter, "Things."), &[], 0.25, None);
        page.add_known(bytes, &[], Some(7), None);
        page.add_known(bytes, &[], None, None);
        let expected = "# HELP a_total Things.\n# TYPE a_total counter\na_total 0.25\n\
            # HELP b_bytes Bytes.\n# TYPE b_bytes gauge\n\
            b_bytes{pod=\"p\\\"\\\\\\n\",ns=\"\"} 15000000000 1234\nb_bytes 7\n";
        assert_eq!(page.into_text(), expected);
    }
}
