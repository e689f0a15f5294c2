//! The two halves of a stream socket on the ring, shared by clients and peers: an [`Inbox`] that
//! receives many messages at a time and large payloads straight into the buffer that goes to the
//! disk, and an [`Outbox`] that sends what was gathered in a turn of the loop in one piece.

use super::pool::{Pool, PoolBuf, PoolMut};
use super::ring::{Fd, Op, OpKey, Ring, SendBatch};
use super::tls::{MAX_OPENED_BYTES, Opened, Tls};
use crate::core::api::Payload;
use nix::errno::Errno;
use std::os::fd::AsRawFd as _;

/// Bytes of the receive buffer of a connection: one receive takes some sixty requests of 4 KiB, and
/// header and body of any peer frame (128 KiB) fit.
pub const RECEIVE_BYTES: usize = 256 << 10;

/// What is missing of a payload is received straight into its buffer from this size on. Below, it is
/// cheaper to receive it together with what follows and to copy it.
const DIRECT_BYTES: usize = 16 << 10;

/// Most plaintext that is sealed for one send: some tens of microseconds of work.
const SEAL_BYTES: usize = 256 << 10;

/// Room that is left behind unparsed input before it is moved to the front.
const MIN_ROOM: usize = RECEIVE_BYTES / 4;

#[derive(Debug)]
struct Incoming {
    /// Away while the ring fills it.
    buffer: Option<PoolMut>,
    got: usize,
    len: usize,
}

/// What a completed receive brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// So many bytes.
    Bytes(usize),
    /// Nothing this time.
    Nothing,
    /// The peer sends no more.
    End,
}

/// Received bytes that are still sealed.
#[derive(Debug, Default)]
struct Sealed {
    /// Away while the ring fills it, and not there before the first receive.
    buffer: Option<PoolMut>,
    start: usize,
    end: usize,
}

/// The receiving half.
#[derive(Debug, Default)]
pub struct Inbox {
    /// Away while the ring fills it, and not there before the first receive.
    buffer: Option<PoolMut>,
    start: usize,
    end: usize,
    payload: Option<Incoming>,
    key: Option<OpKey>,
    direct: bool,
    /// On a secured connection: what comes from the socket goes here, and [`Inbox::open`] takes it on.
    sealed: Option<Sealed>,
    total: u64,
}

impl Inbox {
    /// For a secured connection.
    #[must_use]
    pub fn secured() -> Self {
        Self {
            sealed: Some(Sealed::default()),
            ..Self::default()
        }
    }

    /// From here on what was received, and what will be, is sealed. No receive is in flight.
    pub fn secure(&mut self) {
        debug_assert!(!self.is_armed() && !self.in_payload());
        self.sealed = Some(Sealed {
            buffer: self.buffer.take(),
            start: std::mem::take(&mut self.start),
            end: std::mem::take(&mut self.end),
        });
    }

    /// Forgets all that was received and not consumed. No receive is in flight.
    pub fn discard(&mut self) {
        (self.start, self.end, self.payload) = (0, 0, None);
        if let Some(sealed) = &mut self.sealed {
            (sealed.start, sealed.end) = (0, 0);
        }
    }

    /// Is all that was received consumed?
    #[must_use]
    pub fn is_read(&self) -> bool {
        let is_opened = |sealed: &Sealed| sealed.start == sealed.end;
        self.input().is_empty() && self.sealed.as_ref().is_none_or(is_opened)
    }

    /// Opens the next record of what was received on a secured connection.
    ///
    /// # Errors
    /// The connection is of no more use; what tells the other side so waits in `tls`.
    pub fn open(&mut self, tls: &mut Tls, pool: &Pool) -> Result<Opened, rustls::Error> {
        let Some(sealed) = &mut self.sealed else {
            return Ok(Opened::NeedMore);
        };
        let Some(received) = &sealed.buffer else {
            return Ok(Opened::NeedMore);
        };
        if sealed.start == sealed.end {
            return Ok(Opened::NeedMore);
        }
        let Some(mut buffer) = self.buffer.take().or_else(|| pool.get(RECEIVE_BYTES)) else {
            return Ok(Opened::NeedMore);
        };
        make_room(&mut buffer, &mut self.start, &mut self.end);
        debug_assert!(RECEIVE_BYTES - self.end >= MAX_OPENED_BYTES);
        let (payload, end) = (&mut self.payload, &mut self.end);
        let is_next = self.start == *end;
        let bytes = &received.bytes()[sealed.start..sealed.end];
        let result = tls.open(bytes, |plaintext| {
            let mut rest = plaintext;
            // What belongs to a payload goes where it is wanted at once.
            if is_next
                && let Some(incoming) = payload.as_mut()
                && let Some(into) = &mut incoming.buffer
            {
                let count = rest.len().min(incoming.len - incoming.got);
                into.space()[incoming.got..incoming.got + count].copy_from_slice(&rest[..count]);
                incoming.got += count;
                rest = &rest[count..];
            }
            buffer.space()[*end..*end + rest.len()].copy_from_slice(rest);
            *end += rest.len();
        });
        self.buffer = Some(buffer);
        let (used, opened) = result?;
        sealed.start += used;
        Ok(opened)
    }

