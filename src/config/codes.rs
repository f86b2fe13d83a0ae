//! Codes of the configuration: HW1000 to HW1099.

headwater_connector::codes! { "src/config/codes";
    FILE_UNREADABLE = "HW1000", Config, "a config file cannot be read";
    SYNTAX = "HW1001", Config, "a config file has a syntax error";
    UNKNOWN_OPTION = "HW1002", Config, "an option is not known";
    WRONG_TYPE = "HW1003", Config, "an option has the wrong type";
    OPTION_MISSING = "HW1004", Config, "a required option is missing";
    NOT_A_CHOICE = "HW1005", Config, "an option's value is not one of the choices";
    BAD_VALUE = "HW1006", Config, "an option's value is not allowed";
    DUPLICATE = "HW1007", Config, "something is given twice";
    UNKNOWN_KIND = "HW1008", Config, "a kind is not known";
    SOURCE_OR_SINK = "HW1009", Config, "a connector needs exactly one source or sink";
    INCLUDE_NO_MATCH = "HW1010", Config, "an include pattern matches no file";
    INCLUDE_CONTENT = "HW1011", Config, "an included file holds more than connectors";
    LISTEN_REMOTE = "HW1012", Config, "HTTP would be open to other machines";
    LITERAL_SECRET = "HW1013", Config, "a secret stands in the config file";
    BAD_NAME = "HW1014", Config, "a name is not allowed";
    BAD_TOPIC = "HW1015", Config, "a topic cannot be named like this";
    COLUMNS_CONTRADICT = "HW1016", Config, "the columns of a table's rule contradict each other";
    NO_CONNECTORS = "HW1017", Config, "no connector is configured";
    UNKNOWN_VARIABLE = "HW1018", Config, "an environment variable names no option";
}
