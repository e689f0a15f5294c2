//! The client's half of NBD's handshake: opens an export, or asks what it is. What is sent over the
//! opened socket afterwards is the kernel's business (NBD protocol, "Fixed newstyle negotiation";
//! simple replies, because the kernel's client knows no others).

use nbd_frontend::wire::{
    self, GREETING_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, handshake_flag, info, option_reply,
};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// A server that is silent for longer than this during the handshake is given up.
const STEP_LIMIT: Duration = Duration::from_secs(5);
/// An option's reply is a name, numbers or a sentence (NBD protocol: strings up to 4096 bytes).
const MAX_REPLY_BYTES: u32 = 8 << 10;
/// A server gives a handful of infos to one option.
const MAX_REPLIES: usize = 32;

/// Where NBD is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    /// Over TCP.
    Tcp(SocketAddr),
    /// On a unix socket.
    Unix(PathBuf),
}

impl FromStr for Server {
    type Err = ServerSyntax;

    fn from_str(word: &str) -> Result<Self, ServerSyntax> {
        if word.contains('/') {
            return Ok(Self::Unix(word.into()));
        }
        word.parse()
            .map(Self::Tcp)
            .map_err(|_| ServerSyntax(word.to_owned()))
    }
}

/// A server's address that is none.
#[derive(Debug, thiserror::Error)]
#[error(
    "\"{0}\" is not an address: IP:PORT or the path of a unix socket (with a / in it) is wanted"
)]
pub(crate) struct ServerSyntax(String);

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Why an export can't be opened; the causes are told by whoever prints the chain.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("no connection to the NBD server at {server}")]
    Connect { server: Server, source: io::Error },
    #[error("the NBD server breaks off")]
    Io(#[from] io::Error),
    #[error("what answers there is no NBD server with options (fixed newstyle)")]
    NotNbd,
    #[error("the NBD server refuses: {message} (error {code})")]
    Refused { code: u32, message: String },
    #[error("the NBD server did not tell the export's size")]
    NoSize,
}

/// What a server says of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExportTerms {
    pub(crate) size_bytes: u64,
    /// Transmission flags, as the protocol numbers them.
    pub(crate) flags: u16,
    /// Smallest request that it takes.
    pub(crate) min_block_bytes: u32,
}

/// Opens an export. The socket is ready for requests.
pub(crate) fn open(
    server: &Server,
    export: &str,
) -> Result<(OwnedFd, ExportTerms), HandshakeError> {
    talk(server, export, wire::option::GO)
}

/// What an export is now.
pub(crate) fn ask(server: &Server, export: &str) -> Result<ExportTerms, HandshakeError> {
    talk(server, export, wire::option::INFO).map(|(_, terms)| terms)
}

fn talk(
    server: &Server,
    export: &str,
    option: u32,
) -> Result<(OwnedFd, ExportTerms), HandshakeError> {
    let connect = |source| HandshakeError::Connect {
        server: server.clone(),
        source,
    };
    // The kernel would obey the time-outs too, so they go when the handshake is over.
    match server {
        Server::Tcp(address) => {
            let mut stream = TcpStream::connect_timeout(address, STEP_LIMIT).map_err(connect)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(STEP_LIMIT))?;
            stream.set_write_timeout(Some(STEP_LIMIT))?;
            let terms = negotiate(&mut stream, export, option)?;
            stream.set_read_timeout(None)?;
            stream.set_write_timeout(None)?;
            Ok((stream.into(), terms))
        }
        Server::Unix(path) => {
            let mut stream = UnixStream::connect(path).map_err(connect)?;
            stream.set_read_timeout(Some(STEP_LIMIT))?;
            stream.set_write_timeout(Some(STEP_LIMIT))?;
            let terms = negotiate(&mut stream, export, option)?;
            stream.set_read_timeout(None)?;
            stream.set_write_timeout(None)?;
            Ok((stream.into(), terms))
        }
    }
}

fn negotiate(
    stream: &mut (impl Read + Write),
    export: &str,
    option: u32,
) -> Result<ExportTerms, HandshakeError> {
    let magics = [read_u64(stream)?, read_u64(stream)?];
    let flags = u16::from_be_bytes(read(stream)?);
    if magics != [GREETING_MAGIC, OPTION_MAGIC] || flags & handshake_flag::FIXED_NEWSTYLE == 0 {
        return Err(HandshakeError::NotNbd);
    }
    let flags = u32::from(flags & (handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES));
    let mut data = Vec::with_capacity(8 + export.len());
    let name_len = u32::try_from(export.len()).map_err(|_| HandshakeError::NotNbd)?;
    data.extend(name_len.to_be_bytes());
    data.extend(export.as_bytes());
    data.extend(1_u16.to_be_bytes()); // infos asked for
    data.extend(info::BLOCK_SIZE.to_be_bytes());
    let mut message = flags.to_be_bytes().to_vec();
    message.extend(option_bytes(option, &data)?);
    stream.write_all(&message)?;

    let mut export = None;
    let mut min_block_bytes = 1;
    for _ in 0..MAX_REPLIES {
        let (kind, data) = read_reply(stream, option)?;
        match kind {
            option_reply::ACK => {
                let (size_bytes, flags) = export.ok_or(HandshakeError::NoSize)?;
                if option == wire::option::INFO {
                    stream.write_all(&option_bytes(wire::option::ABORT, &[])?)?;
                }
                return Ok(ExportTerms {
                    size_bytes,
                    flags,
                    min_block_bytes,
                });
            }
            option_reply::INFO => {
                let mut data = data.as_slice();
                match u16::from_be_bytes(read(&mut data)?) {
                    info::EXPORT => {
                        let size = read_u64(&mut data)?;
                        export = Some((size, u16::from_be_bytes(read(&mut data)?)));
                    }
                    info::BLOCK_SIZE => min_block_bytes = u32::from_be_bytes(read(&mut data)?),
                    _ => {}
                }
            }
            code if code >= option_reply::ERROR => {
                let message = String::from_utf8_lossy(&data).into_owned();
                return Err(HandshakeError::Refused {
                    code: code - option_reply::ERROR,
                    message,
                });
            }
            _ => return Err(HandshakeError::NotNbd),
        }
    }
    Err(HandshakeError::NotNbd)
}

