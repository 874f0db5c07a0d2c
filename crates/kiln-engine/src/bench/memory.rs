//! The memory that programs take for a file much larger than it.

use super::contest::Arena;
use super::material::VAST_FACTOR;
use super::report::{Level, Row, Verdict};
use crate::EngineResult;
use kiln_core::ByteSize;

/// The most memory that kiln may have resident, in bytes.
const RESIDENT_MAX: u64 = 64 << 20;

pub(super) fn rows(arena: &Arena<'_>, rows: &mut Vec<Row>) -> EngineResult<()> {
    let material = arena.material;
    let vast = material.subject(material.mib << 20, VAST_FACTOR)?;
    let dest = material.work.join("disk");
    let about = format!("{} with {} of data", vast.size.human(), vast.data.human());
    let none: [&str; 0] = [];
    let mut contests =
        vec![arena.contest("memory of a verification", Level::Programs, "kiln verify", || {
            Ok(arena.kiln(["verify", "-q", &vast.reference]).measure(arena.cancel)?.into())
        })];
    contests.push(arena.contest("memory of a copy", Level::Programs, "kiln clone --clone copy", || {
        let tool = arena.kiln(["clone", "-q", "--clone", "copy", &vast.reference]).arg(&dest);
        let usage = tool.measure(arena.cancel)?;
        material.settle(&dest)?;
        Ok(usage.into())
    }));
    for contest in contests {
        let contest = contest.floor("true", || Ok(arena.run("true", none)?.into()));
        let mut row = contest.note(about.clone()).hold()?;
        let resident = row.ours.resident_max.unwrap_or(ByteSize::from_bytes(u64::MAX));
        let met = resident.bytes() <= RESIDENT_MAX;
        row.verdict = Some(Verdict { target: "memory <= 64 MiB".to_owned(), met });
        rows.push(row);
    }
    material.settle(&vast.path)
}
