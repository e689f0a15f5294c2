//! One client's connection, from the greeting to the last reply, without a socket: bytes go in,
//! steps and output bytes come out. What is decided here is the order of things: which message may
//! come next, what it costs, when the connection ends.

use crate::export::Exports;
use crate::limits::Limits;
use crate::meta::{Extent, MetaQuestion, Selection};
use crate::options::{self, CLIENT_FLAGS_BYTES, InfoQuestion, OPTION_HEADER_BYTES};
use crate::reply::{Head, Outcome, Piece, Replies, put_error, put_piece, put_reply, put_status};
use crate::request::{
    Command, EXTENDED_REQUEST_BYTES, MAX_STATUS_PAYLOAD_BYTES, REQUEST_BYTES, RawRequest,
    Rejection, Request, Terms,
};
use crate::wire::{MAX_STRING_BYTES, option, option_reply};
use crate::{CloseReason, ExportInfo, NbdError};

/// Whether clients may, or must, have the connection encrypted by STARTTLS ("TLS support").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsMode {
    /// They can't.
    #[default]
    Off,
    /// They may.
    On,
    /// They must, before anything else.
    Require,
}

/// What the driver does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Step {
    /// All of the input was taken; receive more.
    NeedMore,
    /// A message was answered in the output. Go on with the rest of the input.
    Answered,
    /// The client wants TLS. Send the output in the clear; whatever comes after it, the rest of the
    /// input included, is TLS in both directions, and what it carries is given to
    /// [`Connection::receive`]. Nothing that was negotiated before counts any more.
    Secure,
    /// The handshake is over (its answer is in the output): bind the connection to the device of
    /// [`Connection::export`], then go on with the rest of the input.
    Opened,
    /// A request without payload. Submit it; go on with the rest of the input.
    Request(Request),
    /// A WRITE. The next [`Request::payload_bytes`] of the stream are the payload and the driver's
    /// to take, partly from the rest of the input, partly from the socket; or it refuses the
    /// request with [`Connection::reply`] and has them skipped with [`Connection::skip_payload`].
    /// After them the stream goes on with the next request.
    Write(Request),
    /// Nothing is taken, since too much is in flight or unsent. Keep the input and call again once
    /// a reply was made or output was sent.
    AtLimit,
    /// The rest of the input is void. Make the replies that are in flight, send the output, close.
    Close(CloseReason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    ClientFlags,
    OptionHeader,
    /// Collects an option's data.
    OptionData {
        option: u32,
        length: u32,
    },
    /// Drops the data of an option that is too long to be kept.
    OptionSkip {
        option: u32,
        left: u64,
    },
    RequestHeader,
    /// Collects the payload of a BLOCK_STATUS.
    StatusPayload {
        raw: RawRequest,
        length: usize,
    },
    /// Drops a payload; then answers the request that it belonged to, if that is left to be done.
    PayloadSkip {
        left: u64,
        answer: Option<(Head, Rejection)>,
    },
    Closed(CloseReason),
}

/// Longest message part of fixed length.
const MAX_HEADER_BYTES: usize = EXTENDED_REQUEST_BYTES;

/// What the client has asked for; STARTTLS forgets all of it.
#[derive(Debug, Default)]
struct Negotiated {
    replies: Replies,
    block_sizes_asked: bool,
    selection: Selection,
}

/// The state of one connection.
///
/// Bytes that were received are given to [`receive`](Self::receive) again and again until they are
/// used up; what the connection has to say it appends to the output that the driver sends. It keeps
/// no payloads and, once the handshake is over, allocates nothing.
#[derive(Debug)]
pub struct Connection {
    limits: Limits,
    tls: TlsMode,
    secured: bool,
    phase: Phase,
    /// Beginning of a header that the input ended in.
    partial: [u8; MAX_HEADER_BYTES],
    partial_bytes: usize,
    /// Data of an option, or of a BLOCK_STATUS, so far; given back when the handshake ends.
    collected: Vec<u8>,
    options_seen: u32,
    no_zeroes: bool,
    negotiated: Negotiated,
    /// There from `Opened` on.
    terms: Option<Box<Terms>>,
    shutting_down: bool,
    in_flight: u32,
    in_flight_bytes: u64,
}

