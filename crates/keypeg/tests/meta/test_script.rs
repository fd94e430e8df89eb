//! `./test` fails if one program of the tests fails, whichever it is, shows its output, and counts what
//! each one prints.
//!
//! A copy of the script runs in a directory with programs and a `cargo` that only print.

use crate::support::TempDir;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const PASSES: &str = "echo 'test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured'";
const FAILS: &str = "echo 'something is wrong'; \
                     echo 'test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured'; exit 101";
/// What `cargo` prints as JSON, and what it runs.
const CARGO: &str = "case \"$*\" in
*--no-run*) cat built ;;
*--exact*) sh again ;;
*--doc*) sh examples ;;
*--features*) sh defects ;;
*) exit 99 ;;
esac";
/// The programs that the script takes from `cargo`: their packages, names and sources. Several have one
/// name, in one package too.
const PROGRAMS: [(&str, &str, &str); 6] = [
    ("keypeg", "server-1f", "tests/main.rs"),
    ("keypeg", "keypeg-2e", "src/lib.rs"),
    ("keypeg", "keypeg-3d", "src/main.rs"),
    ("keypeg-core", "fuzz-4c", "tests/fuzz.rs"),
    ("keypeg-engine", "fuzz-5b", "tests/fuzz.rs"),
    ("keypeg-engine", "crash-6a", "tests/crash.rs"),
];
/// The programs that the script runs by their paths.
const SCRIPTS: [&str; 5] = [
    "clients/python/test",
    "clients/typescript/test",
    "ui/test/run",
    "crates/keypeg/tests/schemathesis/run",
    "crates/keypeg/tests/generators/run",
];
/// The tests of a run in which nothing fails: two of each.
const ALL: usize = 2 * (PROGRAMS.len() + SCRIPTS.len() + 2);

