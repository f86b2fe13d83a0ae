//! Debezium on Kafka Connect, tuned fairly: large batches, a large queue, lz4, exactly-once support as Headwater has it.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    backlog::Backlog,
    drain::{Contestant, Drained},
    headwater::LIMIT,
    process::{cpu, get, memory_kib},
    server::Server,
    source::Debezium,
    support::{free_port, root, temp_dir, wait_until},
};

/// No new record for this long means that all are there.
const QUIET: Duration = Duration::from_secs(3);

/// A Connect worker.
struct Worker {
    _dir: TempDir,
    port: u16,
    child: Child,
}

impl Worker {
    fn start(server: &Server<'_>, group: &str) -> Self {
        let home = home();
        let (dir, port) = (temp_dir(), free_port());
        let internal = |name: &str| format!("{name}.storage.topic={group}-{name}\n{name}.storage.replication.factor=1\n");
        let properties = format!(
            "bootstrap.servers={}\ngroup.id={group}\n{}{}{}offset.storage.partitions=1\nstatus.storage.partitions=1\n\
             key.converter=org.apache.kafka.connect.json.JsonConverter\nvalue.converter=org.apache.kafka.connect.json.JsonConverter\n\
             key.converter.schemas.enable=false\nvalue.converter.schemas.enable=false\nexactly.once.source.support=enabled\n\
             connector.client.config.override.policy=All\nlisteners=http://127.0.0.1:{port}\nrest.advertised.host.name=127.0.0.1\n\
             plugin.path={}\nplugin.discovery=service_load\nscheduled.rebalance.max.delay.ms=0\n",
            server.kafka().bootstrap,
            internal("config"),
            internal("offset"),
            internal("status"),
            home.join("plugins").display(),
        );
        let file = dir.path().join("worker.properties");
        fs::write(&file, properties).expect("the worker's settings");
        let output = fs::File::create(dir.path().join("output")).expect("its output");
        let child = Command::new("java")
            .args(["-Xms256m", "-Xmx1g", "-XX:+UseG1GC"])
            .arg(format!("-Dlog4j2.configurationFile={}", root().join("scripts/kafka/log4j2.xml").display()))
            .args(["-cp", &format!("{}/*", home.join("libs").display()), "org.apache.kafka.connect.cli.ConnectDistributed"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a second handle"))
            .stderr(output)
            .spawn()
            .expect("java runs");
        let worker = Self { _dir: dir, port, child };
        wait_until("Connect to answer", Duration::from_secs(180), || get(&worker.url("")).ok_or_else(|| "no answer".to_owned()));
        worker
    }

    /// A connector that does not run yet; at an offset, if one is said.
    fn create(&self, name: &str, options: &Value, offset: Option<Value>) {
        let connector = json!({ "name": name, "config": options, "initial_state": "STOPPED" });
        ureq::post(&self.url("")).send_json(&connector).expect("Connect takes the connector");
        wait_until("the connector to be known", LIMIT, || {
            match get(&self.url(&format!("/{name}/status"))).unwrap_or_default()["connector"]["state"].as_str() {
                Some("STOPPED") => Ok(()),
                state => Err(format!("{state:?}")),
            }
        });
        if let Some(offset) = offset {
            let offsets = json!({ "offsets": [offset] });
            ureq::patch(&self.url(&format!("/{name}/offsets"))).send_json(&offsets).expect("Connect takes the offset");
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/connectors{path}", self.port)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn home() -> PathBuf {
    let output = Command::new(root().join("scripts/debezium-path.sh")).output().expect("scripts/debezium-path.sh runs");
    assert!(output.status.success(), "no Debezium: {}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}

/// Drains a backlog; the worker runs already when the clock starts, its CPU time counts from then on.
pub fn drain(server: &Server<'_>, backlog: &Backlog, round: usize) -> Drained {
    let name = format!("dbz_{}_{}_{round}", server.source.name(), backlog.case);
    publish(server, &name, &Contestant::DebeziumExactlyOnce.slot(round), Some(backlog), backlog.rows)
}

/// Reads a table that is there already, on a slot of its own.
pub fn snapshot(server: &Server<'_>, name: &str, rows: u64) -> Drained {
    publish(server, &format!("dbz_{name}"), name, None, rows)
}

fn publish(server: &Server<'_>, name: &str, slot: &str, backlog: Option<&Backlog>, rows: u64) -> Drained {
    let Debezium { options: own, topic, offset } = server.source.debezium(name, slot, &server.kafka().bootstrap, backlog);
    let worker = Worker::start(server, name);
    let pid = worker.child.id();
    let mut options = json!({
        "tasks.max": "1", "snapshot.fetch.size": "10240",
        "topic.prefix": name, "topic.creation.default.partitions": "6", "topic.creation.default.replication.factor": "1",
        "exactly.once.support": "required",
        "max.batch.size": "16384", "max.queue.size": "65536", "producer.override.linger.ms": "50",
        "producer.override.batch.size": "524288", "producer.override.compression.type": "lz4",
        "producer.override.buffer.memory": "134217728",
    });
    for (option, value) in own.as_object().expect("options") {
        options[option] = value.clone();
    }
    worker.create(name, &options, offset);
    let (before, began) = (cpu(pid), Instant::now());
    ureq::put(&worker.url(&format!("/{name}/resume"))).send_empty().expect("Connect starts the connector");
    let last = wait_for_rows(server, &worker, name, &topic, rows);
    let drained = Drained { seconds: (last - began).as_secs_f64(), cpu: cpu(pid) - before, peak_kib: memory_kib(pid, "VmHWM") };
    let _ = ureq::delete(&worker.url(&format!("/{name}"))).call();
    drop(worker);
    server.source.settle(slot);
    drained
}

/// The moment of the last record, once as many as rows are there and nothing more comes.
fn wait_for_rows(server: &Server<'_>, worker: &Worker, name: &str, topic: &str, rows: u64) -> Instant {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &server.kafka().bootstrap)
        .set("group.id", "bench")
        .create()
        .expect("a consumer");
    let (mut ends, mut last) = (BTreeMap::new(), Instant::now());
    wait_until("Debezium to publish all rows", LIMIT, || {
        for partition in 0..6 {
            let (_, end) =
                consumer.fetch_watermarks(topic, partition, Duration::from_secs(10)).map_err(|error| error.to_string())?;
            if ends.insert(partition, end) != Some(end) {
                last = Instant::now();
            }
        }
        let total: i64 = ends.values().sum();
        if total as u64 >= rows && last.elapsed() > QUIET {
            return Ok(());
        }
        let status = get(&worker.url(&format!("/{name}/status"))).unwrap_or_default();
        assert!(status["tasks"][0]["state"] != "FAILED", "Debezium failed: {status}");
        // Asking costs the broker; four times a second is exact enough.
        std::thread::sleep(Duration::from_millis(225));
        Err(format!("{total} records"))
    });
    last
}
