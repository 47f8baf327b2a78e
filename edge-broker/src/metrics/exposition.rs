//! A page of samples, and its text.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fmt::Write as _,
};

use super::{
    OTHER,
    table::{self, Kind, Metric},
};

/// Whole numbers as Prometheus knows them: exact up to 2^53.
#[allow(clippy::cast_precision_loss, reason = "Prometheus knows only floating-point numbers")]
pub(crate) fn number(value: u64) -> f64 {
    value as f64
}

/// Samples by metric and labels. What is added twice under the same labels is summed.
#[derive(Debug, Default)]
pub(crate) struct Page {
    samples: BTreeMap<&'static str, BTreeMap<Vec<String>, f64>>,
    histograms: BTreeMap<&'static str, Histogram>,
}

#[derive(Debug)]
struct Histogram {
    /// Upper bounds, and how many are within them in all.
    buckets: Vec<(f64, u64)>,
    count: u64,
    sum: f64,
}

impl Page {
    /// Adds to a sample; `labels` are the values of the metric's labels in their order.
    pub(crate) fn add(&mut self, metric: &Metric, labels: &[&str], value: f64) {
        *self.sample(metric, labels).or_default() += value;
    }

    /// Keeps the least of what is given under the same labels.
    pub(crate) fn least(&mut self, metric: &Metric, labels: &[&str], value: f64) {
        let sample = self.sample(metric, labels).or_insert(f64::INFINITY);
        *sample = sample.min(value);
    }

    /// Keeps the greatest.
    pub(crate) fn greatest(&mut self, metric: &Metric, labels: &[&str], value: f64) {
        let sample = self.sample(metric, labels).or_insert(f64::NEG_INFINITY);
        *sample = sample.max(value);
    }

    fn sample(&mut self, metric: &Metric, labels: &[&str]) -> Entry<'_, Vec<String>, f64> {
        debug_assert_eq!(metric.labels.len(), labels.len(), "{}", metric.name);
        let labels = labels.iter().map(ToString::to_string).collect();
        self.samples.entry(metric.name).or_default().entry(labels)
    }

    /// Gives a histogram: upper bounds in ascending order, each with what is within it and beyond the one before.
    pub(crate) fn histogram(
        &mut self,
        metric: &Metric,
        buckets: impl IntoIterator<Item = (f64, u64)>,
        beyond: u64,
        sum: f64,
    ) {
        debug_assert!(metric.kind == Kind::Histogram && metric.labels.is_empty(), "{}", metric.name);
        let mut count = 0_u64;
        let mut within = Vec::new();
        for (bound, more) in buckets {
            count = count.saturating_add(more);
            within.push((bound, count));
        }
        let count = count.saturating_add(beyond);
        self.histograms.insert(metric.name, Histogram { buckets: within, count, sum });
    }

    /// Adds a whole number.
    pub(crate) fn count(&mut self, metric: &Metric, labels: &[&str], value: u64) {
        self.add(metric, labels, number(value));
    }

    /// Prometheus' text, in the order of the table.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for metric in table::ALL {
            let (samples, histogram) = (self.samples.get(metric.name), self.histograms.get(metric.name));
            if samples.is_none() && histogram.is_none() {
                continue;
            }
            let _ = writeln!(text, "# HELP {} {}", metric.name, metric.help);
            let _ = writeln!(text, "# TYPE {} {}", metric.name, metric.kind.name());
            if let Some(histogram) = histogram {
                histogram.write(metric.name, &mut text);
            }
            for (values, value) in samples.into_iter().flatten() {
                text.push_str(metric.name);
                for (index, (label, shown)) in metric.labels.iter().zip(values).enumerate() {
                    let _ = write!(text, "{}{label}=\"{}\"", if index == 0 { '{' } else { ',' }, escaped(shown));
                }
                let _ = writeln!(text, "{} {value}", if values.is_empty() { "" } else { "}" });
            }
        }
        text
    }
}

impl Histogram {
    fn write(&self, name: &str, text: &mut String) {
        for (bound, count) in &self.buckets {
            let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let _ = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {}", self.count);
        let _ = writeln!(text, "{name}_sum {}", self.sum);
        let _ = writeln!(text, "{name}_count {}", self.count);
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Who is told apart, within a bound: who came first stays while it exists, what is past the bound is `_other`.
#[derive(Debug, Default)]
pub(crate) struct Apart {
    known: BTreeSet<Vec<String>>,
}

impl Apart {
    /// Who is there now.
    pub(crate) fn keep<'a>(&mut self, there: impl IntoIterator<Item = Vec<&'a str>>, max: usize) {
        let there: BTreeSet<Vec<&str>> = there.into_iter().collect();
        self.known.retain(|known| there.contains(&known.iter().map(String::as_str).collect::<Vec<_>>()));
        for key in there {
            if self.known.len() >= max {
                return;
            }
            self.known.insert(key.into_iter().map(ToOwned::to_owned).collect());
        }
    }

    /// The labels to show.
    pub(crate) fn labels<'a>(&self, key: &[&'a str]) -> Vec<&'a str> {
        let is_known = self.known.contains(&key.iter().map(ToString::to_string).collect::<Vec<_>>());
        if is_known { key.to_vec() } else { vec![OTHER; key.len()] }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::metrics::table::{ALL, DOOR_REFUSED, LOG_SYNC_SECONDS, QUEUE_BYTES, UPTIME};

