//! How new the brokers are, judged by what they understand: no broker tells its version.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use headwater_connector::{Error, Finding, Result};
use rdkafka::{config::RDKafkaLogLevel, consumer::Consumer};

use super::{Inner, client, codes, config};

/// How long the first answer may take; the cluster has answered other questions by now.
const LIMIT: Duration = Duration::from_secs(5);

const FETCH: i16 = 1;
const METADATA: i16 = 3;
const TRANSACTIONS: i16 = 22;

/// The versions of `Fetch` by the first release that had them.
const RELEASES: &[(i16, &str)] = &[(18, "4.1"), (17, "3.9"), (16, "3.7"), (15, "3.5"), (13, "3.1"), (12, "2.7"), (11, "2.3")];

/// Of `Metadata`, from which on topics have ids.
const TOPIC_IDS: i16 = 10;

/// Asks a broker, blocks. The client knows what brokers understand, and tells it in its debug log only.
pub(super) fn check(inner: &Inner) -> Result<Vec<Finding>> {
    let mut settings = config::consumer(&inner.options, config::Isolation::Uncommitted)?;
    settings.set("debug", "feature").set_log_level(RDKafkaLogLevel::Debug);
    let consumer = client::consumer(&inner.options, &settings)?;
    let deadline = Instant::now() + LIMIT;
    while consumer.client().context().versions().len() <= usize::from(TRANSACTIONS as u16) && Instant::now() < deadline {
        let _ = consumer.poll(Duration::from_millis(20));
    }
    Ok(findings(&consumer.client().context().versions()))
}

fn findings(versions: &BTreeMap<i16, i16>) -> Vec<Finding> {
    let newest = |request: i16| versions.get(&request).copied();
    let Some(fetch) = newest(FETCH) else { return Vec::new() };
    if newest(TRANSACTIONS).is_none() {
        let what = "the brokers know no transactions";
        return vec![Finding::error(Error::new(&codes::TOO_OLD, what).hint("Use Kafka 2.8 or newer."))];
    }
    let release = RELEASES.iter().find(|(version, _)| fetch >= *version).map_or("older than 2.3", |(_, release)| release);
    if newest(METADATA).is_none_or(|version| version < TOPIC_IDS) {
        let what = "the brokers give topics no ids: a topic that is deleted and made anew is not noticed";
        return vec![Finding::warning(Error::new(&codes::WEAK_SETTING, what).hint("Use Kafka 2.8 or newer."))];
    }
    vec![Finding::ok(format!("the brokers speak the protocol of Kafka {release} or newer"))]
}

/// The request and its newest version in a line of the client's log: `ApiKey Produce (0) Versions 0..13`.
pub(super) fn parse(line: &str) -> Option<(i16, i16)> {
    let (_, rest) = line.split_once("ApiKey ")?;
    let (request, versions) = rest.split_once('(')?.1.split_once(") Versions ")?;
    Some((request.parse().ok()?, versions.rsplit_once("..")?.1.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use headwater_connector::Level;

    use super::*;

    #[test]
    fn a_line_of_the_clients_log_is_understood() {
        assert_eq!(parse("[thrd:x]: x/bootstrap:   ApiKey Produce (0) Versions 0..13"), Some((0, 13)));
        assert_eq!(parse("ApiKey Unknown-90? (90) Versions 1..1"), Some((90, 1)));
        assert_eq!(parse("Broker API support:"), None);
    }

    #[test]
    fn old_brokers_are_told_apart() {
        let of = |pairs: &[(i16, i16)]| findings(&pairs.iter().copied().collect());
        assert!(of(&[]).is_empty(), "an answer that did not come is no finding");
        assert_eq!(of(&[(FETCH, 4)])[0].level, Level::Error);
        assert_eq!(of(&[(FETCH, 11), (METADATA, 9), (TRANSACTIONS, 3)])[0].level, Level::Warning);
        let new = of(&[(FETCH, 18), (METADATA, 13), (TRANSACTIONS, 5)]);
        assert!(new[0].level == Level::Ok && new[0].what.contains("4.1"), "{new:?}");
    }
}