    /// Is a receive in flight?
    #[must_use]
    pub const fn is_armed(&self) -> bool {
        self.key.is_some()
    }

    /// Bytes received since the connection was made.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// What was received and not consumed, without what belongs to a payload in the making.
    #[must_use]
    pub fn input(&self) -> &[u8] {
        self.buffer
            .as_ref()
            .map_or(&[], |buffer| &buffer.bytes()[self.start..self.end])
    }

    /// Drops bytes from the front of the input.
    pub fn consume(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.end - self.start);
        self.start += bytes;
    }

    /// From here on `len` bytes of the stream are a payload; false (and nothing changed) while the
    /// pool is at its limit.
    #[must_use]
    pub fn begin_payload(&mut self, pool: &Pool, len: usize) -> bool {
        let Some(buffer) = pool.try_get(len) else {
            return false;
        };
        self.payload = Some(Incoming {
            buffer: Some(buffer),
            got: 0,
            len,
        });
        true
    }

    /// Is a payload in the making?
    #[must_use]
    pub const fn in_payload(&self) -> bool {
        self.payload.is_some()
    }

    /// The payload, once all of it has come.
    pub fn take_payload(&mut self) -> Option<PoolBuf> {
        let incoming = self.payload.as_mut()?;
        let buffer = incoming.buffer.as_mut()?;
        if let Some(input) = &self.buffer {
            let count = (self.end - self.start).min(incoming.len - incoming.got);
            let part = &input.bytes()[self.start..self.start + count];
            buffer.space()[incoming.got..incoming.got + count].copy_from_slice(part);
            incoming.got += count;
            self.start += count;
        }
        if incoming.got < incoming.len {
            return None;
        }
        let Incoming { buffer, len, .. } = self.payload.take()?;
        buffer.map(|buffer| buffer.freeze(0, len))
    }

    /// Starts the next receive unless one is in flight.
    pub fn arm<T>(&mut self, ring: &mut Ring<T>, pool: &Pool, fd: &Fd, token: T) {
        if self.is_armed() {
            return;
        }
        if let Some(sealed) = &mut self.sealed {
            let Some(mut buffer) = sealed.buffer.take().or_else(|| pool.get(RECEIVE_BYTES)) else {
                return;
            };
            make_room(&mut buffer, &mut sealed.start, &mut sealed.end);
            let (from, len) = (sealed.end, RECEIVE_BYTES - sealed.end);
            debug_assert!(len > 0, "a record that does not fit the receive buffer");
            let fd = fd.clone();
            let op = Op::Recv {
                fd,
                buffer,
                from,
                len,
            };
            self.key = Some(ring.start(token, op));
            return;
        }
        if let Some(incoming) = &mut self.payload
            && self.start == self.end
            && incoming.len - incoming.got >= DIRECT_BYTES
            && let Some(buffer) = incoming.buffer.take()
        {
            let (from, len) = (incoming.got, incoming.len - incoming.got);
            self.direct = true;
            self.key = Some(ring.start(
                token,
                Op::Recv {
                    fd: fd.clone(),
                    buffer,
                    from,
                    len,
                },
            ));
            return;
        }
        let Some(mut buffer) = self.buffer.take().or_else(|| pool.get(RECEIVE_BYTES)) else {
            return;
        };
        make_room(&mut buffer, &mut self.start, &mut self.end);
        let (from, len) = (self.end, RECEIVE_BYTES - self.end);
        debug_assert!(len > 0, "a message that does not fit the receive buffer");
        self.direct = false;
        self.key = Some(ring.start(
            token,
            Op::Recv {
                fd: fd.clone(),
                buffer,
                from,
                len,
            },
        ));
    }

    /// Takes in a completed receive.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn received(&mut self, op: Op, result: Result<usize, Errno>) -> Result<Received, Errno> {
        self.key = None;
        let Op::Recv { buffer, .. } = op else {
            return Err(Errno::EINVAL);
        };
        let count = match result {
            Err(Errno::EINTR | Errno::EAGAIN) => None,
            other => Some(other),
        };
        let moved = count.and_then(Result::ok).unwrap_or(0);
        match (&mut self.sealed, &mut self.payload) {
            (Some(sealed), _) => {
                sealed.buffer = Some(buffer);
                sealed.end += moved;
            }
            (None, Some(incoming)) if self.direct => {
                incoming.buffer = Some(buffer);
                incoming.got += moved;
            }
            _ => {
                self.buffer = Some(buffer);
                self.end += moved;
            }
        }
        self.total += u64::try_from(moved).unwrap_or(0);
        match count {
            None => Ok(Received::Nothing),
            Some(Ok(0)) => Ok(Received::End),
            Some(Ok(bytes)) => Ok(Received::Bytes(bytes)),
            Some(Err(error)) => Err(error),
        }
    }
}

