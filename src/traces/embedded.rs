//! Traces of the embedded log, which has whole transactions only: a writer that commits one that fails has changed nothing.

use std::{collections::BTreeMap, time::Duration};

use fastrand::Rng;
use headwater_connector::Kind;

use super::{
    OPERATIONS,
    log::{self, Op, Trace},
    seeds, temp_dir,
};
use crate::{
    log::{
        Cleanup, From, Log, LogWriter, TopicSpec, Transaction,
        embedded::{EmbeddedLog, Mode, Options},
    },
    pipeline::simulation::Lie,
};

struct Case {
    log: EmbeddedLog,
    rng: Rng,
    writers: BTreeMap<usize, Box<dyn LogWriter>>,
    value: u32,
    trace: Trace,
}

impl Case {
    fn note(&mut self, operation: Op, outcome: &str) {
        self.trace.operations.push(operation);
        self.trace.outcomes.push(outcome.to_owned());
    }

    async fn open(&mut self, producer: usize) {
        self.writers.insert(producer, self.log.open_writer("shop").await.unwrap());
        self.note(Op::Open { producer }, "done");
    }

    /// Appends and commits. The writer of a fenced process learns of it at the first of the two, the model's as well.
    async fn publish(&mut self, producer: usize) {
        let values: Vec<u32> = (0..self.rng.u32(1..4)).map(|at| self.value + at).collect();
        self.value += values.len() as u32;
        let mut transaction = Transaction::default();
        let topic = transaction.topic_index(log::TOPIC);
        for value in &values {
            let key = transaction.write(|out| out.extend_from_slice(value.to_string().as_bytes()));
            let empty = transaction.write(|_| {});
            transaction.push_record(topic, 0, 0, key, Some(empty));
        }
        let result = self.writers.get_mut(&producer).unwrap().commit(transaction).await;
        let outcome = match result {
            Ok(_) => "done",
            Err(error) if error.kind() == Kind::Fenced => {
                // A writer that has failed is not used again.
                self.writers.remove(&producer);
                "fenced"
            }
            Err(error) => panic!("{error}"),
        };
        self.note(Op::Append { producer, values }, outcome);
        self.note(Op::Commit { producer }, outcome);
    }

    async fn read(&mut self) {
        let mut reader = self.log.reader(log::TOPIC, 0, From::Earliest).await.unwrap();
        let mut values = Vec::new();
        while !reader.at_end().await.unwrap() {
            let records = reader.read(100, Duration::ZERO).await.unwrap();
            values.extend(records.iter().map(|one| String::from_utf8_lossy(&one.key).parse::<u32>().unwrap()));
        }
        self.note(Op::Read, &log::seen(&values, false));
    }

    async fn step(&mut self) {
        let producer = self.rng.usize(0..3);
        match self.rng.u32(0..10) {
            0 => self.open(producer).await,
            1 if self.writers.remove(&producer).is_some() => self.note(Op::Drop { producer }, "done"),
            2 | 3 => self.read().await,
            _ if self.writers.contains_key(&producer) => self.publish(producer).await,
            _ => self.open(producer).await,
        }
    }
}

fn record(seed: u64) -> Trace {
    let directory = temp_dir();
    let log = EmbeddedLog::open(Options::new(directory.path()), Mode::Daemon).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let spec = TopicSpec { name: log::TOPIC.to_owned(), partitions: Some(1), cleanup: Cleanup::Compact };
        log.ensure_topics(&[spec]).await.unwrap();
        let (rng, writers, trace) = (Rng::with_seed(seed), BTreeMap::new(), Trace::default());
        let mut case = Case { log, rng, writers, value: 0, trace };
        while case.trace.operations.len() < OPERATIONS {
            case.step().await;
        }
        case.read().await;
        case.trace
    })
}

#[test]
fn the_model_of_the_broker_does_what_the_embedded_log_does() {
    let traces: Vec<Trace> = (0..seeds()).map(record).collect();
    for (seed, trace) in traces.iter().enumerate() {
        log::check(trace, Lie::None).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
    }
    let fenced = |trace: &Trace| trace.outcomes.iter().any(|outcome| outcome == "fenced");
    assert!(traces.iter().any(fenced), "nobody was fenced");
    log::find_out(&traces, &[Lie::NoFence]);
}
