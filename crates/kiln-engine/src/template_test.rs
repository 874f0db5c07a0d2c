//! Tests of templates: several machines are restored from one snapshot of a revision and looked at, and the snapshot is
//! read again at the end. What could not be looked at is said, and never passes.

mod clones;
mod judge;
mod look;

use crate::create::CreateRequest;
use crate::progress::{Reporter, step, waiting};
use crate::restore::RestoreChoice;
use crate::{Engine, EngineError, EngineResult};
use clones::{Clones, TestMachine};
use judge::{Absent, Judged, Seen, Wrong, distinct, worst};
use kiln_core::machine::IdentityPolicy;
use kiln_core::template_test::{
    Check, CheckName, CheckStatus, SnapshotTest, TEST_CLONES_MAX, TEST_CLONES_MIN, TEST_VERSION,
};
use kiln_core::text::{chain, count};
use kiln_core::{Digest, Reference};
use kiln_store::{Revision, Snapshot, StoreError, Verdict};
use kiln_sys::clock;
use kiln_sys::lock::Share;
use std::time::Instant;

/// How often a clone is paused and resumed.
const PAUSES: u32 = 10;
/// How often it is suspended and resumed afterwards.
const SUSPENSIONS: u32 = 10;

/// What is to be tested.
#[derive(Debug, Clone)]
pub struct TemplateTestRequest {
    /// The revision, by reference; a variant's shape counts.
    pub reference: Reference,
    /// How many machines are restored: [`TEST_CLONES_MIN`] to [`TEST_CLONES_MAX`], the nearest where it is neither.
    pub clones: usize,
    /// What becomes of a restored guest that is not made a machine of its own.
    pub identity: IdentityPolicy,
    /// Whether the result is kept beside the snapshot.
    pub save: bool,
}

/// What a test found.
#[derive(Debug, Clone)]
pub struct TemplateTestReport {
    /// The revision.
    pub revision: Digest,
    /// The snapshot that the machines began as.
    pub snapshot: Digest,
    /// What was found.
    pub result: SnapshotTest,
}

/// The checks that were made, by name.
struct Checks(Vec<Check>);

impl Checks {
    fn add(&mut self, name: CheckName, (status, detail): Judged) {
        self.0.push(Check::new(name, status, &detail));
    }
}

impl Engine {
    /// Restores several machines from the snapshot that a run of `reference` begins as, and checks that they are machines
    /// of their own, that they work, and that nothing of the snapshot changes. The machines are removed however this ends.
    ///
    /// # Errors
    /// [`EngineError::NoSnapshot`]; [`EngineError::NotRestorable`]; errors of the store. What a machine does wrong is a
    /// failed check, and no error.
    pub fn test_template(
        &self,
        request: &TemplateTestRequest,
        reporter: &dyn Reporter,
    ) -> EngineResult<TemplateTestReport> {
        let begun = Instant::now();
        let revision = self.store.resolve(&request.reference)?;
        let snapshots = self.store.snapshots_of(&revision.id)?;
        if !snapshots.iter().any(|snapshot| snapshot.manifest.memory.is_some()) {
            return Err(EngineError::NoSnapshot { reference: request.reference.to_string() });
        }
        let mut checks = Checks(Vec::new());
        let mut clones = Clones::new(self);
        let snapshot = self.restore_clones(request, &mut clones, &mut checks, reporter)?;
        self.check_identity(&clones, &mut checks)?;
        let tested = clones.tested();
        self.check_work(&revision, &mut clones, &mut checks)?;
        let left = step(reporter, "remove the clones", || {
            let left = clones.end()?;
            EngineResult::Ok((left, String::new()))
        })?;
        let mut waiting = waiting(reporter);
        let _store = self.store.lock(Share::Shared, "testing a template", &self.cancel, &mut waiting)?;
        let unchanged = step(reporter, "read the snapshot", || {
            let judged = self.check_artifacts(&snapshot)?;
            EngineResult::Ok((judged, String::new()))
        })?;
        checks.add(CheckName::Artifacts, unchanged);
        checks.add(CheckName::NothingLeft, left);
        let result = SnapshotTest {
            version: TEST_VERSION,
            tested_unix_ms: clock::now_unix_ms(),
            elapsed_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            clones: tested,
            checks: checks.0,
        };
        if request.save {
            self.store.save_snapshot_test(&snapshot.id, &result)?;
        }
        Ok(TemplateTestReport { revision: revision.id, snapshot: snapshot.id, result })
    }

