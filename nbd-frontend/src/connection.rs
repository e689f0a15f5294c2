//! One client's connection, from the greeting to the last reply, without a socket: bytes go in,
//! steps and output bytes come out. What is decided here is the order of things: which message may
//! come next, what it costs, when the connection ends.

use crate::export::Exports;
use crate::limits::Limits;
use crate::options::{self, CLIENT_FLAGS_BYTES, InfoQuestion, OPTION_HEADER_BYTES};
use crate::reply::{Outcome, put_error, put_reply};
use crate::request::{Command, REQUEST_BYTES, RawRequest, Rejection, Request, Terms};
use crate::wire::{MAX_STRING_BYTES, option, option_reply};
use crate::{CloseReason, ExportInfo};

/// What the driver does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Step {
    /// All of the input was taken; receive more.
    NeedMore,
    /// A message was answered in the output. Go on with the rest of the input.
    Answered,
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
        left: u32,
    },
    RequestHeader,
    /// Drops a payload; then answers the request that it belonged to, if that is left to be done.
    PayloadSkip {
        left: u32,
        answer: Option<(u64, Rejection)>,
    },
    Closed(CloseReason),
}

/// Longest message part of fixed length.
const MAX_HEADER_BYTES: usize = REQUEST_BYTES;

/// The state of one connection.
///
/// Bytes that were received are given to [`receive`](Self::receive) again and again until they are
/// used up; what the connection has to say it appends to the output that the driver sends. It keeps
/// no payloads and, once the handshake is over, allocates nothing.
#[derive(Debug)]
pub struct Connection {
    limits: Limits,
    phase: Phase,
    /// Beginning of a header that the input ended in.
    partial: [u8; MAX_HEADER_BYTES],
    partial_bytes: usize,
    /// The option's data so far; given back when the handshake ends.
    option_data: Vec<u8>,
    options_seen: u32,
    no_zeroes: bool,
    structured: bool,
    block_sizes_asked: bool,
    /// There from `Opened` on.
    terms: Option<Box<Terms>>,
    shutting_down: bool,
    in_flight: u32,
    in_flight_bytes: u64,
}

