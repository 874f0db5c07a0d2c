//! Limits of the guest channel: everything read from the other side is checked against one of these.

use std::time::Duration;

/// Major version of the protocol; both sides must have the same.
pub const PROTOCOL_VERSION: u32 = 1;

/// Largest payload of one frame.
pub const FRAME_PAYLOAD_MAX: usize = 64 * 1024;

/// Bytes of `DATA` a sender may have unconsumed, per stream and direction.
pub const WINDOW_BYTES: u32 = 256 * 1024;

/// Consumed bytes after which a receiver returns credit.
pub const CREDIT_BATCH_BYTES: u32 = WINDOW_BYTES / 4;

/// Bytes put into one `DATA` frame.
pub const DATA_CHUNK_BYTES: usize = 32 * 1024;

/// Streams open at once in one session.
pub const STREAMS_MAX: usize = 256;

/// Bytes of all arguments and environment entries of one `Exec`.
pub const ARGV_ENV_BYTES_MAX: usize = 48 * 1024;

/// Bytes of one path in the guest.
pub const PATH_BYTES_MAX: usize = 4096;

/// Bytes of one user or group name.
pub const USER_BYTES_MAX: usize = 256;

/// Bytes of the path of one request of a `Probe`.
pub const HTTP_PATH_BYTES_MAX: usize = 1024;

/// Bytes read of the answer to one request of a `Probe`.
pub const PROBE_ANSWER_BYTES_MAX: usize = 1024;

/// Longest time one `Probe` may take.
pub const PROBE_TIMEOUT_MAX: Duration = Duration::from_secs(10);

/// DNS servers in one network configuration.
pub const DNS_SERVERS_MAX: usize = 8;

/// Time an `OPEN` may wait for its answer.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// Largest `/kiln/init.json`.
pub const INIT_CONFIG_BYTES_MAX: usize = 256 * 1024;

/// Modules listed in one `/kiln/init.json`.
pub const MODULES_MAX: usize = 128;

/// Clients served at once by one relay.
pub const RELAY_CLIENTS_MAX: usize = 64;

/// Bytes queued towards a relay client that does not read; beyond, it is disconnected.
pub const RELAY_QUEUE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Bytes queued towards the transport before a sender of data waits.
pub const OUTBOX_BYTES_MAX: usize = 4 * 1024 * 1024;
