//! Codes of the HTTP server: HW1190 and up.

headwater_connector::codes! { "src/http/codes";
    PORT_BUSY = "HW1190", Environment, "the HTTP address cannot be bound";
}
