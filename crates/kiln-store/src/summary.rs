//! Summaries: what listing and collection need of each revision, remembered in a file that can be lost at any time. A
//! remembered summary counts only while manifest and build record are the files it was made from. Both are only ever
//! replaced by a rename, which the directory's own stamp shows: while that holds, nothing else is looked at.

mod file;
#[cfg(test)]
mod tests;

use crate::error::StoreResult;
use crate::layout::Store;
use crate::parallel;
use crate::revision::{BUILD_RECORD_BYTES_MAX, parse_build_record};
use file::{Remembered, Row};
use kiln_core::revision::{MANIFEST_BYTES_MAX, Manifest};
use kiln_core::{ByteSize, Digest, VariantName};
use kiln_sys::commit::{Existing, write_file};
use kiln_sys::stamp::{OpenDir, Stamp, read_stamped};
use kiln_sys::{clock, fs};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::PathBuf;

/// Fewer revisions than this are read themselves: that is as fast.
const FEW: usize = 64;
/// The summaries are written again when this many, and one in [`NEW_SHARE`], had to be made anew.
const NEW_MIN: usize = 64;
/// See [`NEW_MIN`].
const NEW_SHARE: usize = 16;

/// What listing and collection need of a revision.
#[derive(Debug)]
pub struct Summary {
    /// The revision.
    pub id: Digest,
    /// When it was built, where that is known, in milliseconds since 1970 (UTC).
    pub built_unix_ms: Option<u64>,
    /// What its manifest says, or what is wrong with that.
    pub content: StoreResult<Content>,
}

/// What a manifest says, in short.
#[derive(Debug)]
pub struct Content {
    /// The length of all its artifacts, holes included.
    pub apparent: ByteSize,
    /// The names of its variants, in order.
    pub variants: Vec<VariantName>,
    /// Where its artifacts are listed in [`Summaries`].
    edges: Range<usize>,
}

/// Summaries of revisions, and the artifacts that they share.
#[derive(Debug, Default)]
pub struct Summaries {
    /// The summaries, as they were asked for.
    pub revisions: Vec<Summary>,
    /// The artifacts, each once.
    pub(crate) artifacts: Vec<Digest>,
    /// The artifacts of one revision after the other, by their place in `artifacts`.
    edges: Vec<u32>,
}

impl Summaries {
    /// Returns the artifacts of a revision, by their place in `artifacts`.
    pub(crate) fn edges(&self, content: &Content) -> &[u32] {
        self.edges.get(content.edges.clone()).unwrap_or_default()
    }

    /// Returns the artifacts of a revision.
    pub fn artifacts<'a>(&'a self, content: &Content) -> impl Iterator<Item = &'a Digest> {
        self.edges(content).iter().filter_map(|at| self.artifacts.get(*at as usize))
    }
}

/// Whether summaries that had to be made are written for the next who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remember {
    /// They are, when they are many.
    Yes,
    /// They are not: somebody waits for a lock meanwhile.
    No,
}

/// What became of one revision that was asked for.
#[expect(
    clippy::large_enum_variant,
    reason = "where the large ones are many, a box each costs more than the room"
)]
enum Found {
    /// The remembered row at this place still holds.
    Known(usize),
    /// It was read.
    Read {
        built_unix_ms: Option<u64>,
        content: StoreResult<Manifest>,
        stamps: Option<(Stamp, Option<Stamp>)>,
    },
}

impl Store {
    /// Summarizes revisions. What cannot be read has its error in its place.
    pub fn summaries(&self, ids: &[Digest]) -> Summaries {
        self.summarize(ids, Remember::Yes)
    }

    /// Summarizes all revisions.
    pub fn all_summaries(&self) -> StoreResult<Summaries> {
        self.summarize_all(Remember::Yes)
    }

    pub(crate) fn summarize_all(&self, remember: Remember) -> StoreResult<Summaries> {
        self.summarize_whole(remember, &Directory::look(self, clock::now_unix_ms()))
    }

    fn summarize_whole(&self, remember: Remember, directory: &Directory) -> StoreResult<Summaries> {
        let remembered = self.remembered();
        if directory.is_that_of(&remembered) {
            return Ok(all(remembered));
        }
        Ok(self.summarize_from(&self.revision_ids()?, remember, directory, remembered, true))
    }

