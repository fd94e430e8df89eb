//! Checks of the repository's own text: every file has a module comment, no file is too long or
//! unfinished, no text has a banned word, and the documents and the map of ARCHITECTURE.md agree
//! with the files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Returns the root of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace")
}

/// Collects the wanted files below `dir`, without build output, fixtures and hidden directories
/// other than `.ci`.
fn files(dir: &Path, is_wanted: &dyn Fn(&Path) -> bool, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        let is_skipped =
            ["target", "fixtures", "node_modules"].contains(&name) || name.starts_with('.');
        if path.is_dir() && (!is_skipped || name == ".ci") {
            files(&path, is_wanted, found);
        } else if path.is_file() && is_wanted(&path) {
            found.push(path);
        }
    }
}

/// Returns path, relative to the root, and text of each wanted file.
fn texts_of(is_wanted: &dyn Fn(&Path) -> bool) -> Vec<(String, String)> {
    let (root, mut found) = (root(), Vec::new());
    files(&root, is_wanted, &mut found);
    assert!(!found.is_empty());
    found
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).expect("text");
            (path.strip_prefix(&root).expect("within").display().to_string(), text)
        })
        .collect()
}

/// Returns path, relative to the root, and text of each file with this extension.
fn texts(extension: &str) -> Vec<(String, String)> {
    texts_of(&|path| path.extension().is_some_and(|found| found == extension))
}

/// Files that may exceed [`LINES_MAX`], each with its reason.
const LONG: &[(&str, &str)] = &[
    ("crates/keypeg-core/src/pool.rs", "the domain on one page: a key's whole life in order"),
    (
        "crates/keypeg-core/tests/model.rs",
        "the random steps, the invalid ones among them, and the comparison in one place",
    ),
    ("crates/keypeg-core/tests/support/naive.rs", "the whole contract as a simple model"),
    ("crates/keypeg-engine/tests/support/sim_disk.rs", "one simulated disk with all its faults"),
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

/// Words and phrases that no text may contain, because they hide which component does what. Each is
/// written with a hyphen, which is removed before the search, so that this table contains none.
const BANNED: [&str; 14] = [
    "to-ld",
    "te-lls",
    "an-ew",
    "who-ever",
    "no-body",
    "some-body",
    "for ev-er",
    "is ov-er",
    "as ma-ny as may",
    "in who-se name",
    "be-fall",
    "be-falls",
    "made n-ew",
    "as is wi-shed",
];

/// Returns whether a file contains prose or code: by its extension, or as a script without one.
fn is_checked(path: &Path) -> bool {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => path.ends_with("docs/openapi.json"),
        Some(extension) => {
            ["rs", "md", "toml", "html", "css", "py", "ts", "tsx", "mjs"].contains(&extension)
        }
        None => {
            let is_script = || std::fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"#!"));
            path.ends_with("justfile") || is_script()
        }
    }
}

/// A word in lower case.
struct Word {
    text: String,
    line: usize,
    /// Whether only blanks, underscores, line ends and comment marks separate it from the word
    /// before it.
    follows: bool,
}

/// Splits a text into words. Phrases are found in sentences and in names such as `one_two`, also
/// where a line of a comment or a paragraph ends between their words.
fn words(text: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut follows = false;
    for (whole_line, line) in text.lines().zip(1..) {
        let content = whole_line.trim_start_matches([' ', '\t', '/', '!', '#', '*', '>', '-']);
        let mut rest = content.trim_end_matches([' ', '\\']);
        while let Some(start) = rest.find(char::is_alphanumeric) {
            let is_blank = |sign: char| sign == ' ' || sign == '\t' || sign == '_';
            follows &= rest[..start].chars().all(is_blank);
            rest = &rest[start..];
            let end = rest.find(|sign: char| !sign.is_alphanumeric()).unwrap_or(rest.len());
            words.push(Word { text: rest[..end].to_lowercase(), line, follows });
            rest = &rest[end..];
            follows = true;
        }
        follows &= rest.is_empty() && !content.is_empty();
    }
    words
}