impl Connection {
    /// A new connection; puts the greeting, with which the server begins, into the output.
    #[must_use]
    pub fn new(limits: Limits, out: &mut Vec<u8>) -> Self {
        options::put_greeting(out);
        Self {
            limits,
            phase: Phase::ClientFlags,
            partial: [0; MAX_HEADER_BYTES],
            partial_bytes: 0,
            option_data: Vec::new(),
            options_seen: 0,
            no_zeroes: false,
            structured: false,
            block_sizes_asked: false,
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
        debug_assert!(self.in_flight > 0, "a reply without a request");
        self.in_flight = self.in_flight.saturating_sub(1);
        self.in_flight_bytes = self
            .in_flight_bytes
            .saturating_sub(u64::from(request.payload_bytes()));
        put_reply(request, outcome, self.structured, out)
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
                left: bytes,
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
                let (cookie, rejection) = answer?;
                Some(self.refuse(cookie, rejection, out))
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
                let missing = length.saturating_sub(length_u32(self.option_data.len()));
                let taken = usize::try_from(missing)
                    .unwrap_or(usize::MAX)
                    .min(rest.len());
                let (head, tail) = rest.split_at(taken);
                self.option_data.extend_from_slice(head);
                *rest = tail;
                if length_u32(taken) < missing {
                    return Some(Step::NeedMore);
                }
                self.phase = Phase::OptionHeader;
                let data = std::mem::take(&mut self.option_data);
                let step = self.option(option, &data, exports, out);
                if self.phase == Phase::OptionHeader {
                    self.option_data = data;
                    self.option_data.clear();
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
        let Some(bytes) = self.header::<REQUEST_BYTES>(rest) else {
            return Some(Step::NeedMore);
        };
        let raw = match RawRequest::parse(&bytes) {
            Ok(raw) => raw,
            Err(reason) => return Some(self.close(reason)),
        };
        if raw.is_disconnect() {
            return Some(self.close(CloseReason::Disconnected));
        }
        let checked = match &mut self.terms {
            Some(terms) if !self.shutting_down => terms.check_now(&raw, exports),
            _ => Err(Rejection::SHUTTING_DOWN),
        };
        match checked {
            Ok(request) if request.is_empty() => {
                // Nothing to do for a range of no bytes. What this says is left open by the
                // protocol, except that the connection goes on.
                let _no_data = put_reply(&request, Outcome::Done, self.structured, out);
                Some(Step::Answered)
            }
            Ok(request) => {
                self.in_flight = self.in_flight.saturating_add(1);
                self.in_flight_bytes = self
                    .in_flight_bytes
                    .saturating_add(u64::from(request.payload_bytes()));
                Some(match request.command {
                    Command::Write => Step::Write(request),
                    _ => Step::Request(request),
                })
            }
            Err(rejection) => {
                // Answered after its payload: simple clients read only once they have sent all.
                let answer = Some((raw.cookie, rejection));
                self.phase = Phase::PayloadSkip {
                    left: raw.payload_bytes(),
                    answer,
                };
                None
            }
        }
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
                left: length,
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
        if self.shutting_down {
            let text = "this server is shutting down; connect to another one";
            options::put_option_error(option, option_reply::ERR_SHUTDOWN, text, out);
            return Step::Answered;
        }
        match option {
            option::INFO | option::GO => return self.info(option, data, exports, out),
            option::LIST | option::STRUCTURED_REPLY if !data.is_empty() => {
                let text = "this option takes no data";
                options::put_option_error(option, option_reply::ERR_INVALID, text, out);
            }
            option::LIST => {
                for listing in exports.list() {
                    options::put_listing(option, &listing, out);
                }
                options::put_option_reply(option, option_reply::ACK, &[], out);
            }
            option::STRUCTURED_REPLY => {
                self.structured = true;
                options::put_option_reply(option, option_reply::ACK, &[], out);
            }
            _ => {
                let text = format!("option {option} is not supported by this server");
                options::put_option_error(option, option_reply::ERR_UNSUP, &text, out);
            }
        }
        Step::Answered
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
        self.block_sizes_asked |= question.block_sizes;
        let flags = export.transmission_flags(self.structured);
        let max_payload_bytes = self.limits.max_payload_bytes;
        options::put_infos(option, &question, &export, flags, max_payload_bytes, out);
        if option == option::GO {
            self.open(export)
        } else {
            Step::Answered
        }
    }

    fn export_name(&mut self, data: &[u8], exports: &dyn Exports, out: &mut Vec<u8>) -> Step {
        let found = match options::parse_name(data) {
            Ok(name) if !self.shutting_down => exports.find(name).ok(),
            _ => None,
        };
        let Some(export) = found else {
            return self.close(CloseReason::ExportRefused);
        };
        let flags = export.transmission_flags(self.structured);
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
            export,
            structured: self.structured,
            block_sizes_asked: self.block_sizes_asked,
            max_payload_bytes: self.limits.max_payload_bytes,
        }));
        self.phase = Phase::RequestHeader;
        Step::Opened
    }

    fn refuse(&self, cookie: u64, rejection: Rejection, out: &mut Vec<u8>) -> Step {
        put_error(
            cookie,
            rejection.error,
            rejection.reason,
            self.structured,
            out,
        );
        Step::Answered
    }

    const fn close(&mut self, reason: CloseReason) -> Step {
        self.phase = Phase::Closed(reason);
        Step::Close(reason)
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
fn skip(rest: &mut &[u8], left: u32) -> u32 {
    let dropped = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
    *rest = &rest[dropped..];
    left.saturating_sub(length_u32(dropped))
}

/// A length that is known to fit.
fn length_u32(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
