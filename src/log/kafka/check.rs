//! Preflight of the cluster: what would keep the log from working, and what makes it weaker than it could be.

use std::sync::Arc;

use headwater_connector::{Error, Finding, Result};

use super::{
    Inner, admin,
    client::{Brokers, PATIENCE, Probe, blocking},
    codes,
    ffi::{Cluster, Described, Operation},
    versions,
};

/// A topic that nobody creates: asking for it tells the brokers.
const NOBODY: &str = "check";

pub(super) async fn run(inner: &Arc<Inner>) -> Result<Vec<Finding>> {
    let probe = inner.probe()?;
    let name = format!("{}.{NOBODY}", inner.prefix);
    let Seen { brokers, id, cluster, transactions } = blocking(move || look(&probe, &name)).await?;
    let id = id.unwrap_or_else(|| "unnamed".into());
    let mut findings = vec![Finding::ok(format!("Kafka cluster {id} answers, with {} broker(s)", brokers.len()))];
    let asking = Arc::clone(inner);
    findings.extend(blocking(move || versions::check(&asking)).await?);
    connection(inner, &mut findings);
    permissions(inner, &cluster, &mut findings);
    state_of_transactions(inner, &transactions, brokers.len(), &mut findings);
    let Some((id, address)) = brokers.first() else { return Ok(findings) };
    match admin::broker_settings(inner, *id).await {
        Ok(settings) => broker(inner, &settings, brokers.len(), &mut findings),
        Err(failed) => findings.push(Finding::warning(
            Error::new(&codes::WEAK_SETTING, "the brokers' settings cannot be read, so they are not checked")
                .at("broker", address)
                .hint("Grant DescribeConfigs on the cluster, or check transaction.max.timeout.ms and replication by hand.")
                .caused_by(failed.what()),
        )),
    }
    Ok(findings)
}

/// What the brokers say about themselves.
struct Seen {
    brokers: Brokers,
    id: Option<String>,
    cluster: Cluster,
    /// Where the brokers keep the state of transactions.
    transactions: Vec<Described>,
}

fn look(probe: &Probe, name: &str) -> Result<Seen> {
    let brokers = probe.brokers(name)?;
    Ok(Seen {
        id: probe.cluster_id(),
        cluster: probe.cluster()?,
        // It does not exist before the first transaction, and not everybody may look at it.
        transactions: probe.describe(&["__transaction_state"], PATIENCE).unwrap_or_default(),
        brokers,
    })
}

/// Permissions on the cluster: who may create topics there need not be given them one by one.
fn permissions(inner: &Inner, cluster: &Cluster, findings: &mut Vec<Finding>) {
    if !cluster.has_controller {
        findings.push(weak("the cluster has no controller now", "Look at the controllers' logs; topics cannot be created."));
    }
    if !cluster.operations.is_empty() && !cluster.operations.contains(&Operation::Create) {
        let what = "the principal may not create topics everywhere; it needs Create for the topics that are missing";
        let hint = format!(
            "Run `kafka-acls.sh --bootstrap-server {} --add --allow-principal User:PRINCIPAL --operation Create --topic {} \
             --resource-pattern-type prefixed` if it was not, or create the topics by hand.",
            inner.server(),
            inner.prefix
        );
        findings.push(weak(what, &hint));
    }
}

/// A transaction that the brokers forget is neither committed nor aborted.
fn state_of_transactions(inner: &Inner, topics: &[Described], brokers: usize, findings: &mut Vec<Finding>) {
    for topic in topics.iter().filter(|topic| topic.error.is_none()) {
        if topic.replicas == 1 && brokers > 1 {
            let what = "the brokers keep the state of transactions in one replica, in __transaction_state";
            let hint = "Run `kafka-reassign-partitions.sh --execute` with three replicas for every partition of the topic.";
            findings.push(weak(what, hint));
        } else if topic.in_sync < topic.replicas {
            let what = format!("__transaction_state has {} of {} replicas in sync", topic.in_sync, topic.replicas);
            let tool = format!("kafka-topics.sh --bootstrap-server {}", inner.server());
            let hint = format!("Run `{tool} --describe --topic __transaction_state` and start the brokers that are away.");
            findings.push(weak(&what, &hint));
        }
    }
}

fn connection(inner: &Inner, findings: &mut Vec<Finding>) {
    let options = &inner.options;
    if !options.protocol().is_encrypted() && !options.is_loopback() {
        findings.push(weak("the connection to the brokers is not encrypted", "Set log.security.protocol to ssl or sasl_ssl."));
    }
    let unverified = |key: &str, value: &str| options.properties.get(key).is_some_and(|given| given == value);
    if unverified("enable.ssl.certificate.verification", "false") || unverified("ssl.endpoint.identification.algorithm", "none") {
        findings.push(weak(
            "the brokers' certificates are not verified",
            "Remove the entry from log.properties and set log.security.ca_file.",
        ));
    }
}

fn broker(inner: &Inner, settings: &admin::Settings, brokers: usize, findings: &mut Vec<Finding>) {
    let number = |name: &str| settings.get(name).and_then(|value| value.parse::<i64>().ok());
    let timeout = i64::from(inner.options.transaction_timeout_seconds);
    match number("transaction.max.timeout.ms") {
        Some(most) if most < timeout * 1000 => findings.push(Finding::error(
            Error::new(
                &codes::TIMEOUT_NOT_ALLOWED,
                format!("a transaction may take {timeout} s, but the brokers allow {} s", most / 1000),
            )
            .at("option", "log.transaction_timeout_seconds")
            .hint(format!("Set it to {} or less, or raise transaction.max.timeout.ms on every broker.", most / 1000)),
        )),
        Some(_) => findings.push(Finding::ok(format!("the brokers allow transactions of {timeout} s"))),
        None => {}
    }
    let replicas = inner.options.replication_factor.map(i64::from).or_else(|| number("default.replication.factor"));
    if let Some(replicas) = replicas {
        if replicas > brokers as i64 {
            findings.push(Finding::error(
                Error::new(&codes::NOT_CREATED, format!("topics would get {replicas} replicas on {brokers} broker(s)"))
                    .hint(format!("Set log.replication_factor to at most {brokers}.")),
            ));
        } else if replicas == 1 {
            let what = "topics get one replica: what is on a broker is lost with it";
            findings.push(weak(what, "Use three brokers and set log.replication_factor to 3."));
        }
        if replicas > 1 && number("min.insync.replicas") == Some(1) {
            let what = "min.insync.replicas is 1: a commit can be lost with one broker";
            findings.push(weak(what, "Set min.insync.replicas to 2 on the brokers."));
        }
    }
    if number("transaction.state.log.replication.factor") == Some(1) && brokers > 1 {
        let what = "the brokers keep the state of transactions in one replica";
        findings
            .push(weak(what, "Set transaction.state.log.replication.factor to 3 and recreate the topic as Kafka's docs say."));
    }
    if settings.get("unclean.leader.election.enable").is_some_and(|value| value == "true") {
        let what = "unclean leader elections are on: committed events can vanish";
        findings.push(weak(what, "Set unclean.leader.election.enable to false on the brokers."));
    }
    if settings.get("auto.create.topics.enable").is_some_and(|value| value == "true") {
        let what = "the brokers create topics by themselves; headwater does not rely on it and creates its own explicitly";
        findings.push(Finding::ok(what));
    }
}

fn weak(what: &str, hint: &str) -> Finding {
    Finding::warning(Error::new(&codes::WEAK_SETTING, what).hint(hint))
}
