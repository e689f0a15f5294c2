//! The kernel's NBD client as it is spoken to: generic netlink, family "nbd" (Linux
//! `include/uapi/linux/{netlink,genetlink,nbd-netlink}.h`). Numbers are in the machine's byte order.
//!
//! | bytes | what |
//! |---|---|
//! | 16 | `nlmsghdr`: length u32, type u16 (the family), flags u16, sequence u32, port u32 |
//! | 4 | `genlmsghdr`: command u8, version u8, reserved u16 |
//! | … | attributes: length u16 (with these 4 bytes), type u16, payload, padded to 4 |

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLA_F_NESTED: u16 = 1 << 15;
/// The two highest bits of an attribute's type are flags.
const NLA_TYPE_MASK: u16 = !(3 << 14);
const HEADER_BYTES: usize = 16;
const GENERIC_BYTES: usize = 4;
const ATTRIBUTE_BYTES: usize = 4;

/// The family that knows the others.
const CONTROL: u16 = 0x10;
const CONTROL_GET_FAMILY: u8 = 3;
const CONTROL_ATTR_ID: u16 = 1;
const CONTROL_ATTR_NAME: u16 = 2;
const CONTROL_ATTR_GROUPS: u16 = 7;
const GROUP_ATTR_NAME: u16 = 1;
const GROUP_ATTR_ID: u16 = 2;

const FAMILY: &str = "nbd";
const GROUP: &str = "nbd_mc_group";
const VERSION: u8 = 1;
const CONNECT: u8 = 1;
const DISCONNECT: u8 = 2;
const RECONFIGURE: u8 = 3;
const LINK_DEAD: u8 = 4;
const ATTR_INDEX: u16 = 1;
const ATTR_SIZE_BYTES: u16 = 2;
const ATTR_BLOCK_SIZE_BYTES: u16 = 3;
const ATTR_TIMEOUT: u16 = 4;
const ATTR_SERVER_FLAGS: u16 = 5;
const ATTR_CLIENT_FLAGS: u16 = 6;
const ATTR_SOCKETS: u16 = 7;
const ATTR_DEAD_CONN_TIMEOUT: u16 = 8;
const ATTR_BACKEND_IDENTIFIER: u16 = 10;
const SOCK_ITEM: u16 = 1;
const SOCK_FD: u16 = 1;

/// A new device.
#[derive(Debug)]
pub(super) struct Connect<'a> {
    /// `None`: the first free one.
    pub(super) index: Option<u32>,
    pub(super) size_bytes: u64,
    pub(super) block_bytes: u32,
    /// A request without an answer is sent again after this long.
    pub(super) timeout_s: u32,
    /// Requests wait this long for a new connection when all are lost.
    pub(super) dead_timeout_s: u32,
    /// The protocol's transmission flags.
    pub(super) server_flags: u16,
    pub(super) sockets: &'a [OwnedFd],
    /// Whose the device is.
    pub(super) backend: &'a str,
}

/// A connection to the kernel's NBD client.
#[derive(Debug)]
pub(super) struct Nbd {
    socket: Socket,
    family: u16,
    group: Option<u32>,
    sequence: u32,
}

impl Nbd {
    /// `None`: this kernel has none.
    pub(super) fn open() -> io::Result<Option<Self>> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let mut nbd = Self {
            socket,
            family: CONTROL,
            group: None,
            sequence: 0,
        };
        let mut message = Message::new(CONTROL_GET_FAMILY);
        message.text(CONTROL_ATTR_NAME, FAMILY);
        let answer = match nbd.call(CONTROL, message) {
            Ok(answer) => answer,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        for (kind, value) in attributes(&answer) {
            match kind {
                CONTROL_ATTR_ID => nbd.family = u16::from_ne_bytes(fixed(value)?),
                CONTROL_ATTR_GROUPS => nbd.group = find_group(value)?,
                _ => {}
            }
        }
        Ok(Some(nbd))
    }

    /// Makes a device and returns its number.
    pub(super) fn connect(&mut self, device: &Connect<'_>) -> io::Result<u32> {
        let mut message = Message::new(CONNECT);
        if let Some(index) = device.index {
            message.u32(ATTR_INDEX, index);
        }
        message.u64(ATTR_SIZE_BYTES, device.size_bytes);
        message.u64(ATTR_BLOCK_SIZE_BYTES, device.block_bytes.into());
        message.u64(ATTR_TIMEOUT, device.timeout_s.into());
        message.u64(ATTR_DEAD_CONN_TIMEOUT, device.dead_timeout_s.into());
        message.u64(ATTR_SERVER_FLAGS, device.server_flags.into());
        message.u64(ATTR_CLIENT_FLAGS, 0);
        message.text(ATTR_BACKEND_IDENTIFIER, device.backend);
        message.sockets(device.sockets)?;
        let answer = self.call(self.family, message)?;
        let index = attributes(&answer).find(|&(kind, _)| kind == ATTR_INDEX);
        let (_, index) = index.ok_or(io::ErrorKind::InvalidData)?;
        Ok(u32::from_ne_bytes(fixed(index)?))
    }

