//! Makes a store with many revisions, to measure what grows with their number.
//!
//! ```text
//! cargo run --release -p kiln-store --example many -- DIRECTORY [REVISIONS] [TAGGED]
//! ```
//!
//! Every revision has ten artifacts: a kernel of its template, the rest out of a pool a tenth as large as the revisions
//! are many. Every `TAGGED`th revision has a tag of its own, and the last ones of its template are in the log of `latest`.
//! The files are not synced: such a store is for measuring only.
#![expect(clippy::print_stdout, reason = "an example shows what it did")]

use kiln_core::revision::{Artifact, ArtifactFormat, MANIFEST_VERSION, Manifest};
use kiln_core::variant::MachineShape;
use kiln_core::{Arch, ByteSize, Digest, TemplateName};
use kiln_store::{BuildRecord, Store, TagMove, TagRecord, hash_file};
use kiln_sys::{Cancel, clock, fs};
use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write as _;
use std::path::Path;

const TEMPLATES: usize = 10;
const ARTIFACTS: usize = 10;
/// The most moves that a tag's log keeps.
const MOVES_MAX: usize = 1000;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let home = args.first().ok_or("DIRECTORY is wanted")?;
    let revisions: usize = args.get(1).map_or(Ok(10_000), |text| text.parse())?;
    let tagged: usize = args.get(2).map_or(Ok(1), |text| text.parse())?;
    let store = Store::open(Path::new(home))?;
    let cancel = Cancel::new()?;
    let mut pool = Vec::new();
    for number in 0..TEMPLATES + (revisions / 10).max(ARTIFACTS) {
        pool.push(artifact(&store, number, &cancel)?);
    }
    let (kernels, rest) = pool.split_at(TEMPLATES);
    let now = clock::now_unix_ms();
    let mut logs: Vec<Vec<Digest>> = vec![Vec::new(); TEMPLATES];
    for number in 0..revisions {
        let of = number % TEMPLATES;
        let manifest = manifest(number, kernels[of], rest)?;
        let id = manifest.id();
        let built_unix_ms = now - ((revisions - number) * 60_000) as u64;
        let record = BuildRecord {
            version: 1,
            template: template(of)?,
            key: Digest::of(format!("key {number}").as_bytes()),
            built_unix_ms,
            elapsed_ms: 1000,
            facts: facts(number),
        };
        let revision = store.root().join("revisions").join(id.hex());
        write(&revision.with_extension("build.json"), &serde_json::to_vec_pretty(&record)?, 0o644)?;
        write(&revision.with_extension("json"), &manifest.to_bytes(), 0o444)?;
        logs[of].push(id);
        if number % tagged == 0 {
            tag(&store, of, &format!("v{number}"), &[id], built_unix_ms)?;
        }
    }
    for (of, ids) in logs.iter().enumerate().filter(|(_, ids)| !ids.is_empty()) {
        tag(&store, of, "latest", ids, now)?;
    }
    println!("{revisions} revisions of {ARTIFACTS} artifacts each out of {}", pool.len());
    Ok(())
}

fn template(of: usize) -> Result<TemplateName, Box<dyn Error>> {
    Ok(format!("template-{of}").parse()?)
}

/// What a build of a small Debian image notes.
fn facts(number: usize) -> BTreeMap<String, String> {
    (0..40).map(|package| (format!("package.lib{package}"), format!("1.{package}.{number}-1"))).collect()
}

fn manifest(
    number: usize,
    kernel: (Digest, ByteSize),
    pool: &[(Digest, ByteSize)],
) -> Result<Manifest, Box<dyn Error>> {
    let mut artifacts = Vec::new();
    for part in 0..ARTIFACTS {
        // Neighbours share most of what they have, as the builds of one template do.
        let (role, (digest, size)) = match part {
            0 => ("kernel".to_owned(), kernel),
            1 => ("rootfs".to_owned(), pool[number % pool.len()]),
            _ => (format!("disk-{part}"), pool[(number / 10 * 7 + number % 3 + part) % pool.len()]),
        };
        artifacts.push(Artifact { role: role.parse()?, digest, size, format: ArtifactFormat::Ext4 });
    }
    artifacts.sort_by(|a, b| a.role.cmp(&b.role));
    Ok(Manifest {
        version: MANIFEST_VERSION,
        arch: Arch::X86_64,
        artifacts,
        machine: MachineShape::default(),
        boot_args: vec![format!("number={number}")],
        ready: None,
        snapshot: None,
        seed: None,
        variants: Vec::new(),
    })
}

fn artifact(store: &Store, number: usize, cancel: &Cancel) -> Result<(Digest, ByteSize), Box<dyn Error>> {
    let path = store.root().join("artifacts").join("new");
    write(&path, format!("artifact {number}\n").repeat(100).as_bytes(), 0o444)?;
    let index = hash_file(&fs::open(&path)?, &path, cancel)?;
    let digest = index.digest();
    fs::rename(&path, &store.artifact_path(&digest))?;
    write(&store.root().join("indexes").join(digest.hex()), &index.to_bytes(), 0o444)?;
    Ok((digest, ByteSize::from_bytes(index.length())))
}

fn tag(store: &Store, of: usize, name: &str, ids: &[Digest], at_unix_ms: u64) -> Result<(), Box<dyn Error>> {
    let Some(&revision) = ids.last() else { return Ok(()) };
    let tags = store.root().join("templates").join(template(of)?.as_str()).join("tags");
    fs::create_dir_all(&tags)?;
    let from = std::iter::once(None).chain(ids.iter().copied().map(Some));
    let mut log: Vec<TagMove> = ids
        .iter()
        .zip(from)
        .map(|(&to, from)| TagMove { at_unix_ms, from, to, by: "build".to_owned() })
        .collect();
    log.drain(..log.len().saturating_sub(MOVES_MAX));
    let record = TagRecord { version: 1, revision, log };
    write(&tags.join(format!("{name}.json")), &serde_json::to_vec_pretty(&record)?, 0o644)
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Box<dyn Error>> {
    fs::remove_file(path)?;
    fs::create_new(path)?.write_all(bytes)?;
    Ok(fs::set_mode(path, mode)?)
}
