//! The metrics page, filled when it is asked for. One list says what each metric is called, where its value comes from, what it
//! means and what to do about it; the page and its reference are made from it.

use std::{fmt, sync::Arc, sync::atomic::Ordering};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text::encode},
    metrics::MetricType,
    registry::Registry,
};

use crate::pipeline::{
    Handle,
    backfill::view::{BackfillState, BackfillView, seconds_left},
    handle::{ConnectorView, State, Status},
    histogram::Spread,
};

const STATES: [(State, &str); 6] = [
    (State::Starting, "starting"),
    (State::Backfilling, "backfilling"),
    (State::Streaming, "streaming"),
    (State::Retrying, "retrying"),
    (State::Paused, "paused"),
    (State::Stopped, "stopped"),
];

const TABLE_STATES: [(BackfillState, &str); 5] = [
    (BackfillState::Skipped, "skipped"),
    (BackfillState::Running, "running"),
    (BackfillState::Paused, "paused"),
    (BackfillState::Done, "done"),
    (BackfillState::Cancelled, "cancelled"),
];

/// One metric.
struct Metric {
    name: &'static str,
    unit: &'static str,
    meaning: &'static str,
    todo: &'static str,
    source: Source,
}

/// Where a value comes from; none leaves the series out.
enum Source {
    /// One series per connector and state.
    State,
    /// One series per connector and state of its tables' rows.
    Tables,
    Gauge(fn(&Sample) -> Option<f64>),
    Counter(fn(&Sample) -> u64),
    Histogram(fn(&Sample) -> Spread, f64),
    /// One series for the process.
    Process(fn(&Page) -> Option<f64>),
    /// The version as a label.
    Build,
}

/// A connector at the moment of the scrape.
struct Sample {
    status: Arc<Status>,
    view: ConnectorView,
    /// The tables whose rows are or were read, and those that were captured without.
    tables: Vec<BackfillView>,
}

impl Sample {
    /// Tables that are being read.
    fn running(&self) -> impl Iterator<Item = &BackfillView> {
        self.tables.iter().filter(|table| table.state == BackfillState::Running)
    }
}

/// Everything that a scrape shows.
struct Page {
    samples: Vec<Sample>,
    config_refused: bool,
}

