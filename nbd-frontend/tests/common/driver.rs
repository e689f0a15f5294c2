//! A blocking driver: one connection, one stream, one thread. It shows how the parts compose; the
//! real one differs in that it never waits.

use std::io::{self, IoSlice, Read, Write};
use std::sync::Arc;

use nbd_frontend::{
    BlockDevice, CloseReason, Command, Completion, Connection, ExportInfo, Exports, Limits,
    Outcome, Step, Tag, TlsMode,
};

use super::device::{Disk, MemoryDevice};

/// Zeroes for READs of holes by clients that take no holes.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Serves until the client leaves; returns why it ended, `None` at the end of the stream.
pub fn serve<S: Read + Write>(
    mut stream: S,
    exports: &dyn Exports,
    disk: &Arc<Disk>,
) -> io::Result<Option<CloseReason>> {
    let mut out = Vec::new();
    let mut connection = Connection::new(Limits::default(), TlsMode::Off, &mut out);
    let mut device: Option<MemoryDevice> = None;
    let mut received = vec![0; 64 << 10];
    let mut next_tag = 0;
    loop {
        stream.write_all(&out)?;
        out.clear();
        let got = stream.read(&mut received)?;
        if got == 0 {
            return Ok(None);
        }
        let mut rest = &received[..got];
        loop {
            let (taken, step) = connection.receive(rest, exports, &mut out);
            rest = &rest[taken..];
            let (request, write) = match step {
                Step::NeedMore => break,
                Step::Answered => continue,
                Step::Secure => unreachable!("TLS is off"),
                Step::Opened => {
                    let info: ExportInfo = connection.export().unwrap().clone();
                    device = Some(MemoryDevice::new(info, Arc::clone(disk)));
                    continue;
                }
                Step::Request(request) => (request, false),
                Step::Write(request) => (request, true),
                Step::AtLimit => {
                    drain(&mut stream, &mut connection, device.as_mut(), &mut out)?;
                    continue;
                }
                Step::Close(reason) => {
                    drain(&mut stream, &mut connection, device.as_mut(), &mut out)?;
                    assert_eq!(connection.in_flight(), 0);
                    return Ok(Some(reason));
                }
            };
            let payload = usize::try_from(request.payload_bytes()).unwrap();
            let mut buffer = (payload > 0).then(|| vec![0; payload]);
            if write && let Some(buffer) = &mut buffer {
                let here = payload.min(rest.len());
                buffer[..here].copy_from_slice(&rest[..here]);
                rest = &rest[here..];
                stream.read_exact(&mut buffer[here..])?;
            }
            next_tag += 1;
            device
                .as_mut()
                .unwrap()
                .submit(Tag(next_tag), request, buffer);
        }
        drain(&mut stream, &mut connection, device.as_mut(), &mut out)?;
    }
}

/// Replies to everything that is complete and sends the output.
fn drain<S: Write>(
    stream: &mut S,
    connection: &mut Connection,
    mut device: Option<&mut MemoryDevice>,
    out: &mut Vec<u8>,
) -> io::Result<()> {
    while let Some(done) = device.as_mut().and_then(|device| device.next_completion()) {
        let Completion {
            request,
            outcome,
            buffer,
            ..
        } = done;
        match (request.command, outcome, &buffer) {
            (Command::BlockStatus, Outcome::Done, _) => {
                let answers = device.as_ref().unwrap().extents(&request);
                connection.reply_status(&request, &answers, out);
                continue;
            }
            (Command::Read, Outcome::Done, Some(data)) => {
                let mut next = Some(0);
                while let Some(from) = next {
                    let piece = connection.reply_piece(&request, data, from, out);
                    send(stream, out, &data[piece.send])?;
                    next = piece.next;
                }
                continue;
            }
            _ => {}
        }
        let data_bytes = usize::try_from(connection.reply(&request, outcome, out)).unwrap();
        if data_bytes > 0 {
            for start in (0..data_bytes).step_by(ZEROES.len()) {
                let end = ZEROES.len().min(data_bytes - start);
                send(stream, out, &ZEROES[..end])?;
            }
        }
    }
    stream.write_all(out)?;
    out.clear();
    Ok(())
}

/// The output and the data behind it, in one vectored write as far as the stream takes it.
fn send<S: Write>(stream: &mut S, out: &mut Vec<u8>, data: &[u8]) -> io::Result<()> {
    let sent = stream.write_vectored(&[IoSlice::new(out), IoSlice::new(data)])?;
    let from_out = sent.min(out.len());
    stream.write_all(&out[from_out..])?;
    stream.write_all(&data[sent - from_out..])?;
    out.clear();
    Ok(())
}
