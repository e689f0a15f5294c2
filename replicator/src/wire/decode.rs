//! From received bytes to messages. The decoder keeps no bytes: the driver shows it what lies at the
//! front of its receive buffer, again with more behind it where that was not enough.

use super::body::{self, WithoutPayload};
use super::control;
use super::error::{RejectReason, WireError};
use super::handshake::{LOCAL_OFFER, Negotiated, OFFER_BYTES, RawOffer, RejectBody, negotiate};
use super::header::{FLAG_PAYLOAD, HEADER_BYTES, RawHeader};
use super::kind::{Kind, PayloadRule, Sender};
use super::{FrameContext, MAX_BODY_BYTES, MAX_PAYLOAD_BYTES, PayloadBytes, PayloadCrc, VERSION};
use crate::core::message::Message;
use vocabulary::{ClusterId, Epoch, Generation, ResourceId};
use zerocopy::FromBytes;

/// The header of a frame whose checksum and lengths are right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The protocol version of the body.
    pub version: u16,
    /// The type.
    pub kind: Kind,
    /// What the frame says of its sender.
    pub context: FrameContext,
}

/// What lies at the front of the bytes received.
#[derive(Clone, Debug)]
pub enum Decoded<P> {
    /// Not yet a whole header and body: at least this many bytes are missing. Nothing is consumed.
    NeedMore(usize),
    /// A message without a payload.
    Frame {
        /// Its bytes, to be dropped from the front.
        consumed: usize,
        /// Its header.
        header: FrameHeader,
        /// The message.
        message: Message<P>,
    },
    /// A message whose payload comes next on the connection: the driver drops the consumed bytes,
    /// takes `len` bytes (from its buffer, or straight into one that fits the disk) and hands them to
    /// [`Decoder::finish`].
    Payload {
        /// Bytes of header and body, to be dropped from the front.
        consumed: usize,
        /// Their header.
        header: FrameHeader,
        /// Bytes of the payload, at most [`MAX_PAYLOAD_BYTES`]; may be 0.
        len: usize,
    },
}

/// Which end of the connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Dialing,
    Accepting,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    header: FrameHeader,
    len: usize,
    crc: PayloadCrc,
    message: WithoutPayload,
}

/// Reads the frames of one connection. After an error the connection is of no more use.
#[derive(Clone, Debug)]
pub struct Decoder {
    end: End,
    cluster: ClusterId,
    /// On an accepted connection the first frame fixes it.
    resource: Option<ResourceId>,
    negotiated: Option<Negotiated>,
    pending: Option<Pending>,
}

/// A header that was checked as far as it can be by itself.
struct Checked {
    header: FrameHeader,
    body_len: usize,
    body_crc: u32,
    payload: Option<(u32, PayloadCrc)>,
}

fn check(raw: &RawHeader) -> Result<Checked, WireError> {
    let version = raw.version.get();
    let code = raw.kind.get();
    let kind = Kind::from_code(code);
    // A frame of another version may be of any type and form; only an offer is read from it.
    let foreign = version != VERSION;
    let kind = match kind {
        Some(kind) if !foreign || kind.has_offer() || kind == Kind::Reject => kind,
        _ if foreign => {
            return Err(WireError::Version {
                found: version,
                expected: VERSION,
            });
        }
        _ => return Err(WireError::UnknownType { code }),
    };
    let flags = raw.flags.get();
    if flags & !FLAG_PAYLOAD != 0 {
        return Err(WireError::UnknownFlags {
            kind,
            flags: flags & !FLAG_PAYLOAD,
        });
    }
    let (min, max) = if foreign && kind.has_offer() {
        (OFFER_BYTES, MAX_BODY_BYTES)
    } else {
        kind.body_bytes()
    };
    let len = raw.body_len.get();
    let body_len = usize::try_from(len)
        .ok()
        .filter(|len| (min..=max).contains(len))
        .ok_or(WireError::BodyLength {
            kind,
            len,
            min,
            max,
        })?;
    let len = raw.payload_len.get();
    let has_payload = flags & FLAG_PAYLOAD != 0;
    let allowed = match kind.payload() {
        PayloadRule::Never => !has_payload,
        PayloadRule::Maybe => true,
        PayloadRule::Always => has_payload,
    };
    if !allowed || (!has_payload && (len != 0 || raw.payload_crc.get() != 0)) {
        return Err(WireError::PayloadPresence { kind });
    }
    if len > MAX_PAYLOAD_BYTES {
        return Err(WireError::PayloadTooLong { kind, len });
    }
    Ok(Checked {
        header: FrameHeader {
            version,
            kind,
            context: FrameContext {
                cluster: ClusterId(raw.cluster.get()),
                resource: ResourceId(raw.resource.get()),
                epoch: Epoch(raw.epoch.get()),
                generation: Generation(raw.generation.get()),
            },
        },
        body_len,
        body_crc: raw.body_crc.get(),
        payload: has_payload.then(|| (len, PayloadCrc(raw.payload_crc.get()))),
    })
}

/// What a rejection says.
fn read_reject(body: &[u8]) -> WireError {
    RejectBody::read_from_bytes(body).map_or(
        WireError::PartOfEntry { kind: Kind::Reject },
        |body| WireError::Rejected {
            reason: RejectReason::from_code(body.reason.get()),
            theirs: body.offer.into(),
        },
    )
}

impl Decoder {
    const fn new(end: End, cluster: ClusterId, resource: Option<ResourceId>) -> Self {
        Self {
            end,
            cluster,
            resource,
            negotiated: None,
            pending: None,
        }
    }

