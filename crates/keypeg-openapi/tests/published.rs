//! The published documentation matches the code: `docs/openapi.json`, `docs/problems/`, and the
//! pages that the server embeds, `crates/keypeg/ui/docs/`.
//!
//! With `KEYPEG_BLESS=1` the tests write the files; the next build of the server embeds them.

use keypeg_openapi::problem_pages;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const OUTDATED: &str = "is outdated: run KEYPEG_BLESS=1 cargo test -p keypeg-openapi";

fn workspace(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

fn is_blessing() -> bool {
    std::env::var_os("KEYPEG_BLESS").is_some()
}

/// Compares a file with its expected text, or writes it.
#[track_caller]
fn check_file(path: &str, expected: &str) {
    if is_blessing() {
        std::fs::write(workspace(path), expected).expect("the file is writable");
    }
    let is_same = std::fs::read_to_string(workspace(path)).is_ok_and(|found| found == expected);
    assert!(is_same, "{path} {OUTDATED}");
}

/// Compares what a compressed file unpacks to, or writes it. Its bytes differ between versions of gzip.
#[track_caller]
fn check_gzip(path: &str, expected: &str) {
    let gzip = |arguments: &[&str], input: &[u8]| {
        let mut process = Command::new("gzip")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("gzip is installed");
        let mut stdin = process.stdin.take().expect("a pipe");
        let input = input.to_vec();
        let writing = std::thread::spawn(move || stdin.write_all(&input));
        let output = process.wait_with_output().expect("gzip ends");
        let is_written = writing.join().expect("no panic").is_ok();
        (is_written && output.status.success()).then_some(output.stdout)
    };
    let is_same = || {
        let unpacked = std::fs::read(workspace(path)).ok().and_then(|it| gzip(&["-dc"], &it));
        unpacked.as_deref() == Some(expected.as_bytes())
    };
    if is_blessing() && !is_same() {
        let packed = gzip(&["-9nc"], expected.as_bytes()).expect("gzip packs a text");
        std::fs::write(workspace(path), packed).expect("the file is writable");
    }
    assert!(is_same(), "{path} {OUTDATED}");
}

/// Compares a directory, which must contain no other file, or writes it.
#[track_caller]
fn check_directory(path: &str, expected: &BTreeMap<String, String>) {
    let directory = workspace(path);
    if is_blessing() {
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir(&directory).expect("the directory is writable");
    }
    for (name, text) in expected {
        check_file(&format!("{path}/{name}"), text);
    }
    for entry in std::fs::read_dir(&directory).expect("the directory exists") {
        let name = entry.expect("the directory is readable").file_name();
        let is_expected = name.to_str().is_some_and(|name| expected.contains_key(name));
        assert!(is_expected, "{path}/{} explains no error code", name.display());
    }
}

#[test]
fn the_published_document_matches_the_code() {
    let document = keypeg_openapi::document_json();
    check_file("docs/openapi.json", &document);
    check_gzip("crates/keypeg/ui/docs/openapi.json.gz", &document);
}

#[test]
fn the_published_reference_page_matches_the_code() {
    let page = keypeg_openapi::reference_page();
    check_file("crates/keypeg/ui/docs/reference.html", &page);
    check_gzip("crates/keypeg/ui/docs/reference.html.gz", &page);
}

/// Every code has a page, and there is no page without a code.
#[test]
fn the_published_problem_pages_match_the_code() {
    check_directory("docs/problems", &problem_pages::markdown::files());
    check_directory("crates/keypeg/ui/docs/problems", &problem_pages::html::files());
}

/// Linters require both. `security: []` says that a call takes no token; the licence is an expression
/// of SPDX. The generators that the tests run accept both.
#[test]
fn the_document_names_its_licence_and_the_security_of_each_operation() {
    let text = std::fs::read_to_string(workspace("docs/openapi.json")).unwrap();
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["info"]["license"]["identifier"], "MIT OR Apache-2.0");
    let paths = document["paths"].as_object().unwrap();
    let operations = paths.values().flat_map(|path| path.as_object().unwrap().values());
    let operations = operations.filter(|operation| operation.get("operationId").is_some());
    let (mut open, mut guarded) = (0, 0);
    for operation in operations {
        let security = operation["security"].as_array();
        let security = security.unwrap_or_else(|| panic!("{} has none", operation["operationId"]));
        *(if security.is_empty() { &mut open } else { &mut guarded }) += 1;
        let is_plain = security.is_empty() || security[0] == serde_json::json!({});
        assert!(is_plain, "a server without tokens requires none: {}", operation["operationId"]);
    }
    assert!(open > 0 && guarded > open, "{open} {guarded}");
}
