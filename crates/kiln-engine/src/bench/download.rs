//! Fetching a file and telling that it is the right one, beside the two programs that everybody does it with.

mod server;

use super::contest::{Arena, Sample, Target};
use super::host::Host;
use super::material::{Material, write_random};
use super::report::{Level, Row, Verdict};
use super::{BenchReport, BenchRequest, SIZE_MIB_MAX, host};
use crate::progress::Reporter;
use crate::{EngineError, EngineResult, Settings};
use kiln_core::ByteSize;
use kiln_core::image::ContentDigest;
use kiln_source::download::{Client, ClientOptions, Download, Origin, Url};
use kiln_sys::commit::write_staged;
use kiln_sys::tool::ScratchDir;
use kiln_sys::{Cancel, IoResultExt as _, Toolbox, copy, fs};
use server::Server;
use std::io;
use std::path::Path;

/// The verb by which kiln runs itself to fetch one file, and does nothing else.
pub const DOWNLOAD_COMMAND: &str = "__download";
/// Data in MiB where nothing else is asked for.
pub const DOWNLOAD_MIB: u32 = 1024;
/// Times its data that the benchmark needs as space.
const SPACE_FACTOR: u64 = 3;
/// Wanted: time of the peer over kiln's, which takes at most 1.3 times as long.
const WALL_TARGET: f64 = 1.0 / 1.3;
/// The most memory that kiln may have resident, in bytes.
const RESIDENT_MAX: u64 = 64 << 20;

/// Fetches a file that must be of a digest: kiln's part of a comparison of programs.
///
/// # Errors
/// When it cannot be fetched, when it is another.
pub fn fetch_file(
    toolbox: &Toolbox,
    url: &Url,
    digest: &ContentDigest,
    cache: &Path,
    target: &Path,
    cancel: &Cancel,
) -> EngineResult<()> {
    let (urls, bytes_max) = ([url.clone()], u64::from(SIZE_MIB_MAX) << 20);
    let (durable, origin) = (true, Origin::Web);
    let download = Download { urls: &urls, digest: Some(digest), bytes_max, cache, target, durable, origin };
    download.run(&Client::new(ClientOptions::new(toolbox)), &mut |_| (), cancel)?;
    Ok(())
}

/// Measures how a file is fetched and checked beside `curl` and `sha256sum`, which have to be installed.
///
/// # Errors
/// When the directory has too little space, when a program fails.
pub fn bench_download(
    settings: &Settings,
    request: &BenchRequest<'_>,
    cancel: &Cancel,
    reporter: &dyn Reporter,
) -> EngineResult<BenchReport> {
    let scratch = ScratchDir::new(&fs::canonicalize(request.dir)?)?;
    let host = Host::gather(&settings.toolbox, scratch.path(), cancel)?;
    let mib = u64::from(request.size_mib.clamp(1, SIZE_MIB_MAX));
    let material = Material::new(scratch.path(), mib, cancel)?;
    material.store.need_space((mib << 20) * SPACE_FACTOR)?;
    let arena = Arena { settings, cancel, reporter, material: &material, rounds: request.rounds };
    let path = material.work.join("file");
    let file = fs::create_new(&path)?;
    write_random(&file, &path, mib << 20, 1, cancel)?;
    let server = Server::start(&path)?;
    let row = row(&arena, &path, &server)?;
    drop(server);
    Ok(BenchReport {
        load_after: host::load()?,
        host,
        size: ByteSize::from_bytes(mib << 20),
        rows: vec![row],
    })
}

fn row(arena: &Arena<'_>, path: &Path, server: &Server) -> EngineResult<Row> {
    let material = arena.material;
    let (ours, theirs) = (material.work.join("ours"), material.work.join("theirs"));
    let (cache, sums) = (material.work.join("cache"), material.work.join("sums"));
    let (url, digest) = (server.url(), sha256sum(arena, path)?);
    write_staged(&sums, format!("{}  {}\n", digest.hex(), theirs.display()).as_bytes(), 0o600)?;
    let done = |usage, to: &Path| {
        let allocated = Some(copy::allocated_bytes(to)?);
        material.settle(to)?;
        Ok(Sample { usage, allocated })
    };
    let curl = || arena.run("curl", ["-sS".as_ref(), "-o".as_ref(), theirs.as_os_str(), url.as_ref()]);
    let expected = digest.to_string();
    let contest = arena
        .contest("a file fetched and checked", Level::Programs, "kiln", || {
            let args = [
                DOWNLOAD_COMMAND.as_ref(),
                url.as_ref(),
                expected.as_ref(),
                cache.as_os_str(),
                ours.as_os_str(),
            ];
            done(arena.kiln(args).measure(arena.cancel)?, &ours)
        })
        .peer("curl -o, then sha256sum -c", Some(Target::Wall(WALL_TARGET)), || {
            let fetched = curl()?;
            let checked = arena.run("sha256sum", ["-c".as_ref(), "--status".as_ref(), sums.as_os_str()])?;
            done(fetched + checked, &theirs)
        })
        .floor("curl -o, unchecked", || done(curl()?, &theirs));
    let mut row =
        contest.note("the same server on loopback; kiln syncs what it fetched, curl does not").hold()?;
    let resident = row.ours.resident_max.unwrap_or(ByteSize::from_bytes(u64::MAX));
    row.verdict =
        Some(Verdict { target: "memory <= 64 MiB".to_owned(), met: resident.bytes() <= RESIDENT_MAX });
    Ok(row)
}

fn sha256sum(arena: &Arena<'_>, path: &Path) -> EngineResult<ContentDigest> {
    let output = arena.settings.toolbox.find("sha256sum")?.arg(path).run(arena.cancel, &mut |_| ())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let digest = text.split(' ').next().and_then(|hex| format!("sha256:{hex}").parse().ok());
    let unclear = || io::Error::new(io::ErrorKind::InvalidData, "no digest by sha256sum");
    digest.ok_or_else(unclear).at("hash", path).map_err(EngineError::from)
}
