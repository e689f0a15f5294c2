//! Small scopes of the production core, explored breadth first: no order of what is under way breaks a
//! rule. CI explores the larger ones by the command line (`--explore`); this shows that it works and
//! that the smallest is explored to its end.

use simulator::explore::{SCOPES, explore};

#[test]
fn no_order_of_a_small_scope_breaks_a_rule() {
    for scope in SCOPES {
        let seen =
            explore(scope, 300, 50).unwrap_or_else(|found| panic!("{}: {found}", scope.name));
        assert!(seen.states == 300 || seen.complete, "{seen:?}");
        assert!(seen.depth >= 3 && seen.rested > 0, "{seen:?}");
    }
}

#[test]
fn the_scope_of_one_write_on_three_replicas_is_explored_to_its_end() {
    let scope = SCOPES.iter().find(|s| s.name == "three").unwrap();
    let seen = explore(scope, 100_000, 50).unwrap_or_else(|found| panic!("{found}"));
    assert!(seen.complete && seen.states > 100, "{seen:?}");
}
