//! Private disks, beside other ways to make them.

use super::contest::{Arena, Sample, Target, call};
use super::material::{HOLLOW_FACTOR, Subject, write_random};
use super::report::{Level, Row, Verdict, ratio};
use crate::{EngineError, EngineResult};
use kiln_core::machine::CloneMethod;
use kiln_core::text::count;
use kiln_store::{CloneChoice, CloneRequest, IngestFrom};
use kiln_sys::measure::{Usage, timed};
use kiln_sys::{IoResultExt as _, copy, fs};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

/// Wanted time and blocks of the standard library's copy over kiln's.
const FILLED: f64 = 7.0;
/// Wanted time of cp over kiln's copy: no worse.
const CP: f64 = 0.95;
/// Wanted time of qemu-img over kiln's overlay.
const QEMU_IMG: f64 = 2.0;
/// Wanted time of cp over kiln's reflink.
const CP_REFLINK: f64 = 1.3;
/// The most that kiln's reflink may take, in times of the bare call.
const BARE: f64 = 1.3;
/// Wanted time of sharing a fragmented file over that of its artifact.
const FRAGMENTED: f64 = 100.0;
/// Fragments of the file that arrives in them.
const FRAGMENTS: u64 = 5000;
/// Bytes of a fragment.
const FRAGMENT_BYTES: u64 = 4096;

pub(super) fn rows(arena: &Arena<'_>, rows: &mut Vec<Row>) -> EngineResult<()> {
    let hollow = arena.material.subject((arena.material.mib << 20).div_ceil(2), HOLLOW_FACTOR)?;
    let bench = Clones { arena, hollow: &hollow, dest: arena.material.work.join("disk") };
    rows.push(bench.copy_calls()?);
    rows.push(bench.copy_programs()?);
    rows.push(bench.overlay_calls()?);
    rows.push(bench.overlay_programs()?);
    if works_here(arena)? {
        rows.push(bench.reflink_calls()?);
        rows.push(bench.reflink_programs()?);
        rows.push(bench.fragments()?);
    }
    arena.material.settle(&hollow.path)
}

struct Clones<'a> {
    arena: &'a Arena<'a>,
    hollow: &'a Subject,
    dest: PathBuf,
}

