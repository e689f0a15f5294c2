use super::*;
use crate::runtime::pool::Pool;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

fn fd(file: impl Into<OwnedFd>) -> Fd {
    Arc::new(file.into())
}

fn pool() -> Pool {
    Pool::new(usize::MAX, 1 << 20)
}

/// Waits for the next completion, at most ten seconds.
fn wait<T>(ring: &mut Ring<T>) -> Completion<T> {
    let end = Instant::now() + Duration::from_secs(10);
    while Instant::now() < end {
        if let Some(done) = ring.take() {
            return done;
        }
        ring.submit(Wait::For(Duration::from_secs(1))).unwrap();
    }
    panic!("no completion within ten seconds");
}

#[test]
fn what_was_written_durably_is_read_back() {
    let pool = pool();
    let file = fd(tempfile::tempfile().unwrap());
    let mut ring = Ring::new().unwrap();
    let data = pool.copy_of(&[5; 8192]).unwrap();
    ring.start(
        1,
        Op::Write {
            fd: file.clone(),
            offset: 4096,
            data,
            durable: true,
        },
    );
    let done = wait(&mut ring);
    assert_eq!((done.token, done.result), (1, Ok(8192)));
    ring.start(2, Op::Sync { fd: file.clone() });
    assert_eq!(wait(&mut ring).result, Ok(0));
    let buffer = pool.get(16 << 10).unwrap();
    ring.start(
        3,
        Op::Read {
            fd: file,
            offset: 0,
            buffer,
            from: 0,
            len: 16 << 10,
        },
    );
    let done = wait(&mut ring);
    assert_eq!(done.result, Ok(12288), "a read ends at the end of the file");
    let Op::Read { buffer, .. } = done.op else {
        panic!("another operation came back")
    };
    assert_eq!(buffer.bytes()[..4096], [0; 4096]);
    assert_eq!(buffer.bytes()[4096..12288], [5; 8192]);
    assert_eq!(ring.in_flight(), 0);
}

#[test]
fn errors_come_back_as_their_number() {
    let pool = pool();
    let file = fd(std::fs::File::open("/proc/self/exe").unwrap());
    let mut ring = Ring::new().unwrap();
    let data = pool.copy_of(b"x").unwrap();
    ring.start(
        (),
        Op::Write {
            fd: file,
            offset: 0,
            data,
            durable: false,
        },
    );
    assert_eq!(wait(&mut ring).result, Err(Errno::EBADF));
}

#[test]
fn a_batch_leaves_in_one_piece_in_its_order_and_is_used_again() {
    let pool = pool();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let ours = fd(ours);
    let mut ring = Ring::new().unwrap();
    let mut batch = Box::new(SendBatch::default());
    for round in 0..2 {
        batch.headers().extend_from_slice(b"one");
        batch.payload(pool.copy_of(&[b'x'; 1000]).unwrap());
        batch.headers().extend_from_slice(b"two");
        batch.headers().extend_from_slice(b"three");
        batch.payload(pool.copy_of(b"short").unwrap());
        batch.payload(pool.copy_of(&[b'y'; 600]).unwrap());
        assert_eq!(batch.len(), 3 + 1000 + 3 + 5 + 5 + 600);
        ring.start(
            round,
            Op::Send {
                fd: ours.clone(),
                batch,
            },
        );
        let done = wait(&mut ring);
        assert_eq!(done.result, Ok(1616));
        let Op::Send { batch: back, .. } = done.op else {
            panic!("another operation came back")
        };
        batch = back;
        batch.advance(1616);
        assert_eq!(batch.left(), 0);
        batch.clear();
        let mut got = vec![0; 1616];
        theirs.read_exact(&mut got).unwrap();
        let expected = [
            b"one".as_slice(),
            &[b'x'; 1000],
            b"twothree",
            b"short",
            &[b'y'; 600],
        ]
        .concat();
        assert_eq!(got, expected);
    }
}

#[test]
fn a_batch_goes_on_where_a_partial_send_stopped() {
    let pool = pool();
    for step in [1, 7, 600, 1024, 5000] {
        let mut batch = Box::new(SendBatch::default());
        let mut expected = Vec::new();
        for i in 0..1500_usize {
            let byte = u8::try_from(i % 251).unwrap();
            batch.headers().push(byte);
            batch.payload(pool.copy_of(&[byte; 513]).unwrap());
            expected.extend_from_slice(&[byte; 514]);
        }
        let mut got = Vec::new();
        while batch.left() > 0 {
            // SAFETY: the message and what it points to live in `batch`, which is not changed here.
            let first = unsafe {
                let message = &*batch.prepare();
                let piece = &*message.msg_iov;
                std::slice::from_raw_parts(piece.iov_base.cast::<u8>(), piece.iov_len)
            };
            let taken = first.len().min(step);
            got.extend_from_slice(&first[..taken]);
            batch.advance(taken);
        }
        assert_eq!(got, expected);
    }
}

