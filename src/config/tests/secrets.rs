//! Secrets: found missing before anything is touched, warned about in plain text, and in no message.

use super::{CANARY, Files, fault, shop};

fn with_password(password: &str) -> String {
    shop(&format!("      tables: [ public.orders ]\n      password: {password}\n"))
}

#[test]
fn a_variable_that_is_not_set_is_named() {
    assert_eq!(
        fault(&with_password("{ env: HW_TEST_NEVER_SET }")),
        "HW0001 headwater.yaml:7:17 connectors.shop.source.password: environment variable HW_TEST_NEVER_SET is not set -> \
         Set HW_TEST_NEVER_SET in the environment of headwater, or point the option at a file."
    );
}

#[test]
fn a_secret_file_is_relative_to_the_file_that_names_it() {
    let files = Files::new("include: [ c/*.yaml ]\n").with("c/shop.yaml", &with_password("{ file: secret }"));
    let found = files.faults(&[]);
    assert!(
        found[0].starts_with("HW0001 c/shop.yaml:7:17 connectors.shop.source.password c/secret: secret file cannot be read"),
        "{found:?}"
    );
    let plan = files.with("c/secret", CANARY).plan(&[]);
    assert!(plan.warnings.is_empty());
}

#[test]
fn a_secret_in_plain_text_is_a_warning_only() {
    let files = Files::new(&with_password(CANARY));
    let plan = files.plan(&[]);
    let found = files.rendered(&plan.warnings);
    assert_eq!(
        found,
        ["HW1013 headwater.yaml:7:17 connectors.shop.source.password: a secret stands in the file in plain text -> \
          Move it to a variable and write { env: NAME }, or to a file and write { file: PATH }."]
    );
}

#[test]
fn digits_are_not_a_password_until_they_are_quoted() {
    let found = fault(&with_password("12345"));
    assert!(found.starts_with("HW1003 headwater.yaml:7:17 connectors.shop.source.password: expected a secret"), "{found}");
    assert!(found.contains("Put the value into quotes") && !found.contains("12345"), "{found}");
    Files::new(&with_password("\"12345\"")).plan(&[]);
}

#[test]
fn a_missing_secret_does_not_hide_other_faults() {
    let found = super::faults(&shop("      tables: [ orders ]\n      password: { env: HW_TEST_NEVER_SET }\n"));
    assert_eq!(found.len(), 2, "{found:?}");
}

/// Every way to write a secret wrongly, and every other fault beside a right one.
#[test]
fn no_message_holds_a_secret() {
    let passwords = [
        format!("{{ evn: {CANARY} }}"),
        format!("{{ {CANARY}: x }}"),
        format!("{{ env: X, file: {CANARY} }}"),
        format!("[ {CANARY} ]"),
        format!("{{ env: {{ x: {CANARY} }} }}"),
        format!("{{ env: {CANARY}"),
        format!("'{CANARY}"),
        format!("\"\\q{CANARY}\""),
        format!("*{CANARY}"),
        format!("!!int {CANARY}"),
        format!("{CANARY}: {CANARY}: x"),
        format!("\n  {CANARY}: x\n {CANARY}"),
        format!("|\n  {CANARY}\n {CANARY}"),
        format!("{CANARY}\n        on_truncate: stopp"),
        format!("{CANARY}\n      on_truncate: stopp"),
        format!("{CANARY}\n      url: postgres://u:{CANARY}@h:port/d"),
    ];
    for password in passwords {
        let files = Files::new(&with_password(&password));
        for fault in files.faults(&[]) {
            // A reference is no secret, and the message about a missing one must say which it is.
            assert!(!fault.contains(CANARY), "{password}: {fault}");
        }
    }
    for url in [
        "nonsense:CANARY@",
        "postgres://u:CANARY@h:x/d",
        "postgres://u:CANARY@/d",
        "mysql://u:CANARY@h/d",
        "postgres://u:CANARY@h/d?x=1",
    ] {
        let url = url.replace("CANARY", CANARY);
        let main = format!("connectors:\n  shop:\n    source: {{ kind: postgres, tables: a.b, url: \"{url}\" }}\n");
        let found = fault(&main);
        assert!(!found.contains(CANARY), "{found}");
    }
}

#[test]
fn no_message_about_toml_or_json_holds_a_secret() {
    for text in [
        format!("password = '{CANARY}"),
        format!("password = {CANARY}"),
        format!("[connectors.shop.source]\nkind = 'postgres'\npassword = {{ {CANARY} = 1 }}\n"),
        format!("[connectors.shop.source]\nkind = 'postgres'\npassword = \"{CANARY}\"\npassword = \"{CANARY}\"\n"),
        format!("{{\"password\": \"{CANARY}\\x\"}}"),
        format!("{{\"password\": {CANARY}}}"),
        format!("{{\"connectors\": {{\"shop\": {{\"source\": {{\"kind\": \"postgres\", \"password\": [\"{CANARY}\"]}}}}}}}}"),
    ] {
        for name in ["headwater.toml", "headwater.json"] {
            let files = Files::empty().with(name, &text);
            for fault in files.rendered(&files.load_file(name, &[]).err().unwrap()) {
                assert!(!fault.contains(CANARY), "{text}: {fault}");
            }
        }
    }
}
