//! Whether a block's history could have been one after the other.

use super::*;

/// Is there an order of these that a single register could have had? Requests without an end may
/// have happened at any time after they began, or not at all.
pub(super) fn is_linearizable(history: &[Seen]) -> bool {
    fn search(history: &[Seen], done: u64, value: u8, failed: &mut BTreeSet<(u64, u8)>) -> bool {
        let left = || (0..history.len()).filter(|i| done & (1 << i) == 0);
        if left().all(|i| history[i].ended.is_none()) {
            return true;
        }
        if !failed.insert((done, value)) {
            return false;
        }
        // Nothing comes before what ended before it began.
        let limit = left().filter_map(|i| history[i].ended).min().unwrap();
        left().any(|i| {
            let seen = history[i];
            if seen.begun > limit {
                return false;
            }
            match seen.write {
                true => search(history, done | 1 << i, seen.value, failed),
                false => seen.value == value && search(history, done | 1 << i, value, failed),
            }
        })
    }
    assert!(history.len() <= 64);
    search(history, 0, 0, &mut BTreeSet::new())
}

#[test]
fn the_checker_knows_a_write_that_came_back() {
    let seen = |write, value, begun, ended| Seen {
        block: 0,
        write,
        value,
        begun,
        ended,
    };
    // F's write, unanswered; another client reads it and writes; then F's is there again.
    let lost = [
        seen(true, 1, 0, Some(50)),
        seen(false, 1, 10, Some(20)),
        seen(true, 2, 30, Some(40)),
        seen(false, 1, 60, Some(70)),
    ];
    assert!(!is_linearizable(&lost));
    assert!(is_linearizable(&lost[..3]));
}