/// Returns the lines on which `phrase` begins.
fn lines_with(words: &[Word], phrase: &str) -> Vec<usize> {
    let phrase: Vec<&str> = phrase.split(' ').collect();
    let is_hit = |found: &&[Word]| {
        found.iter().zip(&phrase).all(|(word, wanted)| word.text == *wanted)
            && found[1..].iter().all(|word| word.follows)
    };
    words.windows(phrase.len()).filter(is_hit).map(|found| found[0].line).collect()
}

#[test]
fn no_text_has_a_banned_word() {
    let mut hits = Vec::new();
    for (path, text) in texts_of(&is_checked) {
        let words = words(&text);
        for phrase in BANNED.map(|banned| banned.replace('-', "")) {
            let lines = lines_with(&words, &phrase);
            hits.extend(lines.into_iter().map(|line| format!("{path}:{line}: {phrase}")));
        }
    }
    assert!(hits.is_empty(), "{} banned words:\n{}", hits.len(), hits.join("\n"));
}

#[test]
fn a_banned_word_is_found_in_names_and_across_lines() {
    for (text, phrase, expected) in [
        ("it was One, two.", "one", vec![1]),
        ("someone or one_s", "one", vec![1]),
        ("x\n/// it is one\n/// two\n", "one two", vec![2]),
        ("a one \\\n   two", "one two", vec![1]),
        ("> one\n> two", "one two", vec![1]),
        ("fn is_one_two_or_not()", "one two", vec![1]),
        ("one, two; one. Two", "one two", vec![]),
        ("one.\ntwo", "one two", vec![]),
        ("/// one\n///\n/// two", "one two", vec![]),
    ] {
        assert_eq!(lines_with(&words(text), phrase), expected, "{text:?}");
    }
}

/// Returns the paths that the map names, relative to the root. A row's first cell contains a crate,
/// such as `crates/keypeg`, or files of the last crate, such as `src/http.rs` or
/// `src/http/{keys,pools}.rs`.
fn paths_on_the_map() -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("the map");
    assert!(text.lines().count() <= 260, "the map is a page, not a book");
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

/// Returns the anchors of a document: its headings, as GitHub names them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut is_code = false;
    let mut anchors = BTreeSet::new();
    for line in text.lines() {
        is_code ^= line.trim_start().starts_with("```");
        let heading = line.trim_start_matches('#');
        if is_code || heading == line || !heading.starts_with(' ') {
            continue;
        }
        // A link in a heading counts as its text.
        let shown: String = heading.trim().split("](").fold(String::new(), |shown, part| {
            let rest =
                part.split_once(')').filter(|_| !shown.is_empty()).map_or(part, |(_, it)| it);
            shown + rest
        });
        let kept = shown.chars().filter(|sign| sign.is_alphanumeric() || " -_".contains(*sign));
        anchors.insert(kept.collect::<String>().to_lowercase().replace(' ', "-"));
    }
    anchors
}

#[test]
fn links_between_documents_are_valid() {
    let documents: BTreeMap<_, _> =
        texts("md").into_iter().map(|(path, text)| (root().join(path), text)).collect();
    for (path, text) in &documents {
        let dir = path.parent().expect("a directory");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (target, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if target.is_empty() { path.clone() } else { dir.join(target) };
            let found = target.canonicalize();
            let found = found.unwrap_or_else(|_| panic!("{} links to {link}", path.display()));
            let is_known = || documents.get(&found).is_some_and(|it| anchors(it).contains(anchor));
            assert!(anchor.is_empty() || is_known(), "{}: no {link}", path.display());
        }
    }
}

#[test]
fn an_anchor_is_named_as_github_names_it() {
    let text = "# One `two --three`\n```\n# code\n```\n### Four: [five](six.md) (seven)\n#eight\n";
    let expected = ["one-two---three", "four-five-seven"].map(str::to_owned);
    assert_eq!(anchors(text), BTreeSet::from(expected));
}
