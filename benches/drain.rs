//! Draining a backlog, and what it cost.

use std::{
    process::{Child, Command},
    time::{Duration, Instant},
};

use crate::{backlog::Backlog, debezium, headwater, server::Server, support::postgres_program};

/// Who drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contestant {
    /// pg_recvlogical to /dev/null: as fast as the server can send to a client that does nothing.
    Recv,
    /// Headwater into its embedded log.
    Embedded,
    /// Headwater into Kafka.
    Kafka,
    /// Debezium on Kafka Connect with exactly-once support, tuned.
    DebeziumExactlyOnce,
}

impl Contestant {
    /// For the table.
    pub fn title(self) -> &'static str {
        match self {
            Self::Recv => "pg_recvlogical",
            Self::Embedded => "embedded",
            Self::Kafka => "Kafka",
            Self::DebeziumExactlyOnce => "Debezium, exactly once",
        }
    }

    /// The slot that it drains in a round.
    pub fn slot(self, round: usize) -> String {
        let name = match self {
            Self::Recv => "recv",
            Self::Embedded => "embedded",
            Self::Kafka => "kafka",
            Self::DebeziumExactlyOnce => "debezium",
        };
        format!("{name}_{round}")
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

/// Drains the whole backlog.
pub fn drain(server: &Server, backlog: &Backlog, contestant: Contestant, round: usize) -> Drained {
    match contestant {
        Contestant::Recv => recv(server, backlog, round),
        Contestant::Embedded | Contestant::Kafka => headwater::drain(server, backlog, contestant, round),
        Contestant::DebeziumExactlyOnce => debezium::drain(server, backlog, round),
    }
}

fn recv(server: &Server, backlog: &Backlog, round: usize) -> Drained {
    let child = Command::new(postgres_program("pg_recvlogical"))
        .args(["-h", "127.0.0.1", "-p", &server.port().to_string(), "-U", "postgres", "-d", "postgres"])
        .args(["-S", &Contestant::Recv.slot(round), "--start", "-o", "proto_version=1", "-o", "publication_names=bench"])
        .args([&format!("--endpos={}", backlog.end), "-F", "0", "-f", "/dev/null"])
        .env("PGPASSWORD", server.password())
        .spawn()
        .expect("pg_recvlogical starts");
    watch(child, "pg_recvlogical")
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