    pub(crate) fn summarize(&self, ids: &[Digest], remember: Remember) -> Summaries {
        let directory = Directory::look(self, clock::now_unix_ms());
        let remembered = if ids.len() < FEW { Remembered::default() } else { self.remembered() };
        self.summarize_from(ids, remember, &directory, remembered, false)
    }

    /// Summarizes revisions that were listed after `directory` was looked at; `whole` says that they are all.
    fn summarize_from(
        &self,
        ids: &[Digest],
        remember: Remember,
        directory: &Directory,
        remembered: Remembered,
        whole: bool,
    ) -> Summaries {
        let trusted = directory.is_that_of(&remembered);
        let found = parallel::map(ids, |id| match (&directory.open, remembered.place(id)) {
            (Some(looks), Some(at)) if trusted || still_holds(looks, id, &remembered.rows[at]) => {
                Found::Known(at)
            }
            _ => self.read_for_summary(id),
        });
        let news = found.iter().filter(|found| matches!(found, Found::Read { stamps: Some(_), .. })).count();
        let lasting = |found: &Found| matches!(found, Found::Known(_) | Found::Read { stamps: Some(_), .. });
        let stamp = directory.stamp.filter(|_| whole && ids.len() >= FEW && found.iter().all(lasting));
        if remember == Remember::Yes
            && (stamp.is_some() || news >= NEW_MIN && news >= remembered.rows.len() / NEW_SHARE)
        {
            // Whoever asks next is slower without it, that is all.
            let _ = self.remember(ids, &found, &remembered, stamp);
        }
        join(ids, found, remembered)
    }

    fn read_for_summary(&self, id: &Digest) -> Found {
        let record = read_stamped(&self.build_record_path(id), BUILD_RECORD_BYTES_MAX);
        let built_unix_ms = match &record {
            Ok(Some(read)) => {
                parse_build_record(&read.bytes).ok().flatten().map(|record| record.built_unix_ms)
            }
            _ => None,
        };
        let manifest = read_stamped(&self.revision_path(id), MANIFEST_BYTES_MAX);
        let stamps = match (&manifest, &record) {
            (Ok(Some(manifest)), Ok(Some(record))) => manifest.stamp.zip(record.stamp.map(Some)),
            (Ok(Some(manifest)), Ok(None)) => manifest.stamp.map(|stamp| (stamp, None)),
            _ => None,
        };
        let content = match manifest {
            Ok(read) => self.parse_revision(id, read.map(|read| read.bytes)),
            Err(error) => Err(error.into()),
        };
        let stamps = if content.is_ok() { stamps } else { None };
        Found::Read { built_unix_ms, content, stamps }
    }

    fn summaries_path(&self) -> PathBuf {
        self.root().join("cache/v1/revisions/summaries")
    }

    fn remembered(&self) -> Remembered {
        match fs::read_optional(&self.summaries_path(), file::BYTES_MAX) {
            Ok(Some(bytes)) => file::parse(&bytes).unwrap_or_default(),
            _ => Remembered::default(),
        }
    }

    /// Writes the summaries that hold, and those of other revisions that are still there.
    fn remember(
        &self,
        ids: &[Digest],
        found: &[Found],
        remembered: &Remembered,
        directory: Option<Stamp>,
    ) -> StoreResult<()> {
        // With a stamp of the directory the rows are those that were asked for, which are all.
        let there: HashSet<Digest> = match directory {
            Some(_) => ids.iter().copied().collect(),
            None => self.revision_ids()?.into_iter().collect(),
        };
        let mut rows: HashMap<Digest, (Row, Vec<Digest>)> = HashMap::new();
        for row in remembered.rows.iter().filter(|row| there.contains(&row.id)) {
            rows.insert(row.id, (row.clone(), remembered.artifacts_of(row).collect()));
        }
        for (id, found) in ids.iter().zip(found) {
            let Found::Read { built_unix_ms, content, stamps } = found else { continue };
            let (Ok(manifest), Some((manifest_stamp, record_stamp))) = (content, stamps) else {
                rows.remove(id);
                continue;
            };
            let row = Row {
                id: *id,
                manifest: *manifest_stamp,
                record: *record_stamp,
                built_unix_ms: *built_unix_ms,
                apparent: manifest.apparent_size().bytes(),
                variants: manifest.variants.iter().map(|variant| variant.name.clone()).collect(),
                edges: 0..0,
            };
            rows.insert(*id, (row, manifest.artifacts.iter().map(|artifact| artifact.digest).collect()));
        }
        let mut rows: Vec<(Row, Vec<Digest>)> = rows.into_values().collect();
        rows.sort_unstable_by_key(|(row, _)| row.id);
        let Some(bytes) = file::to_bytes(directory.as_ref(), &rows) else { return Ok(()) };
        let path = self.summaries_path();
        fs::create_dir_all(&self.root().join("cache/v1/revisions"))?;
        Ok(write_file(&path, &bytes, 0o644, Existing::Replace)?)
    }
}

