//! `keypeg serve --store`: what is refused before the server listens, with which exit code, and that
//! no message contains the password of a URL.

use crate::support::{TempDir, binary, exit_of, keypeg};
use std::process::Command;

const ADVERTISE: [&str; 2] = ["--advertise", "http://127.0.0.1:0"];

/// Starts a server that is expected to end, and returns its exit code and what it wrote.
fn start(store: &str, args: &[&str]) -> (i32, String) {
    let mut command = keypeg(&["--listen", "127.0.0.1:0"]);
    command.env("KEYPEG_STORE", store).args(ADVERTISE).args(args);
    exit_of(&mut command)
}

#[test]
fn a_store_that_cannot_be_used_is_refused_with_the_reason_and_without_its_password() {
    for (store, code, says) in [
        ("postgres://u:hidden@h/d?durability=disk", 78, "durability=disk is not allowed"),
        ("postgres://u:hidden@/d", 78, "names no host"),
        (
            "postgres://u:hidden@%2Fdoes%2Fnot%2Fexist/d",
            69,
            "check the URL, and that the store runs",
        ),
        ("postgres://u:hidden@h/d?sslrootcert=/does/not/exist", 78, "No such file"),
        ("s3://u:hidden@/d", 78, "the URL of the store is not valid"),
        ("s3://b/p?secret_access_key=hidden", 78, "set it in the environment"),
        ("s3://b/p?regoin=hidden", 78, "regoin is not known"),
        ("file:///does/not/exist", 78, "create the directory first"),
        ("file://relative/hidden", 78, "file:///DIRECTORY"),
        ("redis://u:hidden@h/0", 78, "the scheme of the URL is unknown"),
        ("hidden", 78, "use postgres://USER@HOST/DATABASE"),
    ] {
        let (found, said) = start(store, &[]);
        assert_eq!(found, code, "{store}: {said}");
        assert!(said.contains(says), "{store}: {said}");
        assert!(!said.contains("hidden"), "{said}");
    }
}

#[test]
fn a_password_on_the_command_line_draws_a_warning_and_the_help_shows_no_variable() {
    let store = "postgres://u:hidden@%2Fdoes%2Fnot%2Fexist/d";
    let (_, said) = exit_of(keypeg(&["--store", store]).args(ADVERTISE));
    assert!(said.contains("other users of this machine can read the password"), "{said}");
    assert!(!said.contains("hidden"), "{said}");
    let (_, said) = start(store, &[]);
    assert!(!said.contains("can read the password"), "{said}");
    let help = Command::new(binary()).args(["serve", "--help"]).env("KEYPEG_STORE", store).output();
    let help = String::from_utf8(help.unwrap().stdout).unwrap();
    assert!(help.contains("[env: KEYPEG_STORE]") && !help.contains("hidden"), "{help}");
}

#[test]
fn existing_refuses_a_store_without_an_installation() {
    let dir = TempDir::new();
    let store = format!("file://{}", dir.path().display());
    let (code, said) = start(&store, &["--existing"]);
    assert_eq!(code, 66, "{said}");
    assert!(said.contains("the store has no installation: check database, schema"), "{said}");
}

#[test]
fn the_data_directory_of_another_kind_of_server_is_not_used_for_temporary_files() {
    let dir = TempDir::new();
    let store = format!("file://{}", dir.path().display());
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("meta"), "").unwrap();
    let (code, said) = start(&store, &["--data", data.to_str().unwrap()]);
    assert_eq!(code, 78, "{said}");
    assert!(said.contains("has the data of a server without --store"), "{said}");
    assert!(data.join("meta").exists());
}
