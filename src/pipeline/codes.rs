//! Codes of the pipeline: HW1170 and up.

headwater_connector::codes! { "src/pipeline/codes";
    PANICKED = "HW1170", Bug, "a connector panicked";
    TOPIC_TAKEN = "HW1171", Config, "two connectors would write to one topic";
    PARTITIONS_PINNED = "HW1172", Environment, "a topic has fewer partitions than are pinned";
    PARTITIONS_CHANGED = "HW1173", Config, "the partition count of a live topic was changed in the config";
    PAUSED = "HW1174", Config, "the connector is paused";
    UNKNOWN_CONNECTOR = "HW1175", Config, "no connector has this name";
    RELOAD_REFUSED = "HW1176", Config, "a change of the config needs a restart of the daemon";
    STOPPING = "HW1177", Environment, "the daemon is stopping";
    OTHER_INCARNATION = "HW1178", Config, "a reset names another incarnation";
    BACKFILL_UNKNOWN_TABLE = "HW1180", Config, "a backfill names a table that is not captured";
    BACKFILL_REFUSED = "HW1181", Config, "a backfill cannot be done as asked";
    BACKFILL_BAD_KEY = "HW1182", Config, "a file of keys has a line that is no key";
    BACKFILL_IDLE = "HW1183", Environment, "a backfill is asked of a connector that does not run";
    REFRESH_TOPIC = "HW1184", Retry, "the topic of rows that lack columns is made";
    FIRST_UNKNOWN = "HW1185", Config, "a table that is to be read first is not captured";
    NEARLY_LOST = "HW1186", Environment, "the source may soon delete what was not read";
}
