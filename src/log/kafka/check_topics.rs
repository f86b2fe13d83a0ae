//! Preflight of the topics that a connector writes to.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use headwater_connector::{Error, Finding, Result};
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::Consumer,
    error::KafkaError,
    message::{Headers, Message},
};

use super::{
    Inner, admin,
    client::{self, PATIENCE, blocking},
    codes,
    config::{self, HEADER_OVERHEAD_BYTES, RECORD_OVERHEAD_BYTES},
    ffi::{Described, Operation},
};
use crate::log::{TopicSpec, TopicState};

/// Records at the end of each partition that are looked at for their size.
const SAMPLE_RECORDS: i64 = 100;

/// How long that may take for all topics together.
const SAMPLE_LIMIT: Duration = Duration::from_secs(20);

/// What is wrong or weak with topics that exist. Those that do not are created with what they need.
pub(super) async fn run(inner: &Inner, specs: &[TopicSpec]) -> Result<Vec<Finding>> {
    let names: Vec<String> = specs.iter().map(|spec| spec.name.clone()).collect();
    let states = admin::topics(inner, &names).await?;
    let there: Vec<(&TopicSpec, &TopicState)> =
        specs.iter().zip(&states).filter_map(|(spec, state)| Some((spec, state.as_ref()?))).collect();
    if there.is_empty() {
        return Ok(Vec::new());
    }
    let names: Vec<&str> = there.iter().map(|(spec, _)| spec.name.as_str()).collect();
    let mut findings = Vec::new();
    let (probe, asked) = (inner.probe()?, names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
    let described = blocking(move || {
        let names: Vec<&str> = asked.iter().map(String::as_str).collect();
        Ok((probe.describe(&names, PATIENCE)?, probe.brokers(&asked[0])?.len()))
    });
    let (described, brokers) = described.await?;
    for topic in &described {
        permissions(inner, topic, &mut findings);
        replicas(inner, topic, brokers, &mut findings);
    }
    if findings.iter().any(|finding| finding.error.as_ref().is_some_and(|error| error.code().id == codes::NOT_ALLOWED.id)) {
        // What follows would only repeat it.
        return Ok(findings);
    }
    let settings = admin::settings(inner, &names).await?;
    for ((spec, state), settings) in there.iter().zip(&settings) {
        if let Err(failed) = admin::verify(inner, spec, state, settings) {
            findings.push(Finding::error(failed));
        }
        weak_settings(inner, &spec.name, settings, brokers, &mut findings);
    }
    let states: Vec<TopicState> = there.iter().map(|(_, state)| (*state).clone()).collect();
    for (topic, widest) in widest(inner, states).await? {
        let limit = inner.limits.lock().expect("no panic while held").get(&topic).copied();
        findings.extend(limit.and_then(|limit| width(inner, &topic, widest, limit)));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(format!("{} topic(s) exist and fit", there.len())));
    }
    Ok(findings)
}

fn permissions(inner: &Inner, topic: &Described, findings: &mut Vec<Finding>) {
    let needed = [
        (Operation::Read, "Read"),
        (Operation::Write, "Write"),
        (Operation::Describe, "Describe"),
        (Operation::DescribeConfigs, "DescribeConfigs"),
    ];
    // Brokers that do not say what is allowed say nothing at all.
    let missing: Vec<&str> =
        needed.iter().filter(|(operation, _)| !topic.operations.contains(operation)).map(|(_, name)| *name).collect();
    if topic.operations.is_empty() || missing.is_empty() {
        return;
    }
    let operations: String = missing.iter().map(|name| format!("--operation {name} ")).collect();
    let user = inner.options.security.sasl.as_ref().and_then(|sasl| sasl.username.as_deref()).unwrap_or("PRINCIPAL");
    let what = format!("the principal lacks {} on a topic", missing.join(", "));
    findings.push(Finding::error(Error::new(&codes::NOT_ALLOWED, what).at("topic", &topic.name).hint(format!(
        "Run `kafka-acls.sh --bootstrap-server {} --add --allow-principal User:{user} {operations}--topic {}`.",
        inner.server(),
        topic.name
    ))));
}

