//! Tables of arrivals, requests and ends on places with a clock of their own, without sockets.

use super::*;
use keypeg_testkit::SeededRandom;

const A: CallerId = CallerId::Network(1);
const B: CallerId = CallerId::Network(2);
const C: CallerId = CallerId::Network(3);

/// Places with a clock in milliseconds.
struct Clocked {
    places: Arc<Places>,
    started: Instant,
    ms: u64,
}

impl Clocked {
    fn new(max: usize) -> Self {
        let started = crate::clock::stopwatch();
        Self { places: Places::new(max, started), started, ms: 0 }
    }

    fn now(&self) -> Instant {
        self.started + Duration::from_millis(self.ms)
    }

    /// A connection that arrives a millisecond after the last event.
    fn enter(&mut self, caller: CallerId) -> Option<Place> {
        self.ms += 1;
        self.places.enter(caller, self.now()).map(|arrived| arrived.place)
    }

    /// A connection that was served one request.
    fn enter_proven(&mut self, caller: CallerId) -> Place {
        let place = self.enter(caller).unwrap();
        self.serve(&place);
        place
    }

    fn begin(&self, place: &Place) -> bool {
        place.begin(|| None, self.now())
    }

    fn serve(&mut self, place: &Place) {
        self.ms += 1;
        assert!(self.begin(place));
        place.end(self.now());
    }
}

fn is_displaced(place: &Place) -> bool {
    place.state.is_displaced()
}

/// Ends the tasks of displaced connections; returns their indices.
fn end_displaced(places: &mut [Option<Place>]) -> Vec<usize> {
    let mut ended = Vec::new();
    for (index, slot) in places.iter_mut().enumerate() {
        if slot.as_ref().is_some_and(is_displaced) {
            *slot = None;
            ended.push(index);
        }
    }
    ended
}

#[test]
fn silent_connections_give_way_oldest_first_and_idle_ones_after_them() {
    let mut clocked = Clocked::new(8);
    let idle = clocked.enter_proven(A);
    let busy = clocked.enter_proven(A);
    assert!(clocked.begin(&busy));
    let mut silent: Vec<_> = (0..5).map(|_| clocked.enter(B)).collect();
    let mut late = Vec::new();
    for index in 0..5 {
        late.push(Some(clocked.enter_proven(CallerId::Network(10 + index))));
        let index = usize::try_from(index).unwrap();
        assert_eq!(end_displaced(&mut silent), [index], "the oldest first");
    }
    assert!(!is_displaced(&idle) && !is_displaced(&busy));
    late.push(Some(clocked.enter_proven(B)));
    assert!(is_displaced(&idle) && !is_displaced(&busy));
    drop(idle);
    late.push(Some(clocked.enter_proven(C)));
    assert_eq!(end_displaced(&mut late), [0]);
}

#[test]
fn the_caller_with_the_most_connections_gives_way_first() {
    let mut clocked = Clocked::new(8);
    let of_a = clocked.enter_proven(A);
    let mut of_b: Vec<_> = (0..6).map(|_| Some(clocked.enter_proven(B))).collect();
    let of_c = clocked.enter_proven(C);
    assert_eq!(end_displaced(&mut of_b), [0], "not the older one of A");
    assert!(!is_displaced(&of_a) && !is_displaced(&of_c));
}

#[test]
fn a_connection_that_is_served_again_and_again_outlasts_those_that_are_silent() {
    let mut clocked = Clocked::new(8);
    let used = clocked.enter_proven(A);
    let mut idle: Vec<_> = (0..6).map(|_| Some(clocked.enter_proven(A))).collect();
    for index in 0..6 {
        clocked.serve(&used);
        let late = clocked.enter_proven(A);
        assert_eq!(end_displaced(&mut idle), [index]);
        idle.push(Some(late));
    }
    assert!(!is_displaced(&used));
}

#[test]
fn no_request_begins_on_a_connection_that_was_displaced() {
    let mut clocked = Clocked::new(8);
    let silent = clocked.enter(A).unwrap();
    let others: Vec<_> = (0..7).map(|_| clocked.enter(B).unwrap()).collect();
    assert!(is_displaced(&silent) && !clocked.begin(&silent));
    silent.end(clocked.now());
    assert!(!clocked.begin(&silent), "not later either");
    assert!(others.iter().all(|place| clocked.begin(place)));
    let PlaceCounts { displaced, refused, .. } = clocked.places.counts();
    assert_eq!((displaced, refused), (1, 0));
}

#[test]
fn a_caller_over_its_share_displaces_its_own_connections_or_gets_no_place() {
    let mut clocked = Clocked::new(16);
    let of_b = clocked.enter_proven(B);
    let mut of_a: Vec<_> = (0..13).map(|_| Some(clocked.enter_proven(A))).collect();
    for expected in [0, 13, 14] {
        of_a.push(clocked.enter(A));
        assert_eq!(end_displaced(&mut of_a), [expected], "an idle one, then silent ones");
    }
    assert!(!is_displaced(&of_b));
    // All are busy: there is nothing to displace, and the rest is for other callers.
    assert!(of_a.iter().flatten().all(|place| clocked.begin(place)));
    assert!(clocked.enter(A).is_none());
    let mut of_c = vec![Some(clocked.enter_proven(C))];
    assert!(is_displaced(&of_b), "it was idle longest");
    drop(of_b);
    of_c.push(clocked.enter(C));
    assert_eq!(end_displaced(&mut of_c), [0]);
}

