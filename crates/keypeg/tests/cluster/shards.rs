//! Operators see the servers and shards at any server, and move a shard from any server.

use super::double::Installation;
use crate::support::{TempDir, binary, eventually, exit_within};
use keypeg_store::MoveError;
use serde_json::{Value, json};
use std::process::Command;

/// Three servers; the first one serves all shards.
fn installation() -> Installation {
    Installation::start(&[&[], &[], &[]])
}

fn to(server: &str) -> Value {
    json!({ "server": server })
}

#[test]
fn each_server_shows_the_servers_and_shards_as_it_sees_them() {
    let servers = installation();
    servers.move_shard(2, 1);
    for (index, roles) in [(0, ["owner", "following"]), (1, ["following", "owner"])] {
        let mut client = servers.client(index);
        let shown = client.ask("GET /v1/cluster").is(
            200,
            &json!({ "server": format!("s{index}"), "store": "memory", "store_silent_seconds": 0.2 }),
        );
        assert_eq!(shown["servers"][1]["owns"], json!([2]), "{shown}");
        assert_eq!(shown["servers"][0]["owns"], json!([0, 1, 3]), "{shown}");
        assert_eq!([&shown["shards"][1]["role"], &shown["shards"][2]["role"]], roles);
        assert_eq!(shown["shards"][2]["owner"], "s1");
        assert_eq!(shown["shards"][2]["error"], Value::Null);
        let head = client.ask("HEAD /v1/cluster");
        assert_eq!((head.status, head.body.as_str()), (200, ""));
    }
}

/// The owner answers after it has handed the shard over, and the servers between pass that on.
#[test]
fn a_shard_moves_from_any_server_and_the_answer_comes_when_it_has_moved() {
    let servers = installation();
    // By a server that is neither the owner nor the new one, by the new one, and by the owner.
    for (asked, target) in [(2, "s1"), (0, "s0"), (0, "s2"), (1, "s2")] {
        let mut client = servers.client(asked);
        let moved = client.send("POST /v1/cluster/shards/1/move", &to(target));
        moved.is(200, &json!({ "shard": 1, "owner": target }));
        let shown = servers.client(0).ask("GET /v1/cluster").is(200, &json!({}));
        assert_eq!(shown["shards"][1]["owner"], target);
    }
    servers.client(0).send("PUT /v1/pools/p1", &json!({})).is(201, &json!({ "pool": "p1" }));
}

#[test]
fn a_move_that_cannot_begin_says_why_and_changes_nothing() {
    let servers = installation();
    for asked in [0, 1] {
        let mut client = servers.client(asked);
        let mut invalid = |path: &str, body: &Value| {
            client.send(&format!("POST /v1/cluster/shards/{path}"), body).problem(422, "invalid")
        };
        let problem = invalid("1/move", &to("nowhere"));
        assert_eq!(problem["field"], "server");
        assert_eq!(problem["allowed"], "the name of a live server: s0, s1, s2");
        for number in ["4", "+1", "x", "-1", "99999999999999999999"] {
            let problem = invalid(&format!("{number}/move"), &to("s1"));
            assert_eq!((&problem["field"], &problem["allowed"]), (&json!("shard"), &json!("0..3")));
        }
        for body in [json!({}), json!({ "server": 7 }), json!({ "server": "a\nb" })] {
            assert_eq!(invalid("1/move", &body)["field"], "server");
        }
        assert_eq!(invalid("1/move", &json!({ "to": "s1" }))["field"], "to");
        assert_eq!(invalid("1/move?force=1", &to("s1"))["field"], "force");
        let headers = [("if-match", "*"), ("content-type", "application/json")];
        let path = "POST /v1/cluster/shards/1/move";
        let answer = client.try_send(path, &headers, &to("s1").to_string()).unwrap();
        answer.problem(412, "precondition_failed");
        servers.refuse_moves(vec![MoveError::NotReady { shard: 1, server: "s1".into() }]);
        let problem = client.send(path, &to("s1")).problem(409, "not_moved");
        assert_eq!(problem["outcome"], "not_applied");
        assert!(problem["detail"].as_str().unwrap().contains("s1"), "{problem}");
    }
    let shown = servers.client(0).ask("GET /v1/cluster").is(200, &json!({}));
    assert_eq!(shown["shards"][1]["owner"], "s0");
}

