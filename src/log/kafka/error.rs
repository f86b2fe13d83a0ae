//! The client's errors as ours: which code they are, and what the client said.

use headwater_connector::{Code, Error, codes as shared};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Kafka};

use super::{codes, config::Watch};
use crate::log::codes as log;

/// The code of an error that means the same wherever it comes from.
fn known(code: Kafka) -> Option<&'static Code> {
    Some(match code {
        Kafka::Fenced | Kafka::ProducerFenced | Kafka::InvalidProducerEpoch => &log::FENCED,
        Kafka::TopicAuthorizationFailed
        | Kafka::GroupAuthorizationFailed
        | Kafka::ClusterAuthorizationFailed
        | Kafka::DelegationTokenAuthorizationFailed
        | Kafka::TransactionalIdAuthorizationFailed => &codes::NOT_ALLOWED,
        Kafka::Authentication | Kafka::SaslAuthenticationFailed | Kafka::UnsupportedSASLMechanism | Kafka::SSL => {
            &codes::LOGIN_FAILED
        }
        Kafka::MessageSizeTooLarge | Kafka::MessageBatchTooLarge => &codes::RECORD_TOO_LARGE,
        Kafka::UnknownTopic | Kafka::UnknownTopicOrPartition | Kafka::UnknownPartition => &codes::TOPIC_VANISHED,
        Kafka::InvalidTransactionTimeout => &codes::TIMEOUT_NOT_ALLOWED,
        _ => return None,
    })
}

/// Whether the same call may succeed in a moment, without anybody changing anything.
pub(super) fn passes(code: Kafka) -> bool {
    matches!(
        code,
        Kafka::BrokerTransportFailure
            | Kafka::AllBrokersDown
            | Kafka::Resolve
            | Kafka::OperationTimedOut
            | Kafka::RequestTimedOut
            | Kafka::WaitingForCoordinator
            | Kafka::CoordinatorLoadInProgress
            | Kafka::CoordinatorNotAvailable
            | Kafka::NotCoordinator
            | Kafka::LeaderNotAvailable
            | Kafka::NotLeaderForPartition
            | Kafka::ReplicaNotAvailable
            | Kafka::BrokerNotAvailable
            | Kafka::NetworkException
            | Kafka::ConcurrentTransactions
    )
}

/// The hint of a code, where it does not depend on the place.
fn hint(code: &'static Code) -> &'static str {
    match code.id {
        id if id == codes::NOT_ALLOWED.id => "Run `headwater explain HW1240` for the kafka-acls.sh commands that grant it.",
        id if id == codes::LOGIN_FAILED.id => {
            "Check log.security: the protocol of the port, the mechanism, the password, the CA file."
        }
        id if id == codes::TIMEOUT_NOT_ALLOWED.id => {
            "Lower log.transaction_timeout_seconds, or raise transaction.max.timeout.ms on every broker."
        }
        id if id == codes::TOPIC_VANISHED.id => "Find out who deleted it, then run `headwater restart CONNECTOR`.",
        id if id == codes::RECORD_TOO_LARGE.id => {
            "Raise max.message.bytes of the topic; run `headwater explain HW1242` for the command."
        }
        id if id == shared::UNREACHABLE.id => {
            "Check log.bootstrap_servers, that the brokers run, and that the addresses they advertise can be reached from here."
        }
        id if id == log::FENCED.id => "Find out which of the two should run and stop the other.",
        _ => "",
    }
}

/// The code that the client gave an error, if any; the wrapper forgets that of an admin call.
pub(super) fn code_of(error: &KafkaError) -> Option<Kafka> {
    match error {
        KafkaError::AdminOp(code) => Some(*code),
        other => other.rdkafka_error_code(),
    }
}

/// The error for `error`, which happened while we did `what`; `otherwise` is the code if it has none of its own.
pub(super) fn from_client(error: &KafkaError, what: &str, otherwise: &'static Code) -> Error {
    match code_of(error) {
        Some(code) => from_code(code, what, otherwise),
        None => Error::new(otherwise, what).caused_by(plain(error)),
    }
}

/// As [`from_client`], for a bare code.
pub(super) fn from_code(code: Kafka, what: &str, otherwise: &'static Code) -> Error {
    let ours = known(code).unwrap_or(otherwise);
    Error::new(ours, what).hint(hint(ours)).caused_by(text(code))
}

/// The error of a call that ran out of time: what the client's threads met meanwhile says more than the timeout does.
pub(super) fn gave_up(watch: &Watch, what: &str, error: &KafkaError, otherwise: &'static Code) -> Error {
    match watch.last() {
        Some((code, reason)) if known(code).is_some() => from_code(code, what, otherwise).caused_by(reason),
        Some((code, reason)) if is_network(code) => {
            Error::new(&shared::UNREACHABLE, what).hint(hint(&shared::UNREACHABLE)).caused_by(reason)
        }
        _ => from_client(error, what, otherwise),
    }
}

/// Whether a code is about connections rather than about a request.
pub(super) fn is_network(code: Kafka) -> bool {
    matches!(code, Kafka::BrokerTransportFailure | Kafka::AllBrokersDown | Kafka::Resolve | Kafka::NetworkException)
}

/// Whether a code means that the brokers do not let us in, which no waiting changes.
pub(super) fn is_refusal(code: Kafka) -> bool {
    known(code).is_some_and(|code| code.id == codes::LOGIN_FAILED.id)
}

/// The client's own words for a code.
pub(super) fn text(code: Kafka) -> String {
    code.to_string()
}

/// The words of an error that has no code. A setting's value is left out: it may be a secret.
fn plain(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, _, key, _) => format!("the client does not take the value of {key}"),
        KafkaError::ClientCreation(reason) => reason.clone(),
        other => other.to_string(),
    }
}

/// The error of a client that could not be made: only the options can be the reason.
pub(super) fn not_made(error: &KafkaError) -> Error {
    let failed = Error::new(&codes::BAD_OPTION, "the Kafka client cannot be set up");
    let failed = match error {
        KafkaError::ClientConfig(_, _, key, _) => failed.at("option", format!("log.properties.{key}")),
        _ => failed,
    };
    failed.caused_by(plain(error)).hint("Correct the option; run `headwater connectors kafka` for what there is.")
}
