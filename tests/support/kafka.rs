//! Kafka for tests: KRaft, one node or several, free ports on loopback, directories of their own.
//!
//! The broker never outlives the test process: a shell beside it holds the read end of a pipe and kills the broker when
//! the pipe closes, which also happens when the test process is killed. Everything is stopped by process id.

#![allow(dead_code)]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ports::free_port;

#[allow(clippy::duplicate_mod)] // what other servers need has it too
#[path = "ports.rs"]
mod ports;

/// A start takes 7 s on an idle machine, and on a crowded one as long as it takes: what counts is that it goes on.
const SILENCE_LIMIT: Duration = Duration::from_secs(120);

/// For a broker that tries the same for ever.
const START_LIMIT: Duration = Duration::from_secs(400);

/// A running broker.
pub struct Kafka {
    /// `host:port` for clients.
    pub bootstrap: String,
    /// Holds settings, log files and `broker.log`.
    pub dir: PathBuf,
    /// The addresses of the listeners that were asked for, in their order.
    pub listeners: Vec<String>,
    node: Node,
    jars: PathBuf,
    process: Mutex<Option<Process>>,
    /// Killed and not started since.
    unclean: AtomicBool,
}

struct Process {
    pid: u32,
    watcher: Child,
}

/// A further listener of a broker.
#[derive(Clone, Copy, Default)]
pub struct Listener<'a> {
    /// The name in the settings, in capitals.
    pub name: &'a str,
    /// `PLAINTEXT`, `SSL`, `SASL_SSL`, `SASL_PLAINTEXT`.
    pub protocol: &'a str,
    /// What clients are told; none for where it listens.
    pub advertised: Option<&'a str>,
}

/// A node of a cluster.
#[derive(Clone, Copy)]
struct Node {
    id: usize,
    port: u16,
    /// Of the controller, which is node 1.
    controller: u16,
    /// Whether it has no other nodes.
    alone: bool,
}

/// A record as Kafka's own consumer prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumed {
    pub partition: u32,
    pub offset: u64,
    pub timestamp_ms: i64,
    /// In the order they were written.
    pub headers: Vec<(String, String)>,
    pub key: Option<String>,
    /// None is a tombstone.
    pub value: Option<String>,
}

