//! Block status: what clients are told of a volume's holes, and of blocks that replicas lack. The core
//! answers, after a look at the store on a thread of its own, or another node does; here questions and
//! answers are put into the clients' words.

use super::super::client::{ClientCommand, ClientOp, ClientStatus, StatusExtent};
use super::{Pending, Place, Plane, WorkKey};
use crate::core::api::{Event, OpId, RequestId};
use crate::core::message::VolumeRange;
use crate::core::{Map, MapQuestion, Regions};
use vocabulary::{ByteRange, VolumeId};

impl Plane {
    pub(super) fn ask_status(
        &mut self,
        place: Place,
        volume: VolumeId,
        index: usize,
        op: ClientOp,
    ) {
        let ClientCommand::Status {
            allocation: holes,
            out_of_sync: lacking,
        } = op.command
        else {
            return;
        };
        let range = op.range;
        let id = self.requests.insert(Pending {
            client: index,
            serial: self.clients[index].serial,
            op,
        });
        let id = RequestId(u64::try_from(id).unwrap_or(u64::MAX));
        let question = MapQuestion {
            at: VolumeRange { volume, range },
            holes,
            lacking,
        };
        self.feed(place, Event::AskMap { id, question });
    }

    /// The core's answer.
    pub(super) fn answer_status(&mut self, id: RequestId, map: &Map) {
        let Some(Pending {
            client: index, op, ..
        }) = self.take_request(id)
        else {
            return;
        };
        let client = &mut self.clients[index];
        client.end(&op);
        if client.dead {
            return;
        }
        let status = ClientStatus {
            holes: extents(op.range, &map.holes),
            out_of_sync: extents(op.range, &map.lacking),
        };
        let headers = client.outbox.batch.headers();
        client.protocol.reply_status(&op, &status, headers);
        self.answered(index);
    }

    /// The core wants to know where a store has holes.
    pub(super) fn look(&mut self, place: Place, op: OpId, volume: VolumeId, range: ByteRange) {
        let slot = &mut self.resources[place.index];
        match slot.disks.get(volume.index()) {
            Some(disk) => {
                slot.pending += 1;
                self.looker.push(WorkKey { place, op }, disk.clone(), range);
            }
            None => {
                let holes = Regions::none_up_to(range.end());
                self.events.push_back((place, Event::Looked { op, holes }));
            }
        }
    }

    pub(super) fn looked(&mut self, key: WorkKey, holes: Regions) {
        let WorkKey { place, op } = key;
        self.less_pending(place);
        self.feed(place, Event::Looked { op, holes });
    }
}

/// The range in extents, in turns what lies in the regions and what does not.
fn extents(range: ByteRange, regions: &Regions) -> Vec<StatusExtent> {
    let mut extents = Vec::with_capacity(2 * regions.ranges.len() + 1);
    let mut at = range.offset;
    let end = regions.end.min(range.end());
    let mut push = |upto: u64, is: bool| {
        if upto > at {
            extents.push(StatusExtent { len: upto - at, is });
            at = upto;
        }
    };
    for run in &regions.ranges {
        push(run.offset, false);
        push(run.end(), true);
    }
    push(end, false);
    extents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_cover_the_range_as_far_as_was_looked() {
        let regions = |of: &[(u64, u64)], end| Regions {
            ranges: of
                .iter()
                .map(|(from, to)| ByteRange::between(*from, *to))
                .collect(),
            end,
        };
        let told = |regions: &Regions| -> Vec<(u64, bool)> {
            let extents = extents(ByteRange::between(10, 100), regions);
            extents
                .iter()
                .map(|extent| (extent.len, extent.is))
                .collect()
        };
        assert_eq!(told(&regions(&[], 100)), [(90, false)]);
        assert_eq!(told(&regions(&[(10, 100)], 100)), [(90, true)]);
        let two = regions(&[(20, 30), (40, 50)], 60);
        assert_eq!(
            told(&two),
            [
                (10, false),
                (10, true),
                (10, false),
                (10, true),
                (10, false)
            ]
        );
    }
}
