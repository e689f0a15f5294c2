//! What reaches a core from outside: its timers, its disk, its connections.

use super::*;

impl World {
    pub(super) fn timer(&mut self, process: Process) {
        let node = self.node_mut(process.node);
        if node.run == process.run {
            node.armed = None;
        }
        let Some(process) = self.awake(process, || Occurrence::Timer(process)) else {
            return;
        };
        let now = self.clock(process.node);
        let node = self.node_mut(process.node);
        let due = node
            .core
            .as_ref()
            .and_then(|c| c.poll_timeout())
            .is_some_and(|at| at <= now);
        if due {
            node.spins = if node.spins.0 == now {
                (now, node.spins.1 + 1)
            } else {
                (now, 0)
            };
            if node.spins.1 > 1000 {
                let what = format!("node {} has a time-out that does not pass", process.node);
                self.broken(Rule::Bounded, what);
                return;
            }
            self.feed_timeout(process.node);
        } else {
            self.rearm(process.node);
        }
    }

    pub(crate) fn rearm(&mut self, id: NodeId) {
        let now = self.now;
        let node = self.node_mut(id);
        let Some(at) = node.core.as_ref().and_then(|c| c.poll_timeout()) else {
            return;
        };
        let at = node.clock.when(at).max(now);
        if node.armed.is_none_or(|armed| at < armed) {
            node.armed = Some(at);
            let process = node.process();
            self.at(at, Occurrence::Timer(process));
        }
    }

    pub(super) fn disk_done(&mut self, process: Process, op: u64) {
        let node = self.node_mut(process.node);
        if node.run == process.run && node.health.stuck && node.ops.contains_key(&op) {
            node.stuck.push(op);
            return;
        }
        if self
            .awake(process, || Occurrence::Disk(process, op))
            .is_none()
        {
            return;
        }
        let mut rng = self.rng.fork();
        let op = replicator::core::api::OpId(op);
        if let Some(event) = self.node_mut(process.node).complete(op, &mut rng) {
            self.feed(process.node, event);
        }
    }

    /// How long a disk operation takes here, in µs.
    pub(crate) fn disk_us(&mut self, id: NodeId, kind: &OpKind) -> u64 {
        let slower = self.node(id).health.slower.max(1);
        let lag = self.faults.lag_us(&mut self.rng);
        self.rng.between(20, 150) * kind.weight() * slower + lag
    }

    pub(super) fn deliver(&mut self, conn: u64, end: End) {
        let Some(process) = self.net.conn(conn).map(|c| c.process(end)) else {
            return;
        };
        let node = self.node(process.node);
        let until = node.paused_until.max(node.stalled_until);
        if node.run == process.run && node.is_running() && until > self.now {
            self.at(until, Occurrence::Deliver(conn, end));
            return;
        }
        let Some(item) = self.net.deliver(conn, end) else {
            return;
        };
        let node = self.node(process.node);
        if node.run != process.run || !node.is_running() {
            return;
        }
        let id = replicator::core::api::ConnId(conn);
        let event = match item {
            crate::net::Item::Fin => Event::Disconnected { conn: id },
            crate::net::Item::Frame(generation, message) => {
                if let Message::Hello { record, .. } = &*message
                    && let Some(conn) = self.net.conn_mut(conn)
                {
                    conn.epoch = record.epoch;
                }
                if let Message::Answer { number, .. } = &*message {
                    self.clients.brought = self.clients.sent.get(&(process, *number)).cloned();
                }
                Event::Message {
                    conn: id,
                    generation,
                    message: *message,
                }
            }
        };
        self.feed(process.node, event);
        self.clients.brought = None;
    }

    pub(super) fn dial_done(&mut self, process: Process, peer: NodeId) {
        if self
            .awake(process, || Occurrence::Dial(process, peer))
            .is_none()
        {
            return;
        }
        let up = self.node(peer).core.is_some() && self.net.joined(process.node, peer);
        let event = if up && !self.faults.dial_fails(&mut self.rng) {
            let acceptor = self.node(peer).process();
            let conn = replicator::core::api::ConnId(self.net.connect(process, acceptor));
            Event::Dialed { peer, conn }
        } else {
            Event::DialFailed { peer }
        };
        self.feed(process.node, event);
    }
}
