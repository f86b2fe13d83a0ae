//! The operations of a log, and what the model of the broker makes of them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use headwater_connector::{Kind, Result};

use super::{compare, runtime, world};
use crate::{
    log::StoredRecord,
    pipeline::simulation::{
        Lie,
        broker::{Appended, Broker},
    },
};

pub const TOPIC: &str = "trace";

/// Producers share one transactional id, so that each fences the ones before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Open {
        producer: usize,
    },
    /// Into the open transaction, or a new one.
    Append {
        producer: usize,
        values: Vec<u32>,
    },
    Commit {
        producer: usize,
    },
    /// The request that ends the transaction is held back; the client loses its connection and sends another one.
    CommitTwice {
        producer: usize,
    },
    /// What was held back arrives.
    Deliver,
    Abort {
        producer: usize,
    },
    /// The client dies.
    Drop {
        producer: usize,
    },
    /// What a reader of committed records sees once everything decided has reached it.
    Read,
}

#[derive(Default)]
pub struct Trace {
    pub operations: Vec<Op>,
    pub outcomes: Vec<String>,
}

pub fn seen(values: &[u32], undecided: bool) -> String {
    format!("{values:?}{}", if undecided { ", then undecided" } else { "" })
}

struct Replay {
    broker: Broker,
    /// Epochs, and whether a transaction is open as far as the client knows.
    producers: BTreeMap<usize, (u64, bool)>,
    late: Option<u64>,
    lie: Lie,
}

fn word(result: &Result<()>) -> String {
    match result {
        Ok(()) => "done".to_owned(),
        Err(error) if error.kind() == Kind::Fenced => "fenced".to_owned(),
        Err(_) => "refused".to_owned(),
    }
}

impl Replay {
    fn append(&mut self, producer: usize, values: &[u32]) -> Result<()> {
        let (epoch, begun) = self.producers[&producer];
        if !begun {
            self.broker.begin(epoch)?;
        }
        self.producers.insert(producer, (epoch, true));
        let one = |value: &u32| Appended {
            topic: Arc::from(TOPIC),
            partition: 0,
            record: StoredRecord {
                offset: 0,
                timestamp_ms: 0,
                key: value.to_string().into_bytes(),
                value: Some(Vec::new()),
                headers: Vec::new(),
            },
        };
        self.broker.produce(epoch, &values.iter().map(one).collect::<Vec<_>>())
    }

    fn end(&mut self, producer: usize) -> u64 {
        let (epoch, begun) = self.producers.get_mut(&producer).expect("an open producer");
        *begun = false;
        *epoch
    }

    async fn step(&mut self, operation: &Op) -> String {
        let result = match operation {
            Op::Open { producer } => {
                let epoch = loop {
                    match self.broker.init() {
                        Ok(epoch) => break epoch,
                        Err(again) => tokio::time::sleep_until(again).await,
                    }
                };
                self.producers.insert(*producer, (epoch, false));
                Ok(())
            }
            Op::Append { producer, values } => self.append(*producer, values),
            Op::Commit { producer } => {
                let epoch = self.end(*producer);
                self.broker.commit(epoch)
            }
            Op::CommitTwice { producer } => {
                let epoch = self.end(*producer);
                self.late = Some(epoch);
                self.broker.commit(epoch)
            }
            Op::Deliver => {
                let epoch = self.late.take().expect("something is late");
                if self.lie == Lie::LateEndIsIgnored && epoch == self.broker.epoch() { Ok(()) } else { self.broker.commit(epoch) }
            }
            Op::Abort { producer } => {
                let epoch = self.end(*producer);
                self.broker.abort(epoch)
            }
            Op::Drop { producer } => {
                self.producers.remove(producer);
                Ok(())
            }
            Op::Read => {
                let (records, undecided) = self.broker.read(TOPIC);
                let key = |record: &StoredRecord| String::from_utf8_lossy(&record.key).parse().expect("a number");
                return seen(&records.iter().map(key).collect::<Vec<_>>(), undecided);
            }
        };
        // Markers get where they have to.
        tokio::time::advance(Duration::from_millis(200)).await;
        word(&result)
    }
}

/// Whether the model does what the log did.
pub fn check(trace: &Trace, lie: Lie) -> std::result::Result<(), String> {
    let replay = async {
        let broker = Broker::new(world(lie));
        broker.create(TOPIC, 1);
        let mut replay = Replay { broker, producers: BTreeMap::new(), late: None, lie };
        let mut outcomes = Vec::new();
        for operation in &trace.operations {
            outcomes.push(replay.step(operation).await);
        }
        outcomes
    };
    compare(&trace.operations, &trace.outcomes, &runtime().block_on(replay))
}

/// Every lie must be found out by one of the traces.
pub fn find_out(traces: &[Trace], lies: &[Lie]) {
    for lie in lies {
        let found = traces.iter().enumerate().find_map(|(seed, trace)| Some((seed, check(trace, *lie).err()?)));
        let (seed, fault) = found.unwrap_or_else(|| panic!("{lie:?} went unnoticed"));
        println!("{lie:?}: found by seed {seed}: {}", fault.lines().next().unwrap_or_default());
    }
}
