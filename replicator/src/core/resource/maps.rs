//! Clients' questions about ranges (see `core::map`): answered by this node's own primary after a look at
//! its store, or by the primary elsewhere.

use super::super::api::OpId;
use super::super::map::{Asked, MAX_MAP_BYTES, MAX_QUESTIONS, Map, MapQuestion, without};
use super::super::message::VolumeRange;
use super::*;
use crate::core::Regions;

impl<P: Payload> Resource<P> {
    /// A question of whomever.
    pub(super) fn ask(&mut self, now: Time, asker: Asker, mut question: MapQuestion) {
        let range = &mut question.at.range;
        range.len = range.len.min(MAX_MAP_BYTES);
        self.questions.wait(Asked {
            asker,
            question,
            since: now,
        });
    }

    /// A question of a node that follows.
    pub(super) fn ask_from(
        &mut self,
        step: &mut Step<'_, P>,
        conn: ConnId,
        number: u64,
        question: MapQuestion,
    ) {
        let is_heard = self.questions.count_of(conn) < MAX_QUESTIONS;
        let mut is_taken = false;
        self.as_primary(
            step,
            |primary, cx| {
                is_taken = is_heard && primary.takes_from(cx, conn);
                if !is_taken {
                    primary.detach(cx, conn);
                }
            },
            |step| step.emit(Action::Close { conn }),
        );
        if is_taken {
            self.ask(step.now, Asker::Node(conn, number), question);
        }
    }

    /// Asks what waits: of this node's store where it is the primary's, else of the primary.
    pub(super) fn drive_questions(&mut self, step: &mut Step<'_, P>) {
        self.questions.set_link(self.forwarder.attached());
        if !self.questions.are_open() {
            return;
        }
        let over = self.closing.is_some() || self.closed;
        if matches!(self.role, Role::Primary(_)) {
            while self.vouches(step.now)
                && let Some((op, question)) = self.questions.next_look()
            {
                let range = question.at.range;
                match self.part_known(question.at) {
                    Some(known) if question.holes => step.emit(Action::Look {
                        op,
                        volume: question.at.volume,
                        range: known,
                    }),
                    _ => self.looked(step, op, Regions::none_up_to(range.end())),
                }
            }
        } else if self.forwarder.follows() && !over {
            if let Some(conn) = self.forwarder.attached() {
                while let Some((number, question)) = self.questions.next_sent() {
                    let message = Message::AskMap { number, question };
                    step.emit(Action::Send { conn, message });
                }
            }
        } else {
            while let Some(asked) = self.questions.next() {
                tell(step, asked, Map::unknown(asked.question.at.range));
            }
        }
    }

    /// The store has told its holes. Whether they count is decided now, which is after it was looked at.
    pub(super) fn looked(&mut self, step: &mut Step<'_, P>, op: OpId, holes: Regions) {
        let Some(asked) = self.questions.looked(op) else {
            return;
        };
        if self.vouches(step.now) {
            let map = self.map(step.now, &asked.question, &holes);
            tell(step, asked, map);
        } else if asked.asker != Asker::Nobody {
            self.questions.wait_first(asked);
        }
    }

    /// Is this node a primary that may answer at this moment?
    fn vouches(&self, now: Time) -> bool {
        let nowhere = ByteRange::between(0, 0);
        self.unsettled(now, VolumeId(0), nowhere).is_some()
    }

    /// The part of a range that this node knows to be in the volume. One that follows may know of a later
    /// size.
    fn part_known(&self, at: VolumeRange) -> Option<ByteRange> {
        let size = self.volume_size(at.volume)?;
        let known = at.range.intersection(ByteRange::between(0, size));
        known.filter(|known| known.offset == at.range.offset)
    }

    /// The map as things are, with what the store said of its holes.
    fn map(&self, now: Time, question: &MapQuestion, holes: &Regions) -> Map {
        let (volume, range) = (question.at.volume, question.at.range);
        let mut map = Map::unknown(range);
        let Some(known) = self.part_known(question.at) else {
            return map;
        };
        let end = holes.end.min(known.end());
        let looked_at = ByteRange::between(range.offset, end.max(range.offset));
        if question.holes
            && !looked_at.is_empty()
            && let Some(unsettled) = self.unsettled(now, volume, looked_at)
        {
            map.holes = Regions {
                ranges: without(&holes.ranges, &unsettled.ranges),
                end,
            };
        }
        if question.lacking
            && let Some(lacking) = self.out_of_sync(volume, known)
        {
            map.lacking = lacking;
        }
        map.cut()
    }

    /// The primary has answered a question.
    pub(super) fn told(&mut self, step: &mut Step<'_, P>, number: u64, map: Map) {
        self.forwarder.heard(step.now);
        let asked = self.questions.told(number);
        let Some(asked) = asked else {
            // Nonsense: the link is made anew.
            return self.forwarder.close(step);
        };
        let range = asked.question.at.range;
        if map.fits(range) {
            tell(step, asked, map);
        } else {
            // Asked again it would hardly do better.
            tell(step, asked, Map::unknown(range));
            self.forwarder.close(step);
        }
    }

    /// Nobody waits for ever, whatever becomes of the primary, the link or a store.
    pub(super) fn tick_questions(&mut self, step: &mut Step<'_, P>) {
        for asked in self.questions.late(step.now, self.settings.no_primary_ms) {
            tell(step, asked, Map::unknown(asked.question.at.range));
        }
    }
}

fn tell<P>(step: &mut Step<'_, P>, asked: Asked, map: Map) {
    match asked.asker {
        Asker::Client(id) => step.emit(Action::Map { id, map }),
        Asker::Node(conn, number) => {
            let message = Message::Map { number, map };
            step.emit(Action::Send { conn, message });
        }
        Asker::Nobody => {}
    }
}
