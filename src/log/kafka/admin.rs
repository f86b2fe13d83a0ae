//! Topics: created explicitly, waited for, and verified.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use headwater_connector::{Error, Result};
use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication},
    error::RDKafkaErrorCode,
};

use super::{
    Inner,
    client::{OffThread, PATIENCE, Probe, TopicFacts, blocking},
    codes,
    config::{self, Watch},
    error,
};
use crate::log::{Cleanup, TopicSpec, TopicState, codes as log};

/// Partitions of a topic that nobody gave a count for.
pub(super) const DEFAULT_PARTITIONS: u32 = 6;

/// How long a new topic may take until all its partitions have leaders.
const LEADERS_LIMIT: Duration = Duration::from_secs(30);

const REQUEST: Duration = Duration::from_secs(20);

type Admin = OffThread<AdminClient<Watch>>;

/// Settings of a topic by name.
pub(super) type Settings = BTreeMap<String, String>;

fn admin(inner: &Inner) -> Result<Admin> {
    let made: Result<AdminClient<Watch>, _> = config::base(&inner.options)?.create_with_context(Watch::of(&inner.options));
    let admin = made.map(OffThread::new).map_err(|cause| error::not_made(&cause))?;
    Watch::admit(admin.inner())?;
    Ok(admin)
}

/// The topics as they are.
pub(super) async fn topics(inner: &Inner, names: &[String]) -> Result<Vec<Option<TopicState>>> {
    let probe = inner.probe()?;
    let names = names.to_vec();
    blocking(move || {
        let facts: Vec<_> = names.iter().map(|name| probe.topic(name)).collect::<Result<_>>()?;
        let there: Vec<&str> = names.iter().zip(&facts).filter(|(_, facts)| facts.is_some()).map(|(name, _)| &**name).collect();
        let mut ids = probe.describe(&there, PATIENCE)?.into_iter().map(|topic| topic.id);
        let state = |(name, facts): (String, Option<TopicFacts>)| {
            let partitions = facts?.partitions;
            Some(TopicState { name, partitions, id: ids.next().unwrap_or_default() })
        };
        Ok(names.iter().cloned().zip(facts).map(state).collect())
    })
    .await
}

/// Creates what is missing, waits for it, verifies all.
pub(super) async fn ensure(inner: &Inner, specs: &[TopicSpec]) -> Result<Vec<TopicState>> {
    let names: Vec<String> = specs.iter().map(|spec| spec.name.clone()).collect();
    let there = topics(inner, &names).await?;
    let missing: Vec<&TopicSpec> = specs.iter().zip(&there).filter(|(_, state)| state.is_none()).map(|(spec, _)| spec).collect();
    if !missing.is_empty() {
        create(inner, &missing).await?;
    }
    let probe = inner.probe()?;
    let waited = names.clone();
    blocking(move || waited.iter().try_for_each(|name| wait_for_leaders(&probe, name))).await?;
    let vanished =
        |name: &str| Error::new(&codes::TOPIC_VANISHED, "a topic was deleted while the connector started").at("topic", name);
    let states = topics(inner, &names).await?.into_iter().zip(&names);
    let states: Vec<TopicState> = states.map(|(state, name)| state.ok_or_else(|| vanished(name))).collect::<Result<_>>()?;
    inner.remember(&states);
    let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
    let settings = settings(inner, &names).await?;
    for ((spec, state), settings) in specs.iter().zip(&states).zip(&settings) {
        verify(inner, spec, state, settings)?;
    }
    Ok(states)
}

async fn create(inner: &Inner, specs: &[&TopicSpec]) -> Result<()> {
    let replicas = inner.options.replication_factor.map_or(-1, i32::from);
    let topics: Vec<NewTopic<'_>> = specs
        .iter()
        .map(|spec| {
            let partitions = spec.partitions.unwrap_or(DEFAULT_PARTITIONS) as i32;
            let bare = NewTopic::new(&spec.name, partitions, TopicReplication::Fixed(replicas));
            inner.wanted(spec).iter().fold(bare, |topic, (key, value)| topic.set(key, value))
        })
        .collect();
    let admin = admin(inner)?;
    let limits = AdminOptions::new().request_timeout(Some(REQUEST)).operation_timeout(Some(REQUEST));
    let results = admin.create_topics(&topics, &limits).await;
    for result in results.map_err(|cause| error::from_client(&cause, "topics cannot be created", &codes::NO_ANSWER))? {
        let Err((name, code)) = result else { continue };
        match code {
            // Somebody else was faster; it is verified like any other.
            RDKafkaErrorCode::TopicAlreadyExists => {}
            code if error::passes(code) => {
                return Err(error::from_code(code, "a topic cannot be created", &codes::NO_ANSWER).at("topic", name));
            }
            code => {
                let failed = error::from_code(code, "a topic cannot be created", &codes::NOT_CREATED).at("topic", &name);
                return Err(if failed.code().id == codes::NOT_CREATED.id { failed.hint(creation_hint(code)) } else { failed });
            }
        }
    }
    Ok(())
}

