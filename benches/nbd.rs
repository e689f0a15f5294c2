//! How long the parser and the replies take per request, without sockets and devices.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nbd_frontend::{
    Connection, ExportError, ExportInfo, ExportListing, Exports, Limits, Outcome, Step, TlsMode,
};

/// Requests in one received buffer.
const BATCH: u64 = 64;

#[derive(Debug)]
struct One;

impl Exports for One {
    fn list(&self) -> Vec<ExportListing> {
        Vec::new()
    }

    fn find(&self, name: &str) -> Result<ExportInfo, ExportError> {
        Ok(ExportInfo::new(name, 1 << 30))
    }
}

fn open(structured: bool) -> Connection {
    let mut out = Vec::new();
    let mut connection = Connection::new(Limits::default(), TlsMode::Off, &mut out);
    let mut input = vec![0, 0, 0, 3];
    if structured {
        input.extend_from_slice(b"IHAVEOPT\0\0\0\x08\0\0\0\0");
    }
    input.extend_from_slice(b"IHAVEOPT\0\0\0\x01\0\0\0\x02r0");
    let mut rest = &input[..];
    loop {
        let (taken, step) = connection.receive(rest, &One, &mut out);
        rest = &rest[taken..];
        match step {
            Step::Opened => return connection,
            Step::Answered => {}
            step => panic!("the handshake ended in {step:?}"),
        }
    }
}

fn requests(command: u16, payload: usize) -> Vec<u8> {
    let mut input = Vec::new();
    for cookie in 0..BATCH {
        input.extend_from_slice(&0x2560_9513_u32.to_be_bytes());
        input.extend_from_slice(&0_u16.to_be_bytes());
        input.extend_from_slice(&command.to_be_bytes());
        input.extend_from_slice(&cookie.to_be_bytes());
        input.extend_from_slice(&(cookie * 4096).to_be_bytes());
        input.extend_from_slice(&4096_u32.to_be_bytes());
        input.resize(input.len() + payload, 7);
    }
    input
}

/// Parses the whole batch and answers every request of it.
fn serve(connection: &mut Connection, input: &[u8], out: &mut Vec<u8>) -> usize {
    out.clear();
    let mut rest = input;
    let mut data = 0;
    loop {
        let (taken, step) = connection.receive(rest, &One, out);
        rest = &rest[taken..];
        match step {
            Step::Request(request) => data += connection.reply(&request, Outcome::Done, out),
            Step::Write(request) => {
                rest = &rest[4096..];
                data += connection.reply(&request, Outcome::Done, out);
            }
            Step::NeedMore => return out.len() + usize::try_from(black_box(data)).unwrap(),
            step => panic!("unexpected {step:?}"),
        }
    }
}

fn parse(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("nbd parse and reply, 64 requests of 4 KiB");
    group.throughput(Throughput::Elements(BATCH));
    for (name, structured, command, payload) in [
        ("read, simple", false, 0, 0),
        ("read, structured", true, 0, 0),
        ("write, simple", false, 1, 4096),
    ] {
        let mut connection = open(structured);
        let input = requests(command, payload);
        let mut out = Vec::with_capacity(64 << 10);
        group.bench_function(name, |bencher| {
            bencher.iter(|| serve(&mut connection, black_box(&input), &mut out));
        });
    }
    group.finish();
}

criterion_group!(benches, parse);
criterion_main!(benches);
