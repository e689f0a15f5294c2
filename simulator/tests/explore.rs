//! Small scopes of the production core, explored breadth first: no order of what is under way breaks a
//! rule. CI explores far more states by the command line (`--explore`); this shows that it works.

use simulator::explore::{SCOPES, explore};

#[test]
fn no_order_of_a_small_scope_breaks_a_rule() {
    for scope in SCOPES {
        let seen =
            explore(scope, 400, 50).unwrap_or_else(|found| panic!("{}: {found}", scope.name));
        assert_eq!(seen.states, 400);
        assert!(seen.depth >= 3 && seen.rested > 0, "{seen:?}");
    }
}
