//! `kiln snapshot`.

use crate::output;
use kiln_core::Digest;
use kiln_engine::capture::SnapshotReport;
use serde::Serialize;

/// A snapshot that was made.
#[derive(Serialize)]
pub(super) struct Captured {
    id: Digest,
    ready_after_ms: u64,
    quiesce_ms: u64,
    paused_us: u64,
    publish_ms: u64,
    memory_bytes: u64,
    state_bytes: u64,
}

impl From<SnapshotReport> for Captured {
    fn from(report: SnapshotReport) -> Self {
        let SnapshotReport { id, ready_after_ms, paused_us, quiesce_ms, publish_ms, memory, state } = report;
        let (memory_bytes, state_bytes) = (memory.bytes(), state.bytes());
        Self { id, ready_after_ms, quiesce_ms, paused_us, publish_ms, memory_bytes, state_bytes }
    }
}

/// Says what a snapshot took.
pub(super) fn tell_captured(report: &SnapshotReport) {
    let paused = f64::from(u32::try_from(report.paused_us).unwrap_or(u32::MAX)) / 1000.0;
    output::tell(&format!(
        "captured as snapshot {}: ready in {}, stood still for {paused:.1} ms, published in {}; {} of memory, {} of state",
        report.id.short(),
        output::span(report.ready_after_ms),
        output::span(report.publish_ms),
        report.memory.human(),
        report.state.human(),
    ));
}
