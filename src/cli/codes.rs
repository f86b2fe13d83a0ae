//! Codes of the command line: HW1100 to HW1149.

headwater_connector::codes! { "src/cli/codes";
    NO_DAEMON = "HW1100", Environment, "no daemon answers";
    HTTP_OFF = "HW1101", Config, "the config switches HTTP off";
    BAD_ANSWER = "HW1102", Environment, "something else than headwater answers";
    UNKNOWN_CODE = "HW1103", Config, "an error code is not known";
    UNKNOWN_PARTITION = "HW1104", Config, "a topic has no such partition";
    OUTPUT = "HW1105", Environment, "output cannot be written";
    START = "HW1106", Environment, "the process cannot be started";
    DEMO = "HW1107", Environment, "the demo cannot go on";
    UNCONFIRMED = "HW1108", Config, "a reset is not confirmed";
    RUNNING = "HW1109", Environment, "the connector runs";
    KEYS_UNREADABLE = "HW1110", Config, "a file of keys cannot be used";
}
