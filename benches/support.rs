//! The servers of the black-box tests, for the benchmark.

#[allow(dead_code)]
#[path = "../tests/support/common.rs"]
mod common;
#[path = "../tests/support/kafka.rs"]
pub mod kafka;
#[allow(dead_code, unused_macros)]
#[path = "../connectors/mysql/tests/servers/support.rs"]
pub mod mysql;
#[allow(dead_code)]
#[path = "../tests/support/postgres.rs"]
pub mod postgres;

pub use common::*;
