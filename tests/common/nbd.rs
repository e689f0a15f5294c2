//! A small NBD client of our own: one request at a time, errors and lost connections visible to the
//! test. NBD protocol, "fixed newstyle negotiation" with EXPORT_NAME, simple replies.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const OPTION_EXPORT_NAME: u32 = 1;
const CLIENT_FIXED_NEWSTYLE_NO_ZEROES: u32 = 3;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;

/// A request that takes longer has no answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(data),
            Self::Unix(stream) => stream.write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection to an export.
#[derive(Debug)]
pub(crate) struct Client {
    stream: Stream,
    cookie: u64,
    /// Size of the export.
    pub(crate) size_bytes: u64,
}

fn protocol_error(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Client {
    /// Opens an export on loopback.
    pub(crate) fn connect(port: u16, export: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.set_write_timeout(Some(ANSWER_LIMIT))?;
        Self::open(Stream::Tcp(stream), export)
    }

    /// Opens an export on a unix socket.
    pub(crate) fn connect_unix(path: &Path, export: &str) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.set_write_timeout(Some(ANSWER_LIMIT))?;
        Self::open(Stream::Unix(stream), export)
    }

    /// From now on an answer that takes longer is none.
    pub(crate) fn set_limit(&self, limit: Duration) {
        match &self.stream {
            Stream::Tcp(stream) => stream.set_read_timeout(Some(limit)),
            Stream::Unix(stream) => stream.set_read_timeout(Some(limit)),
        }
        .expect("a time-out can be set");
    }

    fn open(mut stream: Stream, export: &str) -> io::Result<Self> {
        if read_u64(&mut stream)? != NBD_MAGIC || read_u64(&mut stream)? != OPTION_MAGIC {
            return Err(protocol_error("not an NBD server"));
        }
        let mut flags = [0; 2];
        stream.read_exact(&mut flags)?;

        let name_len = u32::try_from(export.len()).expect("a short name");
        let mut hello = Vec::new();
        hello.extend(CLIENT_FIXED_NEWSTYLE_NO_ZEROES.to_be_bytes());
        hello.extend(OPTION_MAGIC.to_be_bytes());
        hello.extend(OPTION_EXPORT_NAME.to_be_bytes());
        hello.extend(name_len.to_be_bytes());
        hello.extend(export.as_bytes());
        stream.write_all(&hello)?;
        let size_bytes = read_u64(&mut stream)?;
        stream.read_exact(&mut flags)?;
        Ok(Self {
            stream,
            cookie: 0,
            size_bytes,
        })
    }

    fn request(&mut self, command: u16, offset: u64, len: u32, payload: &[u8]) -> io::Result<()> {
        self.cookie += 1;
        let mut message = Vec::with_capacity(28 + payload.len());
        message.extend(REQUEST_MAGIC.to_be_bytes());
        message.extend(0_u16.to_be_bytes()); // command flags
        message.extend(command.to_be_bytes());
        message.extend(self.cookie.to_be_bytes());
        message.extend(offset.to_be_bytes());
        message.extend(len.to_be_bytes());
        message.extend(payload);
        self.stream.write_all(&message)
    }

    /// An error reply becomes the operating system's error of the same number.
    fn answer(&mut self) -> io::Result<()> {
        if read_u32(&mut self.stream)? != SIMPLE_REPLY_MAGIC {
            return Err(protocol_error("not a simple reply"));
        }
        let error = read_u32(&mut self.stream)?;
        if read_u64(&mut self.stream)? != self.cookie {
            return Err(protocol_error("reply to a request that was not made"));
        }
        match i32::try_from(error) {
            Ok(0) => Ok(()),
            Ok(code) => Err(io::Error::from_raw_os_error(code)),
            Err(_) => Err(protocol_error("error number out of range")),
        }
    }

    /// Writes; returns when the server has acknowledged.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let len = u32::try_from(data.len()).expect("a short payload");
        self.request(WRITE, offset, len, data)?;
        self.answer()
    }

    /// Reads.
    pub(crate) fn read(&mut self, offset: u64, len: u32) -> io::Result<Vec<u8>> {
        self.request(READ, offset, len, &[])?;
        self.answer()?;
        let mut data = vec![0; usize::try_from(len).expect("fits")];
        self.stream.read_exact(&mut data)?;
        Ok(data)
    }

    /// Gives a range's space back; it reads as zeroes afterwards.
    pub(crate) fn trim(&mut self, offset: u64, len: u32) -> io::Result<()> {
        self.request(TRIM, offset, len, &[])?;
        self.answer()
    }

    /// Zeroes a range, with a hole where the store can have one.
    pub(crate) fn write_zeroes(&mut self, offset: u64, len: u32) -> io::Result<()> {
        self.request(WRITE_ZEROES, offset, len, &[])?;
        self.answer()
    }

    /// Any request with these numbers, sensible or not, and the answer to it. The payload is sent as
    /// it is, whatever the length says.
    pub(crate) fn raw(
        &mut self,
        command: u16,
        offset: u64,
        len: u32,
        payload: &[u8],
    ) -> io::Result<()> {
        self.request(command, offset, len, payload)?;
        self.answer()
    }

    /// Sends a request and does not wait for an answer.
    pub(crate) fn send_only(
        &mut self,
        command: u16,
        offset: u64,
        len: u32,
        payload: &[u8],
    ) -> io::Result<()> {
        self.request(command, offset, len, payload)
    }

    /// The connection itself, for bytes that are no request.
    pub(crate) fn stream(&mut self) -> &mut TcpStream {
        match &mut self.stream {
            Stream::Tcp(stream) => stream,
            Stream::Unix(_) => panic!("a connection over TCP is wanted"),
        }
    }

    /// Waits until everything that was acknowledged is on stable storage.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.request(FLUSH, 0, 0, &[])?;
        self.answer()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // The server may be gone; then there is nothing to say goodbye to.
        let _ = self.request(DISCONNECT, 0, 0, &[]);
    }
}

fn read_u32(stream: &mut Stream) -> io::Result<u32> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

fn read_u64(stream: &mut Stream) -> io::Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}
