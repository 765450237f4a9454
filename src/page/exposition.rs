//! Reads the process's own metrics back from what a scrape gets: the page shows what operators see.

use std::collections::HashMap;

/// The samples of one scrape, by name without the prefix.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Exposition {
    samples: HashMap<String, Vec<Sample>>,
}

/// One value with its labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub labels: Vec<(String, String)>,
    pub value: f64,
}

impl Sample {
    /// The value of a label; empty where it has none of that name.
    pub fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(label, _)| label == name).map_or("", |(_, value)| value)
    }
}

const PREFIX: &str = "roc4mllm_";

impl Exposition {
    /// Reads the OpenMetrics text format. Lines that are none of ours are passed over.
    pub fn parse(text: &str) -> Self {
        let mut samples: HashMap<String, Vec<Sample>> = HashMap::new();
        for line in text.lines() {
            if let Some((name, sample)) = line.strip_prefix(PREFIX).and_then(read) {
                samples.entry(name).or_default().push(sample);
            }
        }
        Self { samples }
    }

    /// Every sample of that name.
    pub fn all(&self, name: &str) -> &[Sample] {
        self.samples.get(name).map_or(&[], Vec::as_slice)
    }

    /// The one sample of that name.
    pub fn one(&self, name: &str) -> Option<f64> {
        self.all(name).first().map(|sample| sample.value)
    }

    /// The sample of that name whose label has that value.
    pub fn labelled(&self, name: &str, label: &str, value: &str) -> Option<f64> {
        self.all(name).iter().find(|sample| sample.label(label) == value).map(|sample| sample.value)
    }
}

/// `name{label="value",...} 1.5`, with anything behind the number.
fn read(line: &str) -> Option<(String, Sample)> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => read_labels(rest)?,
        None => (Vec::new(), rest),
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some((name.to_owned(), Sample { labels, value }))
}

/// Labels up to the closing brace, and what follows it.
fn read_labels(text: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut labels = Vec::new();
    let mut rest = text;
    loop {
        if let Some(end) = rest.strip_prefix('}') {
            return Some((labels, end));
        }
        let (name, after) = rest.split_once("=\"")?;
        let (value, after) = read_value(after)?;
        labels.push((name.to_owned(), value));
        rest = after.strip_prefix(',').unwrap_or(after);
    }
}

/// A quoted value without its escapes, and what follows the closing quote.
fn read_value(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[index + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fault::Stage, score::ItemStatus, telemetry::metrics::Metrics, telemetry::metrics::Sampled};
    use proptest::prelude::*;

    #[test]
    fn what_the_process_counts_is_read_back() {
        let metrics = Metrics::new();
        metrics.item(ItemStatus::Scored);
        metrics.item(ItemStatus::Scored);
        drop(metrics.enter(Stage::Fetch));
        let seen = Exposition::parse(&metrics.render());
        assert_eq!(seen.labelled("items_total", "status", "scored"), Some(2.0));
        assert_eq!(seen.labelled("stage_in_flight", "stage", "fetch"), Some(0.0));
        assert_eq!(seen.labelled("stage_duration_seconds_count", "stage", "fetch"), Some(1.0));
        assert_eq!(seen.one("records_total"), Some(0.0));
        assert_eq!(seen.one("no_such_metric"), None);
        assert_eq!(seen.all("build_info")[0].label("version"), env!("CARGO_PKG_VERSION"));
    }

    proptest! {
        #[test]
        fn any_label_is_read_back(topic in "\\PC*", value in -1e9_f64..1e9) {
            let metrics = Metrics::new();
            let name = topic.clone();
            metrics.sample(vec![Sampled {
                name: "lag_records",
                help: "h",
                read: Box::new(move || crate::telemetry::metrics::Sample::Levels(
                    vec![(vec![("topic", name.clone()), ("partition", "3".into())], value)],
                )),
            }]);
            let seen = Exposition::parse(&metrics.render());
            let sample = &seen.all("lag_records")[0];
            // The encoder may escape differently, and then the text differs, but never the value or the rest.
            prop_assert_eq!(sample.label("partition"), "3");
            prop_assert_eq!(sample.value, value);
            if !topic.contains(['\\', '"', '\n']) {
                prop_assert_eq!(sample.label("topic"), topic);
            }
        }

        #[test]
        fn no_text_breaks_it(text in "(?s).*") {
            Exposition::parse(&format!("roc4mllm_{text}"));
        }
    }
}
