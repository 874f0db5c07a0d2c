//! Snapshots that builds made, kept in step with the host: where none of a revision and shape matches the installed machine
//! monitor, agent and format any more, a new one is captured, and those it supersedes go.

use crate::capture::SnapshotRequest;
use crate::progress::{Reporter, waiting};
use crate::{Engine, EngineError, EngineResult};
use kiln_core::snapshot::{SnapshotKeep, SnapshotManifest};
use kiln_core::text::chain;
use kiln_core::variant::MachineShape;
use kiln_core::{Digest, Reference, VariantName};
use kiln_store::{Snapshot, StoreError};
use kiln_sys::lock::Share;

/// Snapshots of one revision and one shape, and what became of them.
#[derive(Debug)]
pub struct Rewarmed {
    /// The revision.
    pub revision: Digest,
    /// The tags that point to it, each with its template.
    pub tags: Vec<String>,
    /// The variant, where they are of one.
    pub variant: Option<VariantName>,
    /// The shape of their machines; none where the revision has no snapshot that a build made.
    pub shape: Option<MachineShape>,
    /// What became of them.
    pub outcome: RewarmOutcome,
    /// The snapshots that were removed, or would be, because a younger one took their place.
    pub removed: Vec<Digest>,
    /// Those that stay for now, with the machines that continue each.
    pub in_use: Vec<(Digest, Vec<String>)>,
}

/// What became of the snapshots of one revision and shape.
#[derive(Debug)]
pub enum RewarmOutcome {
    /// There is none that a build made.
    None,
    /// This one fits: nothing was made.
    Fits(Digest),
    /// None fits; nothing was made because it was only asked what would be.
    Stale {
        /// Why the youngest does not fit.
        reason: String,
    },
    /// A new one was made.
    Rewarmed {
        /// The new one.
        snapshot: Digest,
        /// Why the youngest of the others did not fit.
        reason: String,
    },
    /// None fits, and none could be made. The others are as they were.
    Failed {
        /// Why the youngest does not fit, where it could be looked at.
        reason: Option<String>,
        /// Why there is no new one.
        error: Box<EngineError>,
    },
}

/// Snapshots that are alike in all but the host they were captured on; never none of them, the youngest first.
struct Alike(Vec<Snapshot>);

impl Alike {
    fn youngest(&self) -> &SnapshotManifest {
        &self.0[0].manifest
    }

    fn is_like(&self, other: &SnapshotManifest) -> bool {
        let SnapshotManifest { subject, variant, machine, boot_args, .. } = self.youngest();
        (subject, variant, machine, boot_args)
            == (&other.subject, &other.variant, &other.machine, &other.boot_args)
    }
}

/// Brings alike snapshots with memory that builds made together, the youngest first; `all` is the oldest first.
fn alike(all: impl DoubleEndedIterator<Item = Snapshot>) -> Vec<Alike> {
    let mut groups: Vec<Alike> = Vec::new();
    let of_builds =
        |snapshot: &Snapshot| snapshot.keep() == SnapshotKeep::Revision && snapshot.manifest.memory.is_some();
    for snapshot in all.rev().filter(of_builds) {
        match groups.iter_mut().find(|group| group.is_like(&snapshot.manifest)) {
            Some(group) => group.0.push(snapshot),
            None => groups.push(Alike(vec![snapshot])),
        }
    }
    groups
}

/// The first snapshot that fits with those before it, which do not: each with the reason.
struct Looked<'a> {
    fits: Option<(usize, &'a Snapshot)>,
    first_reason: String,
}

impl Engine {
    /// Makes a new snapshot wherever none that a build made of a revision and a shape fits this host any more, and removes
    /// those that a younger one took the place of and that no machine continues. Of the revisions that are named, or of all.
    /// With `dry_run` nothing is made or removed.
    ///
    /// # Errors
    /// When a reference means no revision, or the store cannot be read. What fails for one revision is its outcome.
    pub fn rewarm(
        &self,
        of: Option<&[Reference]>,
        dry_run: bool,
        reporter: &dyn Reporter,
    ) -> EngineResult<Vec<Rewarmed>> {
        let mut wanted = Vec::new();
        for reference in of.unwrap_or_default() {
            wanted.push((self.store.resolve(reference)?.id, reference.variant.clone()));
        }
        let is_wanted = |manifest: &SnapshotManifest| {
            let names = |(id, variant): &(Digest, Option<VariantName>)| {
                *id == manifest.subject && (variant.is_none() || *variant == manifest.variant)
            };
            of.is_none() || wanted.iter().any(names)
        };
        // One that cannot be read is told by the list of snapshots.
        let all = self.store.snapshots()?.into_iter().filter_map(|(_, snapshot)| snapshot.ok());
        let mut done = Vec::new();
        for group in alike(all.filter(|snapshot| is_wanted(&snapshot.manifest))) {
            self.cancel.check()?;
            done.push(self.rewarm_one(&group, dry_run, reporter)?);
        }
        for (revision, variant) in wanted {
            if !done.iter().any(|of| of.revision == revision && (variant.is_none() || of.variant == variant))
            {
                done.push(Rewarmed {
                    revision,
                    tags: self.tags_pointing_to(&revision)?,
                    variant,
                    shape: None,
                    outcome: RewarmOutcome::None,
                    removed: Vec::new(),
                    in_use: Vec::new(),
                });
            }
        }
        Ok(done)
    }

