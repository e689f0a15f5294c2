//! Connections and links. A connection is FIFO in each direction and may end at any message; what
//! was sent into a cut link waits there, as in TCP, and comes late or never. Holds no clock: the
//! world schedules one delivery for every item that is queued.

use crate::payload::Stamps;
use crate::rng::Rng;
use crate::store::Process;
use replicator::core::message::Message;
use std::collections::{BTreeMap, VecDeque};
use vocabulary::{Epoch, Generation, NodeId, Time};

/// One of a connection's two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    /// Who dialed (the primary).
    Dialer,
    /// Who accepted.
    Acceptor,
}

impl End {
    /// The other end.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Dialer => Self::Acceptor,
            Self::Acceptor => Self::Dialer,
        }
    }

    const fn index(self) -> usize {
        match self {
            Self::Dialer => 0,
            Self::Acceptor => 1,
        }
    }
}

/// Something that travels.
#[derive(Clone, Debug)]
pub enum Item {
    /// A message with the generation of its sender's record.
    Frame(Generation, Box<Message<Stamps>>),
    /// The connection ends here.
    Fin,
}

#[derive(Clone, Debug, Default)]
struct Side {
    /// What travels *to* this side.
    incoming: VecDeque<Item>,
    /// Deliveries that found the link cut.
    held: u32,
    /// Not before this: keeps the order.
    last_due: Time,
    /// This side has heard of the end (or is no more): it gets nothing.
    ended: bool,
}

/// A connection.
#[derive(Clone, Debug)]
pub struct Conn {
    processes: [Process; 2],
    sides: [Side; 2],
    /// Epoch of the session, once a Hello went by.
    pub epoch: Epoch,
}

impl Conn {
    /// The process at an end.
    #[must_use]
    pub fn process(&self, end: End) -> Process {
        self.processes[end.index()]
    }

    /// Which end this process is.
    #[must_use]
    pub fn end_of(&self, process: Process) -> Option<End> {
        [End::Dialer, End::Acceptor]
            .into_iter()
            .find(|end| self.process(*end) == process)
    }

    /// Has this end heard that the connection is over?
    #[must_use]
    pub fn ended(&self, end: End) -> bool {
        self.sides[end.index()].ended
    }

    /// What is still on its way to an end, for the exploration's fingerprint.
    pub fn incoming(&self, end: End) -> impl Iterator<Item = &Item> {
        self.sides[end.index()].incoming.iter()
    }
}

/// All connections and the links that they run over.
#[derive(Clone, Debug)]
pub struct Net {
    conns: BTreeMap<u64, Conn>,
    next: u64,
    blocked: Vec<Vec<bool>>,
    /// Longest delay of a link in µs, by sender and receiver.
    pub delay_us: Vec<Vec<u64>>,
}

/// An item is due at this end of a connection at this time.
pub type Due = (u64, End, Time);

impl Net {
    /// Links between this many nodes.
    #[must_use]
    pub fn new(nodes: usize) -> Self {
        Self {
            conns: BTreeMap::new(),
            next: 1,
            blocked: vec![vec![false; nodes]; nodes],
            delay_us: vec![vec![200; nodes]; nodes],
        }
    }

    /// Is the link from `a` to `b` cut?
    #[must_use]
    pub fn is_cut(&self, a: NodeId, b: NodeId) -> bool {
        self.blocked[a.index()][b.index()]
    }

    /// Can the two talk in both directions?
    #[must_use]
    pub fn joined(&self, a: NodeId, b: NodeId) -> bool {
        !self.is_cut(a, b) && !self.is_cut(b, a)
    }

    /// Cuts the link from `a` to `b`.
    pub fn cut(&mut self, a: NodeId, b: NodeId) {
        self.blocked[a.index()][b.index()] = true;
    }

    /// Mends the link from `a` to `b`; what waited in it is due now.
    pub fn mend(&mut self, a: NodeId, b: NodeId, now: Time) -> Vec<Due> {
        self.blocked[a.index()][b.index()] = false;
        let mut due = Vec::new();
        for (id, conn) in &mut self.conns {
            for end in [End::Dialer, End::Acceptor] {
                if conn.process(end).node == b && conn.process(end.other()).node == a {
                    let side = &mut conn.sides[end.index()];
                    for _ in 0..std::mem::take(&mut side.held) {
                        due.push((*id, end, now));
                    }
                }
            }
        }
        due
    }

    /// A new connection.
    pub fn connect(&mut self, dialer: Process, acceptor: Process) -> u64 {
        let id = self.next;
        self.next += 1;
        self.conns.insert(
            id,
            Conn {
                processes: [dialer, acceptor],
                sides: [Side::default(), Side::default()],
                epoch: Epoch(0),
            },
        );
        id
    }

    /// The connection.
    #[must_use]
    pub fn conn(&self, id: u64) -> Option<&Conn> {
        self.conns.get(&id)
    }

    /// The connection, to note its epoch.
    pub fn conn_mut(&mut self, id: u64) -> Option<&mut Conn> {
        self.conns.get_mut(&id)
    }

    /// All connections.
    pub fn conns(&self) -> impl Iterator<Item = (u64, &Conn)> {
        self.conns.iter().map(|(id, conn)| (*id, conn))
    }