fn replicas(inner: &Inner, topic: &Described, brokers: usize, findings: &mut Vec<Finding>) {
    if topic.replicas == 1 && brokers > 1 {
        let what = "a topic has one replica: what is on a broker is lost with it";
        let hint = format!(
            "Write the wanted replicas into a file and run `kafka-reassign-partitions.sh --bootstrap-server {} --execute \
             --reassignment-json-file FILE`.",
            inner.server()
        );
        findings.push(weak(what, &topic.name, hint));
    }
    if topic.in_sync < topic.replicas {
        let what = format!("a partition has {} of {} replicas in sync", topic.in_sync, topic.replicas);
        let tool = format!("kafka-topics.sh --bootstrap-server {}", inner.server());
        let hint = format!("Run `{tool} --describe --topic {}` and start the brokers that are away.", topic.name);
        findings.push(weak(&what, &topic.name, hint));
    }
}

fn weak_settings(inner: &Inner, topic: &str, settings: &admin::Settings, brokers: usize, findings: &mut Vec<Finding>) {
    let is = |name: &str, value: &str| settings.get(name).is_some_and(|found| found == value);
    let mend = |setting: &str| format!("Run `{}`.", inner.alter_command(topic, setting));
    if brokers > 1 && is("min.insync.replicas", "1") {
        let what = "min.insync.replicas is 1: a commit can be lost with one broker";
        findings.push(weak(what, topic, mend("min.insync.replicas=2")));
    }
    if is("unclean.leader.election.enable", "true") {
        let what = "unclean leader elections are on: committed events can vanish";
        findings.push(weak(what, topic, mend("unclean.leader.election.enable=false")));
    }
}

fn weak(what: &str, topic: &str, hint: String) -> Finding {
    Finding::warning(Error::new(&codes::WEAK_SETTING, what).at("topic", topic).hint(hint))
}

/// Half of the limit is close: the next column or document goes beyond it.
fn width(inner: &Inner, topic: &str, widest: u64, limit: u64) -> Option<Finding> {
    if widest <= limit / 2 {
        return None;
    }
    let what = format!("a recent record has {widest} bytes, and the topic allows {limit} (max.message.bytes)");
    let setting = format!("max.message.bytes={}", (2 * widest).next_power_of_two());
    Some(weak(&what, topic, format!("Run `{}`, or exclude large columns.", inner.alter_command(topic, &setting))))
}

/// The size of the widest of the last committed records of each topic that has some, as [`super::writer`] counts it.
async fn widest(inner: &Inner, topics: Vec<TopicState>) -> Result<BTreeMap<String, u64>> {
    let consumer = client::consumer(&inner.options, &config::reader(&inner.options, &inner.prefix)?)?;
    blocking(move || {
        let all = topics.iter().flat_map(|topic| (0..topic.partitions).map(|partition| (&topic.name, partition as i32)));
        let mut places = TopicPartitionList::new();
        let assigned = all
            .clone()
            .try_for_each(|(topic, partition)| places.add_partition_offset(topic, partition, Offset::OffsetTail(SAMPLE_RECORDS)))
            .and_then(|()| consumer.assign(&places));
        assigned.map_err(|cause| super::error::from_client(&cause, "the topics cannot be read", &codes::NO_ANSWER))?;
        let deadline = Instant::now() + SAMPLE_LIMIT;
        let (mut widest, mut ended, partitions) = (BTreeMap::new(), 0, all.count());
        while ended < partitions && Instant::now() < deadline {
            match consumer.poll(Duration::from_millis(200)) {
                Some(Ok(message)) => {
                    let headers = message.headers().into_iter().flat_map(Headers::iter);
                    let headers = headers.map(|header| header.key.len() + header.value.map_or(0, <[u8]>::len));
                    let headers: u64 = headers.map(|bytes| bytes as u64 + HEADER_OVERHEAD_BYTES).sum();
                    let size = RECORD_OVERHEAD_BYTES + (message.key_len() + message.payload_len()) as u64 + headers;
                    let most: &mut u64 = widest.entry(message.topic().to_owned()).or_default();
                    *most = size.max(*most);
                }
                Some(Err(KafkaError::PartitionEOF(_))) => ended += 1,
                // A sample need not be whole.
                Some(Err(_)) | None => {}
            }
        }
        Ok(widest)
    })
    .await
}