const METRICS: &[Metric] = &[
    Metric {
        name: "headwater_connector_state",
        unit: "",
        meaning: "1 for the state that the connector is in, 0 for the others",
        todo: "Anything but `streaming` or `paused` for minutes: `headwater status` says why",
        source: Source::State,
    },
    Metric {
        name: "headwater_lag_bytes",
        unit: "bytes",
        meaning: "Source log that is not yet in the topics; absent while it cannot be measured",
        todo: "Grows without end: the log or the daemon is slower than the source; look at commit durations",
        source: Source::Gauge(|sample| sample.view.lag.bytes.map(|bytes| bytes as f64)),
    },
    Metric {
        name: "headwater_lag_seconds",
        unit: "seconds",
        meaning: "Age of the newest published event while there is more to publish; 0 when caught up",
        todo: "As for bytes; a jump with few bytes is one long source transaction",
        source: Source::Gauge(|sample| sample.view.lag.seconds),
    },
    Metric {
        name: "headwater_source_retained_bytes",
        unit: "bytes",
        meaning: "Log on the source's disk that it keeps for this connector",
        todo: "Grows: the connector is behind, paused or stopped, or a long transaction is open at the source",
        source: Source::Gauge(|sample| sample.view.source.retained_bytes.map(|bytes| bytes as f64)),
    },
    Metric {
        name: "headwater_source_safe_bytes",
        unit: "bytes",
        meaning: "What the source may still write before it gives this connector's place up; absent without a limit",
        todo: "Near 0 the position is about to be lost: let the connector catch up, or raise the server's limit",
        source: Source::Gauge(|sample| sample.view.source.safe_bytes.map(|bytes| bytes as f64)),
    },
    Metric {
        name: "headwater_source_safe_seconds",
        unit: "seconds",
        meaning: "How long this connector may stand still before the source deletes log that it has not read; absent if nothing is deleted by age",
        todo: "Near 0 the position is about to be lost: let the connector catch up, or have the server keep its log for longer",
        source: Source::Gauge(|sample| sample.view.source.safe_seconds.map(|seconds| seconds as f64)),
    },
    Metric {
        name: "headwater_source_log_file_number",
        unit: "",
        meaning: "Number of the file of the source's log that the last commit ends in; absent where the log is counted as one",
        todo: "Stands still while the source begins new files: see lag",
        source: Source::Gauge(|sample| sample.view.source.log_file_number.map(|number| number as f64)),
    },
    Metric {
        name: "headwater_source_log_position_bytes",
        unit: "bytes",
        meaning: "Where the last commit ends in that file, or in the whole log where that is counted as one",
        todo: "Compare with the server's own end of the log",
        source: Source::Gauge(|sample| sample.view.source.log_position_bytes.map(|bytes| bytes as f64)),
    },
    Metric {
        name: "headwater_last_commit_timestamp_seconds",
        unit: "seconds",
        meaning: "When the last log transaction was committed, since 1970; absent before the first",
        todo: "Stands still while lag is above 0: the log does not take commits; see the daemon's own log",
        source: Source::Gauge(|sample| match sample.status.counters.committed_us.load(Ordering::Relaxed) {
            0 => None,
            at => Some(at as f64 / 1e6),
        }),
    },
    Metric {
        name: "headwater_events",
        unit: "",
        meaning: "Events committed to topics",
        todo: "Its rate is the throughput",
        source: Source::Counter(|sample| sample.status.counters.events.load(Ordering::Relaxed)),
    },
    Metric {
        name: "headwater_record_bytes",
        unit: "bytes",
        meaning: "Bytes of committed records, checkpoints included",
        todo: "For capacity planning",
        source: Source::Counter(|sample| sample.status.counters.bytes.load(Ordering::Relaxed)),
    },
    Metric {
        name: "headwater_commits",
        unit: "",
        meaning: "Log transactions committed",
        todo: "Events per commit tell how well work is gathered",
        source: Source::Counter(|sample| sample.status.counters.commits.load(Ordering::Relaxed)),
    },
    Metric {
        name: "headwater_commit_duration_seconds",
        unit: "seconds",
        meaning: "How long commits took",
        todo: "High: the brokers or the disk are slow; nothing is lost, latency grows",
        source: Source::Histogram(|sample| sample.status.counters.commit_us.spread(), 1e6),
    },
    Metric {
        name: "headwater_commit_events",
        unit: "",
        meaning: "Events in each commit that had any",
        todo: "Always near `commit.max_events`: the connector works through a backlog",
        source: Source::Histogram(|sample| sample.status.counters.commit_events.spread(), 1.0),
    },
    Metric {
        name: "headwater_dead_letters",
        unit: "",
        meaning: "Rows sent to the dead-letter topic",
        todo: "Above 0: read `headwater tail headwater.CONNECTOR.dead`, mend the rows at the source",
        source: Source::Counter(|sample| sample.status.counters.dead_letters.load(Ordering::Relaxed)),
    },
    Metric {
        name: "headwater_failures",
        unit: "",
        meaning: "Attempts of a connector that ended in an error",
        todo: "Rises: `headwater status` shows the last error",
        source: Source::Counter(|sample| sample.status.counters.failures.load(Ordering::Relaxed)),
    },
    Metric {
        name: "headwater_backfill_tables",
        unit: "",
        meaning: "Tables by what is done about the rows that are there already",
        todo: "`running` or `paused` for longer than you expect: `headwater status` says what it waits for",
        source: Source::Tables,
    },
    Metric {
        name: "headwater_backfill_rows",
        unit: "",
        meaning: "Rows that were there already and were read; counted once their log transaction is committed",
        todo: "Its rate is how fast tables are read; 0 while tables are `running`: see waiting and failing",
        source: Source::Counter(|sample| sample.status.counters.backfill_rows.load(Ordering::Relaxed)),
    },
    Metric {
        name: "headwater_backfill_published",
        unit: "",
        meaning: "Of the rows read, those that became events; for the others there was one at least as new",
        todo: "Far below the rows read: a busy table, which is no fault",
        source: Source::Counter(|sample| sample.status.counters.backfill_published.load(Ordering::Relaxed)),
    },
    Metric {
        name: "headwater_backfill_rows_estimated",
        unit: "",
        meaning: "Rows in the tables that are being read, roughly; 0 when none is",
        todo: "For the part that is done, together with the next",
        source: Source::Gauge(|sample| Some(sample.running().filter_map(|table| table.estimated_rows).sum::<u64>() as f64)),
    },
    Metric {
        name: "headwater_backfill_rows_left",
        unit: "",
        meaning: "Of these, rows that are not read yet, roughly",
        todo: "Does not fall: see waiting and failing",
        source: Source::Gauge(|sample| Some(sample.running().filter_map(BackfillView::rows_left).sum::<u64>() as f64)),
    },
    Metric {
        name: "headwater_backfill_seconds_left",
        unit: "seconds",
        meaning: "How long reading takes at the rate so far; 0 when nothing is read, absent while it cannot be told",
        todo: "Too long: raise the limits under `backfill` in the config, or `readers`",
        source: Source::Gauge(|sample| seconds_left(sample.running())),
    },
    Metric {
        name: "headwater_backfill_waiting",
        unit: "",
        meaning: "Tables that are to be read and wait: for the stream to catch up, or for an old transaction at the source to end",
        todo: "For long: `headwater status` names what is waited for",
        source: Source::Gauge(|sample| Some(sample.running().filter(|table| table.waiting.is_some()).count() as f64)),
    },
    Metric {
        name: "headwater_backfill_failing",
        unit: "",
        meaning: "Tables that are to be read and are not, because of an error; the stream goes on",
        todo: "`headwater status` shows each error and what mends it",
        source: Source::Gauge(|sample| Some(sample.running().filter(|table| table.error.is_some()).count() as f64)),
    },
    Metric {
        name: "headwater_config_refused",
        unit: "",
        meaning: "1 while newer config files were refused and older ones are in force",
        todo: "`headwater status` says what is wrong with them; mend it and send SIGHUP",
        source: Source::Process(|page| Some(f64::from(u8::from(page.config_refused)))),
    },
    Metric {
        name: "headwater_resident_memory_bytes",
        unit: "bytes",
        meaning: "Resident memory of the process",
        todo: "Steadily above 200 MiB is a bug: report it",
        source: Source::Process(|_| resident_bytes()),
    },
    Metric {
        name: "headwater_open_files",
        unit: "",
        meaning: "File descriptors that the process has open",
        todo: "Grows steadily: a leak; report it",
        source: Source::Process(|_| std::fs::read_dir("/proc/self/fd").ok().map(|files| files.count() as f64)),
    },
    Metric {
        name: "headwater_build",
        unit: "",
        meaning: "The version, as a label of a series that is always 1",
        todo: "Compare instances",
        source: Source::Build,
    },
];

