//! Whatever stands in a file, the loader answers with a plan or with faults, never with a panic.

use proptest::prelude::*;

use super::Files;

/// Text that comes closer to a config than noise does.
fn scraps() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "connectors:",
        "log:",
        "http:",
        "include:",
        "shop:",
        "source:",
        "events:",
        "tables:",
        "kind:",
        "postgres",
        "kafka",
        "url:",
        "postgres://u@h/d",
        "password:",
        "{ env: X }",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ",",
        ":",
        "\n",
        "\n  ",
        "\n    ",
        "\n      ",
        "\"",
        "'",
        "&a",
        "*a",
        "<<:",
        "!!int",
        "!x",
        "---",
        "...",
        "|",
        ">",
        "~",
        "null",
        "on",
        "1e999",
        "0x1f",
        "9999999999999999999999",
        ".nan",
        "\t",
        "#",
        "=",
        "[[",
        "]]",
        "é",
        "\u{0}",
        "\\",
        "true",
        "2026-01-01T00:00:00Z",
        "?",
        "%YAML 1.1\n",
    ]);
    prop::collection::vec(word, 0..40).prop_map(|words| words.join(" "))
}

fn try_all(text: &str) {
    for name in ["headwater.yaml", "headwater.toml", "headwater.json"] {
        let files = Files::empty().with(name, text);
        drop(files.load_file(name, &[]));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn noise_never_panics(text in any::<String>()) {
        try_all(&text);
    }

    #[test]
    fn scraps_never_panic(text in scraps()) {
        try_all(&text);
    }

    #[test]
    fn variables_never_panic(path in "[A-Z_]{0,30}", value in any::<String>()) {
        let files = Files::new("connectors: { a: { source: { kind: postgres, url: x, tables: [] } } }");
        let name = format!("HEADWATER_{path}");
        drop(files.load(&[(&name, &value), ("HEADWATER_CONNECTORS__A__SOURCE__TABLES", &value), ("HEADWATER_LOG__KIND", &value)]));
    }
}

#[test]
fn nesting_without_end_is_a_fault() {
    for text in [
        "[".repeat(100_000),
        "{a: ".repeat(100_000),
        "- ".repeat(100_000),
        "{\"a\":".repeat(100_000),
        "a = ".to_owned() + &"[".repeat(100_000),
    ] {
        try_all(&text);
    }
}

#[test]
fn aliases_that_grow_without_end_are_a_fault() {
    let mut text = "a0: &a0 [ x, x, x, x, x, x, x, x, x, x ]\n".to_owned();
    for level in 1..12 {
        let alias = format!("*a{}, ", level - 1).repeat(10);
        text.push_str(&format!("a{level}: &a{level} [ {alias} ]\n"));
    }
    let faults = Files::new(&text).faults(&[]);
    assert!(faults[0].starts_with("HW1001"), "{}", faults[0]);
}