/// The directory of the revisions, as it was before anything in it was read.
struct Directory {
    open: Option<OpenDir>,
    /// None while its last change is too fresh for a proof.
    stamp: Option<Stamp>,
}

impl Directory {
    /// `looked_unix_ms` is a time that is not later than now.
    fn look(store: &Store, looked_unix_ms: u64) -> Self {
        let open = OpenDir::open(&store.root().join("revisions")).ok();
        let stamp = open.as_ref().and_then(|open| open.own_stamp().ok());
        Self { open, stamp: stamp.filter(|stamp| stamp.is_settled(looked_unix_ms)) }
    }

    fn is_that_of(&self, remembered: &Remembered) -> bool {
        self.stamp.is_some() && self.stamp == remembered.directory
    }
}

/// Whether both files of a revision are those a summary was made from.
fn still_holds(looks: &OpenDir, id: &Digest, row: &Row) -> bool {
    let mut name = id.hex();
    let stem = name.len();
    name.push_str(".json");
    if !matches!(looks.stamp(&name), Ok(Some(stamp)) if stamp == row.manifest) {
        return false;
    }
    name.truncate(stem);
    name.push_str(".build.json");
    match (looks.stamp(&name), row.record) {
        (Ok(Some(now)), Some(then)) => now == then,
        // A stamp is none for a link too, so what has become one is read.
        (Ok(None), None) => matches!(looks.is_there(&name), Ok(false)),
        _ => false,
    }
}

/// Summaries of all revisions, as they are remembered.
fn all(remembered: Remembered) -> Summaries {
    let revisions = remembered.rows.into_iter().map(known).collect();
    Summaries { revisions, artifacts: remembered.artifacts, edges: remembered.edges }
}

fn known(row: Row) -> Summary {
    let apparent = ByteSize::from_bytes(row.apparent);
    let content = Content { apparent, variants: row.variants, edges: row.edges };
    Summary { id: row.id, built_unix_ms: row.built_unix_ms, content: Ok(content) }
}

fn join(ids: &[Digest], found: Vec<Found>, mut remembered: Remembered) -> Summaries {
    let mut artifacts = std::mem::take(&mut remembered.artifacts);
    let mut edges = std::mem::take(&mut remembered.edges);
    let mut places: HashMap<Digest, u32> = HashMap::new();
    let mut revisions = Vec::with_capacity(ids.len());
    for (id, found) in ids.iter().zip(found) {
        let (built_unix_ms, content) = match found {
            Found::Known(at) => {
                revisions.push(known(remembered.rows[at].clone()));
                continue;
            }
            Found::Read { built_unix_ms, content, .. } => {
                if places.is_empty() {
                    places = (0..).zip(&artifacts).map(|(at, digest)| (*digest, at)).collect();
                }
                let content = content.map(|manifest| {
                    let begin = edges.len();
                    for artifact in &manifest.artifacts {
                        let next = u32::try_from(artifacts.len()).unwrap_or(u32::MAX);
                        let at = *places.entry(artifact.digest).or_insert_with(|| {
                            artifacts.push(artifact.digest);
                            next
                        });
                        edges.push(at);
                    }
                    Content {
                        apparent: manifest.apparent_size(),
                        variants: manifest.variants.into_iter().map(|variant| variant.name).collect(),
                        edges: begin..edges.len(),
                    }
                });
                (built_unix_ms, content)
            }
        };
        revisions.push(Summary { id: *id, built_unix_ms, content });
    }
    Summaries { revisions, artifacts, edges }
}
