//! Topics that others change while we write to them (K8, K9).

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication},
    client::DefaultClientContext,
};

use super::*;

fn admin() -> AdminClient<DefaultClientContext> {
    let mut settings = rdkafka::ClientConfig::new();
    settings.set("bootstrap.servers", &Kafka::shared().bootstrap).create().unwrap()
}

async fn delete(topic: &str) {
    admin().delete_topics(&[topic], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
}

/// Creates a topic; the old one of its name may still be on its way out.
async fn create(topic: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let new = NewTopic::new(topic, 1, TopicReplication::Fixed(1)).set("cleanup.policy", "compact");
    while admin().create_topics([&new], &AdminOptions::new()).await.unwrap()[0].is_err() {
        assert!(Instant::now() < deadline, "the topic cannot be created again");
    }
}

#[tokio::test]
async fn a_topic_has_an_id_that_it_keeps_and_its_successor_does_not_have() {
    let (log, topic) = (shared(), unique("id"));
    let first = log.ensure_topics(&[spec(&topic, 1)]).await.unwrap().remove(0);
    assert!(!first.id.is_empty());
    assert_eq!(log.topics(std::slice::from_ref(&topic)).await.unwrap(), [Some(first.clone())]);
    delete(&topic).await;
    create(&topic).await;
    let second = log.ensure_topics(&[spec(&topic, 1)]).await.unwrap().remove(0);
    assert_ne!(first.id, second.id);
    let names = [topic, "no-such-topic".to_owned()];
    assert_eq!(log.topics(&names).await.unwrap(), [Some(second), None]);
}

#[tokio::test]
async fn a_topic_that_is_made_anew_under_the_writer_stops_it() {
    let (log, topic) = (shared(), unique("anew"));
    log.ensure_topics(&[spec(&topic, 1)]).await.unwrap();
    let mut writer = log.open_writer(&unique("c")).await.unwrap();
    writer.commit(transaction(&[(&topic, 0, "a", Some("1"))])).await.unwrap();
    delete(&topic).await;
    create(&topic).await;
    let deadline = Instant::now() + Duration::from_secs(60);
    // Until the writer looks, the client may find the new topic and go on in it.
    let stopped = loop {
        match writer.commit(transaction(&[(&topic, 0, "b", Some("2"))])).await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(failed) if failed.kind() == Kind::Retry => writer = log.open_writer(&unique("c")).await.unwrap(),
            Err(failed) => break failed,
        }
        assert!(Instant::now() < deadline, "the writer goes on in another topic");
    };
    let known = [log::TOPIC_RECREATED.id, codes::TOPIC_VANISHED.id];
    assert!(known.contains(&stopped.code().id) && stopped.to_string().contains(&topic), "{stopped}");
}

#[tokio::test]
async fn a_topic_that_is_deleted_under_the_writer_stops_it() {
    let (log, topic) = (shared(), unique("deleted"));
    log.ensure_topics(&[spec(&topic, 1)]).await.unwrap();
    let mut writer = log.open_writer(&unique("c")).await.unwrap();
    writer.commit(transaction(&[(&topic, 0, "a", Some("1"))])).await.unwrap();
    delete(&topic).await;
    let deadline = Instant::now() + Duration::from_secs(60);
    let stopped = loop {
        match writer.commit(transaction(&[(&topic, 0, "b", Some("2"))])).await {
            Ok(_) => {}
            Err(failed) if failed.kind() == Kind::Retry => writer = log.open_writer(&unique("c")).await.unwrap(),
            Err(failed) => break failed,
        }
        assert!(Instant::now() < deadline, "the writer goes on without a topic");
    };
    assert_eq!((stopped.code().id, stopped.kind()), (codes::TOPIC_VANISHED.id, Kind::Environment), "{stopped}");
    assert_eq!(log.topics(std::slice::from_ref(&topic)).await.unwrap(), [None], "nobody creates it again by the way");
}

#[tokio::test]
async fn partitions_that_are_added_later_disturb_no_writer() {
    let (log, topic) = (shared(), unique("grown"));
    log.ensure_topics(&[spec(&topic, 2)]).await.unwrap();
    // The usual timeout: nothing here is about time, and creating partitions may keep a busy broker from answering.
    let patient = KafkaLog::new(options(&Kafka::shared().bootstrap, ""), PREFIX).unwrap();
    let mut writer = patient.open_writer(&unique("c")).await.unwrap();
    writer.commit(transaction(&[(&topic, 1, "a", Some("1"))])).await.unwrap();
    admin().create_partitions([&NewPartitions::new(&topic, 5)], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    writer.commit(transaction(&[(&topic, 1, "b", Some("2"))])).await.unwrap();
    assert_eq!(keys(&read_all(&log, &topic, 1).await), ["a", "b"]);
}

/// The findings as level, text and hint.
async fn findings(log: &KafkaLog, specs: &[TopicSpec]) -> Vec<(Level, String)> {
    let told = log.check_topics(specs).await.unwrap();
    told.into_iter().map(|finding| (finding.level, finding.error.map_or(finding.what, |error| error.to_string()))).collect()
}

#[tokio::test]
async fn the_check_of_topics_names_what_does_not_fit_and_the_command_that_mends_it() {
    let log = shared();
    let (fits, forgets, wide) = (unique("fits"), unique("forgets"), unique("wide"));
    assert!(findings(&log, &[spec("no-such-topic", 1)]).await.is_empty(), "what is missing is created later");
    let deleting = TopicSpec { name: forgets.clone(), partitions: Some(1), cleanup: Cleanup::Delete };
    log.ensure_topics(&[spec(&fits, 2), deleting, spec(&wide, 3)]).await.unwrap();
    let mut writer = log.open_writer(&unique("c")).await.unwrap();
    let large = "x".repeat(600_000);
    writer.commit(transaction(&[(&wide, 1, "a", Some(&large)), (&fits, 0, "a", Some("small"))])).await.unwrap();

    let fitting = findings(&log, &[spec(&fits, 2), spec("no-such-topic", 1)]).await;
    assert_eq!(fitting, [(Level::Ok, "1 topic(s) exist and fit".to_owned())]);
    let found = findings(&log, &[spec(&fits, 2), spec(&forgets, 1), spec(&wide, 3)]).await;
    assert_eq!(found.iter().map(|(level, _)| *level).collect::<Vec<_>>(), [Level::Error, Level::Warning], "{found:?}");
    assert!(found[0].1.contains(&forgets) && found[0].1.contains("--add-config cleanup.policy=compact"), "{found:?}");
    let (size, setting) = ("600098 bytes", "max.message.bytes=2097152");
    assert!(found[1].1.contains(&wide) && found[1].1.contains(size) && found[1].1.contains(setting), "{found:?}");
}
