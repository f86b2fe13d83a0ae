//! Wrong input and wrong surroundings: each is answered with its code, its place, a hint, and the exit code or state that it
//! deserves, and never with a secret.

mod mysql;
mod overlaps;
mod server;
mod slots;
pub mod surroundings;

use crate::support::{
    daemon::{Home, Outcome},
    postgres::PASSWORD,
};

/// A server that is not there: nothing listens on port 1, and static faults are found before anybody connects.
const NOWHERE: &str = "postgres://reader@127.0.0.1:1/shop";

/// The command ended with this code and said all of this, with a hint, and without the password.
fn refused(outcome: &Outcome, exit: i32, code: &str, says: &[&str]) {
    outcome.expect_code(exit);
    let said = outcome.said();
    for text in [code, "hint:"].iter().chain(says) {
        assert!(said.contains(text), "{} does not say {text:?}:\n{said}", outcome.command);
    }
    assert!(!said.contains(PASSWORD), "{} shows the password:\n{said}", outcome.command);
    assert!(!said.contains("panicked"), "{said}");
}

/// Both `check` and `run` refuse these files with exit code 2 before they touch anything.
fn refuses(home: &Home, code: &str, says: &[&str]) {
    for command in ["check", "run"] {
        refused(&home.run(&[command]), 2, code, says);
        assert!(!home.path("data").exists(), "{command} made the log although the files are wrong");
    }
}

fn refuses_shop(connector: &str, code: &str, says: &[&str]) {
    let home = Home::new();
    home.write("connectors/shop.yaml", connector);
    refuses(&home, code, says);
}

#[test]
fn an_unknown_option_names_the_closest_one() {
    let home = Home::new();
    home.shop(NOWHERE, "public.orders", "      tabels: [ public.items ]\n");
    refuses(&home, "HW1002", &["connectors/shop.yaml:9:7", "connectors.shop.source.tabels", "Did you mean tables?"]);
}

#[test]
fn an_unknown_option_of_the_main_file_is_one_too() {
    let home = Home::with_main("htpp: { listen: 127.0.0.1:1 }\nconnectors: {}\n");
    refuses(&home, "HW1002", &["headwater.yaml:1:1", "Did you mean http?"]);
}

#[test]
fn a_wrong_type_says_what_was_expected() {
    let shop = "connectors:\n  shop:\n    source:\n      kind: postgres\n      url: 5\n      tables: [ public.orders ]\n";
    refuses_shop(shop, "HW1003", &["connectors/shop.yaml:5:12", "connectors.shop.source.url", "found a number"]);
}

#[test]
fn a_number_out_of_range_says_the_range() {
    let home = Home::new();
    home.shop(NOWHERE, "public.orders", "    events: { partitions: 0 }\n");
    refuses(&home, "HW1006", &["connectors/shop.yaml:9:27", "from 1 to 10000"]);
}

#[test]
fn a_missing_option_is_named() {
    let shop = "connectors:\n  shop:\n    source:\n      kind: postgres\n      tables: [ public.orders ]\n";
    refuses_shop(shop, "HW1004", &["connectors/shop.yaml:4:7", "option url is missing", "connectors.shop.source.url"]);
}

#[test]
fn a_word_that_is_no_choice_names_the_choices() {
    let home = Home::new();
    home.shop(NOWHERE, "public.orders", "      on_truncate: stopp\n");
    refuses(&home, "HW1005", &["connectors/shop.yaml:9:20", "event", "Did you mean stop?"]);
}

#[test]
fn an_unknown_kind_names_the_closest_one() {
    let shop = "connectors:\n  shop:\n    source: { kind: postgress, url: x, tables: a.b }\n";
    refuses_shop(shop, "HW1008", &["connectors/shop.yaml:3:21", "Did you mean postgres?"]);
}

#[test]
fn a_secret_that_is_not_set_names_the_variable() {
    let shop = format!(
        "connectors:\n  shop:\n    source:\n      kind: postgres\n      url: {NOWHERE}\n      \
         password: {{ env: NOT_SET_ANYWHERE }}\n      tables: [ public.orders ]\n"
    );
    refuses_shop(&shop, "HW0001", &["connectors/shop.yaml:6:17", "source.password", "Set NOT_SET_ANYWHERE"]);
}

#[test]
fn a_secret_file_that_is_not_there_is_named() {
    let shop = format!(
        "connectors:\n  shop:\n    source:\n      kind: postgres\n      url: {NOWHERE}\n      \
         password: {{ file: no-such-file }}\n      tables: [ public.orders ]\n"
    );
    refuses_shop(&shop, "HW0001", &["connectors/shop.yaml:6:17", "no-such-file"]);
}

#[test]
fn a_wrong_url_shows_no_password() {
    for (url, what) in [
        ("mysql://reader@127.0.0.1/shop", "begin with postgres://"),
        ("postgres://127.0.0.1/shop", "names no user"),
        ("postgres://reader@127.0.0.1:port/shop", "url cannot be read"),
        ("postgres://reader@127.0.0.1/shop?sslmod=disable", "Did you mean sslmode?"),
    ] {
        let home = Home::new();
        home.shop(&url.replace("reader@", &format!("reader:{PASSWORD}@")), "public.orders", "");
        refuses(&home, "HW2007", &["connectors/shop.yaml:5", "connectors.shop.source.url", what]);
    }
}