impl Connection {
    /// A new connection; puts the greeting, with which the server begins, into the output.
    #[must_use]
    pub fn new(limits: Limits, tls: TlsMode, out: &mut Vec<u8>) -> Self {
        options::put_greeting(out);
        Self {
            limits,
            tls,
            secured: false,
            phase: Phase::ClientFlags,
            partial: [0; MAX_HEADER_BYTES],
            partial_bytes: 0,
            collected: Vec::new(),
            options_seen: 0,
            no_zeroes: false,
            negotiated: Negotiated::default(),
            terms: None,
            shutting_down: false,
            in_flight: 0,
            in_flight_bytes: 0,
        }
    }

    /// Takes bytes from the front of `input` up to the next step; returns how many, and the step.
    /// `out` is everything that was not sent yet, as far as the driver wants it to count against
    /// [`Limits::max_unsent_bytes`]; what is answered here is appended to it.
    ///
    /// [`Step::NeedMore`] means that all of `input` was taken, so the driver never keeps a part of a
    /// message.
    pub fn receive(
        &mut self,
        input: &[u8],
        exports: &dyn Exports,
        out: &mut Vec<u8>,
    ) -> (usize, Step) {
        let mut rest = input;
        let step = loop {
            if let Some(step) = self.advance(&mut rest, exports, out) {
                break step;
            }
        };
        (input.len() - rest.len(), step)
    }

    /// Writes the header of the reply to `request` and returns how many bytes of data have to be
    /// sent right after it: for a READ that succeeded the bytes of its buffer, or as many zeroes if
    /// the outcome is [`Outcome::Zeroes`] and the client takes no holes; else 0. Each request of a
    /// step is answered once.
    #[must_use]
    pub fn reply(&mut self, request: &Request, outcome: Outcome, out: &mut Vec<u8>) -> u32 {
        self.ended(request);
        put_reply(request, outcome, self.replies(), out)
    }

    /// The same for a READ whose bytes are `data`: writes the header of the piece of the reply that
    /// begins at `from`, 0 first, then what [`Piece::next`] says, and tells which bytes follow it.
    /// Clients that take chunks get holes for longer runs of zeroes.
    pub fn reply_piece(
        &mut self,
        request: &Request,
        data: &[u8],
        from: usize,
        out: &mut Vec<u8>,
    ) -> Piece {
        let piece = put_piece(request, data, from, self.replies(), out);
        if piece.next.is_none() {
            self.ended(request);
        }
        piece
    }

    /// The same for a BLOCK_STATUS: for each context asked for its place in the export's
    /// [`meta_contexts`](ExportInfo::meta_contexts), and extents one after the other from the start of
    /// the range. They may end before it does, or go beyond.
    pub fn reply_status(
        &mut self,
        request: &Request,
        answers: &[(usize, Vec<Extent>)],
        out: &mut Vec<u8>,
    ) {
        self.ended(request);
        if !put_status(request, answers, self.replies(), out) {
            debug_assert!(false, "a block status without an extent");
            let failed = Outcome::Failed(NbdError::Io);
            let _no_data = put_reply(request, failed, self.replies(), out);
        }
    }

    fn ended(&mut self, request: &Request) {
        debug_assert!(self.in_flight > 0, "a reply without a request");
        self.in_flight = self.in_flight.saturating_sub(1);
        self.in_flight_bytes = self
            .in_flight_bytes
            .saturating_sub(u64::from(request.payload_bytes()));
    }

    const fn replies(&self) -> Replies {
        self.negotiated.replies
    }

    /// Skips the next `bytes` of the stream: the rest of the payload of a [`Step::Write`] that the
    /// driver will not take.
    pub fn skip_payload(&mut self, bytes: u32) {
        debug_assert_eq!(
            self.phase,
            Phase::RequestHeader,
            "only right after Step::Write"
        );
        if self.phase == Phase::RequestHeader && bytes > 0 {
            self.phase = Phase::PayloadSkip {
                left: u64::from(bytes),
                answer: None,
            };
        }
    }

