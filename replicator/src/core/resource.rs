//! One resource on one node: routes events to the role that it plays, changes roles when the record
//! says so, and answers what is asked of the resource as a whole.

use super::api::{
    Access, Action, ClientRequest, Command, CommandError, CommandId, ConnId, DiskError, Event,
    Identity, Notice, Payload, RequestId, Settings, StopReason,
};
use super::attach::AttachedVolume;
use super::forward::Forwarder;
use super::local::{Completion, Done, Local};
use super::map::{Asker, Questions};
use super::message::{ClientMark, Message, RefuseReason};
use super::mutation::{Mutation, mutated};
use super::primary::{Asked, Cx, Forwarded, Origin, Primary, Stage, next_history};
use super::secondary::Secondary;
use super::{Step, Tag};
use vocabulary::{
    ByteRange, Change, Epoch, Generation, Member, NodeId, NodeSet, Record, Time, VolumeId,
};

/// The core looks at the clock this often; its time-outs are much longer.
const TICK_MS: u64 = 50;

mod clients;
mod maps;
mod record;
mod view;

#[derive(Clone, Debug)]
enum Role<P> {
    Secondary(Box<Secondary<P>>),
    Primary(Box<Primary<P>>),
}

/// A promotion of this node that is proposed and not decided.
#[derive(Clone, Debug)]
struct Promotion {
    command: CommandId,
    drop: NodeSet,
    /// The epoch that it ends; an operator's word ends any.
    over: Option<Epoch>,
    based_on: Option<Generation>,
    next: Time,
    wait_ms: u64,
    deadline: Time,
}

impl Promotion {
    /// Somebody else's came first. It is not proposed on top of that: whoever asked for it waited for
    /// the leases of an earlier epoch only.
    fn ended_by(&self, record: &Record) -> bool {
        self.over.is_some_and(|over| over != record.epoch)
    }
}

/// One resource on one node.
#[derive(Clone, Debug)]
pub struct Resource<P> {
    identity: Identity,
    settings: Settings,
    record: Option<Record>,
    local: Local<P>,
    role: Role<P>,
    forwarder: Forwarder<P>,
    questions: Questions,
    promotion: Option<Promotion>,
    closing: Option<CommandId>,
    closed: bool,
    /// This node's own disconnect: no primary gets a session.
    refuse_sessions: bool,
    /// A volume whose metadata was read the safe way, until that is told.
    damaged: Option<VolumeId>,
    next_tick: Time,
}

impl<P: Payload> Resource<P> {
    /// A replica whose metadata was attached and whose attach writes are durable. It is a secondary:
    /// primaryship does not survive the process.
    #[must_use]
    pub fn new(
        identity: Identity,
        settings: Settings,
        volumes: Vec<AttachedVolume>,
        now: Time,
    ) -> Self {
        let count = volumes.len();
        let damaged = volumes
            .iter()
            .find(|v| v.damaged)
            .map(|v| v.superblock.volume);
        Self {
            identity,
            settings,
            record: None,
            local: Local::new(identity, volumes),
            role: Role::Secondary(Box::new(Secondary::new(count))),
            forwarder: Forwarder::new(identity.node, settings.zero_piece_bytes),
            questions: Questions::default(),
            promotion: None,
            closing: None,
            closed: false,
            refuse_sessions: false,
            damaged,
            next_tick: now.plus_ms(TICK_MS),
        }
    }

    /// This replica as a record would name it.
    fn member(&self) -> Member {
        Member {
            node: self.identity.node,
            disk: self.identity.disk,
            incarnation: self.identity.incarnation,
        }
    }

    /// Who this replica is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The newest record known to be committed.
    #[must_use]
    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// Epoch and generation that frames sent now carry.
    #[must_use]
    pub fn frame_context(&self) -> (Epoch, Generation) {
        self.record
            .as_ref()
            .map_or((Epoch(0), Generation(0)), |r| (r.epoch, r.generation))
    }

    /// Is this node serving clients?
    #[must_use]
    pub fn serves(&self) -> bool {
        matches!(&self.role, Role::Primary(p) if p.stage() == Stage::Serving)
    }

    /// Does this node take clients' requests? With follow access every node does, once it knows the
    /// resource's record.
    #[must_use]
    pub fn takes_clients(&self) -> bool {
        let follows = self.forwarder.follows() && self.record.is_some() && self.closing.is_none();
        self.serves() || follows && !self.closed
    }