/// A script can send its moves one after the other without looking.
#[test]
fn a_move_waits_for_the_one_in_progress() {
    let servers = installation();
    servers.refuse_moves(vec![MoveError::Busy(3); 2]);
    let moved = servers.client(1).send("POST /v1/cluster/shards/1/move", &to("s1"));
    moved.is(200, &json!({ "owner": "s1" }));
    assert_eq!(servers.refusals_left(), 0);
}

/// The servers between see that the shard is elsewhere before its former owner answers.
#[test]
fn a_move_is_answered_although_its_server_no_longer_serves_the_shard() {
    const LOOKS: usize = 18;
    let servers = installation();
    servers.refuse_moves(vec![MoveError::Busy(1); LOOKS]);
    std::thread::scope(|scope| {
        let moved =
            scope.spawn(|| servers.client(1).send("POST /v1/cluster/shards/1/move", &to("s2")));
        eventually("the move", || (servers.refusals_left() < LOOKS).then_some(()));
        servers.believe(1, 1, 2);
        moved.join().unwrap().is(200, &json!({ "owner": "s2" }));
    });
}

#[test]
fn the_former_owner_logs_a_move_with_its_shard_and_its_new_owner() {
    let dir = TempDir::new();
    let paths = [0, 1].map(|index| dir.path().join(format!("audit-{index}")));
    let [first, second] = paths.each_ref().map(|path| path.to_str().unwrap());
    let servers = Installation::start(&[&["--audit", first], &["--audit", second]]);
    let moved = servers.client(1).send("POST /v1/cluster/shards/3/move", &to("s1"));
    moved.is(200, &json!({ "owner": "s1" }));
    drop(servers);
    let [first, second] = paths.map(|path| std::fs::read_to_string(path).unwrap());
    let lines: Vec<Value> = first.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 1, "{first}");
    let shown = ["operation", "shard", "server", "outcome"].map(|name| lines[0][name].clone());
    assert_eq!(shown, [json!("moveShard"), json!(3), json!("s1"), json!("applied")]);
    assert_eq!(second, "", "the server that forwards writes no line");
}

#[test]
fn the_commands_show_the_servers_and_shards_and_move_one() {
    let servers = installation();
    let run = |server: usize, args: &[&str]| {
        let url = format!("http://{}", servers.addr(server));
        let mut command = Command::new(binary());
        command.env_clear().arg("cluster").args(args).args(["--server", &url]);
        let (code, stdout, stderr) = exit_within(&mut command);
        (code.unwrap(), stdout + &stderr)
    };
    let (code, moved) = run(1, &["move", "2", "s2", "--field", "owner"]);
    assert_eq!((code, moved.as_str()), (0, "s2\n"));
    let (code, table) = run(1, &["status"]);
    assert_eq!(code, 0, "{table}");
    for line in ["server                s1", "store                 memory"] {
        assert!(table.lines().any(|it| it == line), "{table}");
    }
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let lines: Vec<_> = table.lines().map(words).collect();
    let has = |line: &str| lines.iter().any(|words_of| words_of.starts_with(&words(line)));
    assert!(has("SERVER LIVE SILENT_SECONDS OWNS FOLLOWS ADDRESS"), "{table}");
    assert!(has("s0 true 0.3 0-1,3 -"), "{table}");
    assert!(has("SHARD OWNER ROLE POSITION BEHIND_FRAMES BEHIND_SECONDS TAKEOVERS"), "{table}");
    assert!(has("2 s2 following 12 1 0.25 1"), "{table}");
    let (code, json) = run(1, &["status", "--output", "json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &json["shards"][2]["owner"]), (0, &json!("s2")));
    let (code, refused) = run(0, &["move", "9", "s1"]);
    assert_eq!(code, 65, "{refused}");
    assert!(refused.contains("shard must be 0..3"), "{refused}");
    let (code, refused) = run(0, &["move", "1", "s9"]);
    assert_eq!(code, 65, "{refused}");
    assert!(refused.contains("the name of a live server: s0, s1, s2"), "{refused}");
    servers.refuse_moves(vec![MoveError::NotReady { shard: 1, server: "s1".into() }]);
    let (code, refused) = run(0, &["move", "1", "s1"]);
    assert_eq!(code, 75, "{refused}");
    assert!(refused.contains("\"keypeg cluster status\""), "{refused}");
}