    /// From now on options are answered ERR_SHUTDOWN and requests ESHUTDOWN. The driver closes when
    /// [`in_flight`](Self::in_flight) is 0 and the output is sent.
    pub const fn shut_down(&mut self) {
        self.shutting_down = true;
    }

    /// The export that was opened; `None` during the handshake.
    #[must_use]
    pub fn export(&self) -> Option<&ExportInfo> {
        self.terms.as_ref().map(|terms| &terms.export)
    }

    /// Requests that were handed out and not replied to.
    #[must_use]
    pub const fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// One transition; `None` when there is neither a step nor a lack of input.
    fn advance(
        &mut self,
        rest: &mut &[u8],
        exports: &dyn Exports,
        out: &mut Vec<u8>,
    ) -> Option<Step> {
        match self.phase {
            Phase::RequestHeader => self.request(rest, exports, out),
            Phase::PayloadSkip { left, answer } => {
                let left = skip(rest, left);
                if left > 0 {
                    self.phase = Phase::PayloadSkip { left, answer };
                    return Some(Step::NeedMore);
                }
                self.phase = Phase::RequestHeader;
                let (head, rejection) = answer?;
                Some(self.refuse(head, rejection, out))
            }
            Phase::StatusPayload { raw, length } => {
                if !self.collect(rest, length) {
                    return Some(Step::NeedMore);
                }
                let payload = std::mem::take(&mut self.collected);
                self.phase = Phase::RequestHeader;
                let checked = match &self.terms {
                    Some(terms) if !self.shutting_down => terms.check_status(&raw, &payload),
                    _ => Err(Rejection::SHUTTING_DOWN),
                };
                Some(match checked {
                    Ok(request) => self.hand_out(request),
                    Err(rejection) => self.refuse(raw.head(), rejection, out),
                })
            }
            Phase::ClientFlags => {
                let Some(bytes) = self.header::<CLIENT_FLAGS_BYTES>(rest) else {
                    return Some(Step::NeedMore);
                };
                match options::parse_client_flags(bytes) {
                    Ok(flags) => {
                        self.no_zeroes = flags.no_zeroes;
                        self.phase = Phase::OptionHeader;
                        None
                    }
                    Err(reason) => Some(self.close(reason)),
                }
            }
            Phase::OptionHeader => self.option_header(rest, out),
            Phase::OptionData { option, length } => {
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                if !self.collect(rest, length) {
                    return Some(Step::NeedMore);
                }
                self.phase = Phase::OptionHeader;
                let data = std::mem::take(&mut self.collected);
                let step = self.option(option, &data, exports, out);
                if self.phase == Phase::OptionHeader {
                    self.collected = data;
                    self.collected.clear();
                }
                Some(step)
            }
            Phase::OptionSkip { option, left } => {
                let left = skip(rest, left);
                if left > 0 {
                    self.phase = Phase::OptionSkip { option, left };
                    return Some(Step::NeedMore);
                }
                if option == option::ABORT {
                    return Some(self.abort(out));
                }
                self.phase = Phase::OptionHeader;
                let text = format!(
                    "the option's data is longer than {} bytes",
                    self.limits.max_option_bytes
                );
                options::put_option_error(option, option_reply::ERR_TOO_BIG, &text, out);
                Some(Step::Answered)
            }
            Phase::Closed(reason) => {
                *rest = &[];
                Some(Step::Close(reason))
            }
        }
    }