    /// Size in bytes of a volume, as clients see it.
    #[must_use]
    pub fn volume_size(&self, volume: VolumeId) -> Option<u64> {
        self.record.as_ref()?.sizes.get(volume.index()).copied()
    }

    /// When [`Self::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        (!self.closed).then_some(self.next_tick)
    }

    /// Ranges in which a replica may differ from this one, as far as this one knows (for tests of
    /// RULES 7).
    #[must_use]
    pub fn may_differ(&self, node: NodeId, volume: VolumeId) -> Vec<ByteRange> {
        self.local.may_differ(node, volume)
    }

    /// The epoch promised on disk.
    #[must_use]
    pub fn promised(&self) -> Epoch {
        self.local.promised()
    }

    /// The clock has reached [`Self::poll_timeout`].
    pub fn handle_timeout(&mut self, now: Time, out: &mut Vec<Action<P>>) {
        if now < self.next_tick || self.closed {
            return;
        }
        self.next_tick = now.plus_ms(TICK_MS);
        if let Role::Primary(primary) = &self.role
            && now < primary.lease_ends()
        {
            // On time: others wait for the same moment, and one of them is to stand in.
            self.next_tick = self.next_tick.min(primary.lease_ends());
        }
        let mut step = Step { now, out };
        let step = &mut step;
        self.local.tick(step, &self.settings);
        if let Some(volume) = self.damaged.take() {
            step.notice(Notice::MetadataDamaged { volume });
        }
        match &mut self.role {
            Role::Secondary(secondary) => secondary.tick(step, &mut self.local, &self.settings),
            Role::Primary(primary) => {
                if let Some(record) = &self.record {
                    primary.tick(&mut Cx {
                        step,
                        local: &mut self.local,
                        record,
                    });
                }
            }
        }
        self.forwarder.tick(step, &self.settings);
        self.tick_questions(step);
        self.tick_promotion(step);
        self.settle(step);
    }

    /// Something happened.
    pub fn handle(&mut self, now: Time, event: Event<P>, out: &mut Vec<Action<P>>) {
        let mut step = Step { now, out };
        let step = &mut step;
        match event {
            Event::MetadataMoved { op, result } => {
                self.local.metadata_moved(step, op, result);
            }
            Event::DiskDone { op, result }
            | Event::MetaDone { op, result }
            | Event::GrowDone { op, result } => {
                let done = result.map_or_else(Done::Failed, |()| Done::Ok);
                self.local.completed(step, op, done);
            }
            Event::ReadDone { op, result } => {
                self.local
                    .completed(step, op, result.map_or_else(Done::Failed, Done::Data));
            }
            Event::HashDone { op, result } => {
                let done = result.map_or_else(Done::Failed, |(h, data)| Done::Hashes(h, data));
                self.local.completed(step, op, done);
            }
            Event::Client {
                id,
                volume,
                request,
            } => self.client(step, id, volume, request),
            Event::AskMap { id, question } => {
                self.ask(now, Asker::Client(id), question);
            }
            Event::Looked { op, holes } => self.looked(step, op, holes),
            Event::Dialed { peer, conn } => {
                if !self.forwarder.dialed(step, peer, conn) {
                    self.as_primary(
                        step,
                        |primary, cx| primary.dialed(cx, peer, conn),
                        |step| step.emit(Action::Close { conn }),
                    );
                }
            }
            Event::DialFailed { peer } => {
                if !self.forwarder.dial_failed(peer) {
                    self.as_primary(step, |primary, cx| primary.dial_failed(cx, peer), |_| ());
                }
            }
            Event::Message {
                conn,
                generation,
                message,
            } => {
                self.message(step, conn, generation, message);
            }
            Event::Disconnected { conn } => self.disconnected(step, conn),
            Event::FastZeroes(fast) => {
                self.local.fast_zeroes = fast;
                if let Role::Secondary(secondary) = &self.role {
                    secondary.tell_fast_zeroes(step, fast);
                }
            }
            Event::Access(access) => self.set_access(step, access),
            Event::Terms(terms) => {
                self.settings.lease_ms = terms.lease_ms;
                self.settings.no_quorum_errors = terms.no_quorum_errors;
                let settings = self.settings;
                self.as_primary(step, |primary, _| primary.set(settings), |_| ());
            }
            Event::Record(record) => self.learn(step, record),
            Event::Granted { node, epoch, sent } => self.as_primary(
                step,
                |primary, cx| {
                    if primary.epoch() == epoch {
                        primary.granted(cx, node, sent);
                    }
                },
                |_| (),
            ),
            Event::Serve { epoch } => self.as_primary(
                step,
                |primary, _| {
                    if primary.epoch() == epoch {
                        primary.may_serve();
                    }
                },
                |_| (),
            ),
            Event::Refused { based_on, refusal } => self.refused(step, based_on, &refusal),
            Event::Command { id, command } => self.command(step, id, command),
        }
        self.settle(step);
    }

    fn disconnected(&mut self, step: &mut Step<'_, P>, conn: ConnId) {
        self.questions.forget(conn);
        if self.forwarder.has(conn) {
            self.forwarder.disconnected(conn);
        } else if let Role::Secondary(secondary) = &mut self.role {
            secondary.disconnected(step, &mut self.local, conn);
        } else {
            self.as_primary(step, |primary, cx| primary.disconnected(cx, conn), |_| ());
        }
    }

    /// Closes a batch of events that were handed in together: what is better said once than many
    /// times (acknowledgements) goes out. A driver calls it before it waits for more.
    pub fn end_turn(&mut self, now: Time, out: &mut Vec<Action<P>>) {
        if let Role::Secondary(secondary) = &mut self.role {
            secondary.end_turn(&mut Step { now, out });
        }
    }

    fn as_primary(
        &mut self,
        step: &mut Step<'_, P>,
        run: impl FnOnce(&mut Primary<P>, &mut Cx<'_, '_, P>),
        otherwise: impl FnOnce(&mut Step<'_, P>),
    ) {
        match (&mut self.role, &self.record) {
            (Role::Primary(primary), Some(record)) => {
                run(
                    primary,
                    &mut Cx {
                        step,
                        local: &mut self.local,
                        record,
                    },
                );
            }
            _ => otherwise(step),
        }
    }

    /// Local completions, then the role's look at the whole, until nothing changes.
    fn settle(&mut self, step: &mut Step<'_, P>) {
        loop {
            while let Some((tag, at, done)) = self.local.next_done() {
                self.local_done(step, (tag, at, done));
            }
            self.forward(step);
            self.drive_questions(step);
            match &mut self.role {
                Role::Secondary(secondary) => {
                    if let Some(record) = &self.record {
                        secondary.advance_opening(step, &mut self.local, record);
                    }
                }
                Role::Primary(primary) => {
                    let Some(record) = &self.record else { break };
                    let cx = &mut Cx {
                        step,
                        local: &mut self.local,
                        record,
                    };
                    primary.check_window_bound(cx);
                    primary.maintain(cx);
                    self.collect(step);
                }
            }
            self.check_closing(step);
            if !self.local.has_done() {
                break;
            }
        }
    }

    fn local_done(&mut self, step: &mut Step<'_, P>, (tag, at, done): Completion<P>) {
        match tag {
            Tag::Close => {
                self.closed = true;
                if let Some(id) = self.closing.take() {
                    let result = done
                        .error()
                        .map_or(Ok(()), |_: DiskError| Err(CommandError::NoDisk));
                    step.emit(Action::CommandDone { id, result });
                }
                return;
            }
            Tag::WholeSettled => {
                self.local.whole_settled(step, done.error().is_none());
                return;
            }
            _ => {}
        }
        match &mut self.role {
            Role::Secondary(secondary) => {
                let record = self.record.as_ref();
                secondary.done(step, &mut self.local, tag, at, done, record);
            }
            Role::Primary(primary) => {
                if let Some(record) = &self.record {
                    let cx = &mut Cx {
                        step,
                        local: &mut self.local,
                        record,
                    };
                    primary.done(cx, tag, at, done);
                }
            }
        }
    }

    // ---- messages ----

    fn message(
        &mut self,
        step: &mut Step<'_, P>,
        conn: ConnId,
        generation: Generation,
        message: Message<P>,
    ) {
        match message {
            Message::Hello {
                node,
                to,
                session,
                record,
            } => {
                self.hello(step, conn, node, to, session, record);
            }
            Message::Attach {
                node,
                to,
                session,
                epoch,
            } => {
                let me = self.identity.node;
                let here = |primary: &Primary<P>| {
                    to == me && node != me && primary.epoch() == epoch && session != 0
                };
                match (&mut self.role, &self.record) {
                    (Role::Primary(primary), Some(record)) if here(primary) => {
                        let cx = &mut Cx {
                            step,
                            local: &mut self.local,
                            record,
                        };
                        primary.attach(cx, conn, node, session);
                    }
                    _ => {
                        let reason = RefuseReason::NotPrimary;
                        let message = Message::Refuse { reason };
                        step.emit(Action::Send { conn, message });
                        step.emit(Action::Close { conn });
                    }
                }
            }
            Message::Forward {
                number,
                released,
                again,
                volume,
                request,
            } => {
                let known = self.record.as_ref().map_or(Generation(0), |r| r.generation);
                let forwarded = Forwarded {
                    number,
                    released,
                    again,
                    volume,
                    request,
                };
                self.as_primary(
                    step,
                    |primary, cx| primary.forwarded(cx, conn, generation > known, forwarded),
                    |step| step.emit(Action::Close { conn }),
                );
            }
            Message::AskMap { number, question } => {
                self.ask_from(step, conn, number, question);
            }
            Message::Map { number, map } if self.forwarder.has(conn) => {
                self.told(step, number, map);
            }
            message if self.forwarder.has(conn) => self.forwarder.message(step, message),
            Message::Record { record } => {
                // Only from the present session's primary; a record is true whoever brings it, but
                // nobody else has a reason to.
                if let Role::Secondary(secondary) = &self.role
                    && secondary.in_session(conn)
                {
                    self.learn(step, record);
                }
            }
            message => {
                // A message of a new generation never comes before its record.
                let known = self.record.as_ref().map_or(Generation(0), |r| r.generation);
                let me = self.member();
                match &mut self.role {
                    Role::Secondary(secondary) => {
                        if generation > known {
                            secondary.disconnected(step, &mut self.local, conn);
                            step.emit(Action::Close { conn });
                            return;
                        }
                        let (replicas, members) =
                            self.record.as_ref().map_or((NodeSet::EMPTY, None), |r| {
                                let member = r.member(me.node) == Some(&me);
                                (r.replicas, member.then(|| r.members()))
                            });
                        let local = &mut self.local;
                        secondary.message(step, local, conn, message, replicas, members);
                    }
                    Role::Primary(primary) => {
                        if let Some(record) = &self.record {
                            let cx = &mut Cx {
                                step,
                                local: &mut self.local,
                                record,
                            };
                            primary.message(cx, conn, message);
                        }
                    }
                }
            }
        }
    }

    fn hello(
        &mut self,
        step: &mut Step<'_, P>,
        conn: ConnId,
        node: NodeId,
        to: NodeId,
        session: super::message::SessionId,
        record: Record,
    ) {
        let refuse = if to != self.identity.node || record.resource != self.identity.resource {
            Some(RefuseReason::WrongIdentity)
        } else if record.primary != Some(node) || node == self.identity.node {
            Some(RefuseReason::NotPrimary)
        } else if self.closing.is_some() || self.closed {
            Some(RefuseReason::Closing)
        } else if self.refuse_sessions {
            Some(RefuseReason::Disconnected)
        } else {
            None
        };
        if let Some(reason) = refuse {
            step.emit(Action::Send {
                conn,
                message: Message::Refuse { reason },
            });
            step.emit(Action::Close { conn });
            return;
        }
        let epoch = record.epoch;
        self.learn(step, record);
        let Some(known) = &self.record else { return };
        if known.epoch > epoch || known.primary != Some(node) {
            let promised = known.epoch;
            let reason = RefuseReason::Superseded { promised };
            step.emit(Action::Send {
                conn,
                message: Message::Refuse { reason },
            });
            step.emit(Action::Close { conn });
            return;
        }
        if matches!(self.role, Role::Secondary(_)) {
            let known = known.clone();
            if self.local.promised() <= epoch {
                self.note_members(step, &known, true);
            }
            if let Role::Secondary(secondary) = &mut self.role {
                secondary.hello(step, &mut self.local, conn, session, &known);
            }
        } else {
            step.emit(Action::Close { conn });
        }
    }

    // ---- commands ----

    fn command(&mut self, step: &mut Step<'_, P>, id: CommandId, command: Command) {
        let refuse = match (&command, &self.record) {
            (Command::Close, _) => None,
            _ if self.closing.is_some() || self.closed => Some(CommandError::Stopped),
            (_, None) => Some(CommandError::NoRecord),
            _ => None,
        };
        if let Some(error) = refuse {
            step.emit(Action::CommandDone {
                id,
                result: Err(error),
            });
            return;
        }
        match command {
            Command::Promote { drop, over } => self.promote(step, id, drop, Some(over)),
            Command::Force => self.promote(step, id, NodeSet::EMPTY, None),
            Command::Close => self.close(step, id),
            _ => match (&mut self.role, &self.record) {
                (Role::Primary(primary), Some(record)) => {
                    primary.command(
                        &mut Cx {
                            step,
                            local: &mut self.local,
                            record,
                        },
                        id,
                        command,
                    );
                }
                (Role::Secondary(secondary), _) => {
                    let result = match command {
                        Command::Disconnect { .. } => {
                            self.refuse_sessions = true;
                            secondary.stop(step, &mut self.local);
                            Ok(())
                        }
                        Command::Connect { .. } => {
                            self.refuse_sessions = false;
                            Ok(())
                        }
                        _ => Err(CommandError::NotPrimary),
                    };
                    step.emit(Action::CommandDone { id, result });
                }
                (Role::Primary(_), None) => {}
            },
        }
    }

    /// Without an epoch to end, by force.
    fn promote(
        &mut self,
        step: &mut Step<'_, P>,
        id: CommandId,
        drop: NodeSet,
        over: Option<Epoch>,
    ) {
        let epoch = self.record.as_ref().map_or(Epoch(0), |r| r.epoch);
        let result = match &self.role {
            Role::Primary(_) => Some(Ok(())),
            _ if over.is_some_and(|over| over != epoch) => {
                Some(Err(CommandError::Superseded(epoch)))
            }
            _ if self.promotion.is_some() => Some(Err(CommandError::Busy)),
            _ if self.local.failed() => Some(Err(CommandError::NoDisk)),
            _ => None,
        };
        if let Some(result) = result {
            step.emit(Action::CommandDone { id, result });
            return;
        }
        self.promotion = Some(Promotion {
            command: id,
            drop,
            over,
            based_on: None,
            next: step.now,
            wait_ms: self.settings.propose_again_ms,
            deadline: step.now.plus_ms(self.settings.command_timeout_ms),
        });
        self.tick_promotion(step);
    }

    /// Proposes the promotion, again and again until it is decided or the command's time is over.
    fn tick_promotion(&mut self, step: &mut Step<'_, P>) {
        let candidate = self.member();
        let Some(promotion) = &mut self.promotion else {
            return;
        };
        if promotion.deadline <= step.now {
            return self.end_promotion(step, Err(CommandError::Undecided));
        }
        // The disk of an earlier role drains first, and this node's own promise comes first too.
        let Some(record) = &self.record else { return };
        if promotion.next > step.now || !self.local.drained() && promotion.based_on.is_none() {
            return;
        }
        promotion.next = step.now.plus_ms(promotion.wait_ms);
        promotion.wait_ms = (promotion.wait_ms * 2).min(self.settings.propose_again_ms * 10);
        promotion.based_on = Some(record.generation);
        let history = next_history(record, &candidate);
        let change = if promotion.over.is_none() {
            Change::Force { candidate, history }
        } else {
            Change::Promote {
                candidate,
                drop: promotion.drop,
                history,
            }
        };
        step.emit(Action::Propose {
            based_on: record.generation,
            change,
        });
    }

    fn close(&mut self, step: &mut Step<'_, P>, id: CommandId) {
        if self.closed {
            step.emit(Action::CommandDone { id, result: Ok(()) });
            return;
        }
        self.closing = Some(id);
        if let (Role::Primary(primary), Some(record)) = (&mut self.role, &self.record) {
            let cx = &mut Cx {
                step,
                local: &mut self.local,
                record,
            };
            primary.stop(cx, StopReason::Closed);
        }
        self.collect(step);
        self.forwarder.stop(step);
        match &mut self.role {
            Role::Secondary(secondary) => secondary.stop(step, &mut self.local),
            Role::Primary(_) => {
                self.local.live_becomes_old();
                self.role = Role::Secondary(Box::new(Secondary::new(self.local.volumes())));
            }
        }
    }

    /// Closes once the disk has drained: everything to stable storage, then the superblock.
    fn check_closing(&mut self, step: &mut Step<'_, P>) {
        if self.closing.is_some() && !self.closed {
            self.local.advance_close(step);
        }
    }
}
