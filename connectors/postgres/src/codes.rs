//! The codes of this connector, one page each in `codes/`.

headwater_connector::codes! { "codes";
    LOGIN_REFUSED = "HW2000", Environment, "the server refused the login";
    UNSAFE_LOGIN = "HW2001", Environment, "the server asks for a password in an unsafe way";
    DATABASE_MISSING = "HW2002", Config, "the database does not exist";
    PRIVILEGE = "HW2003", Environment, "a privilege is missing";
    BUSY = "HW2004", Retry, "the server takes no connection now";
    REFUSED = "HW2005", Environment, "the server refused a statement";
    TLS = "HW2006", Environment, "TLS cannot be used";
    BAD_OPTION = "HW2007", Config, "an option of a PostgreSQL source is wrong";
    TOO_OLD = "HW2008", Environment, "the server is too old";
    WAL_LEVEL = "HW2009", Environment, "the server does not write a logical log";
    CAPACITY = "HW2010", Environment, "no replication slot or sender is free";
    TABLE_MISSING = "HW2011", Config, "a pattern matches no table";
    NO_USABLE_KEY = "HW2012", Config, "a table has no usable key";
    PUBLICATION_MISSING = "HW2013", Lost, "the publication is gone";
    PUBLICATION_PARTIAL = "HW2014", Environment, "the publication leaves changes out";
    SLOT_MISSING = "HW2015", Lost, "the replication slot is gone";
    SLOT_AHEAD = "HW2016", Lost, "the replication slot is ahead of the checkpoint";
    SLOT_ACTIVE = "HW2017", Retry, "the replication slot is in use";
    SLOT_INVALID = "HW2018", Lost, "the replication slot was invalidated";
    SLOT_FOREIGN = "HW2019", Config, "the replication slot belongs to something else";
    SLOT_APPEARED = "HW2020", Environment, "the slot appeared in between";
    OTHER_SOURCE = "HW2021", Config, "the source is not the one of the checkpoint";
    DIVERGED = "HW2022", Lost, "the server's history branched off before the checkpoint";
    PARTIAL_MISMATCH = "HW2023", Lost, "the partly published transaction is not there";
    STREAM_BEHIND = "HW2024", Bug, "the stream begins before the checkpoint";
    TRUNCATE_STOPPED = "HW2025", Data, "a table was truncated";
    PROTOCOL = "HW2026", Bug, "the server sent what cannot be decoded";
    UNVERIFIED = "HW2027", Environment, "the connection is encrypted but not verified";
    RETENTION = "HW2028", Environment, "the slot may hold or lose log without bound";
    ABSENT_VALUES = "HW2029", Environment, "large values can be absent from events";
    PASSWORD_IN_URL = "HW2030", Config, "the password stands in the url";
}
