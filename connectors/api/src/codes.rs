//! Codes that every connector shares. A connector's own codes live in its own crate with a number range of their own.

crate::codes! { "codes";
    SECRET_MISSING = "HW0001", Config, "a secret cannot be read";
    UNREACHABLE = "HW0002", Retry, "a server cannot be reached";
    CONNECTION_LOST = "HW0003", Retry, "a connection broke";
    INVARIANT = "HW0004", Bug, "an invariant broke";
    BAD_POSITION = "HW0005", Bug, "a stored position cannot be read";
    BAD_VALUE = "HW0006", Data, "a value cannot be represented";
}
