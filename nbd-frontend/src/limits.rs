//! What one connection may cost. Every queue and every length that a client controls has its bound
//! here, with the reason for the number.

/// Largest payload of one READ or WRITE. Clients that never ask may send 32 MiB at least ("Block
/// size constraints"); 64 MiB is what nbdkit and nbd-server take, and the reference suite sends
/// requests of 47.6 MiB.
pub const MAX_PAYLOAD_BYTES: u32 = 64 << 20;

/// Largest data of one option that is kept. The largest legal one that we answer is a GO: a name of
/// 4096 bytes and its list of infos; the rest is room for lists of metadata contexts. Longer data is
/// skipped as it comes and answered with ERR_TOO_BIG.
pub const MAX_OPTION_BYTES: u32 = 64 << 10;

/// Options in one handshake. Tools that list exports ask two questions for each of them on one
/// connection, so this serves 500 exports; an endless handshake ends here.
pub const MAX_OPTIONS: u32 = 1024;

/// Requests that a connection may have in flight. fio and the kernel client go to some hundreds;
/// beyond that a deeper queue only adds latency.
pub const MAX_IN_FLIGHT: u32 = 1024;

/// Payload bytes that a connection may have in flight before no further request is taken. One
/// request may exceed it, so memory is bounded by this plus [`MAX_PAYLOAD_BYTES`].
pub const MAX_IN_FLIGHT_BYTES: u64 = 64 << 20;

/// Bytes that may wait in the output before no further request is taken: a client that sends and
/// never reads stops being read.
pub const MAX_UNSENT_BYTES: usize = 256 << 10;

/// The bounds of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest payload of one READ or WRITE in bytes; advertised to clients that ask.
    pub max_payload_bytes: u32,
    /// Largest data of one option in bytes.
    pub max_option_bytes: u32,
    /// Options in one handshake.
    pub max_options: u32,
    /// Requests in flight.
    pub max_in_flight: u32,
    /// Payload bytes in flight at which no further request is taken.
    pub max_in_flight_bytes: u64,
    /// Bytes in the output at which no further message is taken.
    pub max_unsent_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_payload_bytes: MAX_PAYLOAD_BYTES,
            max_option_bytes: MAX_OPTION_BYTES,
            max_options: MAX_OPTIONS,
            max_in_flight: MAX_IN_FLIGHT,
            max_in_flight_bytes: MAX_IN_FLIGHT_BYTES,
            max_unsent_bytes: MAX_UNSENT_BYTES,
        }
    }
}