    /// Reads Prometheus' text strictly: every series belongs to a metric of the table, with its labels, after its HELP and TYPE,
    /// in one piece, and once. Gives the values by series.
    pub(crate) fn read(text: &str) -> BTreeMap<String, f64> {
        assert!(text.is_empty() || text.ends_with('\n'));
        let (mut series, mut current, mut begun) = (BTreeMap::new(), None::<&Metric>, BTreeSet::new());
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').expect(line);
                let metric = ALL.iter().find(|m| m.name == name).expect(line);
                assert_eq!(metric.help, help);
                assert!(begun.insert(name), "{name} comes in two pieces");
                assert_eq!(lines.next(), Some(format!("# TYPE {name} {}", metric.kind.name()).as_str()));
                current = Some(metric);
                continue;
            }
            let metric = current.expect("a sample before HELP and TYPE");
            let rest = line.strip_prefix(metric.name).unwrap_or_else(|| panic!("{line} stands below {}", metric.name));
            if metric.kind == Kind::Histogram {
                let suffix = rest.split(['{', ' ']).next().unwrap();
                assert!(["_bucket", "_sum", "_count"].contains(&suffix), "{line}");
                let value: f64 = line.rsplit_once(' ').unwrap().1.parse().expect(line);
                assert!(value.is_finite() && value >= 0.0, "{line}");
                assert!(series.insert(line.rsplit_once(' ').unwrap().0.to_owned(), value).is_none(), "{line} twice");
                continue;
            }
            let (labels, value) = match rest.strip_prefix('{') {
                Some(rest) => labels(rest),
                None => (Vec::new(), rest),
            };
            let names: Vec<_> = labels.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names, metric.labels, "{line}");
            let value: f64 = value.strip_prefix(' ').expect(line).parse().expect(line);
            assert!(value.is_finite(), "{line}");
            let key = line.rsplit_once(' ').unwrap().0.to_owned();
            assert!(series.insert(key, value).is_none(), "{line} is there twice");
        }
        series
    }

    /// `name="value",…}` with escapes; the labels and what follows the brace.
    fn labels(mut rest: &str) -> (Vec<(String, String)>, &str) {
        let mut found = Vec::new();
        loop {
            let (name, after) = rest.split_once("=\"").expect(rest);
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            let (mut value, mut chars) = (String::new(), after.char_indices());
            let end = loop {
                match chars.next().expect("an end of the value") {
                    (at, '"') => break at,
                    (_, '\\') => match chars.next().expect("what is escaped").1 {
                        'n' => value.push('\n'),
                        c @ ('\\' | '"') => value.push(c),
                        other => panic!("\\{other} is no escape"),
                    },
                    (_, c) => value.push(c),
                }
            };
            found.push((name.to_owned(), value));
            rest = &after[end + 1..];
            if let Some(after) = rest.strip_prefix('}') {
                return (found, after);
            }
            rest = rest.strip_prefix(',').expect("a comma or a brace");
        }
    }

    #[test]
    fn a_page_reads_back_strictly() {
        let mut page = Page::default();
        page.count(&QUEUE_BYTES, &["a\"b\\c\nd"], 7);
        page.count(&DOOR_REFUSED, &["rate"], 2);
        page.count(&DOOR_REFUSED, &["rate"], 3);
        page.add(&UPTIME, &[], 0.25);
        let series = read(&page.text());
        assert_eq!(series["seaway_door_refused_total{reason=\"rate\"}"], 5.0);
        assert_eq!(series["seaway_uptime_seconds"], 0.25);
        assert_eq!(series[r#"seaway_queue_bytes{queue="a\"b\\c\nd"}"#], 7.0);
        assert_eq!(series.len(), 3);
    }

    #[test]
    fn a_histogram_counts_upwards_and_ends_with_all() {
        let mut page = Page::default();
        page.histogram(&LOG_SYNC_SECONDS, [(0.001, 3), (0.01, 0), (0.1, 2)], 1, 4.5);
        let text = page.text();
        let series = read(&text);
        let of = |name: &str| series[&format!("seaway_log_sync_seconds_{name}")];
        assert_eq!([of("bucket{le=\"0.001\"}"), of("bucket{le=\"0.01\"}"), of("bucket{le=\"0.1\"}")], [3.0, 3.0, 5.0]);
        assert_eq!((of("bucket{le=\"+Inf\"}"), of("sum"), of("count")), (6.0, 4.5, 6.0));
        assert!(text.contains("# TYPE seaway_log_sync_seconds histogram\n"), "{text}");
    }

    #[test]
    fn who_came_first_is_told_apart_while_it_exists() {
        let mut apart = Apart::default();
        apart.keep([vec!["m"], vec!["n"]], 2);
        apart.keep([vec!["a"], vec!["m"], vec!["n"]], 2);
        assert_eq!(apart.labels(&["m"]), ["m"]);
        assert_eq!(apart.labels(&["a"]), [OTHER]);
        apart.keep([vec!["a"], vec!["n"]], 2);
        assert_eq!(apart.labels(&["a"]), ["a"], "m is gone");
    }
}
