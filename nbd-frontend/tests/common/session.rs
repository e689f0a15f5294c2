//! A connection that is fed bytes and records what it did: for tests that compare steps and bytes.

use nbd_frontend::{Connection, Exports, Limits, Outcome, Request, Step};

use super::Catalog;
use super::message::{CLIENT_FLAGS, EXPORT_NAME, STRUCTURED_REPLY, option};

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
        let mut out = Vec::new();
        let connection = Connection::new(limits, &mut out);
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
                Step::Answered | Step::Opened => self.steps.push(step),
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
        if self.serving {
            let _data_bytes = self
                .connection
                .reply(request, outcome_of(request), &mut self.out);
            assert_eq!(self.connection.in_flight(), 0);
        }
    }
}
