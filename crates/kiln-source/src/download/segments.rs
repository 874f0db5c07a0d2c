//! A large file by several connections: each takes the next segment that nobody has.
//!
//! The first answer, which goes to the end of the file, is read as the first segment; the others are asked for. Whoever
//! asked hashes what is there in order, notes it and tells of it, while the others write. Where a part is refused the
//! first answer is read on to its end, as if there had been no others. Memory is a buffer for each of them.

use super::Progress;
use super::asker::{Answer, Asker, Unasked};
use super::attempt::Failure;
use super::client::Client;
use super::error::{Broken, DownloadError};
use super::pace::CONNECTIONS_MAX;
use super::partial::{BUFFER_BYTES, Partial, Validator, Writer};
use super::there::There;
use super::url::Url;
use kiln_sys::Cancel;
use std::collections::VecDeque;
use std::io::Read as _;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// From how many missing bytes on a file comes by several connections.
pub const RANGES_BYTES_MIN: u64 = 64 << 20;
/// The most bytes of a segment: what is there stays near to what is hashed.
pub const SEGMENT_BYTES_MAX: u64 = 64 << 20;
/// Segments of a file that is not larger than these.
const SEGMENTS: u64 = 8;
/// Notes of what is there, for each segment.
const NOTES: u64 = 4;
/// The bytes that are hashed between two looks at what else there is to do.
const HASHED_BYTES: u64 = 4 << 20;
/// The time between two looks at whether it was cancelled.
const LOOK: Duration = Duration::from_millis(50);

/// What is asked for.
pub(super) struct Asked<'a> {
    pub(super) client: &'a Client<'a>,
    pub(super) cancel: &'a Cancel,
    pub(super) url: &'a Url,
    pub(super) validator: &'a Validator,
    pub(super) total: u64,
}

/// How it ended.
pub(super) enum Ended {
    /// All of it is there, and hashed.
    Whole,
    /// With less, for now; by the first answer alone where parts were refused.
    Broken { failure: Failure, alone: bool },
    /// With a part of another version.
    Changed,
    /// With an answer that is no part, when the first answer had ended.
    Refused { status: u16 },
}

/// What all who work on it share.
struct Board<'a> {
    asked: &'a Asked<'a>,
    writer: Writer,
    state: Mutex<State>,
    news: Condvar,
}

struct State {
    there: There,
    /// Segments that nobody has, in order.
    open: VecDeque<(u64, u64)>,
    working: usize,
    /// How it ends, where it is known before all is there.
    ended: Option<Ended>,
    /// What broke off a connection.
    broken: Option<DownloadError>,
    /// Whether the first answer is still read, and leads to the end of what is missing.
    first: bool,
    /// Whether all comes by the first answer, since a part was refused.
    alone: bool,
}

/// Why one of them stops.
enum Leave {
    /// The host has as many connections as it may.
    Busy,
    /// It is over, or goes on without this one.
    Over,
    /// The answer is no part.
    Refused { status: u16 },
    /// The answer is of another version.
    Changed,
    /// The connection.
    Broken(DownloadError),
}

impl From<Unasked> for Leave {
    fn from(unasked: Unasked) -> Self {
        match unasked {
            Unasked::Busy => Self::Busy,
            Unasked::Failed(error) => Self::Broken(error),
        }
    }
}