impl Clones<'_> {
    fn about(&self) -> String {
        format!("{} with {} of data", self.hollow.size.human(), self.hollow.data.human())
    }

    /// Returns what a sample made takes up, and removes it.
    fn made(&self, path: &Path, usage: Usage, settle: bool) -> EngineResult<Sample> {
        let allocated = Some(copy::allocated_bytes(path)?);
        if settle {
            self.arena.material.settle(path)?;
        } else {
            fs::remove_file(path)?;
        }
        Ok(Sample { usage, allocated })
    }

    /// Makes a disk by a call. The store's own path is beside the disk, as for a machine.
    fn ours(&self, subject: &Subject, method: CloneMethod, settle: bool) -> EngineResult<Sample> {
        let request = CloneRequest {
            digest: subject.digest,
            size: subject.size,
            dir: &self.arena.material.work,
            stem: "disk",
            choice: CloneChoice::Exactly(method),
        };
        let usage = call(|| self.arena.material.store.clone_artifact(&request, self.arena.cancel))?;
        self.made(&self.dest.with_extension(method.extension()), usage, settle)
    }

    /// Makes a disk by kiln as a program.
    fn kiln(&self, method: &str, settle: bool) -> EngineResult<Sample> {
        let args = ["clone", "-q", "--clone", method, &self.hollow.reference];
        let usage = self.arena.kiln(args).arg(&self.dest).measure(self.arena.cancel)?;
        self.made(&self.dest, usage, settle)
    }

    /// Makes a disk by another program, and with `sync` has it written as durably as kiln does.
    fn tool<S: AsRef<OsStr>>(
        &self,
        name: &str,
        args: impl IntoIterator<Item = S>,
        sync: bool,
        settle: bool,
    ) -> EngineResult<Sample> {
        let mut usage = self.arena.run(name, args)?;
        if sync {
            usage = usage + self.arena.run("sync", [&self.dest])?;
        }
        self.made(&self.dest, usage, settle)
    }

    fn copy_calls(&self) -> EngineResult<Row> {
        let shares = works_here(self.arena)?;
        let target = (!shares).then_some(Target::WallMinAndBlocks(FILLED));
        let from = &self.hollow.path;
        let contest = self
            .arena
            .contest("clone by copy", Level::Calls, "Store::clone_artifact", || {
                self.ours(self.hollow, CloneMethod::Copy, true)
            })
            .peer("std::fs::copy", target, || {
                let usage = call(|| copy::filled_copy(from, &self.dest))?;
                self.made(&self.dest, usage, true)
            })
            .floor("copy_file_range of the data", || {
                let (source, to) = (fs::open(from)?, fs::create_new(&self.dest)?);
                let usage = call(|| copy::sparse_copy(&source, &to, &self.dest, None))?;
                self.made(&self.dest, usage, true)
            })
            .note(self.about());
        if shares {
            return contest
                .note("here std::fs::copy shares blocks, and so do ranges that kiln copies")
                .hold();
        }
        contest.hold()
    }

    fn copy_programs(&self) -> EngineResult<Row> {
        let (from, to) = (self.hollow.path.as_os_str(), self.dest.as_os_str());
        let target = (!works_here(self.arena)?).then_some(Target::WallMin(CP));
        let data = [
            format!("if={}", self.hollow.path.display()),
            format!("of={}", self.dest.display()),
            "bs=1M".to_owned(),
            format!("count={}", self.hollow.data.mib().max(1)),
            "conv=fsync".to_owned(),
            "status=none".to_owned(),
        ];
        self.arena
            .contest("clone by copy", Level::Programs, "kiln clone --clone copy", || self.kiln("copy", true))
            .peer("cp, then sync", target, || self.tool("cp", [from, to], true, true))
            .peer("cp", None, || self.tool("cp", [from, to], false, true))
            .floor("dd bs=1M conv=fsync of as many bytes", || self.tool("dd", &data, false, true))
            .note(format!("{}; kiln syncs the disk and its directory", self.about()))
            .hold()
    }

    fn overlay_calls(&self) -> EngineResult<Row> {
        self.arena
            .contest("clone by overlay", Level::Calls, "Store::clone_artifact", || {
                self.ours(self.hollow, CloneMethod::Overlay, false)
            })
            .floor("creating an empty file", || {
                let usage = call(|| fs::create_new(&self.dest))?;
                self.made(&self.dest, usage, false)
            })
            .hold()
    }

    fn overlay_programs(&self) -> EngineResult<Row> {
        let qemu_img = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"].map(OsStr::new);
        let (from, to) = (self.hollow.path.as_os_str(), self.dest.as_os_str());
        let args = || qemu_img.into_iter().chain([from, to]);
        let none: [&str; 0] = [];
        let checked = self.check_overlay()?;
        let contest = self
            .arena
            .contest("clone by overlay", Level::Programs, "kiln clone --clone overlay", || {
                self.kiln("overlay", false)
            })
            .tool("qemu-img", "qemu-img create -b, then sync", Some(Target::WallMin(QEMU_IMG)), || {
                self.tool("qemu-img", args(), true, false)
            })
            .tool("qemu-img", "qemu-img create -b", None, || self.tool("qemu-img", args(), false, false))
            .floor("true", || Ok(self.arena.run("true", none)?.into()))
            .note("kiln syncs the disk and its directory, and has checked the seal");
        let contest =
            if checked { contest.note("checked: qemu-img check and compare find no fault") } else { contest };
        contest.hold()
    }

    /// Checks that an overlay reads as its artifact, where there is a program that can; returns whether there is.
    fn check_overlay(&self) -> EngineResult<bool> {
        if self.arena.settings.toolbox.find("qemu-img").is_err() {
            return Ok(false);
        }
        let args = ["clone", "-q", "--clone", "overlay", &self.hollow.reference];
        self.arena.kiln(args).arg(&self.dest).measure(self.arena.cancel)?;
        self.arena.run("qemu-img", ["check".as_ref(), "-q".as_ref(), self.dest.as_os_str()])?;
        let compare = ["compare", "-q", "-f", "qcow2", "-F", "raw"].map(OsStr::new);
        self.arena.run(
            "qemu-img",
            compare.into_iter().chain([self.dest.as_os_str(), self.hollow.path.as_os_str()]),
        )?;
        fs::remove_file(&self.dest)?;
        Ok(true)
    }

    fn reflink_calls(&self) -> EngineResult<Row> {
        let row = self
            .arena
            .contest("clone by reflink", Level::Calls, "Store::clone_artifact", || {
                self.ours(self.hollow, CloneMethod::Reflink, false)
            })
            .floor("open, create and the bare call", || self.bare(&self.hollow.path))
            .note(self.about());
        let mut row = row.hold()?;
        let met = row.floor.as_ref().is_some_and(|(floor, _)| ratio(row.ours.wall, floor.wall) <= BARE);
        row.verdict = Some(Verdict { target: format!("wall <= {BARE} of the floor"), met });
        Ok(row)
    }

    fn reflink_programs(&self) -> EngineResult<Row> {
        let args = ["--reflink=always".as_ref(), self.hollow.path.as_os_str(), self.dest.as_os_str()];
        let none: [&str; 0] = [];
        self.arena
            .contest("clone by reflink", Level::Programs, "kiln clone --clone reflink", || {
                self.kiln("reflink", false)
            })
            .peer("cp --reflink=always, then sync", Some(Target::WallMin(CP_REFLINK)), || {
                self.tool("cp", args, true, false)
            })
            .peer("cp --reflink=always", None, || self.tool("cp", args, false, false))
            .floor("true", || Ok(self.arena.run("true", none)?.into()))
            .note(self.about())
            .hold()
    }

    /// Clones an artifact that arrived in pieces.
    fn fragments(&self) -> EngineResult<Row> {
        let material = self.arena.material;
        let (whole, pieces) = (material.work.join("whole"), material.work.join("pieces"));
        let (file, target) = (fs::create_new(&whole)?, fs::create_new(&pieces)?);
        write_random(&file, &whole, FRAGMENTS * FRAGMENT_BYTES, 1, self.arena.cancel)?;
        if !copy::reversed_reflink(&file, &target, FRAGMENT_BYTES)? {
            let error = io::Error::new(io::ErrorKind::Unsupported, "blocks are not shared");
            return Err(error).at("share the blocks of", &whole).map_err(EngineError::from);
        }
        let extents = |path: &Path| -> EngineResult<u64> {
            Ok(copy::layout(&fs::open(path)?).map_or(0, |layout| layout.extents))
        };
        let (usage, subject) = timed(|| material.take(&pieces, IngestFrom::Outside));
        let subject = subject?;
        let (before, after) = (extents(&pieces)?, extents(&subject.path)?);
        let (control, plain) = timed(|| material.take(&whole, IngestFrom::Outside));
        let plain = plain?;
        let row = self
            .arena
            .contest("clone of what came in pieces", Level::Calls, "Store::clone_artifact", || {
                self.ours(&subject, CloneMethod::Reflink, false)
            })
            .peer("the bare call on the file in pieces", Some(Target::WallMin(FRAGMENTED)), || {
                self.bare(&pieces)
            })
            .peer("Store::clone_artifact of what came whole", None, || {
                self.ours(&plain, CloneMethod::Reflink, false)
            })
            .floor("the bare call on the file that is whole", || self.bare(&whole))
            .note(format!("{} outside, {after} in the store", count(before, "extent")))
            .note(format!(
                "the ingest took {:.1} ms once, {:.1} ms for the file that is whole",
                usage.wall.as_secs_f64() * 1e3,
                control.wall.as_secs_f64() * 1e3
            ))
            .hold()?;
        for path in [&whole, &pieces, &subject.path, &plain.path] {
            material.settle(path)?;
        }
        Ok(row)
    }

    /// Shares the blocks of a file by the system call, with what belongs to it.
    fn bare(&self, from: &Path) -> EngineResult<Sample> {
        let (usage, shared) = timed(|| -> EngineResult<bool> {
            let (source, to) = (fs::open(from)?, fs::create_new(&self.dest)?);
            Ok(copy::reflink(&source, &to, &self.dest)?)
        });
        if !shared? {
            let error = io::Error::new(io::ErrorKind::Unsupported, "blocks are not shared");
            return Err(error).at("share the blocks of", from).map_err(EngineError::from);
        }
        self.made(&self.dest, usage, false)
    }
}

fn works_here(arena: &Arena<'_>) -> EngineResult<bool> {
    super::host::can_reflink(&arena.material.work)
}
