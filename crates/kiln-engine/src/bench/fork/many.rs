//! Many machines at once: how long it takes until all are ready, what they have of the host's memory, and that each is one
//! of its own.

use super::{Bench, NONCE, alone, sample, unlike};
use crate::bench::contest::{Target, compared, measured};
use crate::bench::report::{Level, Row, Verdict};
use crate::create::CreateRequest;
use crate::fork::{ForkReport, ForkRequest};
use crate::memory::MachineMemory;
use crate::restore::RestoreChoice;
use crate::start::Ownership;
use crate::{EngineError, EngineResult, Silent};
use kiln_core::{ByteSize, Digest};
use kiln_guest::message::ExecRequest;
use kiln_guest::session::ExecEvent;
use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Machines that are started at a time.
const JOBS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1);
/// Forks whose memory is looked at.
const IDLE: u32 = 8;
/// Time a guest has to answer a command.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// The most that is read of an answer, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Wanted of the time of as many boots over that of forks.
const BOOTS: f64 = 12.0;
/// Wanted of the memory that a restored machine has alone, over a booted one's.
const PRIVATE: f64 = 0.25;
/// Wanted of a fork's share of memory.
const SHARE: ByteSize = ByteSize::from_mib(40);

impl Bench<'_> {
    fn machine(&self, restore: RestoreChoice) -> CreateRequest {
        CreateRequest { restore, remove_on_exit: true, ..CreateRequest::new(self.request.reference.clone()) }
    }

    fn forked(&self, restore: RestoreChoice, count: u32) -> EngineResult<Vec<String>> {
        let machine = self.machine(restore);
        let request = ForkRequest { machine, count, jobs: Some(JOBS), numbered: true };
        let ForkReport { machines, .. } = self.engine.fork(&request, &Silent)?;
        let (mut names, mut failed) = (Vec::new(), None);
        for machine in machines {
            match machine {
                Ok(machine) => names.push(machine.name),
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) => self.end(&names).and(Err(error)),
            None => Ok(names),
        }
    }

    fn booted(&self, count: u32) -> EngineResult<Vec<String>> {
        let next = AtomicU32::new(0);
        let names = Mutex::new(Vec::new());
        let work = || -> EngineResult<()> {
            while next.fetch_add(1, Ordering::Relaxed) < count {
                let created = self.engine.create(&self.machine(RestoreChoice::Never), &Silent)?;
                let name = created.entry.record.name.to_string();
                names.lock().unwrap_or_else(PoisonError::into_inner).push(name);
                self.engine.start_created(created, Ownership::Detached, &Silent)?;
            }
            Ok(())
        };
        let done: Vec<EngineResult<()>> = std::thread::scope(|scope| {
            let others: Vec<_> = (1..JOBS.get()).map(|_| scope.spawn(work)).collect();
            let own = work();
            let others = others.into_iter().map(|other| other.join().unwrap_or(Err(EngineError::Cancelled)));
            others.chain([own]).collect()
        });
        let names = names.into_inner().unwrap_or_else(PoisonError::into_inner);
        match done.into_iter().collect::<EngineResult<Vec<()>>>() {
            Ok(_) => Ok(names),
            Err(error) => self.end(&names).and(Err(error)),
        }
    }

    fn end(&self, names: &[String]) -> EngineResult<()> {
        names.iter().try_for_each(|name| self.engine.remove_machine(name, true))
    }

    pub(super) fn many_row(&self, snapshot: Digest, rows: &mut Vec<Row>) -> EngineResult<()> {
        let count = self.request.forks;
        let names = self.forked(RestoreChoice::Exactly(snapshot), IDLE)?;
        let idle = self.idle(&names);
        self.end(&names)?;
        let names = self.booted(1)?;
        let booted = self.idle(&names);
        self.end(&names)?;
        let (Ok((private, share)), Ok((whole, _))) = (idle, booted) else {
            return Err(unlike("bench", "the memory of its monitor is not known".to_owned()));
        };
        let begun = Instant::now();
        let names = self.booted(count)?;
        let boots = sample(begun.elapsed(), Duration::ZERO);
        self.end(&names)?;
        let begun = Instant::now();
        let names = self.forked(RestoreChoice::Exactly(snapshot), count)?;
        let forks = sample(begun.elapsed(), Duration::ZERO);
        let distinct = self.distinct(&names);
        self.end(&names)?;
        distinct?;
        let ours = measured(format!("{count} forks, all ready"), &[forks]);
        let peer = measured(format!("{count} boots, all ready"), &[boots]);
        let row = alone("many", Level::Calls, ours, &[forks]);
        let peers = vec![compared(peer, &row.ours, Some(Target::Wall(BOOTS)))];
        let part = private.bytes() as f64 / whole.bytes().max(1) as f64;
        let verdict = Some(Verdict {
            target: format!("private <= {PRIVATE}, share < {}", SHARE.human()),
            met: part <= PRIVATE && share < SHARE,
        });
        let notes = vec![
            format!("machine id, epoch, address, host name and random bytes of all {count} are distinct"),
            format!(
                "one of {IDLE} idle forks has {} alone, {part:.2} of the {} of a booted machine, and a share of {}",
                private.human(),
                whole.human(),
                share.human()
            ),
        ];
        rows.push(Row { peers, verdict, notes, ..row });
        Ok(())
    }

    /// Returns the medians of what machines have alone that were not asked for anything since they were ready, and of their shares.
    fn idle(&self, names: &[String]) -> EngineResult<(ByteSize, ByteSize)> {
        let (mut alone, mut share) = (Vec::new(), Vec::new());
        for name in names {
            let entry = self.engine.find_machine(name)?;
            let memory = MachineMemory::of(&entry).and_then(|memory| memory.process.ok());
            let memory =
                memory.ok_or_else(|| unlike(name, "the memory of its monitor is not known".to_owned()))?;
            alone.push(memory.private());
            share.push(memory.share);
        }
        let median = |mut sizes: Vec<ByteSize>| {
            sizes.sort_unstable();
            sizes.get(sizes.len() / 2).copied().unwrap_or_default()
        };
        Ok((median(alone), median(share)))
    }

    /// Returns what a command in a guest says.
    fn said(&self, name: &str, command: &[&str]) -> EngineResult<String> {
        let session = self.engine.session(name)?;
        let request = ExecRequest::new(command.iter().map(|word| (*word).to_owned()));
        let (mut stdin, _control, mut output) = session.exec(request)?.split();
        stdin.close()?;
        let (deadline, mut said) = (Instant::now() + ANSWER_WITHIN, Vec::new());
        loop {
            match output.recv_deadline(deadline)? {
                Some(ExecEvent::Stdout(bytes)) if said.len() < ANSWER_BYTES_MAX => said.extend(bytes),
                Some(ExecEvent::Exit(status)) if status.success() => {
                    return Ok(String::from_utf8_lossy(&said).into_owned());
                }
                Some(ExecEvent::Exit(status)) => {
                    return Err(unlike(name, format!("its command ended with {status:?}")));
                }
                Some(_) => {}
                None => return Err(unlike(name, "it does not answer".to_owned())),
            }
        }
    }

    /// Checks that no two machines have anything in common that is a machine's own, and that each was restored.
    fn distinct(&self, names: &[String]) -> EngineResult<()> {
        let facts = format!(
            "cat {NONCE} /etc/machine-id /run/kiln/epoch /sys/class/net/eth0/address /proc/sys/kernel/hostname; head -c 16 /dev/urandom | od -An -tx1"
        );
        let mut seen = BTreeSet::new();
        for name in names {
            let said = self.said(name, &["sh", "-c", &facts])?;
            let mut lines = said.lines();
            if lines.next() != Some(self.nonce.as_str()) {
                return Err(unlike(name, "it was not restored".to_owned()));
            }
            if let Some(twice) = lines.find(|line| !seen.insert((*line).to_owned())) {
                return Err(unlike(name, format!("it has `{twice}` in common with another")));
            }
        }
        Ok(())
    }
}
