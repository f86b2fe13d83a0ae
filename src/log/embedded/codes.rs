//! Codes of the embedded log: HW1220 to HW1239.

headwater_connector::codes! { "src/log/embedded/codes";
    LOCKED = "HW1220", Environment, "another daemon uses the log's directory";
    NOT_WRITABLE = "HW1221", Environment, "the log's directory cannot be written";
    MISSING = "HW1222", Environment, "there is no log in the directory";
    NOT_A_LOG = "HW1223", Environment, "log.db was not written by headwater";
    DAMAGED = "HW1224", Environment, "log.db is damaged";
    NEWER_FORMAT = "HW1225", Environment, "log.db has a newer format";
    DISK_FULL = "HW1226", Retry, "the disk of the log is full";
    STORAGE = "HW1227", Retry, "the log's files cannot be read or written";
    BUSY = "HW1228", Retry, "another program holds the log's write lock";
    TOPIC_NOT_POSSIBLE = "HW1229", Config, "the embedded log cannot have such a topic";
    REPLACED = "HW1230", Environment, "log.db was removed or replaced while it was in use";
    UNREADABLE = "HW1231", Environment, "the log's files cannot be opened for reading";
    LITTLE_SPACE = "HW1232", Environment, "the disk of the log has little space left";
    EMPTIED = "HW1233", Environment, "log.db is empty";
    UNCHECKED = "HW1234", Environment, "log.db was checked in part only";
}
