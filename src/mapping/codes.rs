//! Codes of mapping: HW1150 and up.

headwater_connector::codes! { "src/mapping/codes";
    TOPIC_COLLISION = "HW1150", Config, "two tables map to one topic";
    BAD_TOPIC_NAME = "HW1151", Config, "a topic name is not allowed";
    RULE_UNKNOWN_TABLE = "HW1152", Config, "a rule names a table that is not captured";
    RULE_UNKNOWN_COLUMN = "HW1153", Config, "a rule names a column that the table does not have";
    KEY_COLUMN_EXCLUDED = "HW1154", Config, "a key column is excluded";
    NO_KEY = "HW1155", Data, "a row cannot be keyed";
    NOT_REPRESENTABLE = "HW1156", Data, "a row cannot be represented";
    KEY_CHANGED = "HW1157", Config, "the key of a table changed";
}