    /// Returns the youngest snapshot that a build made of a revision in the template's own shape, and that fits this host.
    ///
    /// # Errors
    /// When the revision or the list of snapshots cannot be read.
    pub fn fitting_snapshot(
        &self,
        revision: &Digest,
        reporter: &dyn Reporter,
    ) -> EngineResult<Option<Digest>> {
        let manifest = self.store.revision(revision)?.manifest;
        let mut all = self.store.snapshots_of(revision)?;
        all.reverse();
        let own = |of: &SnapshotManifest| {
            of.variant.is_none() && of.machine == manifest.machine && of.boot_args == manifest.boot_args
        };
        for group in alike(all.into_iter().filter(|snapshot| own(&snapshot.manifest))) {
            if let Some((_, snapshot)) = self.look(&group, reporter)?.fits {
                return Ok(Some(snapshot.id));
            }
        }
        Ok(None)
    }

    fn look<'a>(&self, group: &'a Alike, reporter: &dyn Reporter) -> EngineResult<Looked<'a>> {
        let mut looked = Looked { fits: None, first_reason: String::new() };
        for (at, snapshot) in group.0.iter().enumerate() {
            match self.unfit(snapshot, reporter)? {
                None => {
                    looked.fits = Some((at, snapshot));
                    break;
                }
                Some(reason) if at == 0 => looked.first_reason = reason,
                Some(_) => {}
            }
        }
        Ok(looked)
    }

    fn rewarm_one(&self, group: &Alike, dry_run: bool, reporter: &dyn Reporter) -> EngineResult<Rewarmed> {
        let manifest = group.youngest();
        let looked = match self.look(group, reporter) {
            Ok(looked) => looked,
            // A revision that cannot be read is the trouble of its own snapshots only.
            Err(error) => return self.rewarmed(group, failed(None, error)),
        };
        let reason = looked.first_reason;
        let (outcome, superseded) = match looked.fits {
            Some((at, snapshot)) => (RewarmOutcome::Fits(snapshot.id), &group.0[at + 1..]),
            None if dry_run => (RewarmOutcome::Stale { reason }, &group.0[..]),
            None => match self.snapshot_template(&request_like(manifest), reporter) {
                Ok(made) => (RewarmOutcome::Rewarmed { snapshot: made.id, reason }, &group.0[..]),
                Err(EngineError::Cancelled) => return Err(EngineError::Cancelled),
                Err(error) => (failed(Some(reason), error), &[][..]),
            },
        };
        let kept = match &outcome {
            RewarmOutcome::Fits(id) | RewarmOutcome::Rewarmed { snapshot: id, .. } => Some(*id),
            _ => None,
        };
        let mut done = self.rewarmed(group, outcome)?;
        for snapshot in superseded.iter().filter(|snapshot| Some(snapshot.id) != kept) {
            // One that fits too is no worse than the younger one.
            if kept.is_some() && self.unfit(snapshot, reporter)?.is_none() {
                continue;
            }
            self.supersede(snapshot.id, dry_run, &mut done, reporter)?;
        }
        Ok(done)
    }

    /// Removes a snapshot whose place another one took, unless a machine continues it.
    fn supersede(
        &self,
        id: Digest,
        dry_run: bool,
        done: &mut Rewarmed,
        reporter: &dyn Reporter,
    ) -> EngineResult<()> {
        let machines = self.store.machines_from(&id)?;
        if !machines.is_empty() {
            done.in_use.push((id, machines));
            return Ok(());
        }
        if !dry_run {
            let mut waiting = waiting(reporter);
            let alone =
                self.store.lock(Share::Exclusive, "removing a snapshot", &self.cancel, &mut waiting)?;
            match self.store.remove_snapshot(&id, &alone) {
                Ok(_) => {}
                // A machine began as it in this moment.
                Err(StoreError::SnapshotInUse { machines, .. }) => {
                    done.in_use.push((id, machines));
                    return Ok(());
                }
                // Somebody else removed it.
                Err(StoreError::NotFound { .. }) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        done.removed.push(id);
        Ok(())
    }

    fn rewarmed(&self, group: &Alike, outcome: RewarmOutcome) -> EngineResult<Rewarmed> {
        let SnapshotManifest { subject, variant, machine, .. } = group.youngest();
        Ok(Rewarmed {
            revision: *subject,
            tags: self.tags_pointing_to(subject)?,
            variant: variant.clone(),
            shape: Some(machine.clone()),
            outcome,
            removed: Vec::new(),
            in_use: Vec::new(),
        })
    }

    fn tags_pointing_to(&self, revision: &Digest) -> EngineResult<Vec<String>> {
        let tags = self.store.tags_of(revision)?;
        Ok(tags.into_iter().map(|(template, tag)| format!("{template}:{tag}")).collect())
    }

    /// Returns the revisions of which no snapshot that a build made fits this host, each with why the youngest does not; and
    /// the number of all that have one.
    pub(crate) fn stale_snapshots(
        &self,
        reporter: &dyn Reporter,
    ) -> EngineResult<(Vec<(Digest, String)>, usize)> {
        let mut stale: Vec<(Digest, String)> = Vec::new();
        let all = self.store.snapshots()?.into_iter().filter_map(|(_, snapshot)| snapshot.ok());
        let groups = alike(all);
        for group in &groups {
            let revision = group.youngest().subject;
            match self.look(group, reporter) {
                Ok(Looked { fits: None, first_reason }) => stale.push((revision, first_reason)),
                Ok(_) => {}
                Err(error) => stale.push((revision, chain(&error))),
            }
        }
        Ok((stale, groups.len()))
    }
}

fn failed(reason: Option<String>, error: EngineError) -> RewarmOutcome {
    RewarmOutcome::Failed { reason, error: Box::new(error) }
}

/// Asks for a snapshot of the same shape, from the same revision.
fn request_like(manifest: &SnapshotManifest) -> SnapshotRequest {
    let of = SnapshotRequest::of_revision(manifest.subject);
    SnapshotRequest {
        reference: Reference { variant: manifest.variant.clone(), ..of.reference },
        memory: Some(manifest.machine.memory),
        vcpus: Some(manifest.machine.vcpus),
        board: Some(manifest.machine.board),
        ..of
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_core::snapshot::{
        Compatibility, SNAPSHOT_RECORD_VERSION, SNAPSHOT_VERSION, SnapshotFile, SnapshotMemory,
        SnapshotRecord,
    };
    use kiln_core::variant::Board;
    use kiln_core::{Arch, ByteSize};

    fn snapshot(name: u8, keep: SnapshotKeep, change: impl Fn(&mut SnapshotManifest)) -> Snapshot {
        let file = SnapshotFile { digest: Digest::of(&[name]), size: ByteSize::from_mib(1) };
        let memory = SnapshotMemory { ram: None, state: file, compatibility: Compatibility::default() };
        let mut manifest = SnapshotManifest {
            version: SNAPSHOT_VERSION,
            subject: Digest::of(b"revision"),
            arch: Arch::X86_64,
            variant: None,
            machine: MachineShape::default(),
            boot_args: Vec::new(),
            disk: file,
            data_disk: None,
            memory: Some(memory),
        };
        change(&mut manifest);
        let record = SnapshotRecord {
            version: SNAPSHOT_RECORD_VERSION,
            created_unix_ms: u64::from(name),
            keep,
            name: None,
            machine: None,
            paused_us: 0,
            elapsed_ms: 0,
        };
        Snapshot { id: Digest::of(&[name]), manifest, record: Some(record) }
    }

    #[test]
    fn snapshots_of_builds_are_alike_by_revision_and_shape() {
        let built = |name, change: fn(&mut SnapshotManifest)| snapshot(name, SnapshotKeep::Revision, change);
        let mut lost = built(9, |_| ());
        lost.record = None;
        let all = vec![
            built(1, |_| ()),
            built(2, |of| of.machine.vcpus = 2),
            built(3, |of| of.variant = Some("small".parse().unwrap())),
            built(4, |of| of.boot_args = vec!["quiet".to_owned()]),
            built(5, |of| of.subject = Digest::of(b"another")),
            built(6, |of| of.memory = None),
            snapshot(7, SnapshotKeep::Always, |_| ()),
            snapshot(8, SnapshotKeep::Machines, |_| ()),
            lost,
            // Files and facts do not count.
            built(10, |of| of.disk.digest = Digest::of(b"other disk")),
        ];
        let groups = alike(all.into_iter());
        let created = |group: &Alike| -> Vec<u64> {
            group.0.iter().map(|of| of.record.as_ref().unwrap().created_unix_ms).collect()
        };
        assert_eq!(
            groups.iter().map(created).collect::<Vec<_>>(),
            [vec![10, 1], vec![5], vec![4], vec![3], vec![2]]
        );
    }

    #[test]
    fn a_new_one_has_the_shape_of_the_old() {
        let old = snapshot(1, SnapshotKeep::Revision, |of| {
            of.variant = Some("small".parse().unwrap());
            of.machine = MachineShape {
                vcpus: 3,
                memory: ByteSize::from_mib(512),
                data_disk: None,
                board: Board::Q35,
            };
        });
        let request = request_like(&old.manifest);
        assert_eq!(request.reference.variant, old.manifest.variant);
        assert_eq!(request.reference.revision, kiln_core::RevisionSelector::Digest(old.manifest.subject));
        let shape = (request.vcpus, request.memory, request.board);
        assert_eq!(shape, (Some(3), Some(ByteSize::from_mib(512)), Some(Board::Q35)));
        assert_eq!(
            (request.keep, request.warm_up.len(), request.drop_caches),
            (SnapshotKeep::Revision, 0, false)
        );
    }
}
