//! The models of the simulation, held to the servers that they stand for.
//!
//! Seeded operations run on a real server; what could be observed is written down as a trace, in logical positions ("before the
//! fourth commit") instead of the server's own. Then the model does the same operations, and every step must look the same. What
//! a server decides by itself (whether two commit records touch, when it stores a slot) is an input of the trace; what follows
//! from it is not. A model that is told to lie must be found out by the same traces.
//!
//! `HEADWATER_TRACES=200 cargo test --lib traces` runs more seeds than the usual ones.

mod embedded;
mod kafka;
mod log;
mod postgres;
mod source;
mod wire;

#[allow(dead_code)]
#[path = "../../tests/support/common.rs"]
mod common;
#[allow(clippy::duplicate_mod)] // the tests of the Kafka log have it too
#[path = "../../tests/support/proxy.rs"]
mod proxy;
#[allow(clippy::duplicate_mod)] // the tests of the Kafka log have it too
#[path = "../../tests/support/kafka.rs"]
mod real_kafka;
#[allow(dead_code)]
#[path = "../../tests/support/postgres.rs"]
mod real_postgres;

use common::{PATIENCE, free_port, postgres_bin, signal, temp_dir, wait_exit, wait_until};

use crate::pipeline::simulation::{Lie, Lsn, Place, Variant, World};

/// Seeds per server, unless the environment says otherwise, and operations of each.
const SEEDS: u64 = 20;
const OPERATIONS: usize = 60;

fn seeds() -> u64 {
    std::env::var("HEADWATER_TRACES").ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS)
}

/// A world in which nothing fails by chance, and in which everything may be confirmed.
fn world(lie: Lie) -> std::sync::Arc<World> {
    let world = World::new(fastrand::Rng::with_seed(0), 0, lie, Variant::Sound);
    world.set_committed(Place { base: Lsn::MAX, partial: None });
    std::sync::Arc::new(world)
}

/// Paused time, as the models need it.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

/// The first step at which two runs differ, with what led to it.
fn compare<Op: std::fmt::Debug>(operations: &[Op], real: &[String], model: &[String]) -> Result<(), String> {
    assert!(real.len() == operations.len() && model.len() == operations.len(), "a run ended early");
    let Some(at) = (0..operations.len()).find(|at| real[*at] != model[*at]) else { return Ok(()) };
    let from = at.saturating_sub(12);
    let led = (from..at).map(|at| format!("\n  {at}: {:?} -> {}", operations[at], real[at])).collect::<String>();
    Err(format!("step {at}, {:?}: the server says {:?}, the model {:?}; before it:{led}", operations[at], real[at], model[at]))
}
