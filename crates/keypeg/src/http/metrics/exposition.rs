//! The two text formats of `/metrics`, and which of them a scraper prefers.
//!
//! The server encodes `OpenMetrics`. The older text format, version 0.0.4, is a translation of it: it
//! names a counter by its sample, and has no end mark. Does not know any metric.

use hyper::header::{ACCEPT, HeaderMap};

/// A format of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// The text format of Prometheus, version 0.0.4: every scraper reads it.
    Text,
    /// `OpenMetrics` 1.0.0.
    OpenMetrics,
}

impl Format {
    /// Returns the format that a request prefers: `OpenMetrics` only if its quality is higher, or
    /// equal and named in full where text is not. The server never refuses for the `Accept`.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let ranges = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let ranges: Vec<_> = ranges.flat_map(|list| list.split(',')).map(Range::parse).collect();
        let open_metrics = best(&ranges, "application", "openmetrics-text", &["1.0.0", "0.0.1"]);
        let text = best(&ranges, "text", "plain", &["0.0.4"]);
        if open_metrics > text { Self::OpenMetrics } else { Self::Text }
    }

    /// Returns the content type.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// Returns `OpenMetrics` text without its end mark in this format.
    pub(super) fn of_open_metrics(self, text: &str) -> String {
        match self {
            Self::Text => classic(text),
            Self::OpenMetrics => text.to_owned(),
        }
    }

    /// Returns what the text ends with.
    pub(super) fn end_mark(self) -> &'static str {
        match self {
            Self::Text => "",
            Self::OpenMetrics => "# EOF\n",
        }
    }
}

/// One media range of an `Accept` header.
struct Range<'a> {
    kind: &'a str,
    subtype: &'a str,
    version: Option<&'a str>,
    /// The quality in thousandths.
    quality: u32,
}

impl<'a> Range<'a> {
    fn parse(text: &'a str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let (kind, subtype) = parts.next().and_then(|it| it.split_once('/')).unwrap_or_default();
        let mut range = Self { kind, subtype, version: None, quality: 1_000 };
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            if name.trim().eq_ignore_ascii_case("version") {
                range.version = Some(value.trim().trim_matches('"'));
            } else if name.trim().eq_ignore_ascii_case("q") {
                range.quality = quality(value.trim());
            }
        }
        range
    }
}

/// Parses a quality, 0 to 1 with at most three digits behind the point, in thousandths. An
/// unreadable one counts as the highest, like a missing one.
fn quality(text: &str) -> u32 {
    let (whole, digits) = text.split_once('.').unwrap_or((text, ""));
    let thousandths = format!("{digits:0<3}").parse().ok();
    match (whole, thousandths) {
        ("0", Some(thousandths @ 0..=999)) => thousandths,
        _ => 1_000,
    }
}