impl Metric {
    fn kind(&self) -> MetricType {
        match self.source {
            Source::State | Source::Tables | Source::Gauge(_) | Source::Process(_) => MetricType::Gauge,
            Source::Counter(_) => MetricType::Counter,
            Source::Histogram(..) => MetricType::Histogram,
            Source::Build => MetricType::Info,
        }
    }

    fn labels(&self) -> &'static str {
        match self.source {
            Source::State | Source::Tables => "connector, state",
            Source::Gauge(_) | Source::Counter(_) | Source::Histogram(..) => "connector",
            Source::Process(_) => "",
            Source::Build => "version",
        }
    }

    /// As it is called in queries.
    fn series(&self) -> String {
        let suffix = match self.source {
            Source::Counter(_) => "_total",
            Source::Build => "_info",
            _ => "",
        };
        format!("{}{suffix}", self.name)
    }

    fn encode(&self, page: &Page, mut encoder: MetricEncoder) -> fmt::Result {
        match self.source {
            Source::Process(value) => value(page).map_or(Ok(()), |value| encoder.encode_gauge(&value)),
            Source::Build => encoder.encode_info(&[("version", env!("CARGO_PKG_VERSION"))]),
            _ => page.samples.iter().try_for_each(|sample| self.encode_one(sample, &mut encoder)),
        }
    }

    fn encode_one(&self, sample: &Sample, encoder: &mut MetricEncoder) -> fmt::Result {
        let labels = [("connector", sample.view.name.as_str())];
        match self.source {
            Source::State => STATES.iter().try_for_each(|(state, word)| {
                let labels = [labels[0], ("state", *word)];
                encoder.encode_family(&labels)?.encode_gauge(&i64::from(sample.view.state == *state))
            }),
            Source::Tables => TABLE_STATES.iter().try_for_each(|(state, word)| {
                let count = sample.tables.iter().filter(|table| table.state == *state).count();
                encoder.encode_family(&[labels[0], ("state", *word)])?.encode_gauge(&(count as f64))
            }),
            Source::Gauge(value) => value(sample).map_or(Ok(()), |value| encoder.encode_family(&labels)?.encode_gauge(&value)),
            Source::Counter(value) => encoder.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value(sample), None),
            Source::Histogram(value, scale) => {
                let Spread { sum, count, buckets } = value(sample);
                let within: u64 = buckets.iter().map(|(_, count)| count).sum();
                let mut buckets: Vec<(f64, u64)> =
                    buckets.into_iter().map(|(bound, count)| (bound as f64 / scale, count)).collect();
                // The encoder writes the last bucket of all as +Inf.
                buckets.push((f64::MAX, count - within));
                encoder.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum as f64 / scale, count, &buckets, None)
            }
            Source::Process(_) | Source::Build => Ok(()),
        }
    }
}

