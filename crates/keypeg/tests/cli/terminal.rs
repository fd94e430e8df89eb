//! What commands show on a terminal: `top`, progress, tables that fit, and questions. Each leaves the
//! terminal as it was.

use super::tool::{assert_counts, check, json_of, tool, utf8};
use crate::support::terminal::Terminal;
use crate::support::{Server, TempDir};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::process::Stdio;

/// Another buffer without a cursor, and back.
const TAKEN: &str = "\x1b[?1049h\x1b[?25l";
const GIVEN_BACK: &str = "\x1b[?25h\x1b[?1049l";

/// The last frame that `top` drew, without escape sequences.
fn frame(text: &str) -> Vec<String> {
    let last = text.rsplit("\x1b[H").next().unwrap();
    let plain: Vec<_> = last.split("\x1b[").collect();
    let mut shown = plain[0].to_owned();
    for part in &plain[1..] {
        // The letter ends the sequence.
        let end = part.find(|c: char| c.is_ascii_alphabetic()).unwrap();
        shown.push_str(&part[end + 1..]);
    }
    shown.lines().map(str::to_owned).collect()
}

#[test]
fn top_draws_follows_the_size_and_restores_the_terminal_however_it_ends() {
    let server = Server::in_memory(&[]);
    for number in 0..30 {
        json_of(&server, &["pool", "create", &format!("pool-{number:02}")]);
    }
    json_of(&server, &["generate", "-n", "3", "-p", "pool-07"]);
    json_of(&server, &["acquire", "-p", "pool-07", "--holder", "job-7"]);
    let ends: [(&[u8], Option<Signal>, i32); 4] = [
        (b"q", None, 0),
        (b"\x03", None, 0),
        (b"", Some(Signal::TERM), 128 + 15),
        (b"", Some(Signal::INT), 128 + 2),
    ];
    for (keys, signal, code) in ends {
        let mut terminal = Terminal::new(80, 24);
        let before = format!("{:?}", terminal.settings());
        let mut top = tool(&server, &["top", "--every", "100ms"]);
        let mut top = terminal.attach(top.env("LANG", "C.UTF-8")).spawn().unwrap();
        terminal.wait(0, |text| text.contains("pools 1 to 13 of 31"));
        let text = terminal.text().to_owned();
        assert!(text.starts_with(TAKEN), "{text:?}");
        let lines = frame(&text);
        assert_eq!(lines.len(), 24, "{lines:#?}");
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "{lines:#?}");
        assert!(
            lines[2].starts_with("available") && lines[10].starts_with("pool-07"),
            "{lines:#?}"
        );
        assert_ne!(format!("{:?}", terminal.settings()), before, "keys arrive at once");
        terminal.press(b"\x1b[B\x1b[B");
        let from = text.len();
        terminal.wait(from, |text| text.contains("pools 3 to 15 of 31"));
        terminal.resize(40, 10);
        terminal.wait(from, |text| text.contains("pools 3 to 9"));
        assert_eq!(frame(terminal.text()).len(), 10);
        match signal {
            Some(signal) => kill_process(Pid::from_child(&top), signal).unwrap(),
            None => terminal.press(keys),
        }
        assert_eq!(top.wait().unwrap().code(), Some(code));
        assert!(terminal.text().ends_with(GIVEN_BACK), "{:?}", terminal.text());
        assert_eq!(format!("{:?}", terminal.settings()), before);
    }
}

#[test]
fn top_shows_the_leases_of_a_pool_and_a_server_that_is_gone() {
    let mut server = Server::in_memory(&[]);
    json_of(&server, &["generate", "-n", "3"]);
    json_of(&server, &["acquire", "--holder", "job 7"]);
    let mut terminal = Terminal::new(100, 20);
    let mut top = tool(&server, &["top", "-p", "default", "--every", "100ms"]);
    let mut top = terminal.attach(&mut top).spawn().unwrap();
    terminal.wait(0, |text| text.contains("leases 1 to 1 of 1"));
    let lines = frame(terminal.text());
    assert!(lines.iter().any(|line| line.contains(r"job 7")), "{lines:#?}");
    server.kill();
    terminal.wait(0, |text| text.contains("cannot be reached"));
    // The last answer stays.
    assert!(frame(terminal.text()).iter().any(|line| line.contains("job ")));
    terminal.press(b"q");
    assert_eq!(top.wait().unwrap().code(), Some(0));
    assert!(terminal.text().ends_with(GIVEN_BACK));
}

#[test]
fn without_a_terminal_top_prints_one_table_and_ends() {
    let server = Server::in_memory(&[]);
    json_of(&server, &["generate", "-n", "4"]);
    json_of(&server, &["acquire", "--holder", "job-7"]);
    let all = check(tool(&server, &["top"]), 0, "");
    let table = utf8(&all.stdout);
    assert_eq!(table.lines().count(), 2, "{table}");
    assert!(table.contains("default  [##........]  25 %      3       1"), "{table}");
    assert!(!table.contains('\x1b'), "{table:?}");
    let one = check(tool(&server, &["top", "--pool", "default"]), 0, "");
    assert!(utf8(&one.stdout).contains("  job-7  "), "{}", utf8(&one.stdout));
    check(tool(&server, &["top", "--pool", "nope"]), 66, "(unknown_pool)");
    check(tool(&server, &["top", "--every", "1ms"]), 64, "100ms");
    // A terminal stays untouched if the first answer is a refusal.
    let mut terminal = Terminal::new(80, 24);
    let mut top = tool(&server, &["top", "--pool", "nope"]);
    assert_eq!(terminal.attach(&mut top).status().unwrap().code(), Some(66));
    assert!(!terminal.text().contains('\x1b'), "{:?}", terminal.text());
}