    /// Restores the machines, each as the first one, and reads the first random numbers of each. Returns the snapshot.
    fn restore_clones(
        &self,
        request: &TemplateTestRequest,
        clones: &mut Clones<'_>,
        checks: &mut Checks,
        reporter: &dyn Reporter,
    ) -> EngineResult<Snapshot> {
        let wanted = request.clones.clamp(TEST_CLONES_MIN, TEST_CLONES_MAX);
        let mut create = CreateRequest {
            restore: RestoreChoice::Require,
            identity: request.identity,
            remove_on_exit: true,
            ..CreateRequest::new(request.reference.clone())
        };
        let mut snapshot = None;
        let mut trouble = None;
        for number in 1..=wanted {
            self.cancel.check()?;
            let created = self.create(&create, reporter)?;
            let entry = created.entry.clone();
            if let Some(id) = entry.record.snapshot {
                create.restore = RestoreChoice::Exactly(id);
                snapshot = Some(id);
            }
            let restored = step(reporter, &format!("restore clone {number} of {wanted}"), || {
                let restored = clones.start(created);
                let told =
                    restored.as_ref().map_or_else(ToString::to_string, |()| entry.record.name.to_string());
                EngineResult::Ok((restored, told))
            })?;
            match restored {
                Ok(()) => {}
                Err(EngineError::Cancelled) => return Err(EngineError::Cancelled),
                Err(error) => {
                    trouble = Some(chain(&error));
                    break;
                }
            }
        }
        let booted: Vec<&str> =
            clones.all().iter().filter(|c| !c.is_restored()).map(TestMachine::name).collect();
        let judged = match (trouble, booted.as_slice()) {
            (Some(why), _) => (CheckStatus::Failed, why),
            (None, []) => {
                let slowest = clones.tested().iter().map(|clone| clone.ready_after_ms).max().unwrap_or(0);
                (CheckStatus::Passed, format!("{} in at most {slowest} ms each", count(wanted, "clone")))
            }
            (None, [first, ..]) => (CheckStatus::Failed, format!("{first} booted")),
        };
        checks.add(CheckName::Restore, judged);
        let Some(id) = snapshot else {
            return Err(EngineError::NoSnapshot { reference: request.reference.to_string() });
        };
        Ok(self.store.snapshot(&id)?)
    }

    /// Checks what makes each clone a machine of its own. The clocks come first: they are set right when a guest resumes.
    fn check_identity(&self, clones: &Clones<'_>, checks: &mut Checks) -> EngineResult<()> {
        let seen = |look: fn(&kiln_guest::Session) -> Seen| -> Vec<(&str, Seen)> {
            clones.all().iter().map(|clone| (clone.name(), clone.see(look))).collect()
        };
        let clock =
            clones.each(|clone, session| look::clock_offset(session, &clone.path("clock"), &self.cancel));
        self.cancel.check()?;
        let random: Vec<(&str, Seen)> =
            clones.all().iter().map(|clone| (clone.name(), clone.random.clone())).collect();
        checks.add(CheckName::Random, distinct(&random, Absent::Fails));
        checks.add(CheckName::MachineId, distinct(&seen(look::machine_id), Absent::Fails));
        checks.add(CheckName::Mac, by_thing(clones, look::macs));
        checks.add(CheckName::Hostname, clones.each(|clone, session| look::hostname(session, clone.name())));
        checks.add(CheckName::SshHostKeys, by_thing(clones, |session| Ok(look::ssh_host_keys(session))));
        checks.add(CheckName::RestoreEpoch, distinct(&seen(look::restore_epoch), Absent::Fails));
        checks.add(CheckName::Clock, clock);
        Ok(self.cancel.check()?)
    }

    /// Checks that the clones work.
    fn check_work(
        &self,
        revision: &Revision,
        clones: &mut Clones<'_>,
        checks: &mut Checks,
    ) -> EngineResult<()> {
        checks.add(CheckName::Ping, clones.each(|_, session| look::ping(session)));
        checks.add(CheckName::Exec, clones.each(|_, session| look::exec(session)));
        self.cancel.check()?;
        let ready = match &revision.manifest.ready {
            Some(probe) => clones.each(|_, session| look::readiness(session, probe)),
            None => (CheckStatus::NotApplicable, "the recipe has no probe".to_owned()),
        };
        checks.add(CheckName::Readiness, ready);
        self.cancel.check()?;
        checks.add(CheckName::OwnDisk, own_disk(clones));
        self.cancel.check()?;
        let paused = self.pause_and_suspend(clones)?;
        checks.add(CheckName::PauseResume, paused);
        Ok(())
    }