    /// For a connection that this node dialled for a resource: as its primary, or to forward to the
    /// primary.
    #[must_use]
    pub const fn dialing(cluster: ClusterId, resource: ResourceId) -> Self {
        Self::new(End::Dialing, cluster, Some(resource))
    }

    /// For a connection that this node accepted. Its first frame is a `Hello` or an `Attach`, whose
    /// header names the resource; all others must name the same.
    #[must_use]
    pub const fn accepting(cluster: ClusterId) -> Self {
        Self::new(End::Accepting, cluster, None)
    }

    /// What the two ends speak; `None` until the peer's first frame with an offer has come.
    #[must_use]
    pub const fn negotiated(&self) -> Option<Negotiated> {
        self.negotiated
    }

    /// Reads the frame at the front of the input. Allocates only what a list in the message needs,
    /// after the list has come as a whole.
    ///
    /// # Errors
    /// A [`WireError`] that says what is wrong with the frame.
    pub fn decode<P>(&mut self, input: &[u8]) -> Result<Decoded<P>, WireError> {
        if self.pending.is_some() {
            return Err(WireError::PayloadPending);
        }
        let Some(raw) = RawHeader::read(input)? else {
            return Ok(Decoded::NeedMore(HEADER_BYTES - input.len()));
        };
        let Checked {
            header,
            body_len,
            body_crc,
            payload,
        } = check(&raw)?;
        let kind = header.kind;
        self.check_place(&header)?;
        let consumed = HEADER_BYTES + body_len;
        let Some(body) = input.get(HEADER_BYTES..consumed) else {
            return Ok(Decoded::NeedMore(consumed - input.len()));
        };
        if crc32c::crc32c(body) != body_crc {
            return Err(WireError::BodyChecksum { kind });
        }
        if kind == Kind::Reject {
            return Err(read_reject(body));
        }
        let negotiated = self.agree(&header, body)?;
        if let Some((len, crc)) = payload {
            let message = body::read_with_payload(kind, body, len)?;
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            self.pending = Some(Pending {
                header,
                len,
                crc,
                message,
            });
            return Ok(Decoded::Payload {
                consumed,
                header,
                len,
            });
        }
        let message = match body::read(kind, body)? {
            Some(message) => message,
            None => control::read(kind, body, header.context.resource)?
                .ok_or(WireError::PayloadPresence { kind })?,
        };
        // Only now: a frame that is refused changes nothing.
        self.negotiated = negotiated;
        self.resource = Some(header.context.resource);
        Ok(Decoded::Frame {
            consumed,
            header,
            message,
        })
    }

    /// Completes the message that [`Decoded::Payload`] announced, after checking the payload.
    ///
    /// # Errors
    /// [`WireError::PayloadChecksum`]; the others are the driver's mistakes.
    pub fn finish<P: PayloadBytes>(
        &mut self,
        payload: P,
    ) -> Result<(FrameHeader, Message<P>), WireError> {
        let crc = PayloadCrc::of(payload.bytes());
        self.finish_with_crc(payload, crc)
    }

    /// As [`Self::finish`], for a driver that computed the payload's checksum while it arrived.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub fn finish_with_crc<P: PayloadBytes>(
        &mut self,
        payload: P,
        crc: PayloadCrc,
    ) -> Result<(FrameHeader, Message<P>), WireError> {
        let Some(pending) = self.pending else {
            return Err(WireError::NoPayloadPending);
        };
        if payload.len() != pending.len {
            return Err(WireError::PayloadSize {
                expected: pending.len,
                found: payload.len(),
            });
        }
        if crc != pending.crc {
            return Err(WireError::PayloadChecksum {
                kind: pending.header.kind,
            });
        }
        self.pending = None;
        Ok((pending.header, pending.message.with(payload)))
    }

    /// May this frame come here and now?
    fn check_place(&self, header: &FrameHeader) -> Result<(), WireError> {
        let kind = header.kind;
        if kind == Kind::Reject {
            return Ok(());
        }
        let FrameContext {
            cluster, resource, ..
        } = header.context;
        if cluster != self.cluster {
            return Err(WireError::OtherCluster {
                found: cluster,
                ours: self.cluster,
            });
        }
        if let Some(ours) = self.resource
            && resource != ours
        {
            return Err(WireError::OtherResource {
                found: resource,
                ours,
            });
        }
        let direction = match kind.sender() {
            Sender::Either => true,
            Sender::Primary | Sender::Follower => self.end == End::Accepting,
            Sender::Replica | Sender::Attached => self.end == End::Dialing,
        };
        if !direction {
            return Err(WireError::WrongDirection { kind });
        }
        let in_place = match (self.end, self.negotiated) {
            (End::Dialing, None) => kind.before_welcome(),
            (End::Accepting, None) => matches!(kind, Kind::Hello | Kind::Attach),
            (_, Some(_)) => !kind.has_offer(),
        };
        if in_place {
            Ok(())
        } else {
            Err(WireError::OutOfPlace { kind })
        }
    }

    /// What is agreed after this frame.
    fn agree(&self, header: &FrameHeader, body: &[u8]) -> Result<Option<Negotiated>, WireError> {
        let kind = header.kind;
        if !kind.has_offer() {
            return Ok(self.negotiated);
        }
        let (offer, _) =
            RawOffer::read_from_prefix(body).map_err(|_| WireError::PartOfEntry { kind })?;
        let negotiated = negotiate(LOCAL_OFFER, offer.into())?;
        if header.version == negotiated.version {
            Ok(Some(negotiated))
        } else {
            Err(WireError::Version {
                found: header.version,
                expected: negotiated.version,
            })
        }
    }
}
