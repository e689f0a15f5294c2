//! How a session with a primary opens and ends.

use super::*;
use crate::core::api::LossReason;

impl<P: Payload> Secondary<P> {
    /// A primary wants a session. The caller has checked who it is and learned the record.
    pub(crate) fn hello(
        &mut self,
        step: &mut Step<'_, P>,
        local: &mut Local<P>,
        conn: ConnId,
        session: SessionId,
        record: &Record,
    ) {
        let Some(primary) = record.primary else {
            return;
        };
        let newest = self
            .opening
            .as_ref()
            .map(|o| (o.epoch, o.session))
            .max(self.session.as_ref().map(|s| (s.epoch, s.id)));
        let reason = if record.epoch < local.promised() {
            Some(RefuseReason::Superseded {
                promised: local.promised(),
            })
        } else if newest.is_some_and(|newest| (record.epoch, session) <= newest) {
            Some(RefuseReason::OlderSession)
        } else if local.failed() {
            Some(RefuseReason::NoDisk)
        } else if record.sizes.len() != local.volumes() {
            Some(RefuseReason::WrongSize)
        } else {
            None
        };
        if let Some(reason) = reason {
            step.emit(Action::Send {
                conn,
                message: Message::Refuse { reason },
            });
            step.emit(Action::Close { conn });
            return;
        }
        self.end_session(step, local);
        if let Some(old) = self.opening.take() {
            step.emit(Action::Close { conn: old.conn });
        }
        self.opening = Some(Opening {
            conn,
            primary,
            session,
            epoch: record.epoch,
            stage: Stage::Draining,
        });
        self.advance_opening(step, local, record);
    }

    /// Stops obeying the present session; what it left under way drains.
    pub(crate) fn end_session(&mut self, step: &mut Step<'_, P>, local: &mut Local<P>) {
        if let Some(session) = self.session.take() {
            step.emit(Action::Close { conn: session.conn });
            step.notice(Notice::PeerLost {
                node: session.primary,
                why: LossReason::Broken,
            });
        }
        // What waits for a lock was never started; its range stays in the window.
        self.jobs.clear();
        local.live_becomes_old();
    }

    /// Ends everything, also an opening.
    pub(crate) fn stop(&mut self, step: &mut Step<'_, P>, local: &mut Local<P>) {
        self.end_session(step, local);
        if let Some(opening) = self.opening.take() {
            step.emit(Action::Close { conn: opening.conn });
        }
    }

    /// Moves an opening on as far as it goes now.
    pub(crate) fn advance_opening(
        &mut self,
        step: &mut Step<'_, P>,
        local: &mut Local<P>,
        record: &Record,
    ) {
        let Some(opening) = &mut self.opening else {
            return;
        };
        if opening.stage == Stage::Draining {
            if !local.drained() && !mutated(Mutation::NoDrain) {
                return;
            }
            // Drained: nobody holds a lock any more.
            for locks in &mut self.locks {
                *locks = RangeLock::default();
            }
            local.live_becomes_old();
            let mut left = 0;
            for (volume, size_bytes) in local.volume_ids().zip(&record.sizes) {
                if local.size(volume) < *size_bytes {
                    let number = self.next_grow;
                    self.next_grow += 1;
                    self.grows.insert(number, Grow::Opening);
                    local.grow(step, Tag::Grow(number), volume, *size_bytes);
                    left += 1;
                }
            }
            opening.stage = Stage::Growing { left };
        }
        if opening.stage == (Stage::Growing { left: 0 }) {
            opening.stage = Stage::Promising;
            local.promise(step, Tag::Promise(opening.epoch), opening.epoch);
        }
    }

    /// The promise is durable: the session begins.
    pub(super) fn promised(&mut self, step: &mut Step<'_, P>, local: &mut Local<P>, epoch: Epoch) {
        if self
            .opening
            .as_ref()
            .is_none_or(|o| o.stage != Stage::Promising || o.epoch > epoch)
        {
            return;
        }
        let Some(opening) = self.opening.take() else {
            return;
        };
        rule!(
            "2: the epoch is stored before it is acted in",
            local.promised() >= opening.epoch
        );
        let conn = opening.conn;
        let identity = local.identity();
        step.emit(Action::Send {
            conn,
            message: Message::Welcome {
                disk: identity.disk,
                incarnation: identity.incarnation,
                history: local.history(),
                bits_for: local.bound_disk(opening.primary),
                whole_window: local.whole_window(),
            },
        });
        let fast = local.fast_zeroes;
        if fast != FastZeroes::default() {
            let message = Message::FastZeroes { fast };
            step.emit(Action::Send { conn, message });
        }
        send_ranges(step, conn, RangesOf::Window, local.window_ranges());
        send_ranges(
            step,
            conn,
            RangesOf::Bits,
            local.bit_ranges(opening.primary),
        );
        step.emit(Action::Send {
            conn,
            message: Message::WelcomeEnd,
        });
        step.notice(Notice::PeerConnected {
            node: opening.primary,
        });
        local.sessions.meet();
        self.session = Some(Session {
            conn,
            primary: opening.primary,
            epoch: opening.epoch,
            id: opening.session,
            last_seq: Seq(0),
            outstanding: Outstanding::default(),
            flushes: VecDeque::new(),
            flushing: None,
            releases: VecDeque::new(),
            acks: Vec::new(),
            heard: step.now,
            copied_at: None,
            digested_at: None,
        });
    }
}
