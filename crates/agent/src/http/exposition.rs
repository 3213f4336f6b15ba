//! Metrics as text, in the two forms that Prometheus reads.
//!
//! <https://prometheus.io/docs/instrumenting/exposition_formats/> and
//! <https://prometheus.io/docs/specs/om/open_metrics_spec/>.

use std::fmt::Write;

/// The form that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Prometheus' own, 0.0.4.
    Prometheus,
    /// OpenMetrics, 1.0.0.
    OpenMetrics,
}

impl Format {
    /// The one that an `Accept` header prefers.
    pub(crate) fn of(accept: &str) -> Self {
        let weight = |kind: &str| {
            let entry = accept.split(',').find(|entry| entry.trim().starts_with(kind))?;
            let weight = entry.split(';').find_map(|part| part.trim().strip_prefix("q="));
            Some(weight.and_then(|weight| weight.parse().ok()).unwrap_or(1.0_f64))
        };
        let plain = weight("text/plain").or_else(|| weight("*/*")).unwrap_or(0.0);
        match weight("application/openmetrics-text") {
            Some(open) if open > 0.0 && open >= plain => Format::OpenMetrics,
            _ => Format::Prometheus,
        }
    }

    pub(crate) fn content(self) -> &'static str {
        match self {
            Format::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// What a metric's values do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// They only rise; the name ends with `_total`.
    Counter,
    /// They go up and down.
    Gauge,
    /// They say what something is, and are 1; the name ends with `_info`.
    Info,
    /// Counts below bounds.
    Histogram,
}

/// A metric: what it is called, what it means, what its values do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Family {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) help: &'static str,
}

/// Grows by one family after the other.
pub(crate) struct Exposition {
    format: Format,
    text: String,
}

impl Exposition {
    pub(crate) fn new(format: Format) -> Self {
        Exposition { format, text: String::with_capacity(32 << 10) }
    }

    /// Begins a family; its series follow.
    pub(crate) fn family(&mut self, family: &Family) {
        let kind = match (family.kind, self.format) {
            (Kind::Counter, _) => "counter",
            (Kind::Gauge, _) | (Kind::Info, Format::Prometheus) => "gauge",
            (Kind::Info, Format::OpenMetrics) => "info",
            (Kind::Histogram, _) => "histogram",
        };
        // OpenMetrics names the family without what its kind puts behind it.
        let name = match (self.format, family.kind) {
            (Format::OpenMetrics, Kind::Counter) => family.name.trim_end_matches("_total"),
            (Format::OpenMetrics, Kind::Info) => family.name.trim_end_matches("_info"),
            _ => family.name,
        };
        let help = escaped(family.help, self.format == Format::OpenMetrics);
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    /// One series of the family that was begun last.
    pub(crate) fn series(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.text.push_str(name);
        if !labels.is_empty() {
            self.text.push('{');
            for (i, (key, value)) in labels.iter().enumerate() {
                let comma = if i > 0 { "," } else { "" };
                let value = escaped(value, true);
                self.write(format_args!("{comma}{key}=\"{value}\""));
            }
            self.text.push('}');
        }
        self.line(format_args!(" {value}"));
    }

    /// A histogram's series: how many were at most each bound, how many in all,
    /// and their sum.
    pub(crate) fn histogram(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        buckets: &[(f64, u64)],
        count: u64,
        sum: f64,
    ) {
        let bucket = format!("{name}_bucket");
        let bounds = buckets.iter().map(|(bound, count)| (bound.to_string(), *count));
        for (bound, below) in bounds.chain([("+Inf".to_owned(), count)]) {
            let labels: Vec<_> = labels.iter().copied().chain([("le", &*bound)]).collect();
            self.series(&bucket, &labels, below as f64);
        }
        self.series(&format!("{name}_sum"), labels, sum);
        self.series(&format!("{name}_count"), labels, count as f64);
    }

    /// All of it.
    pub(crate) fn end(mut self) -> Vec<u8> {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text.into_bytes()
    }

    fn write(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to memory doesn't fail.
        self.text.write_fmt(text).unwrap_or_default();
    }

    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        self.write(text);
        self.text.push('\n');
    }
}

/// Text in which nothing ends a line, nor a value within quotes.
fn escaped(text: &str, quotes: bool) -> String {
    let text = text.replace('\\', "\\\\").replace('\n', "\\n");
    if quotes { text.replace('"', "\\\"") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HITS: Family =
        Family { name: "hits_total", kind: Kind::Counter, help: "Hits \\ \"all\"" };

    fn shown(format: Format) -> String {
        let mut exposition = Exposition::new(format);
        exposition.family(&HITS);
        exposition.series("hits_total", &[("a", "\"x\\\n"), ("b", "")], 3.0);
        exposition.series("hits_total", &[], 1e15);
        exposition.family(&Family { name: "b_seconds", kind: Kind::Histogram, help: "B" });
        exposition.histogram("b_seconds", &[("k", "v")], &[(0.001, 1), (2.5, 2)], 3, 9.5);
        String::from_utf8(exposition.end()).unwrap()
    }

    #[test]
    fn both_forms_are_what_their_pages_show() {
        let series = "hits_total{a=\"\\\"x\\\\\\n\",b=\"\"} 3\nhits_total 1000000000000000\n";
        let histogram = "# HELP b_seconds B\n# TYPE b_seconds histogram\n\
                         b_seconds_bucket{k=\"v\",le=\"0.001\"} 1\n\
                         b_seconds_bucket{k=\"v\",le=\"2.5\"} 2\n\
                         b_seconds_bucket{k=\"v\",le=\"+Inf\"} 3\n\
                         b_seconds_sum{k=\"v\"} 9.5\nb_seconds_count{k=\"v\"} 3\n";
        let head = "# HELP hits_total Hits \\\\ \"all\"\n# TYPE hits_total counter\n";
        assert_eq!(shown(Format::Prometheus), format!("{head}{series}{histogram}"));
        let head = "# HELP hits Hits \\\\ \\\"all\\\"\n# TYPE hits counter\n";
        assert_eq!(shown(Format::OpenMetrics), format!("{head}{series}{histogram}# EOF\n"));
    }

    #[test]
    fn who_prefers_openmetrics_gets_it() {
        for (accept, expected) in [
            ("", Format::Prometheus),
            ("*/*", Format::Prometheus),
            ("text/plain", Format::Prometheus),
            ("application/openmetrics-text;version=1.0.0", Format::OpenMetrics),
            (
                "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5",
                Format::OpenMetrics,
            ),
            ("application/openmetrics-text;q=0.2,text/plain;q=0.5", Format::Prometheus),
            ("application/openmetrics-text;q=0", Format::Prometheus),
        ] {
            assert_eq!(Format::of(accept), expected, "{accept}");
        }
    }
}
