//! The version, the completions and the man pages: complete, and accepted by the programs that read
//! them.

use crate::support::{TempDir, binary, skipped};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn run(args: &[&str]) -> Output {
    let output = Command::new(binary()).args(args).env_clear().output().unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
    output
}

fn text(args: &[&str]) -> String {
    String::from_utf8(run(args).stdout).unwrap()
}

/// Returns the commands that the help shows.
fn commands() -> Vec<String> {
    let help = text(&["--help"]);
    let (_, list) = help.split_once("Commands:\n").unwrap();
    let lines = list.lines().take_while(|line| line.starts_with("  "));
    let names = lines.filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

fn is_installed(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

#[test]
fn the_version_names_the_commit_the_date_of_the_source_and_the_target() {
    let long = text(&["--version"]);
    let lines: Vec<_> = long.lines().collect();
    assert_eq!(lines[0], format!("keypeg {}", env!("CARGO_PKG_VERSION")));
    for (line, name) in lines[1..].iter().zip(["commit: ", "built: ", "target: "]) {
        assert!(line.len() > name.len() && line.starts_with(name), "{long}");
    }
    assert_eq!(lines.len(), 4, "{long}");
    let short = text(&["-V"]);
    assert!(short.starts_with(lines[0]) && short.lines().count() == 1, "{short}");
    let commit = lines[1].trim_start_matches("commit: ");
    assert!(commit == "unknown" || short.contains(&commit[..12]), "{short} {commit}");
}

/// Completes a command line as bash does; returns the proposals.
fn completed(script: &Path, words: &[&str]) -> BTreeSet<String> {
    let program = "source \"$1\"; shift; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); \
                   _keypeg keypeg \"${COMP_WORDS[COMP_CWORD]}\" \
                   \"${COMP_WORDS[COMP_CWORD-1]}\"; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let mut command = Command::new("bash");
    command.args(["--norc", "-c", program, "bash"]).arg(script).args(words);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_and_their_options() {
    if !is_installed("bash") {
        return skipped("bash_completes_commands_and_their_options", "there is no bash");
    }
    let dir = TempDir::new();
    let script = dir.path().join("keypeg");
    std::fs::write(&script, text(&["completions", "bash"])).unwrap();
    let proposed = completed(&script, &["keypeg", ""]);
    for command in commands() {
        assert!(proposed.contains(&command), "{command}: {proposed:?}");
    }
    assert_eq!(completed(&script, &["keypeg", "serve", "--lis"]), ["--listen".into()].into());
    let formats = completed(&script, &["keypeg", "list", "--output", ""]);
    assert_eq!(formats, ["table".into(), "json".into()].into());
}

#[test]
fn each_shell_accepts_its_completions() {
    for (shell, check) in
        [("bash", &["-n"][..]), ("zsh", &["-n"]), ("fish", &["--no-execute"]), ("elvish", &[])]
    {
        let completions = text(&["completions", shell]);
        assert!(completions.contains("quarantine"), "{shell}: {completions}");
        // No test needs every shell: a syntax error in the output of one generator is found where
        // that shell is installed.
        if check.is_empty() || !is_installed(shell) {
            continue;
        }
        let mut child = Command::new(shell).args(check).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(completions.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{shell}");
    }
}

#[test]
fn internal_commands_are_in_no_completion_and_have_no_page() {
    let dir = TempDir::new();
    let out = dir.path().to_str().unwrap();
    run(&["man", "--out", out]);
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let completions = text(&["completions", shell]);
        assert!(!completions.contains("launcher") && !completions.contains("watchdog"), "{shell}");
    }
    for command in ["exec-launcher", "exec-watchdog"] {
        assert!(!dir.path().join(format!("keypeg-{command}.1")).exists(), "{command}");
    }
}

#[test]
fn each_command_has_a_man_page_with_its_options_and_variables() {
    let dir = TempDir::new();
    // The directory is created.
    let out = dir.path().join("share/man1");
    run(&["man", "--out", out.to_str().unwrap()]);
    let page = |command: &str| std::fs::read_to_string(out.join(command)).unwrap();
    let main = page("keypeg.1");
    for command in commands() {
        assert!(main.contains(&format!("keypeg\\-{command}")), "{command}");
        assert!(page(&format!("keypeg-{command}.1")).starts_with(".ie"), "{command}");
    }
    let serve = page("keypeg-serve.1");
    for part in ["\\-\\-keepalive\\-ttl", "KEYPEG_KEEPALIVE_TTL", "see `keypeg token new`"] {
        assert!(serve.contains(part), "{part}: {serve}");
    }
    assert!(page("keypeg-token-new.1").contains("\\-\\-scope"));
    let again = dir.path().join("again");
    run(&["man", "--out", again.to_str().unwrap()]);
    for entry in std::fs::read_dir(&out).unwrap() {
        let name = entry.unwrap().file_name();
        let [first, second] = [&out, &again].map(|dir| std::fs::read(dir.join(&name)).unwrap());
        assert!(first == second, "{name:?}");
    }
}

#[test]
fn man_shows_each_page_without_a_warning() {
    if !is_installed("man") || !is_installed("groff") {
        return skipped("man_shows_each_page_without_a_warning", "there is no man, or no groff");
    }
    let dir = TempDir::new();
    run(&["man", "--out", dir.path().to_str().unwrap()]);
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let page = entry.unwrap().path();
        let mut man = Command::new("man");
        man.args(["--warnings", "--encoding=UTF-8", "--local-file"]).arg(&page);
        let output = man.env("LC_ALL", "C.UTF-8").env("MANWIDTH", "80").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{page:?}: {said}");
        assert!(output.stdout.len() > 200, "{page:?}");
    }
}

#[test]
fn what_cannot_be_written_is_an_error_with_the_path() {
    let output = Command::new(binary())
        .args(["man", "--out", "/proc/nowhere/man1"])
        .env_clear()
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(73), "{said}");
    assert!(said.contains("/proc/nowhere/man1") && said.contains("--out"), "{said}");
    let output = Command::new(binary()).args(["completions", "tcsh"]).env_clear().output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{said}");
    assert!(said.contains("fish"), "{said}");
}
