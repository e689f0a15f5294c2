//! Block status: what clients are told of a volume's holes, and of blocks that replicas lack. It is no
//! request of the core: the store is asked on a thread of its own, and then the machine says where the
//! store's word counts as things are *now*, which is after the store was looked at (RULES 4, 5, 8).
//! Where it does not count, there is data: that is always true.

use super::super::client::{ClientCommand, ClientOp, ClientStatus, StatusExtent};
use super::{Place, Plane};
use crate::core::Regions;
use vocabulary::{ByteRange, VolumeId};

/// Most of a volume that one answer is about; clients go on from there. Bounds the work on the data
/// plane's thread: bitmap pages of 124 MiB, some thousand of them.
const MAX_STATUS_BYTES: u64 = 1 << 40;

/// A client's question.
#[derive(Clone, Copy, Debug)]
pub(super) struct StatusKey {
    place: Place,
    volume: VolumeId,
    client: usize,
    serial: u64,
    op: ClientOp,
}

impl StatusKey {
    const fn range(&self) -> ByteRange {
        let ByteRange { offset, len } = self.op.range;
        let len = if len < MAX_STATUS_BYTES {
            len
        } else {
            MAX_STATUS_BYTES
        };
        ByteRange { offset, len }
    }
}

impl Plane {
    pub(super) fn ask_status(
        &mut self,
        place: Place,
        volume: VolumeId,
        index: usize,
        op: ClientOp,
    ) {
        let key = StatusKey {
            place,
            volume,
            client: index,
            serial: self.clients[index].serial,
            op,
        };
        let slot = &mut self.resources[place.index];
        let nowhere = ByteRange::between(0, 0);
        let asks_store = matches!(
            op.command,
            ClientCommand::Status {
                allocation: true,
                ..
            }
        ) && slot.machine.unsettled(self.now, volume, nowhere).is_some();
        match slot.disks.get(volume.index()) {
            Some(disk) if asks_store => {
                slot.pending += 1;
                self.looker.push(key, disk.clone(), key.range());
            }
            _ => self.answer_status(&key, None),
        }
    }

    /// The store has told its holes.
    pub(super) fn looked(&mut self, key: &StatusKey, holes: Regions) {
        self.answer_status(key, Some(holes));
        self.less_pending(key.place);
    }

    fn answer_status(&mut self, key: &StatusKey, holes: Option<Regions>) {
        let (range, volume) = (key.range(), key.volume);
        let slot = self.resources.get(key.place.index);
        let Some(slot) = slot.filter(|slot| slot.serial == key.place.serial) else {
            return;
        };
        let allocation = holes.and_then(|holes| {
            let looked_at = ByteRange::between(range.offset, holes.end);
            let unsettled = slot.machine.unsettled(self.now, volume, looked_at)?;
            Some(Regions {
                ranges: without(&holes.ranges, &unsettled.ranges),
                end: holes.end,
            })
        });
        let out_of_sync = match key.op.command {
            ClientCommand::Status {
                out_of_sync: true, ..
            } => slot.machine.out_of_sync(volume, range),
            _ => None,
        };
        let all = |is| vec![StatusExtent { len: range.len, is }];
        let status = ClientStatus {
            // Data is what anybody may say; that all may differ too.
            holes: allocation.map_or_else(|| all(false), |holes| extents(range, &holes)),
            out_of_sync: out_of_sync.map_or_else(|| all(true), |lacking| extents(range, &lacking)),
        };
        let Some(client) = self.clients.get_mut(key.client) else {
            return;
        };
        if client.serial != key.serial {
            return;
        }
        client.end(&key.op);
        if !client.dead {
            let headers = client.outbox.batch.headers();
            client.protocol.reply_status(&key.op, &status, headers);
            self.mark_client(key.client);
        }
    }
}

/// What of the ranges no other one covers; both ascend.
fn without(ranges: &[ByteRange], others: &[ByteRange]) -> Vec<ByteRange> {
    let mut left = Vec::with_capacity(ranges.len());
    let mut others = others.iter().peekable();
    for range in ranges {
        let mut at = range.offset;
        while let Some(other) = others.peek().filter(|other| other.offset < range.end()) {
            if other.offset > at {
                left.push(ByteRange::between(at, other.offset));
            }
            at = at.max(other.end());
            if other.end() > range.end() {
                break;
            }
            others.next();
        }
        if at < range.end() {
            left.push(ByteRange::between(at, range.end()));
        }
    }
    left
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

    fn ranges(of: &[(u64, u64)]) -> Vec<ByteRange> {
        of.iter()
            .map(|(from, to)| ByteRange::between(*from, *to))
            .collect()
    }

    #[test]
    fn what_is_taken_away_is_gone_and_nothing_else() {
        for (from, taken, left) in [
            (&[(0, 10)][..], &[][..], &[(0, 10)][..]),
            (&[(0, 10)], &[(0, 10)], &[]),
            (&[(2, 10)], &[(0, 5)], &[(5, 10)]),
            (&[(2, 10)], &[(5, 20)], &[(2, 5)]),
            (&[(2, 10)], &[(3, 4), (6, 7)], &[(2, 3), (4, 6), (7, 10)]),
            (&[(2, 10), (12, 20)], &[(8, 14)], &[(2, 8), (14, 20)]),
            (&[(2, 4), (6, 8), (10, 12)], &[(3, 11)], &[(2, 3), (11, 12)]),
            (&[(2, 4)], &[(4, 6)], &[(2, 4)]),
        ] {
            assert_eq!(without(&ranges(from), &ranges(taken)), ranges(left));
        }
    }

    #[test]
    fn extents_cover_the_range_as_far_as_was_looked() {
        let regions = |of, end| Regions {
            ranges: ranges(of),
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
