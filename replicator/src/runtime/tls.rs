//! Secured connections of peers and clients: bytes in, bytes out, no socket. What was received is opened record by
//! record, what is to be sent is sealed; the handshake's own bytes wait in between. Who may be at
//! the other end is decided by [`PeerCredentials`], which the node makes.

use super::ring::SendBatch;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};
use std::fmt;
use std::io::{self, BufRead as _, Write as _};
use std::sync::Arc;
use vocabulary::NodeId;

/// Most plaintext of a record (RFC 8446, 5.1).
pub const MAX_RECORD_BYTES: usize = 16 << 10;

/// Most plaintext that is handed out at a time: the library reads on by 4 KiB until a record is whole.
pub const MAX_OPENED_BYTES: usize = 2 * MAX_RECORD_BYTES;

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
    /// An error has ended it; only the alert that goes with that still leaves.
    failed: bool,
    /// Plaintext of the next record.
    record: Box<[u8]>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("handshaking", &self.is_handshaking())
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
        let connection = ClientConnection::new(Arc::clone(config), name)?;
        Ok(Self::new(connection.into()))
    }

    /// The accepting side.
    ///
    /// # Errors
    /// The configuration does not fit.
    pub fn accepting(config: &Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        let connection = ServerConnection::new(Arc::clone(config))?;
        Ok(Self::new(connection.into()))
    }

    fn new(mut connection: Connection) -> Self {
        // What is sealed is taken out at once; how much that is, `seal` is told.
        connection.set_buffer_limit(None);
        Self {
            connection,
            failed: false,
            record: vec![0; MAX_RECORD_BYTES].into(),
        }
    }

    /// Is it not known yet who is at the other end?
    #[must_use]
    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Is there something of the handshake's own to send?
    #[must_use]
    pub fn wants_to_send(&self) -> bool {
        self.connection.wants_write()
    }

    /// The other side's certificates, verified once the handshake is over.
    #[must_use]
    pub fn certificates(&self) -> Option<&[CertificateDer<'static>]> {
        self.connection.peer_certificates()
    }

    /// Says that nothing more is sent; waits to be sent itself.
    pub fn close(&mut self) {
        self.connection.send_close_notify();
    }

    /// Takes in received bytes until there is some plaintext, which is handed to `plaintext`: at most
    /// [`MAX_OPENED_BYTES`]. Gives how many bytes were used up.
    ///
    /// # Errors
    /// The other side is not who it should be, or the bytes were changed on the way. What tells it so
    /// waits to be sent.
    pub fn open(
        &mut self,
        received: &[u8],
        mut plaintext: impl FnMut(&[u8]),
    ) -> Result<(usize, Opened), rustls::Error> {
        let mut used = 0;
        while used < received.len() {
            let mut rest = &received[used..];
            // An error: plaintext waits, which is always taken out below.
            let count = self.connection.read_tls(&mut rest).map_err(general)?;
            if count == 0 {
                return Ok((used, Opened::Closed));
            }
            used += count;
            let state = self.connection.process_new_packets();
            let state = state.inspect_err(|_| self.failed = true)?;
            let mut left = state.plaintext_bytes_to_read();
            if left > 0 {
                let mut reader = self.connection.reader();
                while left > 0 {
                    let part = reader.fill_buf().map_err(general)?;
                    let count = part.len().min(left);
                    if count == 0 {
                        break;
                    }
                    plaintext(&part[..count]);
                    reader.consume(count);
                    left -= count;
                }
                return Ok((used, Opened::Plaintext));
            }
            if state.peer_has_closed() {
                return Ok((used, Opened::Closed));
            }
        }
        Ok((used, Opened::NeedMore))
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
        self.take_out(out)?;
        let mut sealed = 0;
        while !self.failed && !self.is_handshaking() && batch.left() > 0 && sealed < limit {
            let count = batch.copy_out(&mut self.record);
            let mut writer = self.connection.writer();
            writer.write_all(&self.record[..count]).map_err(general)?;
            self.take_out(out)?;
            sealed += count;
        }
        Ok(())
    }

    fn take_out(&mut self, out: &mut Vec<u8>) -> Result<(), rustls::Error> {
        while self.connection.wants_write() {
            self.connection.write_tls(out).map_err(general)?;
        }
        Ok(())
    }
}

fn general(error: io::Error) -> rustls::Error {
    rustls::Error::General(error.to_string())
}

#[cfg(test)]
pub(crate) mod tests;