    /// Pauses and resumes a clone that wrote something, then suspends and resumes it, again and again.
    fn pause_and_suspend(&self, clones: &mut Clones<'_>) -> EngineResult<Judged> {
        let failed = |why: String| Ok((CheckStatus::Failed, why));
        let Some(clone) = clones.all().first() else {
            return Ok((CheckStatus::NotChecked, "there is no clone".to_owned()));
        };
        let session = match &clone.session {
            Ok(session) => session,
            Err(why) => return Ok((CheckStatus::NotChecked, why.clone())),
        };
        let (path, mark) = (clone.path("pause"), clock::random_hex::<16>());
        if let Err(why) = look::write(session, &path, mark.as_bytes()) {
            return Ok((CheckStatus::NotChecked, format!("{} cannot write: {why}", clone.name())));
        }
        for cycle in 1..=PAUSES {
            self.cancel.check()?;
            for result in [self.pause(clone.id()), self.resume(clone.id())] {
                match result {
                    Ok(_) => {}
                    Err(EngineError::Cancelled) => return Err(EngineError::Cancelled),
                    Err(error) => return failed(format!("cycle {cycle}: {}", chain(&error))),
                }
            }
            if let Err(Wrong::Failed(why) | Wrong::NotChecked(why)) = look::ping(session) {
                return failed(format!("no answer after cycle {cycle}: {why}"));
            }
        }
        for cycle in 1..=SUSPENSIONS {
            self.cancel.check()?;
            match clones.suspend_first() {
                Ok(()) => {}
                Err(EngineError::Cancelled) => return Err(EngineError::Cancelled),
                Err(error) => return failed(format!("suspension {cycle}: {}", chain(&error))),
            }
        }
        let (Some(clone), cycles) = (clones.all().first(), PAUSES + SUSPENSIONS) else {
            return Ok((CheckStatus::NotChecked, "there is no clone".to_owned()));
        };
        let session = match &clone.session {
            Ok(session) => session,
            Err(why) => return failed(why.clone()),
        };
        let goes_on = look::goes_on(session, &self.cancel);
        self.cancel.check()?;
        match (look::holds(session, &path, mark.as_bytes()), goes_on) {
            (Ok(false), _) => failed(format!("{} lost what it wrote", clone.name())),
            (_, Ok(false)) => failed(format!("{} stands still after {cycles} cycles", clone.name())),
            (Ok(true), Ok(true)) => {
                let of = clone.name();
                Ok((CheckStatus::Passed, format!("{PAUSES} pauses and {SUSPENSIONS} suspensions of {of}")))
            }
            (Err(why), _) | (_, Err(why)) => failed(why),
        }
    }

    /// Looks whether the snapshot's files were touched, and reads them.
    fn check_artifacts(&self, snapshot: &Snapshot) -> EngineResult<Judged> {
        let mut judged = Vec::new();
        for (role, file) in snapshot.manifest.parts() {
            // Sealed when the machines were made.
            let touched = match self.store.check_artifact(&file.digest, file.size) {
                Ok(()) => None,
                Err(error @ (StoreError::Unsealed { .. } | StoreError::Damaged { .. })) => {
                    Some(chain(&error))
                }
                Err(error @ StoreError::NotFound { .. }) => Some(chain(&error)),
                Err(error) => return Err(error.into()),
            };
            let verdict = match self.store.verify_artifact(&file.digest, &self.cancel)? {
                Verdict::Damaged(damage) => Some(damage.reason),
                Verdict::Missing => Some("it is missing".to_owned()),
                _ => None,
            };
            judged.push((
                role.to_owned(),
                match verdict.or(touched) {
                    Some(why) => (CheckStatus::Failed, why),
                    None => (CheckStatus::Passed, "untouched, and every byte is right".to_owned()),
                },
            ));
        }
        Ok(worst(judged))
    }
}

/// Judges things of which a guest may have any number, such as keys: each must differ from that of the others.
fn by_thing(
    clones: &Clones<'_>,
    look: impl Fn(&kiln_guest::Session) -> Result<Vec<(String, Seen)>, String>,
) -> Judged {
    if clones.all().is_empty() {
        return (CheckStatus::NotChecked, "there is no clone".to_owned());
    }
    let mut things: Vec<String> = Vec::new();
    let mut all = Vec::new();
    for clone in clones.all() {
        match clone.session.as_ref().map_err(String::clone).and_then(&look) {
            Ok(found) => {
                things.extend(found.iter().map(|(thing, _)| thing.clone()));
                all.push((clone.name(), found));
            }
            Err(why) => return (CheckStatus::NotChecked, format!("{}: {why}", clone.name())),
        }
    }
    things.sort();
    things.dedup();
    let judged = things.into_iter().map(|thing| {
        let of = |found: &Vec<(String, Seen)>| {
            found.iter().find(|(name, _)| *name == thing).map_or(Seen::Absent, |(_, seen)| seen.clone())
        };
        let seen: Vec<(&str, Seen)> = all.iter().map(|(name, found)| (*name, of(found))).collect();
        let judged = distinct(&seen, Absent::NotApplicable);
        (thing, judged)
    });
    worst(judged.collect())
}

/// Lets each clone write a file of its own name, and looks for it in the others.
fn own_disk(clones: &Clones<'_>) -> Judged {
    let all = clones.all();
    if all.len() < TEST_CLONES_MIN {
        return (CheckStatus::NotChecked, "there are no two clones to compare".to_owned());
    }
    let written = clones.each(|clone, session| {
        look::write(session, &clone.path("disk"), clone.name().as_bytes())
            .map(|()| String::new())
            .map_err(|why| Wrong::NotChecked(format!("it cannot write: {why}")))
    });
    if written.0 != CheckStatus::Passed {
        return written;
    }
    clones.each(|clone, session| {
        for other in all {
            let path = other.path("disk");
            let right = if other.name() == clone.name() {
                look::holds(session, &path, clone.name().as_bytes()).map(|held| (held, "lost what it wrote"))
            } else {
                look::is_there(session, &path).map(|there| (!there, "sees what another wrote"))
            };
            match right.map_err(Wrong::NotChecked)? {
                (true, _) => {}
                (false, wrong) => return Err(Wrong::Failed(format!("it {wrong}"))),
            }
        }
        Ok("what one writes no other sees".to_owned())
    })
}