    /// The next request, from its header on. The hot path.
    fn request(
        &mut self,
        rest: &mut &[u8],
        exports: &dyn Exports,
        out: &mut Vec<u8>,
    ) -> Option<Step> {
        if self.in_flight >= self.limits.max_in_flight
            || self.in_flight_bytes >= self.limits.max_in_flight_bytes
            || out.len() >= self.limits.max_unsent_bytes
        {
            return Some(Step::AtLimit);
        }
        let parsed = if self.replies() == Replies::Extended {
            let Some(bytes) = self.header::<EXTENDED_REQUEST_BYTES>(rest) else {
                return Some(Step::NeedMore);
            };
            RawRequest::parse_extended(&bytes)
        } else {
            let Some(bytes) = self.header::<REQUEST_BYTES>(rest) else {
                return Some(Step::NeedMore);
            };
            RawRequest::parse(&bytes)
        };
        let raw = match parsed {
            Ok(raw) => raw,
            Err(reason) => return Some(self.close(reason)),
        };
        if raw.is_disconnect() {
            return Some(self.close(CloseReason::Disconnected));
        }
        if raw.has_status_payload(self.replies()) {
            return self.status_payload(&raw);
        }
        let checked = match &mut self.terms {
            Some(terms) if !self.shutting_down => terms.check_now(&raw, exports),
            _ => Err(Rejection::SHUTTING_DOWN),
        };
        match checked {
            Ok(request) if request.is_empty() => {
                // Nothing to do for a range of no bytes. What this says is left open by the
                // protocol, except that the connection goes on.
                let _no_data = put_reply(&request, Outcome::Done, self.replies(), out);
                Some(Step::Answered)
            }
            Ok(request) => Some(self.hand_out(request)),
            Err(rejection) => self.reject(&raw, rejection),
        }
    }

    fn hand_out(&mut self, request: Request) -> Step {
        self.in_flight = self.in_flight.saturating_add(1);
        self.in_flight_bytes = self
            .in_flight_bytes
            .saturating_add(u64::from(request.payload_bytes()));
        match request.command {
            Command::Write => Step::Write(request),
            _ => Step::Request(request),
        }
    }

    /// Answers after the payload: simple clients read only once they have sent all.
    fn reject(&mut self, raw: &RawRequest, rejection: Rejection) -> Option<Step> {
        let left = raw.payload_bytes(self.replies());
        if self.replies() == Replies::Extended && left > u64::from(self.limits.max_payload_bytes) {
            return Some(self.close(CloseReason::PayloadTooLong(left)));
        }
        let answer = Some((raw.head(), rejection));
        self.phase = Phase::PayloadSkip { left, answer };
        None
    }

    fn status_payload(&mut self, raw: &RawRequest) -> Option<Step> {
        let length = raw.payload_bytes(self.replies());
        if length > u64::from(MAX_STATUS_PAYLOAD_BYTES) {
            let rejection = Rejection {
                error: NbdError::Invalid,
                reason: "the payload of a block status is malformed",
            };
            return self.reject(raw, rejection);
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        self.phase = Phase::StatusPayload { raw: *raw, length };
        None
    }

    fn option_header(&mut self, rest: &mut &[u8], out: &mut Vec<u8>) -> Option<Step> {
        if out.len() >= self.limits.max_unsent_bytes {
            return Some(Step::AtLimit);
        }
        let Some(bytes) = self.header::<OPTION_HEADER_BYTES>(rest) else {
            return Some(Step::NeedMore);
        };
        let (option, length) = match options::parse_option_header(bytes) {
            Ok(header) => header,
            Err(reason) => return Some(self.close(reason)),
        };
        self.options_seen = self.options_seen.saturating_add(1);
        if self.options_seen > self.limits.max_options {
            if option != option::EXPORT_NAME {
                let text = "too many options on one connection; connect again";
                options::put_option_error(option, option_reply::ERR_POLICY, text, out);
            }
            return Some(self.close(CloseReason::TooManyOptions));
        }
        self.phase = match option {
            // Its only error is the end of the connection.
            option::EXPORT_NAME if length > length_u32(MAX_STRING_BYTES) => {
                return Some(self.close(CloseReason::ExportRefused));
            }
            _ if length > self.limits.max_option_bytes => Phase::OptionSkip {
                option,
                left: u64::from(length),
            },
            _ => Phase::OptionData { option, length },
        };
        None
    }

    /// A whole option. Phase is `OptionHeader` before it.
    fn option(
        &mut self,
        option: u32,
        data: &[u8],
        exports: &dyn Exports,
        out: &mut Vec<u8>,
    ) -> Step {
        if option == option::EXPORT_NAME {
            return self.export_name(data, exports, out);
        }
        if option == option::ABORT {
            return self.abort(out);
        }
        if self.lacks_tls() && option != option::STARTTLS {
            let text = "this server requires TLS; use STARTTLS first";
            options::put_option_error(option, option_reply::ERR_TLS_REQD, text, out);
            return Step::Answered;
        }
        if self.shutting_down {
            let text = "this server is shutting down; connect to another one";
            options::put_option_error(option, option_reply::ERR_SHUTDOWN, text, out);
            return Step::Answered;
        }
        let takes_no_data = matches!(
            option,
            option::LIST | option::STRUCTURED_REPLY | option::STARTTLS | option::EXTENDED_HEADERS
        );
        if takes_no_data && !data.is_empty() {
            let text = "this option takes no data";
            options::put_option_error(option, option_reply::ERR_INVALID, text, out);
            return Step::Answered;
        }
        match option {
            option::INFO | option::GO => return self.info(option, data, exports, out),
            option::STARTTLS => return self.start_tls(out),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.meta_contexts(option, data, exports, out);
            }
            option::LIST => {
                for listing in exports.list() {
                    options::put_listing(option, &listing, out);
                }
                options::put_option_reply(option, option_reply::ACK, &[], out);
            }
            option::STRUCTURED_REPLY if self.replies() == Replies::Extended => {
                let text =
                    "extended headers were negotiated already and replace structured replies";
                options::put_option_error(option, option_reply::ERR_EXT_HEADER_REQD, text, out);
            }
            option::STRUCTURED_REPLY => {
                self.negotiated.replies = Replies::Structured;
                options::put_option_reply(option, option_reply::ACK, &[], out);
            }
            option::EXTENDED_HEADERS => {
                self.negotiated.replies = Replies::Extended;
                options::put_option_reply(option, option_reply::ACK, &[], out);
            }
            _ => {
                let text = format!("option {option} is not supported by this server");
                options::put_option_error(option, option_reply::ERR_UNSUP, &text, out);
            }
        }
        Step::Answered
    }

