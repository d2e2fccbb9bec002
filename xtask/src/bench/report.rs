//! The table of a bench run, and its comparison with the recorded values.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::terminal::{complain, say, step};
use crate::workspace::root;

/// A gated figure may exceed the recorded one by this factor.
const TOLERANCE: f64 = 1.1;

/// One measured figure.
pub struct Row {
    what: String,
    unit: &'static str,
    values: Vec<f64>,
    budget: Option<Budget>,
    gated: bool,
}

/// What a figure is to be.
#[derive(Clone, Copy)]
enum Budget {
    AtMost(f64),
    AtLeast(f64),
}

impl Row {
    /// A size or memory: has a budget, and is compared with the recorded value.
    pub fn gated(what: String, unit: &'static str, value: f64, budget: f64) -> Self {
        Self { what, unit, values: vec![value], budget: Some(Budget::AtMost(budget)), gated: true }
    }

    /// A time or load: has a budget, and is only shown.
    pub fn timed(what: String, unit: &'static str, values: Vec<f64>, budget: f64) -> Self {
        Self { what, unit, values, budget: Some(Budget::AtMost(budget)), gated: false }
    }

    /// A rate, of which more is better: has a budget, and is only shown.
    pub fn at_least(what: String, unit: &'static str, values: Vec<f64>, budget: f64) -> Self {
        Self { what, unit, values, budget: Some(Budget::AtLeast(budget)), gated: false }
    }

    /// A figure without a budget.
    pub fn told(what: String, unit: &'static str, value: f64) -> Self {
        Self::all(what, unit, vec![value])
    }

    /// The same of several runs.
    pub fn all(what: String, unit: &'static str, values: Vec<f64>) -> Self {
        Self { what, unit, values, budget: None, gated: false }
    }

    fn median(&self) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }
}

/// The rows of one run.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Adds a row and shows it at once.
    pub fn add(&mut self, row: Row) {
        step(format_args!("{}: {:.2} {}", row.what, row.median(), row.unit));
        self.rows.push(row);
    }

    /// The table, in the form that the README holds.
    pub fn print(&self) {
        say("\n| what | median | min – max | budget | |\n|---|---|---|---|---|");
        for row in &self.rows {
            let (min, max) = row.values.iter().fold((f64::MAX, f64::MIN), |(min, max), v| (min.min(*v), max.max(*v)));
            let spread = if row.values.len() > 1 { format!("{min:.2} – {max:.2}") } else { String::new() };
            let (sign, budget, is_reached) = match row.budget {
                Some(Budget::AtMost(most)) => ("≤", most, row.median() <= most),
                Some(Budget::AtLeast(least)) => ("≥", least, row.median() >= least),
                None => ("", 0.0, true),
            };
            let (budget, verdict) = match row.budget {
                Some(_) => (format!("{sign} {budget} {}", row.unit), if is_reached { "reached" } else { "**missed**" }),
                None => (String::new(), ""),
            };
            say(format_args!("| {} | {:.2} {} | {spread} | {budget} | {verdict} |", row.what, row.median(), row.unit));
        }
    }

    /// Writes the gated figures as the new recorded values.
    pub fn record(&self) -> Result<()> {
        let figures: BTreeMap<&str, f64> =
            self.rows.iter().filter(|row| row.gated).map(|row| (row.what.as_str(), row.median())).collect();
        std::fs::write(recorded_file(), serde_json::to_string_pretty(&figures)? + "\n")?;
        Ok(())
    }

    /// Fails when a gated figure is more than a tenth above the recorded one.
    pub fn compare(&self) -> Result<()> {
        let file = recorded_file();
        let Ok(text) = std::fs::read_to_string(&file) else {
            complain(format_args!("nothing recorded yet: `cargo xtask bench --record` writes {}", file.display()));
            return Ok(());
        };
        let figures: BTreeMap<String, f64> = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
        let grown: Vec<String> = self
            .rows
            .iter()
            .filter(|row| row.gated)
            .filter_map(|row| {
                let recorded = figures.get(&row.what)?;
                (row.median() > recorded * TOLERANCE)
                    .then(|| format!("{}: {:.2} {}, recorded {recorded:.2}", row.what, row.median(), row.unit))
            })
            .collect();
        if !grown.is_empty() {
            bail!("grown by more than a tenth:\n  {}", grown.join("\n  "));
        }
        Ok(())
    }
}

fn recorded_file() -> PathBuf {
    root().join("xtask/bench-recorded.json")
}