impl Kafka {
    /// The broker that all tests of this process share.
    pub fn shared() -> &'static Kafka {
        static SHARED: OnceLock<Kafka> = OnceLock::new();
        SHARED.get_or_init(Kafka::start)
    }

    /// A broker of one's own, for a test that stops it.
    pub fn start() -> Kafka {
        Self::start_with("")
    }

    /// A broker with further lines in its settings.
    pub fn start_with(settings: &str) -> Kafka {
        Self::start_listening(settings, &[], &[])
    }

    /// A broker with further listeners, and with further arguments for the command that formats its directory.
    pub fn start_listening(settings: &str, listeners: &[Listener<'_>], format: &[&str]) -> Kafka {
        let kafka = Self::new(Node { id: 1, port: free_port(), controller: free_port(), alone: true }, settings, listeners);
        kafka.format(format);
        kafka.run();
        kafka
    }

    /// Three brokers, of which the first is the controller as well. Topics get three replicas, of which two must be in sync.
    pub fn start_three(settings: &str) -> Vec<Kafka> {
        const REPLICAS: &str = "default.replication.factor=3
min.insync.replicas=2
offsets.topic.replication.factor=3
transaction.state.log.replication.factor=3
transaction.state.log.min.isr=2
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
";
        let controller = free_port();
        let settings = &format!("{REPLICAS}{settings}");
        let node = |id: usize| Node { id, port: free_port(), controller, alone: false };
        let nodes: Vec<_> = (1..=3).map(|id| Self::new(node(id), settings, &[])).collect();
        thread::scope(|scope| {
            for node in &nodes {
                scope.spawn(|| {
                    node.format(&[]);
                    node.run();
                });
            }
        });
        nodes
    }

    fn new(node: Node, settings: &str, listeners: &[Listener<'_>]) -> Kafka {
        let dir = tempfile::Builder::new().prefix("headwater-kafka-").tempdir().expect("a temporary directory").keep();
        let addresses: Vec<String> = listeners.iter().map(|_| format!("127.0.0.1:{}", free_port())).collect();
        let properties = properties(&dir, node, listeners, &addresses) + settings;
        fs::write(dir.join("server.properties"), properties).expect("settings written");
        fs::write(dir.join("fence.properties"), fence_properties(&dir, node.controller)).expect("settings written");
        Kafka {
            bootstrap: format!("127.0.0.1:{}", node.port),
            dir,
            listeners: addresses,
            node,
            jars: jars(),
            process: Mutex::new(None),
            unclean: AtomicBool::new(false),
        }
    }

    /// The broker's process id, if it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.lock().unwrap().as_ref().map(|process| process.pid)
    }

    /// Ends it in order and starts it again on the same port and files.
    pub fn restart(&self) {
        self.stop();
        self.run();
    }

    /// Ends it in order.
    pub fn stop(&self) {
        self.end("-TERM");
    }

    /// Ends it as a power cut would, as far as this process is concerned.
    pub fn kill(&self) {
        self.end("-KILL");
        self.unclean.store(true, Ordering::Relaxed);
    }

    /// Starts a stopped broker.
    pub fn run(&self) {
        if self.unclean.swap(false, Ordering::Relaxed) && self.node.alone {
            self.fence();
        }
        let mut process = self.process.lock().unwrap();
        assert!(process.is_none(), "the broker runs already");
        let log = self.dir.join("broker.log");
        let begin = fs::metadata(&log).map_or(0, |meta| meta.len());
        let started = spawn(&self.dir, &self.jars, "server.properties", &log);
        let pid = started.pid;
        *process = Some(started);
        drop(process);
        self.wait_until_ready(pid, &log, begin);
    }

    /// All records that a `read_committed` consumer of Kafka's own sees in a topic, in the order of partition and offset.
    pub fn console_consume(&self, topic: &str) -> Vec<Consumed> {
        let mut args = vec!["--bootstrap-server", &self.bootstrap, "--topic", topic, "--from-beginning"];
        args.extend(["--isolation-level", "read_committed", "--timeout-ms", "3000"]);
        for property in [
            "print.partition=true",
            "print.offset=true",
            "print.timestamp=true",
            "print.headers=true",
            "print.key=true",
            "null.literal=<null>",
            "key.separator=\t",
            "headers.separator=;",
        ] {
            args.extend(["--formatter-property", property]);
        }
        let text = self.tool("org.apache.kafka.tools.consumer.ConsoleConsumer", &args, "");
        let mut records: Vec<_> = text.lines().map(parse).collect();
        records.sort_by_key(|record| (record.partition, record.offset));
        records
    }

    /// Runs one of Kafka's command-line classes and returns what it printed; panics if it fails.
    pub fn tool(&self, class: &str, args: &[&str], input: &str) -> String {
        run_class(&self.jars, class, args, input)
    }

    fn format(&self, more: &[&str]) {
        let settings = self.dir.join("server.properties");
        let settings = settings.to_str().expect("a path in UTF-8");
        // Any 22 characters of URL-safe base64 are a cluster id.
        let args = ["format", "-t", "aGVhZHdhdGVyLXRlc3RzMQ", "-c", settings];
        run_class(&self.jars, "kafka.tools.StorageTool", &[&args[..], more].concat(), "");
    }

    /// Lets the controller forget that the killed broker ran, before the broker starts again.
    ///
    /// Else the broker first believes what the metadata still say: that it leads its partitions. Its transaction coordinator
    /// goes on with a commit that the kill interrupted, then the controller takes the leadership away from the old life of the
    /// broker, and the coordinator takes partitions without a leader for deleted ones: it drops their commit markers, and the
    /// transaction stays open for ever ("likely deleted already and hence can be skipped", Kafka 4.3). A cluster with other
    /// brokers has fenced the dead one long before; with one node, its controller does it alone here.
    fn fence(&self) {
        let log = self.dir.join("fence.log");
        let _ = fs::remove_file(&log);
        let process = spawn(&self.dir, &self.jars, "fence.properties", &log);
        let mut limit = Limit::new();
        loop {
            let text = fs::read_to_string(&log).unwrap_or_default();
            if is_fenced(&text) == Some(true) {
                break;
            }
            assert!(limit.holds(process.pid, text.len()), "the killed broker was not fenced: {}", reasons(&text));
            thread::sleep(Duration::from_millis(20));
        }
        // The line comes before the record of it is written. The controller writes at least one record every half second, one
        // after the other: behind the second that is seen to come, the one that matters is there.
        let records = self.dir.join("logs/__cluster_metadata-0");
        for _ in 0..2 {
            let before = bytes_in(&records);
            while bytes_in(&records) == before {
                assert!(limit.holds(process.pid, 0), "the controller that fences writes nothing: {}", records.display());
                thread::sleep(Duration::from_millis(20));
            }
        }
        process.end("-TERM");
    }

    fn wait_until_ready(&self, pid: u32, log: &Path, begin: u64) {
        let mut limit = Limit::new();
        loop {
            let text = fs::read(log).unwrap_or_default();
            let text = String::from_utf8_lossy(text.get(begin as usize..).unwrap_or_default()).into_owned();
            if text.contains("Kafka Server started") && TcpStream::connect(&self.bootstrap).is_ok() {
                return;
            }
            assert!(limit.holds(pid, text.len()), "the broker did not start: {}", reasons(&text));
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn end(&self, signal: &str) {
        if let Some(process) = self.process.lock().unwrap().take() {
            process.end(signal);
        }
    }
}

impl Process {
    fn end(mut self, signal: &str) {
        let _ = Command::new("kill").args([signal, &self.pid.to_string()]).stderr(Stdio::null()).status();
        let deadline = Instant::now() + Duration::from_secs(20);
        while alive(self.pid) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        // The watcher kills what is still there and ends when its input closes.
        drop(self.watcher.stdin.take());
        let _ = self.watcher.wait();
    }
}

/// How long a start is waited for.
struct Limit {
    began: Instant,
    /// How much the server has logged, and since when no more.
    said: (usize, Instant),
}

impl Limit {
    fn new() -> Self {
        Self { began: Instant::now(), said: (0, Instant::now()) }
    }

    /// Whether the process may still get there.
    fn holds(&mut self, pid: u32, said: usize) -> bool {
        if said > self.said.0 {
            self.said = (said, Instant::now());
        }
        alive(pid) && self.said.1.elapsed() < SILENCE_LIMIT && self.began.elapsed() < START_LIMIT
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Starts the broker under a shell that ends it when this process goes away.
fn spawn(dir: &Path, jars: &Path, settings: &str, log: &Path) -> Process {
    // The directory goes only if the test process vanished: after an orderly end the shell is told to leave it.
    let script = r#"
        java -Xms64m -Xmx256m -XX:+UseSerialGC -Dlog4j2.configurationFile="$1/log4j2.xml" -cp "$2/*" \
            kafka.Kafka "$1/$5" < /dev/null >> "$3" 2>&1 &
        echo $!
        exec > /dev/null
        cat > /dev/null
        kill -KILL $! 2> /dev/null
        wait
        [ -d "/proc/$4" ] || rm -rf "$1"
    "#;
    fs::write(dir.join("log4j2.xml"), include_str!("../../scripts/kafka/log4j2.xml")).expect("log settings written");
    let mut watcher = Command::new("sh")
        .args(["-c", script, "sh"])
        .args([dir, jars, log])
        .args([&std::process::id().to_string(), settings])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sh starts");
    let mut line = String::new();
    BufReader::new(watcher.stdout.take().expect("piped")).read_line(&mut line).expect("the shell prints a process id");
    Process { pid: line.trim().parse().expect("a process id"), watcher }
}

/// Where the jars are; fetches them the first time.
fn jars() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kafka-path.sh");
    let output = Command::new(&script).output().expect("scripts/kafka-path.sh runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).expect("a path in UTF-8").trim())
}

fn run_class(jars: &Path, class: &str, args: &[&str], input: &str) -> String {
    let settings = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kafka/log4j2.xml");
    let mut child = Command::new("java")
        .args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dheadwater.log.level=ERROR"])
        .arg(format!("-Dlog4j2.configurationFile={}", settings.display()))
        .arg("-cp")
        .arg(jars.join("*"))
        .arg(class)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("java starts");
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_owned();
    // Written on a thread of its own: a class that prints much would else block on its output.
    let writer = thread::spawn(move || {
        let _ = stdin.write_all(input.as_bytes());
    });
    let mut errors = child.stderr.take().expect("piped");
    let errors = thread::spawn(move || {
        let mut text = String::new();
        let _ = errors.read_to_string(&mut text);
        text
    });
    let output = child.wait_with_output().expect("java ends");
    writer.join().expect("the input is written");
    let errors = errors.join().expect("the errors are read");
    // The console consumer ends with an error message and code 0 or 1, by version, when its time is up.
    let timeout = errors.contains("TimeoutException");
    assert!(output.status.success() || timeout, "{class}: {}", tail(&errors));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// `CreateTime:1\tPartition:0\tOffset:0\tname:value;name:value\tkey\tvalue`
fn parse(line: &str) -> Consumed {
    let bad = || panic!("not a line of the console consumer: {line:?}");
    let fields: Vec<_> = line.splitn(6, '\t').collect();
    let [time, partition, offset, headers, key, value] = fields[..] else { bad() };
    let number = |text: &str, label: &str| -> i64 {
        text.strip_prefix(label).and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no {label} in {line:?}"))
    };
    let optional = |text: &str| (text != "<null>").then(|| text.to_owned());
    let headers = headers.split(';').filter(|text| !text.is_empty() && *text != "NO_HEADERS");
    Consumed {
        partition: number(partition, "Partition:") as u32,
        offset: number(offset, "Offset:") as u64,
        timestamp_ms: number(time, "CreateTime:"),
        headers: headers
            .map(|header| header.split_once(':').unwrap_or_else(|| bad()))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        key: optional(key),
        value: optional(value),
    }
}

/// Whether the process runs; one that ended and waits for its parent does not.
fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

/// Whether the broker that was killed is fenced, by the log of the controller that is to do it; none as long as it leads nothing.
/// A broker that was killed before it was let in is fenced from the beginning.
pub fn is_fenced(text: &str) -> Option<bool> {
    text.contains("Becoming the active controller").then_some(())?;
    let replayed = text.lines().filter(|line| line.contains("Replayed") && line.contains("(brokerId=1, "));
    let mut states = replayed.filter_map(|line| line.split_once(", fenced=")?.1.split(',').next());
    // A change of something else says 0.
    states.rfind(|state| *state != "0").map_or(Some(true), |state| Some(["true", "1"].contains(&state)))
}

/// The sizes of the files in a directory together.
fn bytes_in(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).map(|entries| entries.flatten().collect::<Vec<_>>()).unwrap_or_default();
    entries.iter().filter(|entry| entry.path().extension().is_some_and(|extension| extension == "log")).map(size).sum()
}

fn size(entry: &fs::DirEntry) -> u64 {
    entry.metadata().map_or(0, |meta| meta.len())
}

/// Why a server ended, and what it said last, which is often nothing but how it cleaned up.
fn reasons(text: &str) -> String {
    let causes: Vec<_> =
        text.lines().filter(|line| ["ERROR", "FATAL", "Exception"].iter().any(|word| line.contains(word))).collect();
    format!("{}\n...\n{}", causes[..causes.len().min(20)].join("\n"), tail(text))
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

fn properties(dir: &Path, node: Node, listeners: &[Listener<'_>], addresses: &[String]) -> String {
    let Node { id, port, controller, .. } = node;
    let (mut here, mut told, mut map) = (String::new(), String::new(), String::new());
    for (Listener { name, protocol, advertised }, address) in listeners.iter().zip(addresses) {
        here += &format!(",{name}://{address}");
        told += &format!(",{name}://{}", advertised.unwrap_or(address));
        map += &format!(",{name}:{protocol}");
    }
    let (roles, controlling) = match id {
        1 => ("broker,controller", format!(",CONTROLLER://127.0.0.1:{controller}")),
        _ => ("broker", String::new()),
    };
    format!(
        "process.roles={roles}
node.id={id}
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port}{here}{controlling}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}{told}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT{map}
log.dirs={}
auto.create.topics.enable=false
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
log.cleaner.dedupe.buffer.size=8388608
num.network.threads=2
num.io.threads=4
initial.broker.registration.timeout.ms=300000
",
        dir.join("logs").display()
    )
}

/// The controller alone, impatient with brokers that do not answer.
fn fence_properties(dir: &Path, controller: u16) -> String {
    format!(
        "process.roles=controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=CONTROLLER://127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT
log.dirs={}
broker.session.timeout.ms=500
broker.heartbeat.interval.ms=200
",
        dir.join("logs").display()
    )
}
