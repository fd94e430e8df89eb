//! Habits that a machine can check: every file says what it owns, nothing is left over, no file
//! outgrows its page, and what the documents name is there.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace")
}

fn files(dir: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
        if path.is_dir() && name != "target" && name != "fixtures" && !name.starts_with('.') {
            files(&path, ending, found);
        } else if path.extension().is_some_and(|found| found == ending) {
            found.push(path);
        }
    }
}

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

/// Files over the bound, each with its defence.
const LONG: [(&str, &str); 6] = [
    ("crates/keypeg-core/src/pool.rs", "the domain on one page: a key's whole life in order"),
    ("crates/keypeg-core/tests/script.rs", "a table of cases"),
    (
        "crates/keypeg-core/tests/model.rs",
        "the story, its hostile steps and its comparison in one place",
    ),
    ("crates/keypeg-core/tests/support/naive.rs", "the whole contract, told naively"),
    ("crates/keypeg-engine/tests/support/sim_disk.rs", "one disk and all that can befall it"),
    (
        "crates/keypeg-engine/tests/sim/model.rs",
        "the whole contract, as far as a client can see it",
    ),
];
const LINES_MAX: usize = 500;

#[test]
fn every_file_says_what_it_owns() {
    for (path, text) in texts("rs") {
        let head = text.lines().take_while(|line| line.starts_with("//!")).count();
        assert!((1..=16).contains(&head), "{path} begins with {head} lines of `//!`");
    }
}

#[test]
fn no_file_outgrows_its_page_without_a_defence() {
    for (path, text) in texts("rs") {
        let lines = text.lines().count();
        let defended = LONG.iter().any(|(long, _)| *long == path);
        assert!(lines <= LINES_MAX || defended, "{path} has {lines} lines");
    }
}

#[test]
fn nothing_is_left_over() {
    let left = [
        "TO\u{44}O",
        "FIX\u{4d}E",
        "XX\u{58}",
        "todo\u{21}(",
        "unimplemented\u{21}(",
        "#[ig\u{6e}ore",
    ];
    for (path, text) in texts("rs") {
        for word in left {
            assert!(!text.contains(word), "{path} holds {word}");
        }
    }
}

#[test]
fn the_map_names_files_that_are_there() {
    let map = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("the map");
    assert!(map.lines().count() <= 200, "the map is a page, not a book");
    let mut crate_dir = PathBuf::new();
    let mut count = 0;
    for row in map.lines().filter(|line| line.starts_with("| `")) {
        let cell = row.split('|').nth(1).expect("a first cell");
        for name in cell.split('`').skip(1).step_by(2) {
            if name.starts_with("crates/") {
                crate_dir = root().join(name);
            }
            let (dir, names) = match (name.find('{'), name.find('}')) {
                (Some(open), Some(close)) => (&name[..open], &name[open + 1..close]),
                _ => ("", name.trim_end_matches("/*").trim_end_matches(".rs")),
            };
            for each in names.split(',') {
                let path = if each.starts_with("crates/") {
                    crate_dir.clone()
                } else if dir.is_empty() && !each.starts_with("src/") {
                    crate_dir.join("src").join(format!("{each}.rs"))
                } else {
                    crate_dir.join(format!("{dir}{each}.rs"))
                };
                let found = path.exists() || path.with_extension("").is_dir();
                assert!(found, "the map names {name}: {} is not there", path.display());
                count += 1;
            }
        }
    }
    assert!(count > 30, "{count} files are named");
}

#[test]
fn links_between_documents_lead_somewhere() {
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