#[test]
fn long_work_shows_its_progress_on_a_terminal_only() {
    let server = Server::in_memory(&[]);
    let dir = TempDir::new();
    let file = dir.path().join("values");
    let lines: Vec<_> = (0..25_000).map(|number| format!("value-{number}\n")).collect();
    std::fs::write(&file, lines.concat()).unwrap();
    let import = ["import", file.to_str().unwrap(), "--no-keepalive"];
    for (args, says, end) in [
        (
            &import[..],
            "importing  [########............]  40 %  10000 of 25000 keys",
            "25000 keys imported",
        ),
        (
            &["generate", "-n", "25000"],
            "generating  [########............]  40 %",
            "25000 keys generated",
        ),
        (&["bench", "-l", "1s", "-c", "1", "--keys", "9"], "measuring  [", ""),
    ] {
        let mut terminal = Terminal::new(120, 24);
        let mut command = tool(&server, args);
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(terminal.stream());
        assert_eq!(status.status().unwrap().code(), Some(0), "{args:?}: {}", terminal.text());
        let text = terminal.text().to_owned();
        assert!(text.contains(&format!("\r{says}")), "{args:?}: {text:?}");
        // The line is gone before the message, and at the end.
        let rest = text.rsplit("\r\x1b[K").next().unwrap();
        assert!(rest.contains(end) && !rest.contains('%'), "{args:?}: {text:?}");
    }
    for args in [&["generate", "-n", "20000"][..], &["generate", "-n", "20000", "--quiet"]] {
        let mut terminal = Terminal::new(120, 24);
        let mut command = tool(&server, args);
        let is_quiet = args.len() > 3;
        let stderr = if is_quiet { terminal.stream() } else { Stdio::piped() };
        let output = command.stdout(Stdio::null()).stderr(stderr).output().unwrap();
        assert!(!utf8(&output.stderr).contains('\r'), "{}", utf8(&output.stderr));
        assert_eq!(terminal.text(), "", "{args:?}");
    }
}

#[test]
fn a_table_fits_the_terminal_and_says_what_it_leaves_out() {
    let server = Server::in_memory(&[]);
    json_of(&server, &["generate", "-n", "2"]);
    json_of(&server, &["acquire", "--holder", &"h".repeat(60)]);
    for (columns, is_cut) in [(200, false), (80, true)] {
        let mut terminal = Terminal::new(columns, 24);
        let mut list = tool(&server, &["list"]);
        let output = list.stdout(terminal.stream()).output().unwrap();
        let text = terminal.text().to_owned();
        let widest = text.lines().map(|line| line.trim_end().chars().count()).max();
        assert!(widest <= Some(usize::from(columns)), "{text}");
        assert_eq!(text.contains('…'), is_cut, "{text}");
        assert_eq!(text.contains(&"h".repeat(60)), !is_cut, "{text}");
        let says = utf8(&output.stderr).contains("the table fits the terminal");
        assert_eq!(says, is_cut, "{}", utf8(&output.stderr));
    }
    let piped = check(tool(&server, &["list"]), 0, "");
    assert!(utf8(&piped.stdout).contains(&"h".repeat(60)), "in a pipe nothing is cut");
}

#[test]
fn a_question_on_a_terminal_is_answered_there() {
    let server = Server::in_memory(&[]);
    json_of(&server, &["pool", "create", "ci"]);
    for (answer, code, pools) in [("n\n", 64, 2), ("\n", 64, 2), ("y\n", 0, 1)] {
        let mut terminal = Terminal::new(80, 24);
        let mut delete = tool(&server, &["pool", "delete", "ci"]);
        let mut delete = terminal.attach(&mut delete).spawn().unwrap();
        terminal.wait(0, |text| text.contains("Continue? [y/N]"));
        terminal.press(answer.as_bytes());
        assert_eq!(delete.wait().unwrap().code(), Some(code), "{}", terminal.text());
        assert_eq!(json_of(&server, &["pools"]).as_array().unwrap().len(), pools);
    }
    assert_counts(&server, "default", &json!({ "total": 0 }));
}

mod durability {
    use super::{Server, Stdio, TempDir, Terminal, json_of, tool};

    #[test]
    fn a_backup_shows_its_bytes_on_a_terminal() {
        let dir = TempDir::new();
        let server = Server::on(&dir, &[]);
        json_of(&server, &["generate", "-n", "2000"]);
        let file = dir.path().join("backup");
        let mut terminal = Terminal::new(120, 24);
        let mut backup = tool(&server, &["backup", file.to_str().unwrap()]);
        let backup = backup.stdin(Stdio::null()).stdout(Stdio::null()).stderr(terminal.stream());
        assert_eq!(backup.status().unwrap().code(), Some(0), "{}", terminal.text());
        let text = terminal.text().to_owned();
        assert!(text.contains("\rwriting the backup  "), "{text:?}");
        assert!(text.rsplit("\r\x1b[K").next().unwrap().contains("bytes written to"), "{text:?}");
    }
}
