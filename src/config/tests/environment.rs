//! Variables of the environment over the files.

use headwater_connector::Error;

use super::{CANARY, Files, shop_with};
use crate::log::LogPlan;

const KAFKA: &str = "log: { kind: kafka, bootstrap_servers: [ one:9092 ] }\n";

fn kafka(files: &Files, env: &[(&str, &str)]) -> crate::log::kafka::Options {
    match files.plan(env).log {
        LogPlan::Kafka(options) => *options,
        LogPlan::Embedded(_) => panic!("embedded"),
    }
}

#[test]
fn a_list_is_separated_by_commas() {
    let files = Files::new(&format!("{KAFKA}{}", shop_with("")));
    let options = kafka(&files, &[("HEADWATER_LOG__BOOTSTRAP_SERVERS", "two:9092, three:9092")]);
    assert_eq!(options.bootstrap_servers, ["two:9092", "three:9092"]);
    let options = kafka(&files, &[("HEADWATER_LOG__BOOTSTRAP_SERVERS", "[\"four:1\"]")]);
    assert_eq!(options.bootstrap_servers, ["four:1"]);
}

#[test]
fn the_schema_decides_whether_digits_are_a_number_or_a_text() {
    let files = Files::new(&format!("{KAFKA}{}", shop_with("")));
    let env = [
        ("HEADWATER_LOG__REPLICATION_FACTOR", "3"),
        ("HEADWATER_LOG__SECURITY__SASL__MECHANISM", "plain"),
        ("HEADWATER_LOG__SECURITY__SASL__USERNAME", "12"),
        ("HEADWATER_LOG__SECURITY__SASL__PASSWORD", "12345"),
    ];
    let options = kafka(&files, &env);
    assert_eq!(options.replication_factor, Some(3));
    let sasl = options.security.sasl.unwrap();
    assert_eq!((sasl.username.as_deref(), sasl.password.as_ref().unwrap().reveal().unwrap().as_str()), (Some("12"), "12345"));
}

#[test]
fn a_kind_and_its_options_can_come_from_the_environment_alone() {
    let files = Files::new(&shop_with(""));
    let env = [("HEADWATER_LOG__BOOTSTRAP_SERVERS", "two:9092"), ("HEADWATER_LOG__KIND", "kafka")];
    assert_eq!(kafka(&files, &env).bootstrap_servers, ["two:9092"]);
    let LogPlan::Embedded(options) = files.plan(&[("HEADWATER_LOG__RETENTION_HOURS", "7")]).log else { panic!("kafka") };
    assert_eq!((options.retention_hours, options.path), (7, files.path("data")));
}

#[test]
fn another_kind_forgets_the_options_of_the_one_in_the_files() {
    let files = Files::new(&format!("log: {{ kind: embedded, path: d, prefix: p }}\n{}", shop_with("")));
    let env = [("HEADWATER_LOG__KIND", "kafka"), ("HEADWATER_LOG__BOOTSTRAP_SERVERS", "two:9092")];
    assert_eq!(kafka(&files, &env).bootstrap_servers, ["two:9092"]);
    assert_eq!(files.plan(&env).prefix, "p");
    let files = Files::new(&format!("log: {{ kind: embedded, pth: d }}\n{}", shop_with("")));
    assert!(files.faults(&env)[0].starts_with("HW1002 headwater.yaml:1:24 log.pth: unknown option pth"));
}

#[test]
fn a_whole_connector_can_come_from_the_environment() {
    let files = Files::new("");
    let env = [
        ("HEADWATER_CONNECTORS__SHOP__SOURCE__KIND", "postgres"),
        ("HEADWATER_CONNECTORS__SHOP__SOURCE__URL", "postgres://u@localhost/d"),
        ("HEADWATER_CONNECTORS__SHOP__SOURCE__TABLES", "public.orders,public.customers"),
        ("HEADWATER_CONNECTORS__SHOP__COMMIT__LINGER_MS", "9"),
    ];
    let plan = files.plan(&env);
    assert_eq!((plan.sources[0].name.as_str(), plan.sources[0].commit.linger_ms), ("shop", 9));
}

