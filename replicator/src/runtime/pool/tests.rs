use super::*;

#[test]
fn every_buffer_is_page_aligned_and_of_the_smallest_class_that_holds_it() {
    let pool = Pool::new(usize::MAX, 0);
    for (len, capacity) in [
        (0, 4096),
        (1, 4096),
        (4096, 4096),
        (4097, 16 << 10),
        (65_537, 256 << 10),
        ((64 << 20) + 1, (64 << 20) + 8192),
    ] {
        let mut buffer = pool.get(len).unwrap();
        assert_eq!(buffer.capacity(), capacity);
        assert_eq!(buffer.pointer_at(0).addr() % ALIGN, 0);
    }
    assert!(pool.get(MAX_BUFFER_BYTES + 1).is_none());
}

#[test]
fn slices_and_clones_share_the_bytes_and_the_last_one_frees_them() {
    let pool = Pool::new(usize::MAX, 1 << 20);
    let whole = pool.copy_of(b"hello world").unwrap();
    let part = whole.slice(6, 5);
    let again = part.slice(1, 3).clone();
    drop(whole);
    assert_eq!(part.bytes(), b"world");
    assert_eq!(again.bytes(), b"orl");
    assert_eq!(again.len(), 3);
    assert_eq!(pool.stats().used_bytes, 4096);
    drop(part);
    assert_eq!(pool.stats().used_bytes, 4096);
    drop(again);
    let end = pool.stats();
    assert_eq!((end.used_bytes, end.kept_bytes), (0, 4096));
}

#[test]
#[should_panic(expected = "slice within the payload")]
fn a_slice_beyond_the_payload_is_not_given_though_the_buffer_is_larger() {
    let pool = Pool::new(usize::MAX, 0);
    let _ = pool.copy_of(b"abc").unwrap().slice(1, 3);
}

#[test]
fn a_steady_load_makes_no_new_buffers() {
    let pool = Pool::new(usize::MAX, 1 << 20);
    for _ in 0..1000 {
        let a = pool.get(4096).unwrap();
        let b = pool.get(4096).unwrap().freeze(0, 10);
        drop((a, b));
    }
    assert_eq!(pool.stats().allocations, 2);
}

#[test]
fn at_the_limit_network_reads_are_refused_until_something_is_freed() {
    let pool = Pool::new(10_000, 1 << 20);
    let a = pool.try_get(4096).unwrap();
    let b = pool.try_get(4096).unwrap();
    assert!(pool.try_get(1).is_none());
    assert!(
        pool.get(1).is_some(),
        "work bounded elsewhere is not refused"
    );
    drop(a);
    assert!(pool.try_get(1).is_some());
    drop(b);
    // One request larger than the limit still gets through when nothing else is in use.
    assert!(pool.try_get(64 << 10).is_some());
}

#[test]
fn no_more_free_buffers_are_kept_than_allowed() {
    let pool = Pool::new(usize::MAX, 8192);
    let buffers: Vec<_> = (0..5).map(|_| pool.get(4096).unwrap()).collect();
    drop(buffers);
    assert_eq!(pool.stats().kept_bytes, 8192);
}

#[test]
fn buffers_may_be_dropped_in_another_thread_and_outlive_the_pool() {
    let pool = Pool::new(usize::MAX, 1 << 20);
    let shared = pool.copy_of(&[7; 5000]).unwrap();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let mine = shared.clone();
            std::thread::spawn(move || {
                (0..1000)
                    .map(|i| usize::from(mine.slice(i, 1).bytes()[0]))
                    .sum::<usize>()
            })
        })
        .collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), 7000);
    }
    drop(pool);
    assert_eq!(shared.bytes().len(), 5000);
}