fn creation_hint(code: RDKafkaErrorCode) -> &'static str {
    match code {
        RDKafkaErrorCode::InvalidReplicationFactor => "Set log.replication_factor to at most the number of brokers.",
        _ => "Create the topic by hand, or have the cluster's policy changed.",
    }
}

fn wait_for_leaders(probe: &Probe, name: &str) -> Result<()> {
    let deadline = Instant::now() + LEADERS_LIMIT;
    loop {
        if let Some(facts) = probe.topic(name)?
            && facts.writable
        {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::new(&codes::NO_ANSWER, "a topic has partitions without a leader")
                .at("topic", name)
                .hint("Look at the brokers' logs; run kafka-topics.sh --describe --unavailable-partitions."));
        }
        // The brokers learn of a new topic one after the other and cannot be waited for otherwise.
        thread::sleep(Duration::from_millis(50));
    }
}

/// The settings of topics, in the order asked for.
pub(super) async fn settings(inner: &Inner, names: &[&str]) -> Result<Vec<Settings>> {
    const WHAT: &str = "the settings of a topic cannot be read";
    let resources: Vec<_> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
    let mut settings = Vec::with_capacity(names.len());
    for (name, result) in names.iter().zip(describe(inner, &resources, WHAT).await?) {
        let read = result.map_err(|code| error::from_code(code, WHAT, &codes::NO_ANSWER).at("topic", name))?;
        // The wrapper answers with no settings at all for a topic that does not exist.
        let Some(limit) = limit(&read) else {
            let gone = error::from_code(RDKafkaErrorCode::UnknownTopicOrPartition, "there is no such topic", &codes::NO_ANSWER);
            return Err(gone.at("topic", name));
        };
        inner.limits.lock().expect("no panic while held").insert((*name).to_owned(), limit);
        settings.push(read);
    }
    Ok(settings)
}

/// Reads `max.message.bytes` of the topics known so far again: an operator may have raised it because of us.
pub(super) async fn refresh_limits(inner: &Inner) -> Result<BTreeMap<String, u64>> {
    let names: Vec<String> = inner.limits.lock().expect("no panic while held").keys().cloned().collect();
    let resources: Vec<_> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
    let results = describe(inner, &resources, "the settings of the topics cannot be read").await?;
    let mut limits = inner.limits.lock().expect("no panic while held");
    for (name, result) in names.into_iter().zip(results) {
        match result.ok().and_then(|settings| limit(&settings)) {
            Some(limit) => limits.insert(name, limit),
            // It is asked for again when it is written to, and what is wrong with it is said then.
            None => limits.remove(&name),
        };
    }
    Ok(limits.clone())
}

fn limit(settings: &Settings) -> Option<u64> {
    settings.get("max.message.bytes")?.parse().ok()
}

/// The settings of a broker.
pub(super) async fn broker_settings(inner: &Inner, broker: i32) -> Result<Settings> {
    const WHAT: &str = "the settings of a broker cannot be read";
    let mut results = describe(inner, &[ResourceSpecifier::Broker(broker)], WHAT).await?;
    let result = results.pop().unwrap_or_else(|| Ok(Settings::new()));
    result.map_err(|code| error::from_code(code, WHAT, &codes::NO_ANSWER).at("broker", broker))
}

async fn describe(
    inner: &Inner,
    resources: &[ResourceSpecifier<'_>],
    what: &str,
) -> Result<Vec<Result<Settings, RDKafkaErrorCode>>> {
    if resources.is_empty() {
        return Ok(Vec::new());
    }
    let admin = admin(inner)?;
    let limits = AdminOptions::new().request_timeout(Some(REQUEST));
    let answer = admin.describe_configs(resources, &limits).await;
    let answer = answer.map_err(|cause| error::from_client(&cause, what, &codes::NO_ANSWER))?;
    let entries = |resource: rdkafka::admin::ConfigResource| {
        resource.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect()
    };
    Ok(answer.into_iter().map(|result| result.map(entries)).collect())
}

pub(super) fn verify(inner: &Inner, spec: &TopicSpec, state: &TopicState, settings: &Settings) -> Result<()> {
    if let Some(partitions) = spec.partitions
        && partitions != state.partitions
    {
        let what = format!("the topic has {} partitions, and {partitions} are needed", state.partitions);
        return Err(Error::new(&log::TOPIC_MISMATCH, what)
            .at("topic", &spec.name)
            .hint("Set events.partitions to what the topic has, or choose another topic name."));
    }
    let policy = settings.get("cleanup.policy").map_or("delete", String::as_str);
    let has = |word: &str| policy.split(',').any(|part| part.trim() == word);
    // An event topic may also forget by time if its owner wants so; the checkpoint may not.
    let forgets = inner.is_checkpoint(&spec.name) && has("delete");
    if spec.cleanup == Cleanup::Compact && (!has("compact") || forgets) {
        let what = format!("cleanup.policy is {policy}, which would lose events; it must be compact");
        return Err(Error::new(&log::TOPIC_MISMATCH, what)
            .at("topic", &spec.name)
            .hint(format!("Run `{}`.", inner.alter_command(&spec.name, "cleanup.policy=compact"))));
    }
    Ok(())
}