#[test]
fn a_table_without_a_schema_is_refused() {
    let home = Home::new();
    home.shop(NOWHERE, "orders", "");
    refuses(&home, "HW2007", &["connectors/shop.yaml:7", "connectors.shop.source.tables", "public.orders"]);
}

#[test]
fn a_connector_in_two_files_names_both_places() {
    let home = Home::new();
    home.shop(NOWHERE, "public.orders", "");
    let twin = std::fs::read_to_string(home.path("connectors/shop.yaml")).expect("the connector's file");
    home.write("connectors/a_twin.yaml", &twin);
    refuses(&home, "HW1007", &["connectors/shop.yaml:2:3", "connectors/a_twin.yaml:2:3", "connectors.shop"]);
}

#[test]
fn an_option_that_is_given_twice_is_refused() {
    let home = Home::new();
    home.shop(NOWHERE, "public.orders", "      publication: one\n      publication: two\n");
    refuses(&home, "HW1007", &["connectors/shop.yaml:10:7", "publication"]);
}

#[test]
fn a_syntax_error_names_the_line() {
    let shop = "connectors:\n  shop:\n    source: kind: postgres\n";
    refuses_shop(shop, "HW1001", &["connectors/shop.yaml:3:"]);
}

#[test]
fn all_faults_of_all_files_come_at_once() {
    let home = Home::new();
    home.shop(NOWHERE, "public.orders", "      sloot: x\n      on_truncate: 7\n");
    home.write("connectors/other.yaml", "connectors:\n  other:\n    source: { kind: postgres, url: 5, tables: a.b }\n");
    home.write("headwater.yaml", &(home.main("{ kind: embedded, path: ./data }") + "lag: {}\n"));
    let places = ["connectors/shop.yaml:9:7", "connectors/shop.yaml:10:20", "connectors/other.yaml:3:36", "headwater.yaml:4:1"];
    refuses(&home, "HW1002", &places);
    let document = home.run(&["check", "--format", "json"]);
    assert_eq!(document.json()["errors"], 4, "{}", document.stdout);
}

#[test]
fn a_missing_config_file_is_named() {
    let home = Home::new();
    std::fs::remove_file(home.path("headwater.yaml")).expect("the main file");
    refuses(&home, "HW1000", &["headwater.yaml", "-c FILE"]);
}

#[test]
fn a_directory_is_no_config_file() {
    let home = Home::new();
    std::fs::remove_file(home.path("headwater.yaml")).expect("the main file");
    std::fs::create_dir(home.path("headwater.yaml")).expect("a directory in its place");
    refuses(&home, "HW1000", &["headwater.yaml"]);
}

#[test]
fn an_include_without_match_is_refused() {
    let home = Home::new();
    refuses(&home, "HW1010", &["headwater.yaml:3:12", "connectors/*.yaml"]);
}

#[test]
fn a_config_without_connectors_is_a_warning() {
    refused(&Home::with_main("http: { listen: off }\n").run(&["check"]), 0, "HW1017", &["headwater.yaml"]);
}

#[test]
fn a_listener_for_other_machines_is_refused() {
    let home = Home::new();
    home.shop(NOWHERE, "public.orders", "");
    home.write("headwater.yaml", "http: { listen: 0.0.0.0:8787 }\ninclude: [ connectors/*.yaml ]\n");
    refuses(&home, "HW1012", &["headwater.yaml:1:17", "http.listen"]);
}

#[test]
fn a_variable_that_names_no_option_is_refused() {
    let mut home = Home::new();
    home.shop(NOWHERE, "public.orders", "");
    home.set("HEADWATER_LOG__PREFX", "team");
    refuses(&home, "HW1018", &["HEADWATER_LOG__PREFX", "Did you mean PREFIX?"]);
}

#[test]
fn columns_that_contradict_each_other_are_refused() {
    let home = Home::new();
    let rule = "    events:\n      tables:\n        public.orders: { include: [ id ], exclude: [ note ] }\n";
    home.shop(NOWHERE, "public.orders", rule);
    refuses(&home, "HW1016", &["connectors/shop.yaml:11", "public.orders"]);
}

#[test]
fn the_command_line_itself_is_checked() {
    let home = Home::new();
    for arguments in [&["frobnicate"][..], &["run", "--frobnicate"], &["tail"], &["tail", "a.b", "--from", "yesterday"], &[]] {
        let outcome = home.run(arguments);
        outcome.expect_code(2);
        assert!(outcome.stderr.contains("Usage") || outcome.stderr.contains("--help"), "{}", outcome.stderr);
    }
    refused(&home.run(&["connectors", "postgre"]), 2, "HW1008", &["Did you mean postgres?"]);
    refused(&home.run(&["explain", "HW9999"]), 2, "HW1103", &["headwater explain"]);
}
