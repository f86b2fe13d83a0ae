//! Preflight of the cluster: what would keep the log from working, and what makes it weaker than it could be.

use headwater_connector::{Error, Finding, Result};

use super::{Inner, admin, client::blocking, codes};

/// A topic that nobody creates: asking for it tells the brokers.
const NOBODY: &str = "check";

pub(super) async fn run(inner: &Inner) -> Result<Vec<Finding>> {
    let probe = inner.probe()?;
    let name = format!("{}.{NOBODY}", inner.prefix);
    let (brokers, cluster) = blocking(move || Ok((probe.brokers(&name)?, probe.cluster_id()))).await?;
    let cluster = cluster.unwrap_or_else(|| "unnamed".into());
    let mut findings = vec![Finding::ok(format!("Kafka cluster {cluster} answers, with {} broker(s)", brokers.len()))];
    connection(inner, &mut findings);
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
