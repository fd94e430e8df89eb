//! Checks of the repository's own text: every file has a module comment, no file is too long or
//! unfinished, and the documents and the map of ARCHITECTURE.md agree with the files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Returns the root of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace")
}

/// Collects the files below `dir` with this extension, without build output, fixtures and hidden
/// directories.
fn files(dir: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
        if path.is_dir() && name != "target" && name != "fixtures" && !name.starts_with('.') {
            files(&path, ending, found);
        } else if path.extension().is_some_and(|extension| extension == ending) {
            found.push(path);
        }
    }
}

/// Returns path, relative to the root, and text of each file with this extension.
fn texts(ending: &str) -> Vec<(String, String)> {
    let (root, mut found) = (root(), Vec::new());
    files(&root, ending, &mut found);
    assert!(!found.is_empty());
    found
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).expect("text");
            (path.strip_prefix(&root).expect("within").display().to_string(), text)
        })
        .collect()
}

/// Files that may exceed [`LINES_MAX`], each with its reason.
const LONG: [(&str, &str); 6] = [
    ("crates/keypeg-core/src/pool.rs", "the domain on one page: a key's whole life in order"),
    ("crates/keypeg-core/tests/script.rs", "a table of cases"),
    (
        "crates/keypeg-core/tests/model.rs",
        "the random steps, the invalid ones among them, and the comparison in one place",
    ),
    ("crates/keypeg-core/tests/support/naive.rs", "the whole contract as a simple model"),
    ("crates/keypeg-engine/tests/support/sim_disk.rs", "one simulated disk with all its faults"),
    (
        "crates/keypeg-engine/tests/sim/model.rs",
        "the whole contract, as far as a client can see it",
    ),
];
const LINES_MAX: usize = 500;

#[test]
fn every_file_begins_with_a_module_comment() {
    for (path, text) in texts("rs") {
        let head = text.lines().take_while(|line| line.starts_with("//!")).count();
        assert!((1..=16).contains(&head), "{path} begins with {head} lines of `//!`");
    }
}

#[test]
fn no_file_is_too_long_without_a_reason() {
    for (path, text) in texts("rs") {
        let lines = text.lines().count();
        let has_reason = LONG.iter().any(|(long, _)| *long == path);
        assert!(lines <= LINES_MAX || has_reason, "{path} has {lines} lines");
    }
}

#[test]
fn no_file_contains_a_mark_of_unfinished_work() {
    let marks = [
        "TO\u{44}O",
        "FIX\u{4d}E",
        "XX\u{58}",
        "todo\u{21}(",
        "unimplemented\u{21}(",
        "#[ig\u{6e}ore",
    ];
    for (path, text) in texts("rs") {
        for mark in marks {
            assert!(!text.contains(mark), "{path} contains {mark}");
        }
    }
}

/// Returns the paths that the map names, relative to the root. A row's first cell contains a crate,
/// such as `crates/keypeg`, or files of the last crate, such as `src/http.rs` or
/// `src/http/{keys,pools}.rs`.
fn paths_on_the_map() -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("the map");
    assert!(text.lines().count() <= 200, "the map is a page, not a book");
    let map = text.split("\n## ").find(|section| section.starts_with("The map")).expect("a map");
    let (mut paths, mut crate_dir) = (BTreeSet::new(), "");
    for row in map.lines().filter(|line| line.starts_with("| `")) {
        let cell = row.split('|').nth(1).expect("a first cell");
        for name in cell.split('`').skip(1).step_by(2) {
            if name.starts_with("crates/") {
                crate_dir = name;
                paths.insert(name.to_owned());
                continue;
            }
            let name = name.strip_prefix("src/").unwrap_or(name);
            let (before, braces) = name.split_once('{').unwrap_or((name, "}"));
            let (alternatives, after) = braces.split_once('}').expect("a closing brace");
            for alternative in alternatives.split(',') {
                paths.insert(format!("{crate_dir}/src/{before}{alternative}{after}"));
            }
        }
    }
    paths
}

#[test]
fn the_map_names_only_files_that_exist() {
    let paths = paths_on_the_map();
    let missing: Vec<_> = paths.iter().filter(|path| !root().join(path).exists()).collect();
    assert!(missing.is_empty(), "on the map, but missing: {missing:#?}");
}

#[test]
fn the_map_names_every_source_file() {
    let map = paths_on_the_map();
    let is_source = |path: &String| path.starts_with("crates/") && path.contains("/src/");
    let sources: Vec<_> = texts("rs").into_iter().map(|(path, _)| path).filter(is_source).collect();
    assert!(sources.len() > 100, "{} source files", sources.len());
    // A `tests.rs` beside its module belongs to that module's row.
    let missing: Vec<_> = sources
        .iter()
        .filter(|path| !path.ends_with("/tests.rs") && !map.contains(*path))
        .collect();
    assert!(missing.is_empty(), "not on the map: {missing:#?}");
}

#[test]
fn links_between_documents_are_valid() {
    for (path, text) in texts("md") {
        let dir = root().join(&path).parent().expect("a directory").to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().expect("a path");
            if !target.is_empty() && !target.contains("://") {
                assert!(dir.join(target).exists(), "{path} links to {link}");
            }
        }
    }
}
