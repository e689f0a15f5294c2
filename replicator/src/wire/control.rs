//! Bodies of the messages that open a session and carry the record: rare, and likely to grow. Each is
//! a layout number (one byte) and a postcard value of a structure of this file, which stands for the
//! vocabulary's type so that a change there does not silently change the protocol. `Hello` and
//! `Welcome` have an offer before that (see `handshake`).

use super::MAX_VOLUMES;
use super::error::{EncodeError, RecordError, WireError};
use super::handshake::OFFER_BYTES;
use super::kind::Kind;
use crate::core::message::{Message, RefuseReason, SessionId};
use serde::de::{DeserializeOwned, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::marker::PhantomData;
use vocabulary::{
    DiskId, Epoch, Generation, HistoryId, Incarnation, Member, NodeId, NodeSet, Record, ResourceId,
    VolumeId,
};

/// The layout of all control bodies of this version.
const LAYOUT: u8 = 1;

const MAX_MEMBERS: usize = NodeId::LIMIT as usize;

#[derive(Serialize, Deserialize)]
struct HelloBody {
    node: u8,
    to: u8,
    session: u64,
    record: RecordBody,
}

#[derive(Serialize, Deserialize)]
struct WelcomeBody {
    disk: u128,
    incarnation: u64,
    history: u128,
    bits_for: Option<u128>,
    whole_window: bool,
}

#[derive(Serialize, Deserialize)]
struct RecordBody {
    resource: u128,
    generation: u64,
    epoch: u64,
    history: u128,
    #[serde(deserialize_with = "at_most::<_, _, MAX_VOLUMES>")]
    sizes: Vec<u64>,
    primary: Option<u8>,
    #[serde(deserialize_with = "at_most::<_, _, MAX_MEMBERS>")]
    in_sync: Vec<MemberBody>,
    replicas: u32,
    min_redundancy: u8,
}

#[derive(Serialize, Deserialize)]
struct MemberBody {
    node: u8,
    disk: u128,
    incarnation: u64,
}

/// Reads a list of at most `MAX` entries and never makes room for more than came.
fn at_most<'de, D, T, const MAX: usize>(from: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct List<T, const MAX: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for List<T, MAX> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {MAX} entries")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while let Some(entry) = from.next_element()? {
                if list.len() == MAX {
                    return Err(serde::de::Error::invalid_length(MAX + 1, &self));
                }
                list.push(entry);
            }
            Ok(list)
        }
    }

    from.deserialize_seq(List::<T, MAX>(PhantomData))
}

fn node(id: u8) -> Result<NodeId, RecordError> {
    NodeId::new(id).ok_or(RecordError::Node { found: id })
}

/// What a record must be for a peer to take it: checked on both ends.
fn check_record(record: &Record) -> Result<(), RecordError> {
    let count = record.sizes.len();
    if count > MAX_VOLUMES {
        return Err(RecordError::Volumes { count });
    }
    for (volume, size_bytes) in (0..).map(VolumeId).zip(record.sizes.iter().copied()) {
        if i64::try_from(size_bytes).is_err() {
            return Err(RecordError::VolumeSize { volume, size_bytes });
        }
    }
    if !record.in_sync.is_sorted_by(|a, b| a.node < b.node) {
        return Err(RecordError::MemberOrder);
    }
    let found = record.min_redundancy;
    if !(1..=NodeId::LIMIT).contains(&found) {
        return Err(RecordError::MinRedundancy { found });
    }
    Ok(())
}

impl From<&Record> for RecordBody {
    fn from(record: &Record) -> Self {
        Self {
            resource: record.resource.0,
            generation: record.generation.0,
            epoch: record.epoch.0,
            history: record.history.0,
            sizes: record.sizes.clone(),
            primary: record.primary.map(NodeId::get),
            in_sync: record
                .in_sync
                .iter()
                .map(|member| MemberBody {
                    node: member.node.get(),
                    disk: member.disk.0,
                    incarnation: member.incarnation.0,
                })
                .collect(),
            replicas: record.replicas.0,
            min_redundancy: record.min_redundancy,
        }
    }
}

impl TryFrom<RecordBody> for Record {
    type Error = RecordError;

