//! Rare things that a server does in the middle of a stream.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;

use crate::support::{Flavour, Reader, Server, find, on_both, shared, start};

/// M22: a temporary table hides the captured one of the same name in its session, and goes with it.
async fn a_temporary_table_of_the_same_name_is_another(flavour: Flavour) {
    let server = shared(flavour);
    let database = server.database();
    server.sql(&format!(
        "USE {database};\nCREATE TABLE items (id int PRIMARY KEY, name text);\nCREATE TABLE gone (id int PRIMARY KEY)"
    ));
    let connector = server.connector(&database, json!({ "tables": format!("{database}.items") }));
    let first = start(&*connector).await;
    let mut reader = Reader::open(&*connector, &first).await;
    server.sql(&format!(
        "USE {database};\nCREATE TEMPORARY TABLE items (id int PRIMARY KEY);\nINSERT INTO items VALUES (1);\nTRUNCATE TABLE items;\n\
         DROP TABLE gone"
    ));
    server.sql(&format!(
        "USE {database};\nCREATE TEMPORARY TABLE items (id int);\nDROP TABLE items;\nINSERT INTO items VALUES (2, 'b')"
    ));
    assert_eq!(reader.read(1).await, ["Insert items 2,b"]);
    let found = reader.source.monitor().findings();
    assert!(found.iter().all(|error| error.code().id != "HW3042"), "{found:?}");
}

/// Sessions that log statements also log those on temporary tables. A truncate of one is none of the captured table that it hides.
async fn a_truncate_of_a_temporary_table_is_no_event(flavour: Flavour) {
    let server = shared(flavour);
    let database = server.database();
    server.sql(&format!("USE {database};\nCREATE TABLE items (id int PRIMARY KEY);\nINSERT INTO items VALUES (1)"));
    let connector = server.connector(&database, json!({ "on_truncate": "event" }));
    let first = start(&*connector).await;
    let mut reader = Reader::open(&*connector, &first).await;
    server.sql(&format!(
        "USE {database};\nSET binlog_format = STATEMENT;\nCREATE TEMPORARY TABLE items (id int);\nTRUNCATE TABLE items;\nDROP TEMPORARY TABLE items;\n\
         TRUNCATE TABLE items"
    ));
    server.sql(&format!("INSERT INTO {database}.items VALUES (2)"));
    assert_eq!(reader.read(2).await, ["Truncate items ", "Insert items 2"]);
}

/// M5: a label is the one of the place in the binlog, whatever the list is by now.
async fn labels_are_those_of_their_time(flavour: Flavour) {
    let server = shared(flavour);
    let database = server.database();
    server.sql(&format!("USE {database};\nCREATE TABLE items (id int PRIMARY KEY, e enum('a','b'), s set('x','y'))"));
    let connector = server.connector(&database, json!({}));
    let first = start(&*connector).await;
    server.sql(&format!(
        "USE {database};\nSET sql_mode = '';\nINSERT INTO items VALUES (1, 'b', 'x,y'), (2, 'wrong', '');\n\
         ALTER TABLE items MODIFY e enum('new','b','a'), MODIFY s set('z','y','x');\nINSERT INTO items VALUES (3, 'b', 'x,y'), (4, 'a', 'z');\n\
         ALTER TABLE items MODIFY e enum('b'), MODIFY s set('q')"
    ));
    let mut reader = Reader::open(&*connector, &first).await;
    let wanted =
        ["Insert items 1,b,[\"x\",\"y\"]", "Insert items 2,,[]", "Insert items 3,b,[\"y\",\"x\"]", "Insert items 4,a,[\"z\"]"];
    assert_eq!(reader.read(4).await, wanted);
}

/// M1, M12: what the binlog must say of rows is switched off while it is read.
async fn a_stream_without_descriptions_or_whole_rows_stops(flavour: Flavour) {
    let server = Server::start(flavour, &[]);
    let nothing = if flavour == Flavour::Mariadb { "NO_LOG" } else { "MINIMAL" };
    let mut cases = vec![
        ("SET SESSION binlog_row_image = NOBLOB".to_owned(), "HW3021"),
        (format!("SET GLOBAL binlog_row_metadata = {nothing}"), "HW3022"),
    ];
    // Since 11.4; it leaves out of the second image what did not change.
    if server.try_sql("SET SESSION binlog_row_image = FULL_NODUP").is_ok() {
        cases.insert(0, ("SET SESSION binlog_row_image = FULL_NODUP".to_owned(), "HW3021"));
    }
    for (setting, code) in cases {
        let database = server.database();
        server.sql(&format!(
            "USE {database};\nCREATE TABLE items (id int PRIMARY KEY, n bigint unsigned, name text);\n\
             INSERT INTO items VALUES (1, 18446744073709551615, 'a')"
        ));
        let connector = server.connector(&database, json!({}));
        let first = start(&*connector).await;
        let mut reader = Reader::open(&*connector, &first).await;
        server.sql(&format!("USE {database};\n{setting};\nUPDATE items SET n = 18446744073709551614"));
        let error = reader.stops().await;
        assert_eq!((error.code().id, reader.lines.len()), (code, 0), "{setting}: {error}");
    }
}

