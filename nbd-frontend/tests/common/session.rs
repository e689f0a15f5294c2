//! A connection that is fed bytes and records what it did: for tests that compare steps and bytes.

use nbd_frontend::{
    Command, Connection, Exports, Extent, HOLE, Limits, Outcome, Request, Step, TlsMode, ZERO,
};

use super::Catalog;
use super::message::{self, CLIENT_FLAGS, EXPORT_NAME, STRUCTURED_REPLY, option};

/// Answers that a device could give, so that replies are covered too: by the cookie.
pub fn outcome_of(request: &Request) -> Outcome {
    match request.cookie % 4 {
        0 => Outcome::Zeroes,
        1 => Outcome::Failed(nbd_frontend::NbdError::Io),
        _ => Outcome::Done,
    }
}

/// A connection, its output, and what happened.
#[derive(Debug)]
pub struct Session {
    pub connection: Connection,
    pub out: Vec<u8>,
    /// Every step but `NeedMore` and `AtLimit`, in order.
    pub steps: Vec<Step>,
    /// Payload bytes, one after the other.
    pub payload: Vec<u8>,
    payload_left: usize,
    /// Answer each request as it comes, as `outcome_of` says, and send the output at once.
    pub serving: bool,
    /// What was sent so far when serving.
    pub sent: Vec<u8>,
}

impl Session {
    pub fn new(limits: Limits) -> Self {
        Self::with_tls(limits, TlsMode::Off)
    }

    pub fn with_tls(limits: Limits, tls: TlsMode) -> Self {
        let mut out = Vec::new();
        let connection = Connection::new(limits, tls, &mut out);
        Self {
            connection,
            out,
            steps: Vec::new(),
            payload: Vec::new(),
            payload_left: 0,
            serving: false,
            sent: Vec::new(),
        }
    }

    /// In the transmission phase, with empty output and no steps recorded.
    pub fn open(export: &str, structured: bool) -> Self {
        let mut session = Self::new(Limits::default());
        session.feed(&CLIENT_FLAGS);
        if structured {
            session.feed(&option(STRUCTURED_REPLY, b""));
        }
        session.feed(&option(EXPORT_NAME, export.as_bytes()));
        assert_eq!(
            session.steps.last(),
            Some(&Step::Opened),
            "the handshake failed"
        );
        session.steps.clear();
        session.out.clear();
        session
    }

    /// In the transmission phase of `r0` after these options, with empty output and no steps recorded.
    pub fn after(options: &[(u32, Vec<u8>)]) -> Self {
        let mut session = Self::new(Limits::default());
        session.feed(&CLIENT_FLAGS);
        for (number, data) in options {
            session.feed(&option(*number, data));
        }
        session.feed(&option(message::GO, &message::question("r0", &[])));
        assert_eq!(
            session.steps.last(),
            Some(&Step::Opened),
            "the handshake failed"
        );
        session.steps.clear();
        session.out.clear();
        session
    }

    pub fn feed(&mut self, input: &[u8]) {
        self.feed_with(input, &Catalog);
    }

    /// Feeds until the input is used up, or nothing more is taken.
    pub fn feed_with(&mut self, input: &[u8], exports: &dyn Exports) {
        let mut rest = input;
        loop {
            let taken = self.payload_left.min(rest.len());
            self.payload.extend_from_slice(&rest[..taken]);
            self.payload_left -= taken;
            rest = &rest[taken..];
            if self.payload_left > 0 {
                return;
            }
            let before = self.out.len();
            let (taken, step) = self.connection.receive(rest, exports, &mut self.out);
            assert!(taken <= rest.len(), "took more than was given");
            assert!(
                self.out.len() - before <= 32 << 10,
                "one step wrote too much"
            );
            rest = &rest[taken..];
            match step {
                Step::NeedMore => {
                    assert!(rest.is_empty(), "NeedMore with input left");
                    return;
                }
                Step::AtLimit => {
                    assert_eq!(taken, 0, "AtLimit took input");
                    assert!(
                        !self.serving,
                        "at a limit although all is answered and sent"
                    );
                    return;
                }
                Step::Close(_) => {
                    if self.steps.last() != Some(&step) {
                        self.steps.push(step);
                    }
                    return;
                }
                Step::Write(request) => {
                    self.steps.push(step);
                    self.payload_left = usize::try_from(request.payload_bytes()).unwrap();
                    self.serve(&request);
                }
                Step::Request(request) => {
                    self.steps.push(step);
                    self.serve(&request);
                }
                Step::Answered | Step::Opened | Step::Secure => self.steps.push(step),
            }
            if self.serving {
                self.sent.append(&mut self.out);
            }
        }
    }

    /// The output since the last call.
    pub fn take_out(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    fn serve(&mut self, request: &Request) {
        if !self.serving {
            return;
        }
        if request.command == Command::BlockStatus {
            let extents = vec![
                Extent {
                    length: 1 + request.cookie % 1000,
                    flags: HOLE | ZERO,
                },
                Extent {
                    length: u64::MAX,
                    flags: 0,
                },
            ];
            let answer = |place| (place, extents.clone());
            let answers: Vec<_> = request.contexts.places().map(answer).collect();
            self.connection
                .reply_status(request, &answers, &mut self.out);
        } else if request.command == Command::Read && request.cookie % 8 == 6 {
            let length = usize::try_from(request.payload_bytes()).unwrap();
            let mut data = vec![0; length];
            data[length / 3..length / 2].fill(7);
            let mut from = 0;
            loop {
                let piece = self
                    .connection
                    .reply_piece(request, &data, from, &mut self.out);
                self.out.extend_from_slice(&data[piece.send]);
                let Some(next) = piece.next else { break };
                from = next;
            }
        } else {
            let _data_bytes = self
                .connection
                .reply(request, outcome_of(request), &mut self.out);
        }
        assert_eq!(self.connection.in_flight(), 0);
    }
}
