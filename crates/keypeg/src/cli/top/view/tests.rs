//! Frames of every size: nothing is wider or higher than the terminal, and the worst pool is first.

use super::*;
use serde_json::{Value, json};

fn pool(name: &str, [available, leased, waiting]: [u64; 3]) -> Value {
    json!({
        "pool": name, "lease_ttl_seconds": 60, "max_hold_seconds": null, "key_prefix": "",
        "keepalive_ttl_seconds": null, "keepalive_every_seconds": null, "rest_seconds": 0,
        "key_length": 20, "max_keys": null, "available": available, "leased": leased, "resting": 0,
        "quarantined": 0, "total": available + leased, "waiting": waiting,
        "next_return_at": "2026-11-22T21:30:05.200Z", "next_purge_at": null,
    })
}

fn leased(id: &str, holder: &str, expires_at: &str) -> Value {
    json!({
        "id": id, "pool": "ci", "state": "leased", "created_at": "2026-11-22T21:00:00.000Z",
        "expires_at": null, "rests_until": null, "reason": null, "keepalive": true, "lease": {
            "holder": holder, "fencing_token": 1, "granted_at": "2026-11-22T21:28:00.000Z",
            "expires_at": expires_at,
        },
    })
}

fn parsed<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("a value of the wire format")
}

fn snapshot(pools: Vec<Value>, leased: Vec<Value>) -> Snapshot {
    let seconds: Vec<u64> = (0..900).collect();
    let history = json!({
        "pool": null, "pools": 2, "from_at": "2026-11-22T21:15:00.000Z", "available": seconds,
        "leased": seconds, "resting": seconds, "quarantined": seconds, "waiting": seconds,
        "grants": seconds, "refusals": seconds, "expiries": seconds, "purges": seconds,
        "waited_seconds": seconds,
    });
    Snapshot {
        pools: pools.into_iter().map(parsed).collect(),
        has_more: false,
        history: Some(parsed(history)),
        leased: leased.into_iter().map(parsed).collect(),
        now: parsed(json!("2026-11-22T21:30:00.000Z")),
    }
}

fn view(pool: Option<&str>, snapshot: Snapshot) -> View {
    let mut view = View::new("http://127.0.0.1:8000", pool.map(str::to_owned));
    view.is_utf8 = true;
    view.update(Ok(snapshot));
    view
}

fn many() -> View {
    let name = |number: u64| format!("pool-{number:03}-{}", "x".repeat(40));
    view(None, snapshot((0..300).map(|it| pool(&name(it), [it, 3, 0])).collect(), Vec::new()))
}

fn size(width: usize, height: usize) -> Size {
    Size { width, height }
}

#[test]
fn a_frame_fills_a_terminal_of_80_by_24_and_is_never_higher() {
    for (width, height) in [(80, 24), (200, 60), (40, 14), (40, 13), (20, 5), (3, 2), (1, 1)] {
        let lines = many().frame(size(width, height));
        assert_eq!(lines.len(), height.max(2), "{width} x {height}");
    }
    let lines = many().frame(size(80, 24));
    let widest = lines.iter().map(|line| line.text.chars().count()).max();
    assert!(widest <= Some(80), "{lines:#?}");
    assert!(lines[2].text.starts_with("available        44850  ▂"), "{}", lines[2].text);
    assert!(lines[23].text.contains("q ends, arrows scroll   pools 1 to 13 of 300"), "{lines:#?}");
}

#[test]
fn the_pool_that_needs_attention_is_first() {
    let pools = [
        pool("fine", [9, 1, 0]),
        pool("no-keys", [0, 0, 0]),
        pool("empty", [0, 4, 0]),
        pool("half", [5, 5, 0]),
        pool("waited-for", [1, 9, 2]),
    ];
    let table = view(None, snapshot(pools.into(), Vec::new())).table();
    let rows: Vec<_> = table.lines().map(|line| line.split_whitespace().next()).collect();
    let names = ["POOL", "waited-for", "empty", "half", "fine", "no-keys"];
    assert_eq!(rows, names.map(Some));
    assert!(
        table.contains("empty       [##########] 100 %      0       4     0     0     0      6 s"),
        "{table}"
    );
    assert!(table.contains("no-keys     [..........]   0 %"), "{table}");
    // Rounded up: a lease never seems to end early.
    assert!(table.lines().nth(1).is_some_and(|line| line.ends_with("  6 s")), "{table}");
}

#[test]
fn the_leases_of_a_pool_are_in_the_order_of_their_ends() {
    let leases = vec![
        leased("b", "late\u{1b}[2J", "2026-11-22T21:32:00.000Z"),
        leased("a", "soon", "2026-11-22T21:30:01.000Z"),
        leased("c", "over", "2026-11-22T21:29:00.000Z"),
    ];
    let table = view(Some("ci"), snapshot(vec![pool("ci", [0, 3, 0])], leases)).table();
    assert_eq!(
        table,
        "KEY  HOLDER          ENDS IN  LEASED FOR\n\
         c    over                0 s    2 m 00 s\n\
         a    soon                1 s    2 m 00 s\n\
         b    late\\u{1b}[2J  2 m 00 s    2 m 00 s\n"
    );
}

#[test]
fn scrolling_ends_at_the_first_and_the_last_row() {
    let mut view = many();
    let rows = |view: &mut View| {
        let lines = view.frame(size(80, 24));
        lines[23].text.split_once("pools ").expect("a footer").1.to_owned()
    };
    for (scrolled, shown) in [
        (0, "1 to 13 of 300"),
        (5, "6 to 18 of 300"),
        (-20, "1 to 13 of 300"),
        (1_000, "288 to 300 of 300"),
        (-1, "287 to 299 of 300"),
        (i64::MIN / 2, "1 to 13 of 300"),
    ] {
        view.scroll(scrolled);
        assert_eq!(rows(&mut view), shown, "{scrolled}");
    }
    // Fewer pools than before, and a larger terminal.
    view.scroll(200);
    view.update(Ok(snapshot(vec![pool("ci", [1, 0, 0])], Vec::new())));
    assert_eq!(rows(&mut view), "1 to 1 of 1");
    view.update(Ok(snapshot(Vec::new(), Vec::new())));
    assert_eq!(rows(&mut view), "0 to 0 of 0");
}

#[test]
fn a_failure_is_shown_and_the_last_answer_stays() {
    let mut view = view(None, snapshot(vec![pool("ci", [1, 0, 0])], Vec::new()));
    view.update(Err("the server cannot be reached".into()));
    let lines = view.frame(size(80, 24));
    assert_eq!(lines[1].text, "the server cannot be reached");
    assert_eq!(lines[1].style, Style::Alert);
    assert!(lines.iter().any(|line| line.text.starts_with("ci ")), "{lines:#?}");
    view.update(Ok(snapshot(Vec::new(), Vec::new())));
    assert_eq!(view.frame(size(80, 24))[1].text, "");
}

#[test]
fn a_draining_pool_is_marked() {
    let mut draining = pool("old", [2, 1, 0]);
    draining["draining"] = json!(true);
    let text = view(None, snapshot(vec![draining, pool("new", [2, 1, 0])], Vec::new())).table();
    assert!(text.contains("old (draining)") && text.contains("new  "), "{text}");
}