fn option_bytes(option: u32, data: &[u8]) -> Result<Vec<u8>, HandshakeError> {
    let len = u32::try_from(data.len()).map_err(|_| HandshakeError::NotNbd)?;
    let mut message = OPTION_MAGIC.to_be_bytes().to_vec();
    message.extend(option.to_be_bytes());
    message.extend(len.to_be_bytes());
    message.extend(data);
    Ok(message)
}

fn read_reply(stream: &mut impl Read, option: u32) -> Result<(u32, Vec<u8>), HandshakeError> {
    let magic = read_u64(stream)?;
    let answered = u32::from_be_bytes(read(stream)?);
    let kind = u32::from_be_bytes(read(stream)?);
    let len = u32::from_be_bytes(read(stream)?);
    if magic != OPTION_REPLY_MAGIC || answered != option || len > MAX_REPLY_BYTES {
        return Err(HandshakeError::NotNbd);
    }
    let mut data = Vec::new();
    stream.take(u64::from(len)).read_to_end(&mut data)?;
    if u32::try_from(data.len()) == Ok(len) {
        Ok((kind, data))
    } else {
        Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
    }
}

fn read<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn read_u64(stream: &mut impl Read) -> io::Result<u64> {
    read(stream).map(u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    /// A server that says all it has to say at once, and what it was told.
    struct Script {
        says: Cursor<Vec<u8>>,
        told: Vec<u8>,
    }

    impl Read for Script {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.says.read(buffer)
        }
    }

    impl Write for Script {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.told.write(data)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn greeting() -> Vec<u8> {
        let mut says = b"NBDMAGICIHAVEOPT".to_vec();
        says.extend([0, 3]);
        says
    }

    fn reply(kind: u32, data: &[u8]) -> Vec<u8> {
        let mut says = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
        says.extend(wire::option::GO.to_be_bytes());
        says.extend(kind.to_be_bytes());
        says.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        says.extend(data);
        says
    }

    fn run(replies: &[Vec<u8>]) -> (Result<ExportTerms, HandshakeError>, Vec<u8>) {
        let mut script = Script {
            says: Cursor::new([greeting(), replies.concat()].concat()),
            told: Vec::new(),
        };
        let result = negotiate(&mut script, "r0", wire::option::GO);
        (result, script.told)
    }

    fn info_export() -> Vec<u8> {
        [&[0, 0][..], &4096_u64.to_be_bytes(), &[1, 0x0d]].concat()
    }

    #[test]
    fn an_export_is_opened_with_go_and_its_terms_are_kept() {
        let sizes = [
            &[0, 3][..],
            &512_u32.to_be_bytes(),
            &4096_u32.to_be_bytes(),
            &(1_u32 << 25).to_be_bytes(),
        ]
        .concat();
        let (terms, told) = run(&[
            reply(option_reply::INFO, &info_export()),
            reply(option_reply::INFO, &sizes),
            reply(option_reply::ACK, &[]),
        ]);
        let expected = ExportTerms {
            size_bytes: 4096,
            flags: 0x010d,
            min_block_bytes: 512,
        };
        assert_eq!(terms.unwrap(), expected);
        let golden = b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x0a\0\0\0\x02r0\0\x01\0\x03".to_vec();
        assert_eq!(told, golden);
    }

    #[test]
    fn a_refusal_is_told_in_the_servers_words() {
        let (result, _) = run(&[reply(option_reply::ERROR + 6, b"r0 is not here")]);
        let text = result.unwrap_err().to_string();
        assert!(text.contains("r0 is not here (error 6)"), "{text}");
    }

    #[test]
    fn nonsense_is_no_export() {
        let too_long = {
            let mut bytes = reply(option_reply::INFO, &[]);
            bytes.truncate(16);
            bytes.extend(u32::MAX.to_be_bytes());
            bytes
        };
        for replies in [
            vec![reply(option_reply::ACK, &[])],
            vec![reply(option_reply::INFO, &[0])],
            vec![reply(option_reply::INFO, &info_export())],
            vec![reply(9, &[])],
            vec![too_long],
            vec![b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()],
            vec![reply(option_reply::INFO, &[0, 9]); MAX_REPLIES + 1],
        ] {
            assert!(run(&replies).0.is_err(), "{replies:?}");
        }
    }

    #[test]
    fn a_server_is_an_address_or_a_path() {
        assert_eq!(
            "127.0.0.1:10809".parse::<Server>().unwrap().to_string(),
            "127.0.0.1:10809"
        );
        assert!(matches!(
            "/run/nbd.sock".parse::<Server>().unwrap(),
            Server::Unix(_)
        ));
        let error = "alpha".parse::<Server>().unwrap_err().to_string();
        assert!(error.contains("\"alpha\""), "{error}");
    }
}