/// Takes what is missing. `answer` begins with the first byte of it, and goes to the end.
pub(super) fn take<'a>(
    asked: &Asked<'a>,
    asker: &Asker<'a>,
    answer: Answer<'a>,
    partial: &mut Partial,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Ended, DownloadError> {
    let there = partial.widen(asked.total)?;
    let size = (asked.total / SEGMENTS).clamp(1, SEGMENT_BYTES_MAX);
    let mut open: VecDeque<(u64, u64)> =
        there.gaps(asked.total).into_iter().flat_map(|gap| segments(gap, size)).collect();
    let working = CONNECTIONS_MAX.min(open.len());
    let mut first = open.pop_front().map(|segment| (answer, segment));
    let state = State { there, open, working, ended: None, broken: None, first: true, alone: false };
    let board = Board { asked, writer: partial.writer()?, state: Mutex::new(state), news: Condvar::new() };
    let overseen = std::thread::scope(|scope| {
        for _ in 0..working {
            let (board, asker, first) = (&board, *asker, first.take());
            scope.spawn(move || {
                let _present = Present(board);
                if let Err(leave) = board.work(&asker, first) {
                    board.leave(leave);
                }
            });
        }
        let overseen = board.oversee(partial, progress, size / NOTES);
        if overseen.is_err() {
            // They look at it with each buffer.
            board.lock().ended.get_or_insert(Ended::Whole);
        }
        overseen
    });
    let state = board.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    partial.keep(state.there)?;
    overseen?;
    Ok(match state.ended {
        Some(ended) => ended,
        None if partial.have == asked.total => Ended::Whole,
        None => {
            let source = Broken::Short { have: partial.have, total: asked.total };
            let short = DownloadError::Broken { url: asked.url.clone(), source };
            Ended::Broken { failure: state.broken.unwrap_or(short).into(), alone: state.alone }
        }
    })
}

/// Cuts what is missing.
fn segments((from, to): (u64, u64), size: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..(to - from).div_ceil(size)).map(move |nth| (from + nth * size, to.min(from + (nth + 1) * size)))
}

/// One that works. Its end is known, however it comes.
struct Present<'a, 'b>(&'a Board<'b>);

impl Drop for Present<'_, '_> {
    fn drop(&mut self) {
        self.0.lock().working -= 1;
        self.0.news.notify_all();
    }
}