/// Returns the quality of a media type, and how specific the range that matches best is.
fn best(ranges: &[Range<'_>], kind: &str, subtype: &str, versions: &[&str]) -> (u32, u32) {
    let matching = ranges.iter().filter_map(|range| {
        let is = |pattern: &str, text: &str| pattern.eq_ignore_ascii_case(text);
        let specificity = match (range.kind, range.subtype, range.version) {
            ("*", "*", _) => 1,
            (found, "*", _) if is(found, kind) => 2,
            (found, sub, None) if is(found, kind) && is(sub, subtype) => 3,
            (found, sub, Some(version)) if is(found, kind) && is(sub, subtype) => {
                versions.contains(&version).then_some(4)?
            }
            _ => return None,
        };
        Some((specificity, range.quality))
    });
    // The most specific range counts (RFC 9110, 12.5.1), of equals the first.
    let best = matching.reduce(|best, other| if other.0 > best.0 { other } else { best });
    best.filter(|(_, quality)| *quality > 0)
        .map_or((0, 0), |(specificity, quality)| (quality, specificity.min(3)))
}

/// Translates `OpenMetrics` text to the text format 0.0.4.
fn classic(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    // A family's HELP comes before its TYPE, which says how its samples are named.
    let mut help = None;
    for line in open_metrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(name)) => help = Some((name, words.next())),
            (Some("#"), Some("TYPE"), Some(name)) => {
                let (kind, suffix) = match words.next().unwrap_or_default() {
                    "counter" => ("counter", "_total"),
                    "info" => ("gauge", "_info"),
                    "unknown" => ("untyped", ""),
                    kind => (kind, ""),
                };
                if let Some((_, Some(help))) = help.take().filter(|(of, _)| *of == name) {
                    text.extend(["# HELP ", name, suffix, " ", help, "\n"]);
                }
                text.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
            }
            // The format has no units and no end mark.
            (Some("#"), ..) => {}
            _ => text.extend([line, "\n"]),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    #[test]
    fn open_metrics_is_sent_only_to_scrapers_that_prefer_it() {
        let prometheus_2 = "application/openmetrics-text;version=1.0.0;q=0.5,\
                            application/openmetrics-text;version=0.0.1;q=0.4,\
                            text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                            application/openmetrics-text;version=0.0.1;q=0.5,\
                            text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
                            text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let text_first = "text/plain;version=0.0.4;q=0.6,application/openmetrics-text;\
                          version=1.0.0;q=0.5,*/*;q=0.2";
        for (accept, format) in [
            ("", Format::Text),
            ("*/*", Format::Text),
            ("text/plain;version=0.0.4", Format::Text),
            ("text/plain", Format::Text),
            ("text/html, */*;q=0.1", Format::Text),
            ("application/json", Format::Text),
            ("nonsense", Format::Text),
            (text_first, Format::Text),
            ("application/openmetrics-text, text/plain", Format::Text),
            ("application/openmetrics-text;q=0.5, text/plain;q=0.50", Format::Text),
            ("application/openmetrics-text;q=0", Format::Text),
            ("application/openmetrics-text;version=2.0.0", Format::Text),
            ("application/openmetrics-text;q=0.1, */*", Format::Text),
            ("application/*, text/*", Format::Text),
            ("application/openmetrics-text", Format::OpenMetrics),
            ("Application/OpenMetrics-Text; Version=\"1.0.0\"; Q=0.9", Format::OpenMetrics),
            ("application/openmetrics-text, */*", Format::OpenMetrics),
            ("application/openmetrics-text, text/plain;q=0.999", Format::OpenMetrics),
            ("text/plain;q=0, */*", Format::OpenMetrics),
            (prometheus_2, Format::OpenMetrics),
            (prometheus_3, Format::OpenMetrics),
        ] {
            let mut headers = HeaderMap::new();
            if !accept.is_empty() {
                headers.insert(ACCEPT, HeaderValue::from_static(accept));
            }
            assert_eq!(Format::of(&headers), format, "{accept}");
        }
    }

    /// Regression: the samples of a counter had another name than its HELP and TYPE, so that older
    /// parsers saw counters without samples.
    #[test]
    fn older_parsers_see_a_counter_by_the_name_of_its_samples() {
        let open_metrics = "# HELP a Things done.\n# TYPE a counter\na_total{x=\"# y\"} 1\n\
                            # HELP b Now.\n# TYPE b gauge\n# UNIT b seconds\nb 2\n\
                            # HELP c Build.\n# TYPE c info\nc_info{v=\"1\"} 1\n\
                            # HELP d Time.\n# TYPE d histogram\nd_sum 1.5\nd_bucket{le=\"+Inf\"} 1\n\
                            # TYPE e unknown\ne 1\n# EOF\n";
        let expected = "# HELP a_total Things done.\n# TYPE a_total counter\na_total{x=\"# y\"} 1\n\
                        # HELP b Now.\n# TYPE b gauge\nb 2\n\
                        # HELP c_info Build.\n# TYPE c_info gauge\nc_info{v=\"1\"} 1\n\
                        # HELP d Time.\n# TYPE d histogram\nd_sum 1.5\nd_bucket{le=\"+Inf\"} 1\n\
                        # TYPE e untyped\ne 1\n";
        assert_eq!(classic(open_metrics), expected);
    }
}
