//! Carrying out what a state machine asks for.

use super::super::disk::Engine;
use super::super::disk::io::Request;
use super::super::pool::PoolBuf;
use super::super::worker::Work;
use super::{DiskKey, Place, Plane, PlaneError, Report, WorkKey};
use crate::core::api::{Action, DiskError, Event, OpId};
use nix::libc;
use vocabulary::VolumeId;

impl Plane {
    /// Does all actions in their order; what comes of it on the spot waits in `events` or in the
    /// disks' queue.
    pub(super) fn carry_out(&mut self, place: Place, actions: &mut Vec<Action<PoolBuf>>) {
        for action in actions.drain(..) {
            self.act(place, action);
        }
        self.report_state(place.index);
    }

    fn act(&mut self, place: Place, action: Action<PoolBuf>) {
        match action {
            Action::Read { op, volume, range } => {
                self.disk(place, op, volume, Request::Read(range));
            }
            Action::Write {
                op,
                volume,
                offset,
                data,
                durable,
            } => {
                self.disk(
                    place,
                    op,
                    volume,
                    Request::Write {
                        offset,
                        data,
                        durable,
                    },
                );
            }
            Action::Zero {
                op,
                volume,
                range,
                hole,
                durable,
            } => {
                self.disk(
                    place,
                    op,
                    volume,
                    Request::Zero {
                        range,
                        hole,
                        durable,
                    },
                );
            }
            Action::Flush { op, volume } => self.disk(place, op, volume, Request::Flush),
            Action::MetaWrite {
                op,
                volume,
                offset,
                data,
            } => {
                self.disk(place, op, volume, Request::MetaWrite { offset, data });
            }
            Action::Hash { op, volume, range } => {
                let Some(disk) = self.resources[place.index].disks.get(volume.index()) else {
                    let result = Err(DiskError::Io(libc::ENXIO));
                    self.events
                        .push_back((place, Event::HashDone { op, result }));
                    return;
                };
                let disk = disk.clone();
                self.resources[place.index].pending += 1;
                self.worker
                    .push(WorkKey { place, op }, Work::Hash { disk, range });
            }
            Action::MoveMetadata {
                op,
                volume,
                from,
                size_bytes,
            } => {
                let slot = &mut self.resources[place.index];
                let Some(disk) = slot.disks.get(volume.index()) else {
                    let result = Err(DiskError::Io(libc::ENXIO));
                    self.events
                        .push_back((place, Event::MetadataMoved { op, result }));
                    return;
                };
                let disk = disk.clone();
                slot.pending += 1;
                let work = Work::MoveMetadata {
                    disk,
                    from,
                    size_bytes,
                };
                self.worker.push(WorkKey { place, op }, work);
            }
            Action::Grow {
                op,
                volume,
                size_bytes,
                layout,
            } => {
                let slot = &mut self.resources[place.index];
                let Some(disk) = slot.disks.get(volume.index()) else {
                    let result = Err(DiskError::Io(libc::ENXIO));
                    self.events
                        .push_back((place, Event::GrowDone { op, result }));
                    return;
                };
                let meta_bytes = (slot.meta_bytes)(size_bytes);
                let disk = disk.clone();
                slot.pending += 1;
                let work = Work::Grow {
                    disk,
                    volume_bytes: size_bytes,
                    meta_bytes,
                    layout,
                };
                self.worker.push(WorkKey { place, op }, work);
            }
            Action::Look { op, volume, range } => self.look(place, op, volume, range),
            Action::Map { id, map } => self.answer_status(id, &map),
            Action::Dial { peer } => self.dial(place, peer),
            Action::Send { conn, message } => self.send(conn, message),
            Action::Close { conn } => self.close_conn(conn),
            Action::Reply { id, result } => self.reply(id, result),
            Action::HangUp => self.hang_up(self.resources[place.index].id),
            Action::Propose { based_on, change } => {
                let resource = self.resources[place.index].id;
                (self.report)(resource, Report::Propose { based_on, change });
            }
            Action::CommandDone { id, result } => {
                if let Some((_, reply)) = self.commands.remove(&id) {
                    reply(result.map_err(PlaneError::Command));
                }
            }
            Action::Notice(notice) => {
                let resource = self.resources[place.index].id;
                (self.report)(resource, Report::Notice(notice));
            }
        }
    }

    fn disk(&mut self, place: Place, op: OpId, volume: VolumeId, request: Request) {
        let slot = &mut self.resources[place.index];
        let meta = matches!(request, Request::MetaWrite { .. });
        let Some(disk) = slot.disks.get(volume.index()) else {
            let error = DiskError::Io(libc::ENXIO);
            if meta {
                self.events.push_back((
                    place,
                    Event::MetaDone {
                        op,
                        result: Err(error),
                    },
                ));
            } else {
                self.disk_failed(place, op, error, matches!(request, Request::Read(_)));
            }
            return;
        };
        let disk = disk.clone();
        slot.pending += 1;
        let key = DiskKey { place, op, meta };
        if disk.engine() == Engine::Sync && matches!(request, Request::Write { .. }) {
            self.deferred.push((disk, key, request));
        } else {
            self.io.start(&mut self.ring, self.now, &disk, key, request);
        }
    }

    /// Tells the rest of the process when exports may look different.
    pub(super) fn report_state(&mut self, index: usize) {
        let Some(slot) = self.resources.get_mut(index) else {
            return;
        };
        let (epoch, generation) = slot.machine.frame_context();
        let (takes_clients, standing) = (slot.machine.takes_clients(), slot.machine.standing());
        let state = Some((takes_clients, epoch, generation, standing));
        if state != slot.reported {
            slot.reported = state;
            let record = slot.machine.record().cloned();
            (self.report)(
                slot.id,
                Report::State {
                    takes_clients,
                    record,
                    standing,
                },
            );
        }
    }
}