impl<'a> Board<'a> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hashes, notes and tells what comes, until nobody works on it.
    fn oversee(
        &self,
        partial: &mut Partial,
        progress: &mut dyn FnMut(Progress<'_>),
        step: u64,
    ) -> Result<(), DownloadError> {
        let (mut told, mut noted) = (partial.have, partial.have);
        loop {
            self.asked.cancel.check()?;
            let (there, working) = {
                let mut state = self.lock();
                let idle = state.there.prefix() == partial.hashed() && state.there.bytes() == told;
                if idle && state.working > 0 {
                    state = self.news.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
                }
                (state.there.clone(), state.working)
            };
            let (prefix, have) = (there.prefix(), there.bytes());
            if have - noted >= step {
                noted = have;
                partial.keep(there)?;
            }
            partial.hash_to(prefix.min(partial.hashed() + HASHED_BYTES), self.asked.cancel)?;
            if have > told {
                told = have;
                progress(Progress::Bytes { have, total: Some(self.asked.total) });
            }
            if working == 0 && prefix == partial.hashed() {
                return Ok(());
            }
        }
    }

    fn work(&self, asker: &Asker<'a>, first: Option<(Answer<'a>, (u64, u64))>) -> Result<(), Leave> {
        // One of them waits where it has to: without any it would never end.
        let patient = first.is_some();
        if let Some((mut answer, (mut at, to))) = first {
            let mut to = to;
            let taken = self.receive(&mut answer, &mut at, &mut to, true);
            self.lock().first = false;
            taken.map_err(|leave| self.give_back((at, to), leave))?;
        }
        while let Some((mut at, to)) = self.claim() {
            let taken = self.segment(asker, patient, &mut at, to);
            taken.map_err(|leave| self.give_back((at, to), leave))?;
        }
        Ok(())
    }

    /// Takes the next segment that nobody has.
    fn claim(&self) -> Option<(u64, u64)> {
        let mut state = self.lock();
        if state.ended.is_some() || state.alone { None } else { state.open.pop_front() }
    }

    /// Asks for a segment and takes it.
    fn segment(&self, asker: &Asker<'a>, patient: bool, at: &mut u64, mut to: u64) -> Result<(), Leave> {
        let (range, asked) = (format!("bytes={at}-{}", to - 1), self.asked);
        let headers = asked.validator.of_part(&range);
        let mut answer = if patient {
            asker.get(asked.url, &headers).map_err(Leave::Broken)?
        } else {
            asker.try_get(asked.url, &headers)?
        };
        let status = answer.status();
        if matches!(status, 200 | 206) && asked.validator.is_contradicted(|name| answer.header(name)) {
            return Err(Leave::Changed);
        }
        let part = answer.part().filter(|_| status == 206);
        let same = part.is_some_and(|part| {
            part.from == *at && part.to <= to && part.total.is_none_or(|total| total == asked.total)
        });
        if !same {
            return Err(Leave::Refused { status });
        }
        self.receive(&mut answer, at, &mut to, false)?;
        // Only a connection whose answer was read to its end is used again; what comes of this does not matter.
        let _ = answer.response.body_mut().as_reader().read(&mut [0]);
        Ok(())
    }

    /// Takes what an answer brings, from `at` to `to`, which both move on. The first answer goes on with the next
    /// segment where nobody has that.
    fn receive(&self, answer: &mut Answer<'_>, at: &mut u64, to: &mut u64, first: bool) -> Result<(), Leave> {
        let client = self.asked.client;
        let rate = client.rate.as_ref();
        let mut body = answer.response.body_mut().as_reader();
        let mut buffer = vec![0; rate.map_or(BUFFER_BYTES, |rate| rate.burst().min(BUFFER_BYTES))];
        loop {
            self.go_on(first)?;
            if at == to {
                match first.then(|| self.next_to(*at)).flatten() {
                    Some(end) => *to = end,
                    None => return Ok(()),
                }
            }
            let most = usize::try_from(*to - *at).unwrap_or(buffer.len()).min(buffer.len());
            let broken =
                |source| Leave::Broken(DownloadError::Broken { url: self.asked.url.clone(), source });
            let read = body.read(&mut buffer[..most]).map_err(|error| broken(Broken::Read(error)))?;
            if read == 0 {
                return Err(broken(Broken::Short { have: *at, total: *to }));
            }
            self.writer.write_at(&buffer[..read], *at).map_err(Leave::Broken)?;
            self.lock().there.add(*at, *at + read as u64);
            *at += read as u64;
            self.news.notify_all();
            if let Some(rate) = rate {
                let clock = &client.options.clock;
                let wait = rate.take(read as u64, clock.now());
                clock.wait(wait, self.asked.cancel).map_err(|cancelled| Leave::Broken(cancelled.into()))?;
            }
        }
    }

    fn go_on(&self, first: bool) -> Result<(), Leave> {
        let state = self.lock();
        if state.ended.is_some() || (state.alone && !first) { Err(Leave::Over) } else { Ok(()) }
    }

    /// Returns how far the first answer is read on from the end of a segment, if it is.
    fn next_to(&self, at: u64) -> Option<u64> {
        let mut state = self.lock();
        if state.alone {
            return Some(self.asked.total).filter(|total| at < *total);
        }
        let next = state.open.iter().position(|segment| segment.0 == at);
        let next = next.and_then(|next| state.open.remove(next));
        state.first = next.is_some();
        next.map(|segment| segment.1)
    }

    /// Leaves the rest of a segment to the others.
    fn give_back(&self, rest: (u64, u64), leave: Leave) -> Leave {
        if rest.0 < rest.1 {
            self.lock().open.push_front(rest);
        }
        leave
    }

    fn leave(&self, leave: Leave) {
        let mut state = self.lock();
        match leave {
            Leave::Busy | Leave::Over => {}
            // The first answer has all that is missing.
            Leave::Refused { .. } if state.first => state.alone = true,
            Leave::Refused { status } => {
                state.ended.get_or_insert(Ended::Refused { status });
            }
            Leave::Changed => state.ended = Some(Ended::Changed),
            Leave::Broken(error @ DownloadError::Broken { .. }) => state.broken = Some(error),
            Leave::Broken(error) => {
                state.ended.get_or_insert(Ended::Broken { failure: error.into(), alone: false });
            }
        }
    }
}