/// M16: numbers that leave gaps and fill them later, and a server that forgot its own uuid.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gaps_in_the_names_are_read_once_and_a_new_uuid_changes_nothing() {
    let server = Server::start(Flavour::Mysql, &[]);
    server.sql("CREATE DATABASE shop;\nCREATE TABLE shop.items (id int PRIMARY KEY, name text)");
    let connector = server.connector("shop", json!({}));
    let mut at = start(&*connector).await;
    let first = at.clone();
    let uuid = server.sql("SELECT @@server_uuid");
    let other = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
    let mut all = Vec::new();
    for (id, name) in
        [format!("{uuid}:900"), "AUTOMATIC".into(), format!("{other}:7"), format!("{uuid}:899"), format!("{other}:3")]
            .iter()
            .enumerate()
    {
        server.sql(&format!("SET gtid_next = '{name}';\nINSERT INTO shop.items VALUES ({id}, 'x')"));
        let mut reader = Reader::open(&*connector, &at).await;
        all.extend_from_slice(reader.read(1).await);
        at.position = reader.position.clone();
    }
    assert!(at.position.as_str().contains(":899-900") && at.position.as_str().contains(":3:7"), "{}", at.position.as_str());
    std::fs::remove_file(server.data().join("auto.cnf")).expect("the server's uuid");
    server.crash_and_restart();
    assert_ne!(server.sql("SELECT @@server_uuid"), uuid);
    server.sql("INSERT INTO shop.items VALUES (9, 'y')");
    all.push("Insert items 9,y".to_owned());
    assert_eq!(Reader::open(&*connector, &at).await.read(1).await, ["Insert items 9,y"]);
    assert_eq!(*Reader::open(&*connector, &first).await.read(6).await, all);
}

/// MariaDB's plugin that has the keys of encrypted files.
fn key_plugin() -> PathBuf {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/mysql-extra-path.sh");
    let output = Command::new(script).args(["mariadb", "keys"]).output().expect("the script runs");
    assert!(output.status.success(), "no plugin: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().into()
}

/// A server like another, but with its keys in a file. Since 9 such a thing is asked for beside the program and beside what does it.
fn with_keyring(base: &Path, directory: &Path, keys: &str) -> PathBuf {
    let own = directory.join("usr");
    assert!(Command::new("cp").arg("-as").args([base, own.as_path()]).status().expect("cp").success());
    // The program looks where it really is.
    for name in ["bin/mysqld", "sbin/mysqld"] {
        std::fs::remove_file(own.join(name)).expect("a link");
        std::fs::copy(base.join(name), own.join(name)).expect("the program");
    }
    let manifest = json!({ "components": "file://component_keyring_file" });
    std::fs::write(own.join("sbin/mysqld.my"), manifest.to_string()).expect("a file");
    let place = json!({ "path": keys, "read_only": false });
    std::fs::write(own.join("lib/mysql/plugin/component_keyring_file.cnf"), place.to_string()).expect("a file");
    own
}

/// M19: files that nobody can read without the server's key come in clear.
async fn an_encrypted_binlog_is_read(flavour: Flavour) {
    let keys = tempfile::Builder::new().prefix("hw-keys-").tempdir().expect("a directory");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(keys.path(), open).expect("its rights");
    let place = keys.path().join("keys").display().to_string();
    let mut base = find(flavour);
    let settings = match flavour {
        Flavour::Mysql if base.join("lib/plugin/keyring_file.so").exists() => vec![
            "--early-plugin-load=keyring_file.so".to_owned(),
            format!("--keyring-file-data={place}"),
            "--binlog-encryption=ON".into(),
        ],
        Flavour::Mysql => {
            base = with_keyring(&base, keys.path(), &place);
            vec!["--binlog-encryption=ON".into()]
        }
        Flavour::Mariadb => {
            std::fs::write(&place, format!("1;{}\n", "5a".repeat(32))).expect("a key");
            let plugin = key_plugin();
            let directory = plugin.parent().expect("its directory").display();
            vec![
                format!("--plugin-dir={directory}"),
                "--plugin-load-add=file_key_management".to_owned(),
                format!("--file-key-management-filename={place}"),
                "--encrypt-binlog=ON".into(),
            ]
        }
    };
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let server = Server::start_of(base, flavour, &settings);
    server.sql("CREATE DATABASE shop;\nCREATE TABLE shop.items (id int PRIMARY KEY, name text)");
    let connector = server.connector("shop", json!({}));
    let first = start(&*connector).await;
    server.sql("INSERT INTO shop.items VALUES (1, 'a secret word');\nFLUSH BINARY LOGS;\nINSERT INTO shop.items VALUES (2, 'b')");
    let file = std::fs::read(server.data().join("binlog.000001")).expect("the file");
    assert!(!file.windows(13).any(|part| part == b"a secret word"), "the file is encrypted");
    let mut reader = Reader::open(&*connector, &first).await;
    assert_eq!(reader.read(2).await, ["Insert items 1,a secret word", "Insert items 2,b"]);
}

on_both! {
    a_temporary_table_of_the_same_name_is_another
    a_truncate_of_a_temporary_table_is_no_event
    labels_are_those_of_their_time
    a_stream_without_descriptions_or_whole_rows_stops
    an_encrypted_binlog_is_read
}