    fn push(&mut self, id: u64, to: End, item: Item, now: Time, rng: &mut Rng) -> Option<Due> {
        let conn = self.conns.get_mut(&id)?;
        let (a, b) = (conn.process(to.other()).node, conn.process(to).node);
        let side = &mut conn.sides[to.index()];
        if side.ended {
            return None;
        }
        let longest = self.delay_us[a.index()][b.index()];
        let delay = rng.between(longest / 4 + 1, longest + 1) * 1000;
        let due = side.last_due.max(Time(now.0 + delay));
        side.last_due = due;
        side.incoming.push_back(item);
        Some((id, to, due))
    }

    /// Sends a message from this end; nothing happens where the connection is over.
    pub fn send(
        &mut self,
        id: u64,
        from: End,
        generation: Generation,
        message: Message<Stamps>,
        now: Time,
        rng: &mut Rng,
    ) -> Option<Due> {
        let conn = self.conns.get(&id)?;
        if conn.ended(from) {
            return None;
        }
        let item = Item::Frame(generation, Box::new(message));
        self.push(id, from.other(), item, now, rng)
    }

    /// This end is gone: it hears nothing more; of what it sent a random part still arrives, then
    /// the other end hears of it, if `told`. Forgets the connection when both ends are through.
    pub fn end(&mut self, id: u64, from: End, told: bool, now: Time, rng: &mut Rng) -> Option<Due> {
        let conn = self.conns.get_mut(&id)?;
        let side = &mut conn.sides[from.index()];
        side.ended = true;
        side.incoming.clear();
        side.held = 0;
        let other = &mut conn.sides[from.other().index()];
        if other.ended {
            self.conns.remove(&id);
            return None;
        }
        let keep = rng.index(other.incoming.len() + 1);
        other.incoming.truncate(keep);
        if told {
            self.push(id, from.other(), Item::Fin, now, rng)
        } else {
            None
        }
    }

    /// A connection breaks in the middle: both ends hear of it, after a random part of what travels.
    pub fn break_off(&mut self, id: u64, now: Time, rng: &mut Rng) -> Vec<Due> {
        let mut due = Vec::new();
        for end in [End::Dialer, End::Acceptor] {
            if let Some(conn) = self.conns.get_mut(&id) {
                let incoming = &mut conn.sides[end.index()].incoming;
                incoming.truncate(rng.index(incoming.len() + 1));
            }
            due.extend(self.push(id, end, Item::Fin, now, rng));
        }
        due
    }

    /// Takes what is due at this end. `None`: nothing is (it was cut off, or the link is cut and it
    /// waits).
    pub fn deliver(&mut self, id: u64, to: End) -> Option<Item> {
        let conn = self.conns.get_mut(&id)?;
        let (a, b) = (conn.process(to.other()).node, conn.process(to).node);
        let side = &mut conn.sides[to.index()];
        if side.incoming.is_empty() || side.ended {
            return None;
        }
        if self.blocked[a.index()][b.index()] {
            side.held += 1;
            return None;
        }
        let item = side.incoming.pop_front();
        if matches!(item, Some(Item::Fin)) {
            side.ended = true;
            side.incoming.clear();
            if conn.sides[to.other().index()].ended {
                self.conns.remove(&id);
            }
        }
        item
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(id: u8) -> Process {
        Process {
            node: NodeId::new(id).unwrap(),
            run: u64::from(id),
        }
    }

    fn ping(net: &mut Net, conn: u64, token: u64, rng: &mut Rng) -> Option<Due> {
        net.send(
            conn,
            End::Dialer,
            Generation(1),
            Message::Ping { token },
            Time(0),
            rng,
        )
    }

    fn token(item: Option<Item>) -> Option<u64> {
        match item? {
            Item::Frame(_, message) => match *message {
                Message::Ping { token } => Some(token),
                _ => None,
            },
            Item::Fin => None,
        }
    }

    #[test]
    fn a_connection_keeps_its_order_and_times_never_go_back() {
        let mut rng = Rng::new(1);
        let mut net = Net::new(2);
        let conn = net.connect(process(0), process(1));
        let mut last = Time(0);
        for i in 0..20 {
            let (_, end, due) = ping(&mut net, conn, i, &mut rng).unwrap();
            assert_eq!(end, End::Acceptor);
            assert!(due >= last);
            last = due;
        }
        for i in 0..20 {
            assert_eq!(token(net.deliver(conn, End::Acceptor)), Some(i));
        }
    }

    #[test]
    fn what_was_sent_into_a_cut_link_comes_when_it_is_mended() {
        let mut rng = Rng::new(1);
        let mut net = Net::new(2);
        let (a, b) = (process(0).node, process(1).node);
        let conn = net.connect(process(0), process(1));
        net.cut(a, b);
        ping(&mut net, conn, 1, &mut rng).unwrap();
        assert!(net.deliver(conn, End::Acceptor).is_none());
        let due = net.mend(a, b, Time(5));
        assert_eq!(due, vec![(conn, End::Acceptor, Time(5))]);
        assert_eq!(token(net.deliver(conn, End::Acceptor)), Some(1));
    }

    #[test]
    fn an_end_that_is_gone_gets_nothing_and_the_other_hears_of_it_once() {
        let mut rng = Rng::new(1);
        let mut net = Net::new(2);
        let conn = net.connect(process(0), process(1));
        net.end(conn, End::Acceptor, true, Time(0), &mut rng)
            .unwrap();
        assert!(ping(&mut net, conn, 1, &mut rng).is_none());
        assert!(matches!(net.deliver(conn, End::Dialer), Some(Item::Fin)));
        assert!(net.deliver(conn, End::Dialer).is_none());
        assert!(net.conn(conn).is_none());
    }
}
