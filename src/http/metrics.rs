//! The metrics page, filled when it is asked for.

use std::sync::atomic::Ordering;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::pipeline::{Handle, handle::State};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Connector {
    connector: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConnectorState {
    connector: String,
    state: String,
}

type FloatGauge = Gauge<f64, std::sync::atomic::AtomicU64>;

/// Every metric, once: name, meaning and where its value comes from.
#[derive(Default)]
struct Metrics {
    state: Family<ConnectorState, Gauge>,
    lag_bytes: Family<Connector, Gauge>,
    lag_seconds: Family<Connector, FloatGauge>,
    events: Family<Connector, Counter>,
    bytes: Family<Connector, Counter>,
    commits: Family<Connector, Counter>,
    commit_seconds: Family<Connector, Counter<f64, std::sync::atomic::AtomicU64>>,
    dead_letters: Family<Connector, Counter>,
    failures: Family<Connector, Counter>,
}

impl Metrics {
    fn register(&self, registry: &mut Registry) {
        registry.register("headwater_connector_state", "1 for the state that the connector is in", self.state.clone());
        registry.register("headwater_lag_bytes", "Bytes of source log not yet in the topics", self.lag_bytes.clone());
        registry.register(
            "headwater_lag_seconds",
            "Age of the newest published event while there is more to publish; 0 when caught up",
            self.lag_seconds.clone(),
        );
        registry.register("headwater_events", "Events committed to topics", self.events.clone());
        registry.register("headwater_record_bytes", "Bytes of committed records", self.bytes.clone());
        registry.register("headwater_commits", "Log transactions committed", self.commits.clone());
        registry.register("headwater_commit_seconds", "Seconds spent waiting for commits", self.commit_seconds.clone());
        registry.register("headwater_dead_letters", "Rows sent to the dead-letter topic", self.dead_letters.clone());
        registry.register("headwater_failures", "Attempts of a connector that ended in an error", self.failures.clone());
    }
}

/// The page in the OpenMetrics text format.
pub async fn page(handle: &Handle) -> String {
    let metrics = Metrics::default();
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    for view in handle.status().await {
        let label = Connector { connector: view.name.clone() };
        for (state, word) in [
            (State::Starting, "starting"),
            (State::Streaming, "streaming"),
            (State::Retrying, "retrying"),
            (State::Paused, "paused"),
            (State::Stopped, "stopped"),
        ] {
            let label = ConnectorState { connector: view.name.clone(), state: word.to_owned() };
            metrics.state.get_or_create(&label).set(i64::from(view.state == state));
        }
        if let Some(bytes) = view.lag.bytes {
            metrics.lag_bytes.get_or_create(&label).set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        if let Some(seconds) = view.lag.seconds {
            metrics.lag_seconds.get_or_create(&label).set(seconds);
        }
    }
    for status in handle.connectors() {
        let label = Connector { connector: status.name().to_owned() };
        let counters = &status.counters;
        for (family, value) in [
            (&metrics.events, &counters.events),
            (&metrics.bytes, &counters.bytes),
            (&metrics.commits, &counters.commits),
            (&metrics.dead_letters, &counters.dead_letters),
            (&metrics.failures, &counters.failures),
        ] {
            family.get_or_create(&label).inc_by(value.load(Ordering::Relaxed));
        }
        metrics.commit_seconds.get_or_create(&label).inc_by(counters.commit_us.load(Ordering::Relaxed) as f64 / 1e6);
    }
    let mut page = String::new();
    // Writing to a String cannot fail.
    let _ = encode(&mut page, &registry);
    page
}
