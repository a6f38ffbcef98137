//! Where traces go.

use url::Url;

use super::{Checked, given};

/// Whether, and where, to hand traces over.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TraceArgs {
    /// An OpenTelemetry collector to hand traces to, for example `http://127.0.0.1:4318`; unset: no traces
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otel_exporter_otlp_endpoint: Option<String>,
    /// Which part of the traces that begin here is kept, 0 to 1 [default: 1]
    #[arg(long, env = "TRACES_RATIO", value_name = "RATIO")]
    pub traces_ratio: Option<String>,
}

/// Where traces go.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceConfig {
    /// Where spans are posted.
    pub endpoint: Url,
    /// Which part of the traces that begin here is kept.
    pub ratio: f64,
}

impl Checked {
    /// Checks where traces go; none when nobody takes them.
    pub fn traces(&mut self, args: &TraceArgs) -> Option<Option<TraceConfig>> {
        let ratio = self.parsed("TRACES_RATIO", args.traces_ratio.as_ref(), 1.0, |text| {
            text.parse()
                .ok()
                .filter(|ratio| (0.0..=1.0).contains(ratio))
                .ok_or("must be a number from 0 to 1".to_owned())
        });
        let Some(text) = given(args.otel_exporter_otlp_endpoint.as_ref()) else { return ratio.map(|_| None) };
        // The collector stands beside the programs, or behind an agent that does: there is no TLS to it.
        let endpoint = Url::parse(text).ok().filter(|url| url.scheme() == "http" && url.has_host());
        let Some(mut endpoint) = endpoint else {
            // It may hold a password, and is not said again.
            self.wrong("OTEL_EXPORTER_OTLP_ENDPOINT", "must look like http://127.0.0.1:4318: http, and a host");
            return None;
        };
        let path = format!("{}/v1/traces", endpoint.path().trim_end_matches('/'));
        endpoint.set_path(&path);
        Some(Some(TraceConfig { endpoint, ratio: ratio? }))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failure here is a failed test")]
mod tests {
    use super::*;

    fn checked(endpoint: Option<&str>, ratio: Option<&str>) -> Result<Option<TraceConfig>, Vec<String>> {
        let mut checked = Checked::default();
        let args = TraceArgs {
            otel_exporter_otlp_endpoint: endpoint.map(str::to_owned),
            traces_ratio: ratio.map(str::to_owned),
        };
        let traces = checked.traces(&args);
        checked.finish(traces).map_err(|problems| problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn traces_are_off_unless_there_is_a_collector() {
        assert_eq!(checked(None, None), Ok(None));
        let config = checked(Some("http://collector:4318/"), Some("0.25")).unwrap().unwrap();
        assert_eq!((config.endpoint.as_str(), config.ratio), ("http://collector:4318/v1/traces", 0.25));
    }

    #[test]
    fn what_is_refused_is_not_said_again() {
        let said = checked(Some("https://user:secret@collector:4318"), None).unwrap_err();
        assert!(!said[0].contains("secret"), "{said:?}");
    }

    #[test]
    fn what_cannot_be_is_said() {
        for (endpoint, ratio) in [
            (Some("https://collector:4318"), None),
            (Some("collector:4318"), None),
            (None, Some("2")),
            (None, Some("NaN")),
            (Some("http://collector:4318"), Some("-1")),
        ] {
            assert_eq!(checked(endpoint, ratio).unwrap_err().len(), 1, "{endpoint:?} {ratio:?}");
        }
    }
}
