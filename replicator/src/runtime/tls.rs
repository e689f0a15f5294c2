//! Secured peer connections: bytes in, bytes out, no socket. What was received is opened record by
//! record, what is to be sent is sealed; the handshake's own bytes wait in between. Who may be at
//! the other end is decided by [`PeerCredentials`], which the node makes.

use super::ring::SendBatch;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
};
use rustls::{ClientConfig, ServerConfig};
use std::fmt;
use std::sync::Arc;
use vocabulary::NodeId;

/// Most plaintext of a record (RFC 8446, 5.1).
pub const MAX_RECORD_BYTES: usize = 16 << 10;

/// What a record is longer than its plaintext, at most (RFC 8446, 5.2), and a message about keys that
/// may go before it.
const RECORD_EXTRA_BYTES: usize = 512;

/// How nodes know each other on peer connections.
pub trait PeerCredentials: Send + Sync + fmt::Debug {
    /// TLS for the side that connects: it checks that the other one has the name.
    fn client(&self) -> &Arc<ClientConfig>;

    /// TLS for the side that accepts: it checks that the other one is of the cluster.
    fn server(&self) -> &Arc<ServerConfig>;

    /// The name that a node proves.
    fn name(&self, node: NodeId) -> Option<ServerName<'static>>;

    /// The node that certificates name, once the handshake has verified them.
    fn node(&self, certificates: Option<&[CertificateDer<'_>]>) -> Option<NodeId>;

    /// An error in words.
    fn explain(&self, error: &rustls::Error) -> String;
}

enum Connection {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// What the two sides have in common.
trait Side {
    type Data;

    fn process<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Side for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(bytes)
    }
}

impl Side for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(bytes)
    }
}

/// How a look at received bytes has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// Plaintext was handed out.
    Plaintext,
    /// A whole record is not there yet.
    NeedMore,
    /// The other side says that no more comes.
    Closed,
}

/// One connection.
pub struct Tls {
    connection: Connection,
    handshaking: bool,
    /// What the handshake wants to send.
    waiting: Vec<u8>,
    /// Plaintext of the next record.
    record: Box<[u8]>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("handshaking", &self.handshaking)
            .field("waiting", &self.waiting.len())
            .finish_non_exhaustive()
    }
}