/// Moves what is left in a receive buffer to its front where it stands near the end.
fn make_room(buffer: &mut PoolMut, start: &mut usize, end: &mut usize) {
    if start == end {
        (*start, *end) = (0, 0);
    } else if RECEIVE_BYTES - *end < MIN_ROOM {
        buffer.space().copy_within(*start..*end, 0);
        (*start, *end) = (0, *end - *start);
    }
}

/// The sending half.
#[derive(Debug, Default)]
pub struct Outbox {
    /// What is gathered for the next send.
    pub batch: Box<SendBatch>,
    spare: Option<Box<SendBatch>>,
    sending: Option<usize>,
    /// On a secured connection: what is being sealed, a part at a time.
    sealing: Box<SendBatch>,
    secured: bool,
    sent_bytes: u64,
    broken: bool,
}

impl Outbox {
    /// For a secured connection.
    #[must_use]
    pub fn secured() -> Self {
        Self {
            secured: true,
            ..Self::default()
        }
    }

    /// Is a send in flight?
    #[must_use]
    pub const fn is_sending(&self) -> bool {
        self.sending.is_some()
    }

    /// Bytes gathered and in flight.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.batch.len() + self.sealing.left() + self.sending.unwrap_or(0)
    }

    /// Bytes that the socket has taken since the connection was made.
    #[must_use]
    pub const fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Is all sent, or can nothing be sent any more?
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let nothing = self.batch.is_empty() && self.sealing.left() == 0;
        self.sending.is_none() && (self.broken || nothing)
    }

    /// Sends what was gathered, unless a send is in flight: then its completion does.
    pub fn flush<T>(&mut self, ring: &mut Ring<T>, fd: &Fd, token: T) {
        if self.sending.is_some() || self.batch.is_empty() || self.broken {
            return;
        }
        let batch = std::mem::replace(&mut self.batch, self.spare.take().unwrap_or_default());
        self.sending = Some(batch.left());
        ring.start(
            token,
            Op::Send {
                fd: fd.clone(),
                batch,
            },
        );
    }

    /// The same on a secured connection. At most `SEAL_BYTES` are sealed at a time, so that a large
    /// backlog does not keep everything else waiting.
    ///
    /// # Errors
    /// The connection is of no more use.
    pub fn flush_secured<T>(
        &mut self,
        tls: &mut Tls,
        ring: &mut Ring<T>,
        fd: &Fd,
        token: T,
    ) -> Result<(), rustls::Error> {
        if self.sending.is_some() || self.broken {
            return Ok(());
        }
        let mut out = self.spare.take().unwrap_or_default();
        let mut left = SEAL_BYTES;
        while left > 0 {
            if self.sealing.left() == 0 {
                self.sealing.clear();
                std::mem::swap(&mut self.batch, &mut self.sealing);
            }
            let before = self.sealing.left();
            tls.seal(&mut self.sealing, left, out.headers())?;
            let sealed = before - self.sealing.left();
            if sealed == 0 {
                break;
            }
            left = left.saturating_sub(sealed);
        }
        if self.sealing.left() == 0 {
            // Lets go of payloads.
            self.sealing.clear();
        }
        if out.is_empty() {
            self.spare = Some(out);
            return Ok(());
        }
        self.sending = Some(out.left());
        let fd = fd.clone();
        ring.start(token, Op::Send { fd, batch: out });
        Ok(())
    }

    /// Takes in a completed send and goes on with what is left, or with what was gathered since (on a
    /// secured connection that is for the next flush).
    ///
    /// # Errors
    /// The connection is broken; nothing is sent any more.
    pub fn sent<T>(
        &mut self,
        ring: &mut Ring<T>,
        fd: &Fd,
        token: T,
        op: Op,
        result: Result<usize, Errno>,
    ) -> Result<(), Errno> {
        self.sending = None;
        let Op::Send { mut batch, .. } = op else {
            return Err(Errno::EINVAL);
        };
        match result {
            Ok(count) => {
                batch.advance(count);
                self.sent_bytes += u64::try_from(count).unwrap_or(0);
            }
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(error) => {
                self.fail();
                return Err(error);
            }
        }
        if self.broken {
            return Ok(());
        }
        if batch.left() > 0 {
            self.sending = Some(batch.left());
            ring.start(
                token,
                Op::Send {
                    fd: fd.clone(),
                    batch,
                },
            );
        } else {
            batch.clear();
            self.spare = Some(batch);
            if !self.secured {
                self.flush(ring, fd, token);
            }
        }
        Ok(())
    }

    /// Nothing is sent any more; what was gathered is let go.
    pub fn fail(&mut self) {
        self.broken = true;
        self.batch.clear();
        self.sealing.clear();
    }
}

