//! What a view answers about the servers, from heartbeats alone: which one should own a shard, and when
//! a move by hand begins and ends.

use super::*;

fn name(name: &str) -> ServerName {
    ServerName::new(name).expect("a name")
}

fn beats(heartbeats: &[(&str, &str)], count: u64) -> Vec<Heartbeat> {
    let beat = |(server, text): &(&str, &str)| Heartbeat::new(name(server), text, count);
    heartbeats.iter().map(|it| beat(it).expect("a short text")).collect()
}

/// A view of the server `one` with four shards, after heartbeats of these servers.
pub(super) fn view(heartbeats: &[(&str, &str)]) -> View {
    let view = View::new(name("one"), 4);
    observe(&view, heartbeats, 1);
    view
}

pub(super) fn observe(view: &View, heartbeats: &[(&str, &str)], count: u64) {
    view.observe(&beats(heartbeats, count));
}

/// Returns the server that should own the first shard, and whether it was chosen by hand.
fn preferred(view: &View) -> (Option<String>, bool) {
    let servers = view.servers.read().expect("no panic");
    let (first, is_by_hand) = view.preferred(&servers, Shard::FIRST);
    (first.map(|name| name.to_string()), is_by_hand)
}

/// A server without access tokens beside servers with them gave backups of all pools to every client.
#[test]
fn a_live_server_whose_access_tokens_differ_is_found_and_an_older_one_is_not() {
    let view = view(&[("two", "http://two:1 tokens=1"), ("older", "http://older:1")]);
    assert_eq!(view.find_other_tokens(false), Some(name("two")));
    assert_eq!(view.find_other_tokens(true), None);
    let shown: Vec<_> = view.status("").servers.iter().map(|server| server.has_tokens).collect();
    assert_eq!(shown, [None, Some(true)]);
    observe(&view, &[("two", "http://two:1 tokens=0")], 2);
    assert_eq!(view.find_other_tokens(true), Some(name("two")));
    observe(&view, &[], 3);
    assert_eq!(view.find_other_tokens(true), None);
}

#[test]
fn a_server_is_chosen_by_a_move_then_by_a_pin_then_by_its_hash() {
    let names = ["one", "two", "three"].map(name);
    let order = owner_order(Shard::FIRST, names.iter());
    let [best, second, third] = [0, 1, 2].map(|rank| order[rank].to_string());
    let of = |server: &str, says: &str| {
        let servers = ["one", "two", "three"];
        let text = |name: &str| if name == server { format!("a {says}") } else { "a".to_owned() };
        servers.map(|name| (name.to_owned(), text(name)))
    };
    let chosen = |beats: &[(String, String)]| {
        let beats: Vec<_> = beats.iter().map(|(name, text)| (&**name, &**text)).collect();
        preferred(&view(&beats))
    };
    assert_eq!(chosen(&of("none", "")), (Some(best.clone()), false));
    assert_eq!(chosen(&of(&second, "pinned=1")), (Some(second.clone()), true));
    assert_eq!(chosen(&of(&second, "pinned=2")), (Some(best), false), "another shard");
    let moved = format!("pinned=1 move=0>{third}");
    assert_eq!(chosen(&of(&second, &moved)), (Some(third), true));
}

/// The shards stay where they are until their next owner has read their logs.
#[test]
fn a_shard_goes_to_a_better_owner_that_is_ready_unless_it_was_moved_here() {
    let names = ["one", "two"].map(name);
    let is_of_two = |shard: &Shard| owner_order(*shard, names.iter())[0].as_str() == "two";
    let shard = (0..4).map(Shard::new).find(is_of_two).expect("it should own one of four");
    let view = view(&[("two", "http://two:1")]);
    assert_eq!(view.better_owner(shard), None, "it is not ready");
    observe(&view, &[("two", "http://two:1 ready=f")], 2);
    assert_eq!(view.better_owner(shard), Some(name("two")));
    view.shard(shard).facts().is_pinned = true;
    assert_eq!(view.better_owner(shard), None, "it was moved here");
}

#[test]
fn a_move_by_hand_is_shown_while_this_server_owns_the_shard() {
    let view = view(&[]);
    let is_shown = || view.presence("http://one:1").pinned.contains(Shard::FIRST);
    {
        let mut facts = view.shard(Shard::FIRST).facts();
        (facts.role, facts.is_pinned) = (ShardRole::Owner, true);
    }
    assert!(is_shown());
    view.set_here(Shard::FIRST, None);
    view.shard(Shard::FIRST).facts().role = ShardRole::Owner;
    assert!(!is_shown(), "it owned the shard no longer");
}

#[test]
fn a_move_to_this_server_is_for_the_named_shard_and_server_alone() {
    let view = view(&[("two", "http://two:1 move=1>one")]);
    let is_moved = |shard| view.is_moved_here(Shard::new(shard));
    assert_eq!([0, 1].map(is_moved), [false, true]);
    observe(&view, &[("two", "http://two:1 move=1>three")], 2);
    assert!(!is_moved(1));
}

