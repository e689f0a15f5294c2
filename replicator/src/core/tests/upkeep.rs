//! What operators ask of a primary: verify, grow, invalidate.

use super::*;

#[test]
fn verify_finds_exactly_the_planted_difference_and_repairs_it() {
    let mut c = Cluster::new(2);
    c.promote(0);
    c.write(0, 0, 6, 4096);
    c.nodes[1].data.write(20 << 20, &[1; 100]);
    let v = c.command(
        0,
        Command::Verify {
            node: None,
            repair: false,
        },
    );
    c.run_ms(5000);
    assert_eq!(c.commands[&v], Ok(()));
    let found = |c: &Cluster| {
        c.notices
            .iter()
            .filter(|(_, n)| matches!(n, Notice::Differs { .. }))
            .count()
    };
    assert_eq!(found(&c), 1);
    let v = c.command(
        0,
        Command::Verify {
            node: None,
            repair: true,
        },
    );
    c.run_ms(5000);
    assert_eq!(c.commands[&v], Ok(()));
    assert_eq!(found(&c), 2);
    assert_eq!(c.byte(1, 20 << 20), 0);
}

#[test]
fn a_volume_grows_on_every_replica() {
    let mut c = Cluster::new(2);
    c.promote(0);
    let r = c.command(
        0,
        Command::Resize {
            volume: VolumeId(0),
            size_bytes: SIZE * 2,
        },
    );
    c.run_ms(1000);
    assert_eq!(c.commands[&r], Ok(()));
    let w = c.write(0, SIZE + 4096, 1, 4096);
    assert!(c.ok(w));
    assert_eq!(c.byte(1, SIZE + 4096), 1);
}

#[test]
fn invalidate_copies_everything_anew() {
    let mut c = Cluster::new(2);
    c.promote(0);
    c.write(0, 0, 6, 4096);
    c.nodes[1].data.write(30 << 20, &[1; 100]);
    let i = c.command(0, Command::Invalidate { node: id(1) });
    c.run_ms(10_000);
    assert_eq!(c.commands[&i], Ok(()));
    assert_eq!(c.byte(1, 30 << 20), 0);
    assert_eq!(c.in_sync(), [0, 1]);
}