#[test]
fn all_places_are_for_busy_connections_and_no_further_one_is_accepted() {
    let mut clocked = Clocked::new(8);
    let mut busy = Vec::new();
    for n in 10..18 {
        let place = clocked.enter(CallerId::Network(n)).unwrap();
        assert!(clocked.begin(&place));
        busy.push(place);
    }
    assert!(clocked.enter(A).is_none());
    let PlaceCounts { displaced, refused, .. } = clocked.places.counts();
    assert_eq!((displaced, refused), (0, 1));
    drop(busy);
    assert!(clocked.enter(A).is_some());
}

/// A displaced connection keeps its descriptor until its task has ended.
#[test]
fn displaced_connections_count_until_they_have_ended() {
    let mut clocked = Clocked::new(16);
    let all: Vec<_> = (0..40).map(|_| clocked.enter(A)).collect();
    assert_eq!(clocked.places.open(), 16);
    let (open, none): (Vec<_>, Vec<_>) = all.into_iter().partition(Option::is_some);
    assert_eq!((open.len(), none.len()), (16, 24));
    assert_eq!(clocked.places.counts().displaced, 2, "a refusal displaces none");
    drop(open);
    assert_eq!(clocked.places.open(), 0);
    assert!(clocked.enter(A).is_some());
}

/// A thousand addresses with silent connections do not shrink the share of a caller that is served.
#[test]
fn silent_callers_do_not_count_as_callers() {
    let mut clocked = Clocked::new(80);
    let of_a: Vec<_> = (0..35).map(|_| clocked.enter_proven(A)).collect();
    let silent: Vec<_> =
        (0..35).map(|n| clocked.enter(CallerId::Network(100 + n)).unwrap()).collect();
    let more: Vec<_> = (0..5).map(|_| clocked.enter_proven(A)).collect();
    assert!(of_a.iter().chain(&more).all(|place| !is_displaced(place)));
    assert_eq!(silent.iter().filter(|place| is_displaced(place)).count(), 5);
}

#[test]
fn a_connection_belongs_to_its_token_once_it_has_shown_it() {
    let mut clocked = Clocked::new(16);
    let token = CallerId::Token("ci".into());
    let mut of_token = Vec::new();
    for _ in 0..5 {
        let place = clocked.enter(A).unwrap();
        assert!(place.begin(|| Some(token.clone()), clocked.now()));
        place.end(clocked.now());
        of_token.push(place);
    }
    let silent: Vec<_> = (0..20).filter_map(|_| clocked.enter(A)).collect();
    assert_eq!(silent.len(), 11, "until the displaced ones have ended");
    assert!(of_token.iter().all(|place| !is_displaced(place)), "A fills its own share");
    drop(silent);
    let PlaceCounts { open, unproven, .. } = clocked.places.counts();
    assert_eq!((open, unproven), (5, 0));
}

#[test]
fn a_connection_that_was_displaced_at_once_was_refused_a_request() {
    let clocked = Clocked::new(8);
    let at = |ms| clocked.started + Duration::from_millis(ms);
    let places: Vec<_> = (0..7).map(|n| clocked.places.enter(A, at(n)).unwrap().place).collect();
    let arrived = clocked.places.enter(B, at(999)).unwrap();
    assert!(arrived.was_hasty);
    drop(places);
    let places: Vec<_> = (0..6).map(|n| clocked.places.enter(A, at(n)).unwrap().place).collect();
    assert!(!clocked.places.enter(B, at(2_000)).unwrap().was_hasty);
    drop(places);
}

#[tokio::test]
async fn a_displacement_ends_the_task_of_its_connection() {
    let mut clocked = Clocked::new(8);
    for started_late in [false, true] {
        let place = clocked.enter(A).unwrap();
        let mut others = Vec::new();
        let places = Arc::clone(&clocked.places);
        if started_late {
            others.extend((0..7).map(|_| clocked.enter(B).unwrap()));
        }
        let place = Arc::new(place);
        let task = tokio::spawn({
            let place = Arc::clone(&place);
            async move {
                let _place = place;
                std::future::pending::<()>().await;
            }
        });
        place.served_by(task.abort_handle());
        drop(place);
        others.extend((0..7 - others.len()).map(|_| clocked.enter(B).unwrap()));
        assert!(task.await.unwrap_err().is_cancelled());
        drop(others);
        places.emptied().await;
    }
}

/// Many arrivals, ends and requests, against the bounds that always hold.
#[test]
fn the_counts_stay_right_through_any_sequence() {
    let mut clocked = Clocked::new(24);
    let mut random = SeededRandom(7);
    let mut open: Vec<Place> = Vec::new();
    for _ in 0..20_000 {
        clocked.ms += random.below(3);
        match random.below(5) {
            0 | 1 => {
                let caller = CallerId::Network(u128::from(random.below(5)));
                open.extend(clocked.enter(caller));
            }
            2 if !open.is_empty() => {
                let index = random.index_below(open.len());
                drop(open.swap_remove(index));
            }
            3 if !open.is_empty() => {
                let index = random.index_below(open.len());
                let _ = clocked.begin(&open[index]);
            }
            _ => open.iter().for_each(|place| place.end(clocked.now())),
        }
        assert_eq!(clocked.places.open(), open.len());
        assert!(open.len() <= 24);
        let leaving = open.iter().filter(|place| is_displaced(place)).count();
        assert_eq!(clocked.places.lock().staying(), open.len() - leaving);
    }
    drop(open);
    let queue = clocked.places.lock();
    assert_eq!((queue.len(), queue.unproven()), (0, 0));
}
