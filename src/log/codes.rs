//! Codes of the log: HW1200 both, HW1220 embedded, HW1240 Kafka.

headwater_connector::codes! { "src/log/codes";
    FENCED = "HW1200", Fenced, "another writer took this connector's place";
    COMMIT_IN_DOUBT = "HW1201", Retry, "the outcome of a commit is not known";
    TOPIC_MISMATCH = "HW1202", Environment, "a topic does not fit what the connector needs";
    CHECKPOINT_UNREADABLE = "HW1203", Lost, "a checkpoint cannot be used";
    TOPIC_UNKNOWN = "HW1204", Config, "there is no such topic";
    TOPIC_DELETED = "HW1205", Lost, "a topic that the checkpoint knows was deleted";
    TOPIC_RECREATED = "HW1206", Lost, "a topic was deleted and made anew";
    CHECKPOINT_LOST = "HW1207", Lost, "the checkpoint of a connector that has published is gone";
}