#[test]
fn names_in_the_files_keep_their_spelling() {
    let main = shop_with("    events: { tables: { public.order-lines: { entity: line } } }\n").replace("  shop:", "  my-shop:");
    let files = Files::new(&main);
    let env =
        [("HEADWATER_CONNECTORS__MY_SHOP__EVENTS__TABLES__PUBLIC_ORDER_LINES__KEY", "id,no"), ("HEADWATER_HTTP__LISTEN", "off")];
    let plan = files.plan(&env);
    assert!(plan.listen.is_none());
    let rule = &plan.sources[0].events.tables["public.order-lines"];
    assert_eq!((rule.entity.as_deref(), rule.key.clone().unwrap()), (Some("line"), vec!["id".to_owned(), "no".to_owned()]));
}

#[test]
fn included_files_can_be_overridden_and_chosen() {
    let files = Files::new("").with("more/shop.yaml", &shop_with(""));
    let env = [("HEADWATER_INCLUDE", "more/*.yaml"), ("HEADWATER_CONNECTORS__SHOP__COMMIT__MAX_EVENTS", "7")];
    assert_eq!(files.plan(&env).sources[0].commit.max_events, 7);
}

#[test]
fn a_variable_that_names_no_option_names_the_closest() {
    let files = Files::new(&format!("{KAFKA}{}", shop_with("")));
    assert_eq!(
        files.faults(&[("HEADWATER_LOG__BOOTSTRAP_SERVER", "x:1"), ("HEADWATER_LOGG__KIND", "kafka")]),
        [
            "HW1018 HEADWATER_LOGG__KIND: no option \"logg\" is known at this place -> Did you mean LOG? Rename the variable.",
            "HW1018 HEADWATER_LOG__BOOTSTRAP_SERVER: no option \"bootstrap_server\" is known at this place -> \
             Did you mean BOOTSTRAP_SERVERS? Rename the variable.",
        ]
    );
}

#[test]
fn what_platforms_set_is_not_meant_for_us() {
    let files = Files::new(&shop_with(""));
    files.plan(&[("HEADWATER_SERVICE_HOST", "10.0.0.1"), ("HEADWATER_PORT", "tcp://x"), ("HEADWATER_CONFIG", "x")]);
}

#[test]
fn a_value_that_does_not_fit_names_its_variable() {
    let files = Files::new(&shop_with(""));
    let found = files.faults(&[
        ("HEADWATER_CONNECTORS__SHOP__COMMIT__MAX_EVENTS", "many"),
        ("HEADWATER_CONNECTORS__SHOP__SOURCE__ON_TRUNCATE", "explode"),
        ("HEADWATER_CONNECTORS__SHOP__SOURCE__URL", "nonsense"),
        ("HEADWATER_HTTP__LISTEN", "0.0.0.0:1"),
    ]);
    let heads: Vec<&str> = found.iter().map(|fault| fault.split(':').next().unwrap()).collect();
    for (code, variable, option) in [
        ("HW1003", "HEADWATER_CONNECTORS__SHOP__COMMIT__MAX_EVENTS", "connectors.shop.commit.max_events"),
        ("HW1005", "HEADWATER_CONNECTORS__SHOP__SOURCE__ON_TRUNCATE", "connectors.shop.source.on_truncate"),
        ("HW2007", "HEADWATER_CONNECTORS__SHOP__SOURCE__URL", "connectors.shop.source.url"),
        ("HW1012", "HEADWATER_HTTP__LISTEN", "http.listen"),
    ] {
        assert!(heads.contains(&format!("{code} {variable} {option}").as_str()), "{variable}: {found:#?}");
    }
    assert_eq!(found.len(), 4, "{found:#?}");
}

#[test]
fn a_secret_from_the_environment_is_no_literal_in_a_file() {
    let files = Files::new(&shop_with(""));
    let plan = files.plan(&[("HEADWATER_CONNECTORS__SHOP__SOURCE__PASSWORD", CANARY)]);
    assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
    // Digits stay a text for an optional secret as well.
    files.plan(&[("HEADWATER_CONNECTORS__SHOP__SOURCE__PASSWORD", "12345")]);
    let errors: Vec<Error> = files.errors(&[("HEADWATER_CONNECTORS__SHOP__SOURCE__PASSWORD__ENV", "HW_TEST_NEVER_SET")]);
    assert_eq!(
        files.rendered(&errors),
        ["HW0001 HEADWATER_CONNECTORS__SHOP__SOURCE__PASSWORD__ENV connectors.shop.source.password: environment variable \
          HW_TEST_NEVER_SET is not set -> Set HW_TEST_NEVER_SET in the environment of headwater, or point the option at a file."]
    );
}