    /// Gives a device sockets in the place of lost ones, and the size that the export has.
    pub(super) fn reconfigure(
        &mut self,
        index: u32,
        backend: &str,
        size_bytes: u64,
        sockets: &[OwnedFd],
    ) -> io::Result<()> {
        let mut message = Message::new(RECONFIGURE);
        message.u32(ATTR_INDEX, index);
        message.u64(ATTR_SIZE_BYTES, size_bytes);
        message.text(ATTR_BACKEND_IDENTIFIER, backend);
        message.sockets(sockets)?;
        self.call(self.family, message).map(|_| ())
    }

    /// Ends a device.
    pub(super) fn disconnect(&mut self, index: u32) -> io::Result<()> {
        let mut message = Message::new(DISCONNECT);
        message.u32(ATTR_INDEX, index);
        self.call(self.family, message).map(|_| ())
    }

    /// A socket on which the kernel tells of lost connections.
    pub(super) fn watch(&self) -> io::Result<Watch> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.add_membership(self.group.ok_or(io::ErrorKind::Unsupported)?)?;
        socket.set_non_blocking(true)?;
        Ok(Watch { socket })
    }

    /// Sends a command and returns the attributes of its answer, if it has one; the kernel's refusal
    /// is an error of the operating system.
    fn call(&mut self, family: u16, message: Message) -> io::Result<Vec<u8>> {
        self.sequence += 1;
        self.socket
            .send(&message.finish(family, self.sequence), 0)?;
        let mut answer = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for (header, body) in messages(&datagram) {
                if header.sequence != self.sequence {
                    continue;
                }
                if header.kind != NLMSG_ERROR {
                    answer = body.get(GENERIC_BYTES..).unwrap_or_default().to_vec();
                    continue;
                }
                let code = i32::from_ne_bytes(fixed(body.get(..4).unwrap_or_default())?);
                return match code {
                    0 => Ok(answer),
                    code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                };
            }
        }
    }
}

/// Tells of lost connections.
#[derive(Debug)]
pub(super) struct Watch {
    socket: Socket,
}

impl Watch {
    pub(super) const fn socket(&self) -> &Socket {
        &self.socket
    }

    /// How many connections of a device were lost since the last call; `None`: the kernel had to
    /// drop messages, it may be all of them.
    pub(super) fn lost(&self, index: u32) -> io::Result<Option<usize>> {
        let mut lost = 0;
        loop {
            let datagram = match self.socket.recv_from_full() {
                Ok((datagram, _)) => datagram,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Some(lost)),
                Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32) => {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            };
            for (_, body) in messages(&datagram) {
                let Some((generic, rest)) = body.split_at_checked(GENERIC_BYTES) else {
                    continue;
                };
                let ours = |(kind, value): (u16, &[u8])| {
                    kind == ATTR_INDEX && fixed(value).is_ok_and(|v| u32::from_ne_bytes(v) == index)
                };
                if generic[0] == LINK_DEAD && attributes(rest).any(ours) {
                    lost += 1;
                }
            }
        }
    }
}

fn find_group(groups: &[u8]) -> io::Result<Option<u32>> {
    for (_, group) in attributes(groups) {
        let get = |wanted| attributes(group).find(|&(kind, _)| kind == wanted);
        if let (Some((_, name)), Some((_, id))) = (get(GROUP_ATTR_NAME), get(GROUP_ATTR_ID))
            && name.strip_suffix(&[0]) == Some(GROUP.as_bytes())
        {
            return Ok(Some(u32::from_ne_bytes(fixed(id)?)));
        }
    }
    Ok(None)
}

fn fixed<const N: usize>(bytes: &[u8]) -> io::Result<[u8; N]> {
    bytes
        .try_into()
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

const fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(4)
}

/// A request while it is put together, without the header.
#[derive(Debug)]
struct Message(Vec<u8>);