fn write_program(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn copy(from: &str, root: &Path) {
    let to = root.join(from);
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy(Path::new(ROOT).join(from), to).unwrap();
}

/// A repository in which every test passes.
fn repository() -> TempDir {
    let dir = TempDir::new();
    let root = dir.path();
    copy("test", root);
    copy(".ci/queue", root);
    let mut built = String::from("{\"reason\":\"build-script-executed\"}\n");
    for (package, name, source) in PROGRAMS {
        let program = root.join(format!("target/debug/deps/{name}"));
        let package = root.join("crates").join(package);
        fs::create_dir_all(&package).unwrap();
        write_program(&program, PASSES);
        for (is_test, executable) in [(true, &program), (false, &root.join("no-test"))] {
            writeln!(
                built,
                "{{\"reason\":\"compiler-artifact\",\"package_id\":\"p\",\"manifest_path\":\
                 \"{package}/Cargo.toml\",\"target\":{{\"kind\":[\"test\"],\"name\":\"{name}\",\
                 \"src_path\":\"{package}/{source}\",\"test\":true}},\"profile\":{{\"opt_level\":\"0\",\
                 \"test\":{is_test}}},\"features\":[],\"executable\":\"{}\",\"fresh\":true}}",
                executable.display(),
                package = package.display(),
            )
            .unwrap();
        }
    }
    for script in SCRIPTS {
        write_program(&root.join(script), &format!("[ \"$*\" = --install ] || {PASSES}"));
    }
    fs::write(root.join("built"), built).unwrap();
    for part in ["again", "examples", "defects"] {
        fs::write(root.join(part), PASSES).unwrap();
    }
    write_program(&root.join("bin/cargo"), CARGO);
    // Without root's number the script installs nothing.
    write_program(&root.join("bin/id"), "echo 1000");
    dir
}

fn run(repository: &TempDir, arguments: &[&str]) -> Output {
    let path = std::env::var("PATH").unwrap();
    let mut command = Command::new(repository.path().join(arguments[0]));
    command.args(&arguments[1..]).current_dir(repository.path());
    command.env("PATH", format!("{}/bin:{path}", repository.path().display()));
    command.env_remove("CARGO_TARGET_DIR").env_remove("KEYPEG_BINARY");
    command.output().unwrap()
}

/// Returns the exit code, the last line and the whole output of the script.
fn test(repository: &TempDir) -> (Option<i32>, String, String) {
    let output = run(repository, &["test"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let last = text.lines().last().unwrap_or_default().to_owned();
    (output.status.code(), last, text + &String::from_utf8(output.stderr).unwrap())
}

#[test]
fn the_tests_of_every_program_are_counted() {
    let (code, last, text) = test(&repository());
    assert_eq!((code, &*last), (Some(0), &*format!("{ALL} passed, 0 failed, 0 skipped")), "{text}");
    for (_, name, source) in PROGRAMS {
        let line = format!("     Running {source} (target/debug/deps/{name})\n");
        assert_eq!(text.matches(&line).count(), 1, "{line}{text}");
    }
}

#[test]
fn a_program_that_fails_makes_the_script_fail() {
    let programs = PROGRAMS.map(|(_, name, _)| format!("target/debug/deps/{name}"));
    let parts = ["examples", "defects"].map(String::from);
    for part in programs.iter().chain(&parts).map(String::as_str).chain(SCRIPTS) {
        let repository = repository();
        write_program(
            &repository.path().join(part),
            &format!("[ \"$*\" = --install ] && exit\n{FAILS}"),
        );
        let (code, last, text) = test(&repository);
        let counts = format!("{} passed, 1 failed, 0 skipped", ALL - 1);
        assert_eq!(last, counts, "{part}\n{text}");
        assert_ne!(code, Some(0), "{part}");
        assert!(text.contains("something is wrong"), "{part}\n{text}");
    }
}

#[test]
fn a_program_that_is_killed_makes_the_script_fail_and_is_named() {
    let repository = repository();
    write_program(&repository.path().join("target/debug/deps/fuzz-4c"), "kill -9 $$");
    let (code, last, text) = test(&repository);
    assert_eq!((code, &*last), (Some(1), &*format!("{} passed, 0 failed, 0 skipped", ALL - 2)));
    assert!(text.contains("test: failed: 2-keypeg-core.tests.fuzz.rs (137)\n"), "{text}");
    assert_eq!(text.matches("test: failed: ").count(), 1, "{text}");
}

/// Only the tests of the server run a second time.
#[test]
fn a_test_of_the_server_that_passes_alone_is_counted_as_such_and_one_of_another_crate_is_not() {
    let failure = "printf 'failures:\\n    http::one\\n\\ntest result: FAILED. 1 passed; 1 failed; 0 ignored\\n'; exit 101";
    for (name, is_run_again) in [("server-1f", true), ("fuzz-4c", false)] {
        let repository = repository();
        let program = format!("target/debug/deps/{name}");
        write_program(&repository.path().join(program), failure);
        let (code, last, text) = test(&repository);
        let expected = if is_run_again {
            (Some(0), format!("{ALL} passed, 0 failed, 0 skipped (1 passed only alone)"))
        } else {
            (Some(1), format!("{} passed, 1 failed, 0 skipped", ALL - 1))
        };
        assert_eq!((code, last), expected, "{text}");
    }
}

#[test]
fn two_workers_run_each_job_of_a_queue_once_and_the_report_keeps_their_order() {
    let repository = repository();
    let queue = repository.path().join("jobs");
    let mut expected = String::new();
    for number in 10..40 {
        write_program(
            &queue.join(format!("{number}.job")),
            &format!("echo {number} | tee -a jobs/all"),
        );
        writeln!(expected, "{number}").unwrap();
    }
    let root = repository.path();
    let worker =
        || Command::new(root.join(".ci/queue")).args(["work", "jobs"]).current_dir(root).spawn();
    for mut worker in [worker().unwrap(), worker().unwrap()] {
        assert!(worker.wait().unwrap().success());
    }
    let report = run(&repository, &[".ci/queue", "report", "jobs"]);
    assert_eq!(
        (report.status.code(), &*String::from_utf8_lossy(&report.stdout)),
        (Some(0), &*expected)
    );
    let mut all: Vec<_> =
        fs::read_to_string(queue.join("all")).unwrap().lines().map(String::from).collect();
    all.sort();
    assert_eq!(all.join("\n") + "\n", expected);
    // A job that no worker has run, and a queue without a job.
    write_program(&queue.join("50.job"), PASSES);
    let report = run(&repository, &[".ci/queue", "report", "jobs"]);
    assert_eq!(report.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&report.stderr), "test: failed: 50 (it did not end)\n");
    for command in ["work", "report"] {
        assert_eq!(run(&repository, &[".ci/queue", command, "bin"]).status.code(), Some(1));
    }
}