/// Ends both directions at once: receives and sends in flight complete.
pub fn shut(fd: &Fd) {
    // Not connected any more is as good.
    let _ = nix::sys::socket::shutdown(fd.as_raw_fd(), nix::sys::socket::Shutdown::Both);
}

/// Says that nothing more is sent; receives go on.
pub fn shut_sending(fd: &Fd) {
    // Not connected any more is as good.
    let _ = nix::sys::socket::shutdown(fd.as_raw_fd(), nix::sys::socket::Shutdown::Write);
}

/// Appends a payload to a batch.
pub fn append(batch: &mut SendBatch, payload: PoolBuf) {
    if !payload.is_empty() {
        batch.payload(payload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::ring::Wait;
    use std::io::{Read as _, Write as _};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    struct Bench {
        ring: Ring<()>,
        pool: Pool,
        fd: Fd,
        inbox: Inbox,
        theirs: UnixStream,
    }

    impl Bench {
        fn new() -> Self {
            let (ours, theirs) = UnixStream::pair().unwrap();
            Self {
                ring: Ring::new().unwrap(),
                pool: Pool::new(usize::MAX, 1 << 20),
                fd: Arc::new(OwnedFd::from(ours)),
                inbox: Inbox::default(),
                theirs,
            }
        }

        fn receive(&mut self) -> usize {
            self.inbox.arm(&mut self.ring, &self.pool, &self.fd, ());
            let end = Instant::now() + Duration::from_secs(10);
            loop {
                if let Some(done) = self.ring.take() {
                    match self.inbox.received(done.op, done.result).unwrap() {
                        Received::Bytes(count) => return count,
                        other => panic!("{other:?}"),
                    }
                }
                assert!(Instant::now() < end, "nothing was received");
                self.ring
                    .submit(Wait::For(Duration::from_millis(100)))
                    .unwrap();
            }
        }
    }

    #[test]
    fn small_payloads_come_out_of_the_receive_buffer_and_parsing_goes_on_behind_them() {
        let mut bench = Bench::new();
        bench.theirs.write_all(b"headPAYLOADtail").unwrap();
        assert_eq!(bench.receive(), 15);
        assert_eq!(&bench.inbox.input()[..4], b"head");
        bench.inbox.consume(4);
        assert!(bench.inbox.begin_payload(&bench.pool, 7));
        assert_eq!(bench.inbox.take_payload().unwrap().bytes(), b"PAYLOAD");
        assert_eq!(bench.inbox.input(), b"tail");
    }

    #[test]
    fn the_rest_of_a_large_payload_is_received_in_place_and_ends_exactly() {
        let mut bench = Bench::new();
        let payload: Vec<u8> = (0..1_000_000_u32).map(|i| i.to_le_bytes()[1]).collect();
        let mut sent = b"head".to_vec();
        sent.extend_from_slice(&payload);
        sent.extend_from_slice(b"tail");
        let mut theirs = bench.theirs.try_clone().unwrap();
        let writer = std::thread::spawn(move || theirs.write_all(&sent).unwrap());
        while bench.inbox.input().len() < 4 {
            bench.receive();
        }
        bench.inbox.consume(4);
        assert!(bench.inbox.begin_payload(&bench.pool, payload.len()));
        let got = loop {
            if let Some(got) = bench.inbox.take_payload() {
                break got;
            }
            bench.receive();
        };
        assert!(got.bytes() == payload);
        while bench.inbox.input().len() < 4 {
            bench.receive();
        }
        assert_eq!(bench.inbox.input(), b"tail");
        assert_eq!(bench.inbox.total(), 1_000_008);
        writer.join().unwrap();
    }

    #[test]
    fn a_message_across_the_end_of_the_receive_buffer_is_moved_to_its_front() {
        let mut bench = Bench::new();
        let message: Vec<u8> = (0..100_000_u32).map(|i| i.to_le_bytes()[0]).collect();
        let mut theirs = bench.theirs.try_clone().unwrap();
        let copy = message.clone();
        let writer = std::thread::spawn(move || {
            for _ in 0..20 {
                theirs.write_all(&copy).unwrap();
            }
        });
        for _ in 0..20 {
            while bench.inbox.input().len() < message.len() {
                bench.receive();
            }
            assert!(bench.inbox.input()[..message.len()] == message);
            bench.inbox.consume(message.len());
        }
        writer.join().unwrap();
    }

    #[test]
    fn at_the_pools_limit_a_payload_is_not_begun() {
        let mut bench = Bench::new();
        let pool = Pool::new(4096, 0);
        let held = pool.get(1).unwrap();
        assert!(!bench.inbox.begin_payload(&pool, 100));
        assert!(!bench.inbox.in_payload());
        drop(held);
        assert!(bench.inbox.begin_payload(&pool, 100));
    }

    #[test]
    fn what_is_gathered_while_a_send_is_in_flight_follows_it_in_order() {
        let Bench {
            mut ring,
            pool,
            fd,
            mut theirs,
            ..
        } = Bench::new();
        let mut outbox = Outbox::default();
        let big = pool.copy_of(&vec![b'x'; 3 << 20]).unwrap();
        outbox.batch.headers().extend_from_slice(b"one");
        append(&mut outbox.batch, big);
        outbox.flush(&mut ring, &fd, ());
        ring.submit(Wait::No).unwrap();
        outbox.batch.headers().extend_from_slice(b"two");
        outbox.flush(&mut ring, &fd, ());
        assert!(outbox.is_sending() && !outbox.is_idle());
        let reader = std::thread::spawn(move || {
            let mut got = vec![0; (3 << 20) + 6];
            theirs.read_exact(&mut got).unwrap();
            got
        });
        let end = Instant::now() + Duration::from_secs(10);
        while !outbox.is_idle() && Instant::now() < end {
            while let Some(done) = ring.take() {
                outbox
                    .sent(&mut ring, &fd, (), done.op, done.result)
                    .unwrap();
            }
            ring.submit(Wait::For(Duration::from_millis(10))).unwrap();
        }
        let got = reader.join().unwrap();
        assert!(got.starts_with(b"onex") && got.ends_with(b"xtwo"));
        assert_eq!(outbox.unsent(), 0);
    }

    #[test]
    fn a_closed_peer_is_an_error_and_not_a_signal() {
        let Bench {
            mut ring,
            fd,
            theirs,
            ..
        } = Bench::new();
        drop(theirs);
        let mut outbox = Outbox::default();
        outbox.batch.headers().extend_from_slice(b"x");
        outbox.flush(&mut ring, &fd, ());
        ring.submit(Wait::Forever).unwrap();
        let done = ring.take().unwrap();
        let result = outbox.sent(&mut ring, &fd, (), done.op, done.result);
        assert_eq!(result, Err(Errno::EPIPE));
        assert!(outbox.is_idle());
    }
}