    fn lacks_tls(&self) -> bool {
        self.tls == TlsMode::Require && !self.secured
    }

    fn start_tls(&mut self, out: &mut Vec<u8>) -> Step {
        let (kind, text) = if self.secured {
            (option_reply::ERR_INVALID, "the connection has TLS already")
        } else if self.tls == TlsMode::Off {
            (
                option_reply::ERR_POLICY,
                "this server has no TLS; see its nbd_tls setting",
            )
        } else {
            options::put_option_reply(option::STARTTLS, option_reply::ACK, &[], out);
            self.secured = true;
            // Somebody else may have said it ("STARTTLS": nothing is kept).
            self.negotiated = Negotiated::default();
            return Step::Secure;
        };
        options::put_option_error(option::STARTTLS, kind, text, out);
        Step::Answered
    }

    fn meta_contexts(
        &mut self,
        option: u32,
        data: &[u8],
        exports: &dyn Exports,
        out: &mut Vec<u8>,
    ) {
        let sets = option == option::SET_META_CONTEXT;
        if sets {
            // Whatever the answer: what was selected before is replaced.
            self.negotiated.selection = Selection::default();
        }
        let parsed = if self.replies().are_structured() {
            MetaQuestion::parse(data)
        } else {
            Err("metadata contexts need structured replies or extended headers first")
        };
        let question = match parsed {
            Ok(question) => question,
            Err(text) => {
                options::put_option_error(option, option_reply::ERR_INVALID, text, out);
                return;
            }
        };
        let export = match exports.find(question.export) {
            Ok(export) => export,
            Err(error) => {
                options::put_export_error(option, &error, out);
                return;
            }
        };
        let offered = export.meta_contexts;
        let contexts = if sets {
            question.selected(offered)
        } else {
            question.listed(offered)
        };
        for place in contexts.places() {
            options::put_meta_context(option, place, offered[place], sets, out);
        }
        options::put_option_reply(option, option_reply::ACK, &[], out);
        if sets {
            self.negotiated.selection = Selection::new(&export, contexts);
        }
    }

