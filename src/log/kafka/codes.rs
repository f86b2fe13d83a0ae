//! Codes of the Kafka log: HW1240 to HW1269.

headwater_connector::codes! { "src/log/kafka/codes";
    NOT_ALLOWED = "HW1240", Environment, "the Kafka cluster refuses an operation";
    LOGIN_FAILED = "HW1241", Environment, "the Kafka cluster does not let us in";
    RECORD_TOO_LARGE = "HW1242", Environment, "a record is larger than its topic allows";
    TIMEOUT_NOT_ALLOWED = "HW1243", Environment, "the brokers do not allow the transaction timeout";
    HANGING_TRANSACTION = "HW1244", Retry, "a transaction of another producer does not end";
    BAD_OPTION = "HW1245", Config, "an option of the Kafka log cannot be used";
    TOPIC_VANISHED = "HW1246", Environment, "a topic that is written to is gone";
    NO_ANSWER = "HW1247", Retry, "the Kafka cluster did not do what it was asked";
    WEAK_SETTING = "HW1248", Environment, "a setting weakens what the log promises";
    NOT_CREATED = "HW1249", Environment, "a topic cannot be created";
    RECYCLE = "HW1250", Retry, "the writer is replaced after a slow or disturbed commit";
    HISTORY_GONE = "HW1251", Lost, "records that were to be read next are gone";
    TOO_OLD = "HW1252", Environment, "the Kafka cluster is too old";
}
