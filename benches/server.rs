//! The servers of a run: one PostgreSQL and, from its first use on, one broker.

use std::sync::OnceLock;

use postgres::Client;

use crate::support::{
    kafka::Kafka,
    postgres::{PASSWORD, Postgres},
    postgres_program,
};

/// Settings of a server that is meant to be fast; the later line of a name wins over the tests' own.
const SETTINGS: &[&str] = &[
    "fsync = on",
    "synchronous_commit = off",
    "shared_buffers = '512MB'",
    "max_wal_size = '16GB'",
    "checkpoint_timeout = '30min'",
    "wal_sender_timeout = '10min'",
];

/// The servers.
pub struct Server {
    postgres: Postgres,
    kafka: OnceLock<Kafka>,
}

impl Server {
    /// Starts PostgreSQL, whose client programs must be there too.
    pub fn start() -> Self {
        let recv = postgres_program("pg_recvlogical");
        assert!(recv.exists(), "{} is missing; install PostgreSQL with its client programs", recv.display());
        Self { postgres: Postgres::start_with(SETTINGS), kafka: OnceLock::new() }
    }

    /// A connection as the superuser.
    pub fn client(&self) -> Client {
        self.postgres.client("postgres")
    }

    /// The port of PostgreSQL.
    pub fn port(&self) -> u16 {
        self.postgres.port()
    }

    /// The password of its superuser.
    pub fn password(&self) -> &'static str {
        PASSWORD
    }

    /// The only value of a query, as text.
    pub fn value(&self, query: &str) -> String {
        let row =
            self.client().query_one(&format!("SELECT ({query})::text"), &[]).unwrap_or_else(|error| panic!("{query}: {error:?}"));
        row.get(0)
    }

    /// The server's version.
    pub fn version(&self) -> String {
        self.value("SELECT current_setting('server_version')").split(' ').next().unwrap_or_default().to_owned()
    }

    /// The broker.
    pub fn kafka(&self) -> &Kafka {
        self.kafka.get_or_init(|| Kafka::start_with("num.partitions=6\n"))
    }
}