/// The registry wants its collectors printable.
impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Page").finish_non_exhaustive()
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        METRICS.iter().try_for_each(|metric| {
            let descriptor = encoder.encode_descriptor(metric.name, metric.meaning, None, metric.kind())?;
            metric.encode(self, descriptor)
        })
    }
}

/// The page in the OpenMetrics text format.
pub async fn page(handle: &Handle) -> String {
    let connectors = handle.connectors();
    let tasks: Vec<_> = connectors
        .into_iter()
        .map(|status| {
            tokio::spawn(async move {
                let view = status.view().await;
                let tables = status.backfills();
                Sample { status, view, tables }
            })
        })
        .collect();
    let mut samples = Vec::with_capacity(tasks.len());
    for task in tasks {
        // A sample neither panics nor is cancelled.
        samples.extend(task.await);
    }
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Page { samples, config_refused: !handle.config().errors.is_empty() }));
    let mut page = String::new();
    // Writing to a String cannot fail.
    let _ = encode(&mut page, &registry);
    page
}

/// Linux alone says it this way; elsewhere the series is absent.
fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024.0)
}

/// The reference page of all metrics, in Markdown.
pub fn reference() -> String {
    let mut page = String::from(
        "# Metrics\n\n`GET /metrics` on the daemon's HTTP address, in the OpenMetrics text format. Everything is measured at the moment of \
         the scrape.\nCounters begin at 0 with the process. Made from the code; alert rules and a dashboard are in \
         `config/monitoring`.\n\n| Series | Type | Unit | Labels | Meaning | What to do |\n|---|---|---|---|---|---|\n",
    );
    for metric in METRICS {
        let kind = metric.kind();
        let (series, unit, labels, meaning, todo) = (metric.series(), metric.unit, metric.labels(), metric.meaning, metric.todo);
        page.push_str(&format!("| `{series}` | {} | {unit} | {labels} | {meaning} | {todo} |\n", kind.as_str()));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_metrics_is_fresh() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/metrics.md");
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        if found != reference() {
            std::fs::write(&path, reference()).unwrap();
            panic!("docs/reference/metrics.md was stale and is rewritten now; commit it");
        }
    }
}