#[test]
fn one_shard_moves_at_a_time_and_only_to_a_server_that_has_read_it() {
    let two = ("two", "http://two:1 ready=6");
    let view = view(&[two]);
    let begin = |shard, server: &str| view.begin_move(Shard::new(shard), server);
    assert_eq!(begin(1, "three"), Err(MoveError::UnknownServer("three".into())));
    let not_ready = MoveError::NotReady { shard: 0, server: "two".into() };
    assert_eq!(begin(0, "two"), Err(not_ready));
    assert_eq!(begin(1, "two"), Ok(()));
    assert_eq!(begin(1, "two"), Ok(()), "the same move again");
    assert_eq!(begin(2, "two"), Err(MoveError::Busy(1)));
    assert_eq!(begin(1, "three"), Err(MoveError::Busy(1)));
    observe(&view, &[("two", "http://two:1 owned=2 ready=6")], 2);
    assert_eq!(begin(2, "two"), Ok(()), "the first one has ended");
}

#[test]
fn a_move_ends_also_when_its_target_leaves_or_takes_too_long() {
    let two = ("two", "http://two:1 ready=f");
    let view = view(&[two]);
    assert_eq!(view.begin_move(Shard::FIRST, "two"), Ok(()));
    observe(&view, &[two], 2);
    assert!(view.moved().is_some());
    observe(&view, &[], 3);
    assert!(view.moved().is_none(), "its target has left");
    observe(&view, &[two], 4);
    assert_eq!(view.begin_move(Shard::FIRST, "two"), Ok(()));
    let began = now().checked_sub(MOVE_MAX + Duration::from_secs(1)).expect("the machine runs");
    view.servers.write().expect("no panic").moved = Some((Shard::FIRST, "two".into(), began));
    observe(&view, &[two], 5);
    assert!(view.moved().is_none(), "it took too long");
}

/// The heartbeat of a server that has crashed stays in the log.
#[test]
fn no_shard_moves_to_a_server_whose_heartbeat_does_not_change() {
    let two = ("two", "http://two:1 ready=f");
    let view = view(&[two]);
    for second in 1..=5 {
        let now_us = view.now_us() + second * 1_000_000;
        view.servers.write().expect("no panic").live.observe(&beats(&[two], 1), now_us);
    }
    let unknown = MoveError::UnknownServer("two".into());
    assert_eq!(view.begin_move(Shard::FIRST, "two"), Err(unknown));
}

/// Lets time pass in which only the heartbeats of these servers change.
fn pass_seconds(view: &View, seconds: u64, still: &[(&str, &str)], changing: &[(&str, &str)]) {
    for second in 1..=seconds {
        let (still, changing) = (beats(still, 1), beats(changing, 1 + second));
        let now_us = view.now_us() + second * 1_000_000;
        let mut servers = view.servers.write().expect("no panic");
        servers.live.observe(&[still, changing].concat(), now_us);
    }
    view.observe(&[beats(still, 1), beats(changing, 1 + seconds)].concat());
}

/// Otherwise a shard that has just moved here could not move back.
#[test]
fn a_move_goes_on_although_its_target_says_that_it_still_owns_the_shard() {
    let two = ("two", "http://two:1 owned=1 ready=1");
    let view = view(&[two]);
    view.shard(Shard::FIRST).facts().role = ShardRole::Owner;
    assert_eq!(view.begin_move(Shard::FIRST, "two"), Ok(()));
    observe(&view, &[two], 2);
    assert!(view.is_moving(Shard::FIRST, "two"), "this server owns the shard");
    view.shard(Shard::FIRST).facts().role = ShardRole::Loading;
    observe(&view, &[two], 3);
    assert!(!view.is_moving(Shard::FIRST, "two"), "its target has taken the shard over");
}

/// Otherwise this server would hand the shard over and take it back, each second of a minute.
#[test]
fn a_move_ends_when_its_target_has_died_or_has_left_the_shard_to_this_server() {
    let two = ("two", "http://two:1 ready=f");
    let dying = view(&[two]);
    assert_eq!(dying.begin_move(Shard::FIRST, "two"), Ok(()));
    pass_seconds(&dying, 3, &[two], &[]);
    assert!(dying.is_moving(Shard::FIRST, "two"));
    pass_seconds(&dying, 5, &[two], &[]);
    assert!(!dying.is_moving(Shard::FIRST, "two"));
    let leaving = view(&[two]);
    assert_eq!(leaving.begin_move(Shard::FIRST, "two"), Ok(()));
    leaving.end_move(Shard::new(1));
    assert!(leaving.is_moving(Shard::FIRST, "two"), "another shard");
    leaving.end_move(Shard::FIRST);
    assert!(!leaving.is_moving(Shard::FIRST, "two"));
}

/// The heartbeat of a server that was killed stays in the store.
#[test]
fn a_server_that_was_killed_moves_no_shard() {
    let live = [("one", "a ready=f"), ("two", "a ready=f")];
    let names = ["one", "two"].map(name);
    let [best, other] =
        [0, 1].map(|rank| owner_order(Shard::FIRST, names.iter())[rank].to_string());
    let moved = format!("a move=0>{other}");
    let killed = ("killed", &*moved);
    let view = view(&[live[0], live[1], killed]);
    assert_eq!(preferred(&view), (Some(other), true));
    pass_seconds(&view, 5, &[killed], &live);
    assert_eq!(preferred(&view), (Some(best), false));
}