impl Tls {
    /// The connecting side, to the node with this name; what it says first waits to be sent.
    ///
    /// # Errors
    /// The configuration does not fit.
    pub fn connecting(
        config: &Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, rustls::Error> {
        let connection = UnbufferedClientConnection::new(Arc::clone(config), name)?;
        let mut tls = Self::new(Connection::Client(connection));
        tls.open(&mut [], |_| {})?;
        Ok(tls)
    }

    /// The accepting side.
    ///
    /// # Errors
    /// The configuration does not fit.
    pub fn accepting(config: &Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        let connection = UnbufferedServerConnection::new(Arc::clone(config))?;
        Ok(Self::new(Connection::Server(connection)))
    }

    fn new(connection: Connection) -> Self {
        Self {
            connection,
            handshaking: true,
            waiting: Vec::new(),
            record: vec![0; MAX_RECORD_BYTES].into(),
        }
    }

    /// Is it not known yet who is at the other end?
    #[must_use]
    pub const fn is_handshaking(&self) -> bool {
        self.handshaking
    }

    /// Is there something of the handshake's own to send?
    #[must_use]
    pub const fn wants_to_send(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The other side's certificates, verified once the handshake is over.
    #[must_use]
    pub fn certificates(&self) -> Option<&[CertificateDer<'static>]> {
        match &self.connection {
            Connection::Client(connection) => connection.peer_certificates(),
            Connection::Server(connection) => connection.peer_certificates(),
        }
    }

    /// Takes in received bytes up to the end of the first record with plaintext, which is handed to
    /// `plaintext`. Gives how many bytes were used up.
    ///
    /// # Errors
    /// The other side is not who it should be, or the bytes were changed on the way. What tells it so
    /// waits to be sent.
    pub fn open(
        &mut self,
        received: &mut [u8],
        plaintext: impl FnMut(&[u8]),
    ) -> Result<(usize, Opened), rustls::Error> {
        let result = self.step(received, plaintext);
        match &result {
            Ok(_) => {
                self.handshaking = match &self.connection {
                    Connection::Client(connection) => connection.is_handshaking(),
                    Connection::Server(connection) => connection.is_handshaking(),
                };
            }
            // The alert that goes with the error; the error itself comes again.
            Err(_) => drop(self.step(&mut [], |_| {})),
        }
        result
    }

    fn step(
        &mut self,
        received: &mut [u8],
        plaintext: impl FnMut(&[u8]),
    ) -> Result<(usize, Opened), rustls::Error> {
        let waiting = &mut self.waiting;
        match &mut self.connection {
            Connection::Client(side) => open(side, received, waiting, plaintext),
            Connection::Server(side) => open(side, received, waiting, plaintext),
        }
    }

    /// Appends what waits to be sent, and once the handshake is over sealed plaintext of the batch, at
    /// most `limit` bytes of it and whole records.
    ///
    /// # Errors
    /// The connection is of no more use.
    pub fn seal(
        &mut self,
        batch: &mut SendBatch,
        limit: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), rustls::Error> {
        out.append(&mut self.waiting);
        let mut sealed = 0;
        while !self.handshaking && batch.left() > 0 && sealed < limit {
            let count = batch.copy_out(&mut self.record);
            let plaintext = &self.record[..count];
            match &mut self.connection {
                Connection::Client(side) => seal(side, plaintext, out)?,
                Connection::Server(side) => seal(side, plaintext, out)?,
            }
            sealed += count;
        }
        Ok(())
    }
}

fn open(
    side: &mut impl Side,
    received: &mut [u8],
    waiting: &mut Vec<u8>,
    mut plaintext: impl FnMut(&[u8]),
) -> Result<(usize, Opened), rustls::Error> {
    let mut used = 0;
    loop {
        let UnbufferedStatus { discard, state, .. } = side.process(&mut received[used..]);
        let opened = match state? {
            ConnectionState::ReadTraffic(mut traffic) => {
                let mut bytes = 0;
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    bytes += record.discard;
                    plaintext(record.payload);
                }
                used += bytes;
                Some(Opened::Plaintext)
            }
            ConnectionState::EncodeTlsData(mut data) => {
                encode(|space| data.encode(space), waiting)?;
                None
            }
            ConnectionState::TransmitTlsData(data) => {
                // It waits here, in order with what is sealed later.
                data.done();
                None
            }
            ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) => {
                Some(Opened::NeedMore)
            }
            ConnectionState::PeerClosed | ConnectionState::Closed => Some(Opened::Closed),
            _ => {
                return Err(rustls::Error::General(
                    "data before the handshake".to_owned(),
                ));
            }
        };
        used += discard;
        if let Some(opened) = opened {
            return Ok((used, opened));
        }
    }
}

fn encode(
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
    out: &mut Vec<u8>,
) -> Result<(), rustls::Error> {
    let from = out.len();
    let mut room = MAX_RECORD_BYTES + RECORD_EXTRA_BYTES;
    loop {
        out.resize(from + room, 0);
        match encode(&mut out[from..]) {
            Ok(count) => {
                out.truncate(from + count);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size }))
                if required_size > room =>
            {
                room = required_size;
            }
            Err(error) => return Err(rustls::Error::General(error.to_string())),
        }
    }
}

fn seal(side: &mut impl Side, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), rustls::Error> {
    loop {
        let UnbufferedStatus { state, .. } = side.process(&mut []);
        match state? {
            ConnectionState::WriteTraffic(mut traffic) => {
                let from = out.len();
                out.resize(from + plaintext.len() + RECORD_EXTRA_BYTES, 0);
                return match traffic.encrypt(plaintext, &mut out[from..]) {
                    Ok(count) => {
                        out.truncate(from + count);
                        Ok(())
                    }
                    Err(EncryptError::EncryptExhausted) => Err(rustls::Error::EncryptError),
                    Err(EncryptError::InsufficientSize(_)) => Err(rustls::Error::General(
                        "a record is longer than it can be".to_owned(),
                    )),
                };
            }
            ConnectionState::EncodeTlsData(mut data) => {
                encode(|space| data.encode(space), out)?;
            }
            ConnectionState::TransmitTlsData(data) => data.done(),
            _ => return Err(rustls::Error::HandshakeNotComplete),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