    fn try_from(body: RecordBody) -> Result<Self, RecordError> {
        let members = body.in_sync.iter().map(|member| {
            Ok(Member {
                node: node(member.node)?,
                disk: DiskId(member.disk),
                incarnation: Incarnation(member.incarnation),
            })
        });
        let record = Self {
            resource: ResourceId(body.resource),
            generation: Generation(body.generation),
            epoch: Epoch(body.epoch),
            history: HistoryId(body.history),
            in_sync: members.collect::<Result<_, _>>()?,
            sizes: body.sizes,
            primary: body.primary.map(node).transpose()?,
            replicas: NodeSet(body.replicas),
            min_redundancy: body.min_redundancy,
        };
        check_record(&record)?;
        Ok(record)
    }
}

fn put<T: Serialize>(kind: Kind, value: &T, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    out.push(LAYOUT);
    postcard::to_io(value, &mut *out)
        .map(|_| ())
        .map_err(|source| EncodeError::Body { kind, source })
}

fn take<T: DeserializeOwned>(kind: Kind, body: &[u8]) -> Result<T, WireError> {
    let end = postcard::Error::DeserializeUnexpectedEnd;
    let (&found, rest) = body
        .split_first()
        .ok_or(WireError::Body { kind, source: end })?;
    if found != LAYOUT {
        return Err(WireError::BodyLayout {
            kind,
            found,
            known: LAYOUT,
        });
    }
    let (value, rest) =
        postcard::take_from_bytes(rest).map_err(|source| WireError::Body { kind, source })?;
    if rest.is_empty() {
        Ok(value)
    } else {
        Err(WireError::TrailingBytes {
            kind,
            count: rest.len(),
        })
    }
}

/// Writes the body of a control message behind the offer, if it has one; nothing for other messages.
pub(super) fn write<P>(
    kind: Kind,
    message: &Message<P>,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let invalid = |source| EncodeError::Invalid(WireError::Record { kind, source });
    match message {
        Message::Hello {
            node,
            to,
            session,
            record,
        } => {
            check_record(record).map_err(invalid)?;
            let body = HelloBody {
                node: node.get(),
                to: to.get(),
                session: session.0,
                record: record.into(),
            };
            put(kind, &body, out)
        }
        Message::Record { record } => {
            check_record(record).map_err(invalid)?;
            put(kind, &RecordBody::from(record), out)
        }
        Message::Welcome {
            disk,
            incarnation,
            history,
            bits_for,
            whole_window,
        } => {
            let body = WelcomeBody {
                disk: disk.0,
                incarnation: incarnation.0,
                history: history.0,
                bits_for: bits_for.map(|disk| disk.0),
                whole_window: *whole_window,
            };
            put(kind, &body, out)
        }
        Message::Refuse { reason } => put(kind, reason, out),
        _ => Ok(()),
    }
}

/// Reads the body of a control message; `None` where the type is none. The resource is the frame
/// header's: a record of another one is refused.
pub(super) fn read<P>(
    kind: Kind,
    body: &[u8],
    resource: ResourceId,
) -> Result<Option<Message<P>>, WireError> {
    let invalid = |source| WireError::Record { kind, source };
    let record = |body: RecordBody| {
        let record = Record::try_from(body).map_err(invalid)?;
        if record.resource == resource {
            Ok(record)
        } else {
            Err(WireError::OtherResource {
                found: record.resource,
                ours: resource,
            })
        }
    };
    Ok(Some(match kind {
        Kind::Hello => {
            let body: HelloBody = take(kind, body.get(OFFER_BYTES..).unwrap_or_default())?;
            Message::Hello {
                node: node(body.node).map_err(invalid)?,
                to: node(body.to).map_err(invalid)?,
                session: SessionId(body.session),
                record: record(body.record)?,
            }
        }
        Kind::Record => Message::Record {
            record: record(take(kind, body)?)?,
        },
        Kind::Welcome => {
            let body: WelcomeBody = take(kind, body.get(OFFER_BYTES..).unwrap_or_default())?;
            Message::Welcome {
                disk: DiskId(body.disk),
                incarnation: Incarnation(body.incarnation),
                history: HistoryId(body.history),
                bits_for: body.bits_for.map(DiskId),
                whole_window: body.whole_window,
            }
        }
        Kind::Refuse => Message::Refuse {
            reason: take::<RefuseReason>(kind, body)?,
        },
        _ => return Ok(None),
    }))
}