#[test]
fn a_recv_waits_for_bytes_and_sees_the_end_of_the_stream() {
    let pool = pool();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let ours = fd(ours);
    let mut ring = Ring::new().unwrap();
    let buffer = pool.get(4096).unwrap();
    ring.start(
        (),
        Op::Recv {
            fd: ours.clone(),
            buffer,
            from: 10,
            len: 100,
        },
    );
    ring.submit(Wait::No).unwrap();
    assert!(ring.take().is_none());
    theirs.write_all(b"hello").unwrap();
    let done = wait(&mut ring);
    assert_eq!(done.result, Ok(5));
    let Op::Recv { buffer, .. } = done.op else {
        panic!("another operation came back")
    };
    assert_eq!(&buffer.bytes()[10..15], b"hello");
    drop(theirs);
    ring.start(
        (),
        Op::Recv {
            fd: ours,
            buffer,
            from: 0,
            len: 100,
        },
    );
    assert_eq!(wait(&mut ring).result, Ok(0));
}

#[test]
fn a_cancelled_operation_still_comes_back_with_its_buffer() {
    let pool = pool();
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let mut ring = Ring::new().unwrap();
    let buffer = pool.get(4096).unwrap();
    let key = ring.start(
        9,
        Op::Recv {
            fd: fd(ours),
            buffer,
            from: 0,
            len: 100,
        },
    );
    ring.submit(Wait::No).unwrap();
    ring.cancel(key);
    let done = wait(&mut ring);
    assert_eq!((done.token, done.result), (9, Err(Errno::ECANCELED)));
}

#[test]
fn more_operations_than_queue_entries_all_complete() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let ours = fd(ours);
    let mut ring = Ring::new().unwrap();
    let count = 20_000;
    for i in 0..count {
        let events = u32::try_from(libc::POLLIN).unwrap();
        ring.start(
            i,
            Op::Poll {
                fd: ours.clone(),
                events,
            },
        );
    }
    ring.submit(Wait::No).unwrap();
    theirs.write_all(b"x").unwrap();
    let mut seen = vec![false; count];
    for _ in 0..count {
        let done = wait(&mut ring);
        assert!(done.result.is_ok());
        assert!(
            !std::mem::replace(&mut seen[done.token], true),
            "a completion came twice"
        );
    }
    assert_eq!(ring.in_flight(), 0);
    assert_eq!(ring.stats().completed, count as u64);
}

#[test]
fn a_wait_ends_at_its_time_limit_and_a_timeout_completes() {
    let mut ring: Ring<()> = Ring::new().unwrap();
    let start = Instant::now();
    ring.submit(Wait::For(Duration::from_millis(20))).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(20));
    assert!(ring.take().is_none());
    let after = Box::new(Timespec::new().nsec(1_000_000));
    ring.start((), Op::Timeout { after });
    assert_eq!(wait(&mut ring).result, Err(Errno::ETIME));
}

#[test]
fn a_dropped_ring_gives_back_the_buffers_of_what_was_in_flight() {
    let pool = pool();
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let ours = fd(ours);
    let mut ring = Ring::new().unwrap();
    let buffer = pool.get(4096).unwrap();
    ring.start(
        (),
        Op::Recv {
            fd: ours.clone(),
            buffer,
            from: 0,
            len: 100,
        },
    );
    ring.submit(Wait::No).unwrap();
    drop(ring);
    assert_eq!(pool.stats().used_bytes, 0);
    assert_eq!(Arc::strong_count(&ours), 1);
}

#[test]
fn connect_accept_and_eventfd_work() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Box::new(socket2::SockAddr::from(listener.local_addr().unwrap()));
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let mut ring = Ring::new().unwrap();
    ring.start(
        "accept",
        Op::Accept {
            fd: fd(listener),
            accepted: None,
        },
    );
    ring.start(
        "connect",
        Op::Connect {
            fd: fd(socket),
            address,
        },
    );
    let mut accepted = None;
    for _ in 0..2 {
        let done = wait(&mut ring);
        assert!(done.result.is_ok(), "{done:?}");
        if let Op::Accept {
            accepted: Some(socket),
            ..
        } = done.op
        {
            accepted = Some(socket);
        }
    }
    assert!(accepted.is_some());
    let event = nix::sys::eventfd::EventFd::new().unwrap();
    event.write(3).unwrap();
    let event = fd(OwnedFd::from(event));
    ring.start(
        "event",
        Op::ReadEvent {
            fd: event,
            value: Box::new(0),
        },
    );
    let Op::ReadEvent { value, .. } = wait(&mut ring).op else {
        panic!("another operation")
    };
    assert_eq!(*value, 3);
}