impl Message {
    fn new(command: u8) -> Self {
        Self(vec![command, VERSION, 0, 0])
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        // All values are short: numbers, names, and a few sockets.
        let len = u16::try_from(ATTRIBUTE_BYTES + value.len()).unwrap_or(u16::MAX);
        self.0.extend(len.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(padded(self.0.len()), 0);
    }

    fn u32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    fn u64(&mut self, kind: u16, value: u64) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, &[value.as_bytes(), &[0]].concat());
    }

    /// Sockets go as numbers of this process' descriptors.
    fn sockets(&mut self, sockets: &[OwnedFd]) -> io::Result<()> {
        if sockets.is_empty() {
            return Ok(());
        }
        let mut items = Self(Vec::new());
        for socket in sockets {
            let number = u32::try_from(socket.as_raw_fd())
                .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
            let mut item = Self(Vec::new());
            item.u32(SOCK_FD, number);
            items.attribute(SOCK_ITEM | NLA_F_NESTED, &item.0);
        }
        self.attribute(ATTR_SOCKETS | NLA_F_NESTED, &items.0);
        Ok(())
    }

    fn finish(self, family: u16, sequence: u32) -> Vec<u8> {
        let len = u32::try_from(HEADER_BYTES + self.0.len()).unwrap_or(u32::MAX);
        let mut bytes = len.to_ne_bytes().to_vec();
        bytes.extend(family.to_ne_bytes());
        bytes.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(self.0);
        bytes
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    kind: u16,
    sequence: u32,
}

/// The messages of a datagram; ends at the first one that does not fit.
fn messages(mut rest: &[u8]) -> impl Iterator<Item = (Header, &[u8])> {
    std::iter::from_fn(move || {
        let (header, _) = rest.split_at_checked(HEADER_BYTES)?;
        let len = u32::from_ne_bytes(fixed(&header[..4]).ok()?);
        let len = usize::try_from(len).ok()?;
        let body = rest.get(HEADER_BYTES..len)?;
        let header = Header {
            kind: u16::from_ne_bytes(fixed(&header[4..6]).ok()?),
            sequence: u32::from_ne_bytes(fixed(&header[8..12]).ok()?),
        };
        rest = rest.get(padded(len)..).unwrap_or_default();
        Some((header, body))
    })
}

/// The attributes in a message or in an attribute; ends at the first one that does not fit.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (header, _) = rest.split_at_checked(ATTRIBUTE_BYTES)?;
        let len = usize::from(u16::from_ne_bytes(fixed(&header[..2]).ok()?));
        let kind = u16::from_ne_bytes(fixed(&header[2..]).ok()?);
        let value = rest.get(ATTRIBUTE_BYTES..len)?;
        rest = rest.get(padded(len)..).unwrap_or_default();
        Some((kind & NLA_TYPE_MASK, value))
    })
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_laid_out_as_the_kernel_reads_it() {
        let mut message = Message::new(RECONFIGURE);
        message.u32(ATTR_INDEX, 3);
        message.u64(ATTR_SIZE_BYTES, 0x1000);
        message.text(ATTR_BACKEND_IDENTIFIER, "ab");
        let golden = [
            &[52, 0, 0, 0, 0x1c, 0, 5, 0, 9, 0, 0, 0, 0, 0, 0, 0][..],
            &[3, 1, 0, 0],
            &[8, 0, 1, 0, 3, 0, 0, 0],
            &[12, 0, 2, 0, 0, 0x10, 0, 0, 0, 0, 0, 0],
            &[7, 0, 10, 0, b'a', b'b', 0, 0],
        ]
        .concat();
        let golden = {
            let mut golden = golden;
            golden[0] = u8::try_from(golden.len()).unwrap();
            golden
        };
        assert_eq!(message.finish(0x1c, 9), golden);
    }

    #[test]
    fn sockets_are_nested_twice() {
        let fd: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        let number = u8::try_from(fd.as_raw_fd()).unwrap();
        let mut message = Message(Vec::new());
        message.sockets(&[fd]).unwrap();
        assert_eq!(
            message.0,
            [16, 0, 7, 0x80, 12, 0, 1, 0x80, 8, 0, 1, 0, number, 0, 0, 0]
        );
    }

    #[test]
    fn what_was_laid_out_is_read_back_and_nonsense_ends_the_reading() {
        let mut message = Message::new(LINK_DEAD);
        message.u32(ATTR_INDEX, 7);
        let bytes = message.finish(0x1c, 1);
        let two = [bytes.clone(), bytes].concat();
        let read: Vec<_> = messages(&two).collect();
        assert_eq!(read.len(), 2);
        let attributes: Vec<_> = attributes(&read[1].1[GENERIC_BYTES..]).collect();
        assert_eq!(attributes, [(ATTR_INDEX, &[7, 0, 0, 0][..])]);
        for cut in 0..two.len() / 2 {
            assert_eq!(messages(&two[..cut]).count(), 0, "{cut}");
        }
        assert_eq!(super::attributes(&[3, 0, 1, 0, 0, 0, 0, 0]).count(), 0);
        assert_eq!(super::attributes(&[0, 0, 0, 0]).count(), 0);
        assert_eq!(messages(&[0; 64]).count(), 0);
    }
}
