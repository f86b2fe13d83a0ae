//! Draining a backlog, and what it cost.

use std::{
    process::Child,
    time::{Duration, Instant},
};

/// Who drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contestant {
    /// A client of the database's own that throws everything away: as fast as the server can send.
    Client(usize),
    /// Headwater into its embedded log.
    Embedded,
    /// Headwater into Kafka.
    Kafka,
    /// Debezium on Kafka Connect with exactly-once support, tuned.
    DebeziumExactlyOnce,
}

impl Contestant {
    /// For the table; a client has a name of its own.
    pub fn title(self) -> &'static str {
        match self {
            Self::Client(_) => "client",
            Self::Embedded => "embedded",
            Self::Kafka => "Kafka",
            Self::DebeziumExactlyOnce => "Debezium, exactly once",
        }
    }

    /// The slot that it drains in a round.
    pub fn slot(self, round: usize) -> String {
        match self {
            Self::Client(client) => format!("client{client}_{round}"),
            Self::Embedded => format!("embedded_{round}"),
            Self::Kafka => format!("kafka_{round}"),
            Self::DebeziumExactlyOnce => format!("debezium_{round}"),
        }
    }
}

/// What a drain cost.
pub struct Drained {
    /// From the start of the client (Debezium: of its connector, the JVM runs already) until the last row is committed.
    pub seconds: f64,
    /// CPU time of the client.
    pub cpu: Duration,
    /// Peak of its resident memory.
    pub peak_kib: u64,
}

/// Waits for a client that was started just now.
pub fn watch(mut child: Child, name: &str) -> Drained {
    let (began, pid) = (Instant::now(), child.id());
    // The kernel forgets a process when it is waited for, so its last figures before the end count.
    let (mut cpu, mut peak_kib) = (Duration::ZERO, 0);
    loop {
        cpu = cpu.max(crate::process::cpu(pid));
        peak_kib = peak_kib.max(crate::process::memory_kib(pid, "VmHWM"));
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            assert!(status.success(), "{name}: {status}");
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Drained { seconds: began.elapsed().as_secs_f64(), cpu, peak_kib }
}
