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
}
