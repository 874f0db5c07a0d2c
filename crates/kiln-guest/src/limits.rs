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

/// Longest time one `Connect` may wait for its port.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

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

/// Fresh random bytes of one identity, at least.
pub const ENTROPY_BYTES_MIN: usize = 32;

/// Fresh random bytes of one identity, at most.
pub const ENTROPY_BYTES_MAX: usize = 256;

/// Bytes of a machine's environment, names, values and separators together.
pub const ENVIRONMENT_BYTES_MAX: usize = 12 * 1024;

/// Secrets of one identity.
pub const SECRETS_MAX: usize = 64;

/// Bytes of all secrets of one identity.
pub const SECRETS_BYTES_MAX: usize = 16 * 1024;

/// Bytes of a machine's environment and secrets as JSON: a frame has room for the rest of their request.
pub const PRIVATE_WIRE_BYTES_MAX: usize = FRAME_PAYLOAD_MAX - 2 * 1024;

/// Hooks of one stage.
pub const HOOKS_MAX: usize = 64;

/// Time one hook may take when the request does not say.
pub const HOOK_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// Longest time a request may give one hook.
pub const HOOK_TIMEOUT_MAX: Duration = Duration::from_secs(600);

/// Bytes kept of the end of a failed hook's stdout, and of its stderr.
pub const HOOK_TAIL_BYTES_MAX: usize = 1024;

/// Facts passed on from the hooks of one stage.
pub const FACTS_MAX: usize = 64;

/// Bytes of one fact's line.
pub const FACT_LINE_BYTES_MAX: usize = 2 * 1024;

/// Bytes of all facts of one stage.
pub const FACTS_BYTES_MAX: usize = 16 * 1024;

/// Notes in the answer to one request.
pub const NOTES_MAX: usize = 8;

/// Bytes of one note, and of a reason in a report.
pub const NOTE_BYTES_MAX: usize = 512;