    fn info(&mut self, option: u32, data: &[u8], exports: &dyn Exports, out: &mut Vec<u8>) -> Step {
        let question = match InfoQuestion::parse(data) {
            Ok(question) => question,
            Err(text) => {
                options::put_option_error(option, option_reply::ERR_INVALID, text, out);
                return Step::Answered;
            }
        };
        let export = match exports.find(question.export) {
            Ok(export) => export,
            Err(error) => {
                options::put_export_error(option, &error, out);
                return Step::Answered;
            }
        };
        self.negotiated.block_sizes_asked |= question.block_sizes;
        let flags = self.transmission_flags(&export);
        let max_payload_bytes = self.limits.max_payload_bytes;
        options::put_infos(option, &question, &export, flags, max_payload_bytes, out);
        if option == option::GO {
            self.open(export)
        } else {
            Step::Answered
        }
    }

    fn transmission_flags(&self, export: &ExportInfo) -> u16 {
        export.transmission_flags(self.replies(), self.negotiated.selection.of(export))
    }

    fn export_name(&mut self, data: &[u8], exports: &dyn Exports, out: &mut Vec<u8>) -> Step {
        if self.lacks_tls() {
            return self.close(CloseReason::TlsRequired);
        }
        if self.replies() == Replies::Extended {
            return self.close(CloseReason::NeedsGo);
        }
        let found = match options::parse_name(data) {
            Ok(name) if !self.shutting_down => exports.find(name).ok(),
            _ => None,
        };
        let Some(export) = found else {
            return self.close(CloseReason::ExportRefused);
        };
        let flags = self.transmission_flags(&export);
        options::put_export_name_answer(&export, flags, self.no_zeroes, out);
        self.open(export)
    }

    /// Acknowledged whatever its data say, once they are read: closing a socket with bytes unread
    /// would take the acknowledgement with it.
    fn abort(&mut self, out: &mut Vec<u8>) -> Step {
        options::put_option_reply(option::ABORT, option_reply::ACK, &[], out);
        self.close(CloseReason::Aborted)
    }

    fn open(&mut self, export: ExportInfo) -> Step {
        debug_assert!(
            export.is_coherent(),
            "an export that must not be advertised: {export:?}"
        );
        self.terms = Some(Box::new(Terms {
            contexts: self.negotiated.selection.of(&export),
            export,
            replies: self.replies(),
            block_sizes_asked: self.negotiated.block_sizes_asked,
            max_payload_bytes: self.limits.max_payload_bytes,
        }));
        self.negotiated.selection = Selection::default();
        self.phase = Phase::RequestHeader;
        Step::Opened
    }

    fn refuse(&self, head: Head, rejection: Rejection, out: &mut Vec<u8>) -> Step {
        put_error(head, rejection.error, rejection.reason, self.replies(), out);
        Step::Answered
    }

    const fn close(&mut self, reason: CloseReason) -> Step {
        self.phase = Phase::Closed(reason);
        Step::Close(reason)
    }

    /// Puts what is missing of `length` bytes aside; true once they are there.
    fn collect(&mut self, rest: &mut &[u8], length: usize) -> bool {
        let missing = length.saturating_sub(self.collected.len());
        let (head, tail) = rest.split_at(missing.min(rest.len()));
        self.collected.extend_from_slice(head);
        *rest = tail;
        self.collected.len() >= length
    }

    /// The next `N` bytes of the stream, or `None` after all of `rest` was put aside.
    fn header<const N: usize>(&mut self, rest: &mut &[u8]) -> Option<[u8; N]> {
        if self.partial_bytes == 0
            && let Some((head, tail)) = rest.split_first_chunk::<N>()
        {
            *rest = tail;
            return Some(*head);
        }
        let missing = N.saturating_sub(self.partial_bytes);
        let (head, tail) = rest.split_at(missing.min(rest.len()));
        self.partial[self.partial_bytes..][..head.len()].copy_from_slice(head);
        self.partial_bytes += head.len();
        *rest = tail;
        if self.partial_bytes < N {
            return None;
        }
        self.partial_bytes = 0;
        self.partial.first_chunk::<N>().copied()
    }
}

/// Drops up to `left` bytes of `rest`; returns how many are left to be dropped.
fn skip(rest: &mut &[u8], left: u64) -> u64 {
    let dropped = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
    *rest = &rest[dropped..];
    left.saturating_sub(u64::try_from(dropped).unwrap_or(u64::MAX))
}

/// A length that is known to fit.
fn length_u32(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
