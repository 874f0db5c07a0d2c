//! From an image to a raw file: blocks are shared where the file system can, else copied, and compressed clusters are
//! uncompressed, on several threads. Zeros become holes.

use super::Qcow2;
use super::cluster::Decoder;
use super::error::Qcow2Error;
use super::table::{Content, Piece};
use crate::disk::sparse::write_sparse;
use crate::disk::{DiskError, DiskResult, Reading};
use kiln_sys::copy::{self, Shared};
use kiln_sys::{Cancel, IoResultExt as _};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

/// The most memory that a conversion takes for itself, in bytes.
pub const MEMORY_BYTES_MAX: u64 = 128 << 20;
/// The most threads that convert.
pub const THREADS_MAX: usize = 8;

/// Bytes of the guest's disk that a thread writes at once, where a cluster is not larger.
const STEP_BYTES: u64 = 1 << 20;
/// Bytes that are read and written at once where they are copied: what a processor's cache holds.
const COPY_BYTES: u64 = 256 << 10;
/// What a zstd decoder may take, in bytes.
const DECODER_BYTES: u64 = 5 << 20;
/// Half of the memory that may be taken is for the buffers of threads.
const BUFFERS_BYTES: u64 = MEMORY_BYTES_MAX / 2;
/// Bytes that are sent to the disk at a time.
const WRITEBACK_BYTES: u64 = 32 << 20;
/// Blocks are shared in multiples of this: the block size of the file systems that can.
const SHARE_BYTES: u64 = 4096;

/// Work for a thread.
enum Work {
    /// Bytes of the file as they are.
    Copy { from: u64, to: u64, len: u64 },
    /// Compressed clusters that the guest has beside one another.
    Uncompress { to: u64, clusters: Vec<(u64, u64)> },
}

/// What all threads of a conversion know.
struct Job<'a> {
    image: &'a Qcow2,
    to: &'a File,
    path: &'a Path,
    /// Whether the file has content of lower files that zeros have to replace.
    over: bool,
    /// File systems let one thread at a time write to a file; who waits here sleeps, and does not spin there.
    writing: Mutex<()>,
    cancel: &'a Cancel,
}

impl Qcow2 {
    /// Writes the image's own data to `to`. `over` tells whether there is content of lower files in it already.
    pub(crate) fn write(&self, to: &File, path: &Path, over: bool, reading: &Reading<'_>) -> DiskResult<()> {
        let cancel = reading.cancel;
        let job = Job { image: self, to, path, over, writing: Mutex::new(()), cancel };
        let threads = self::threads(self.header.cluster_bytes(), reading.threads);
        let (sender, receiver) = sync_channel::<Work>(threads * 2);
        let receiver = Mutex::new(Some(receiver));
        let failed: Mutex<Option<DiskError>> = Mutex::new(None);
        let walked = std::thread::scope(|scope| {
            let crew = || {
                for _ in 0..threads {
                    scope.spawn(|| {
                        if let Err(error) = job.serve(&receiver) {
                            lock(&failed).get_or_insert(error);
                            // Whoever sends learns of it.
                            lock(&receiver).take();
                        }
                    });
                }
            };
            let kept = reading.kept.then_some(0);
            let mut desk =
                Desk { job: &job, crew: Some(&crew), sender, run: None, batch: None, shares: true, kept };
            self.pieces(cancel, &mut |piece| desk.take(piece)).and_then(|()| desk.flush())
        });
        match lock(&failed).take() {
            Some(error) => Err(error),
            None => walked,
        }
    }
}

/// Returns the bytes that the buffers of a thread take up, for clusters of so many bytes.
pub(super) fn buffer_bytes(cluster: u64) -> u64 {
    STEP_BYTES.max(cluster) + 2 * cluster + DECODER_BYTES
}

/// Returns how many threads are used where `wanted` are: as many as their buffers leave memory for.
pub(super) fn threads(cluster: u64, wanted: usize) -> usize {
    let most = usize::try_from(BUFFERS_BYTES / buffer_bytes(cluster)).unwrap_or(1);
    wanted.clamp(1, THREADS_MAX).min(most).max(1)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Turns pieces into work: neighbours are put together.
struct Desk<'a> {
    job: &'a Job<'a>,
    /// Starts the threads. Where all blocks are shared there is nothing for them to do.
    crew: Option<&'a dyn Fn()>,
    sender: SyncSender<Work>,
    /// Guest offset, file offset and length of what lies in one piece in both.
    run: Option<(u64, u64, u64)>,
    /// Compressed clusters beside one another, and where the guest has the first.
    batch: Option<(u64, Vec<(u64, u64)>)>,
    /// Whether the file system is believed to share blocks.
    shares: bool,
    /// How much of the file is on its way to the disk; none where nobody waits for that.
    kept: Option<u64>,
}

impl Desk<'_> {
    fn take(&mut self, piece: Piece) -> DiskResult<()> {
        let cluster = self.job.image.header.cluster_bytes();
        match piece.content {
            Content::Plain(at) => {
                match &mut self.run {
                    Some((guest, from, len)) if *guest + *len == piece.guest && *from + *len == at => {
                        *len += piece.len;
                    }
                    _ => {
                        self.flush_run()?;
                        self.run = Some((piece.guest, at, piece.len));
                    }
                }
                Ok(())
            }
            Content::Compressed { at, len } => {
                let most = (STEP_BYTES / cluster).max(1);
                match &mut self.batch {
                    Some((guest, clusters))
                        if *guest + clusters.len() as u64 * cluster == piece.guest
                            && (clusters.len() as u64) < most =>
                    {
                        clusters.push((at, len));
                    }
                    _ => {
                        self.flush_batch()?;
                        self.batch = Some((piece.guest, vec![(at, len)]));
                    }
                }
                Ok(())
            }
            Content::Zeros if self.job.over => {
                let len = self.job.inside(piece.guest, piece.len);
                Ok(copy::write_hole(self.job.to, self.job.path, piece.guest, len)?)
            }
            Content::Zeros => Ok(()),
        }
    }

    fn flush(&mut self) -> DiskResult<()> {
        self.flush_run()?;
        self.flush_batch()
    }

    fn flush_run(&mut self) -> DiskResult<()> {
        let Some((guest, at, len)) = self.run.take() else { return Ok(()) };
        let len = self.job.inside(guest, len);
        let mut done = 0;
        if self.shares && guest.is_multiple_of(SHARE_BYTES) && at.is_multiple_of(SHARE_BYTES) {
            let whole = len - len % SHARE_BYTES;
            match copy::share_range(&self.job.image.file, at, self.job.to, guest, whole, self.job.path)? {
                Shared::Yes => done = whole,
                Shared::NotThis => {}
                Shared::Never => self.shares = false,
            }
        }
        while done < len {
            let step = (len - done).min(STEP_BYTES * 4);
            self.send(Work::Copy { from: at + done, to: guest + done, len: step })?;
            done += step;
        }
        Ok(())
    }

    fn flush_batch(&mut self) -> DiskResult<()> {
        match self.batch.take() {
            Some((to, clusters)) => self.send(Work::Uncompress { to, clusters }),
            None => Ok(()),
        }
    }

    /// Hands work over. When nobody takes it any more, a thread has an error to tell.
    fn send(&mut self, work: Work) -> DiskResult<()> {
        if let Some(start) = self.crew.take() {
            start();
        }
        let (Work::Copy { to, .. } | Work::Uncompress { to, .. }) = &work;
        let to = *to;
        self.sender.send(work).map_err(|_| DiskError::Cancelled)?;
        // What was handed over before the work that threads still have is written by now, most of it.
        if let Some(from) = self.kept.as_mut().filter(|from| to >= **from + WRITEBACK_BYTES) {
            copy::begin_writeback(self.job.to, *from, WRITEBACK_BYTES);
            *from += WRITEBACK_BYTES;
        }
        Ok(())
    }
}

impl Job<'_> {
    /// Returns how much of a piece lies on the guest's disk.
    fn inside(&self, guest: u64, len: u64) -> u64 {
        len.min(self.image.header.virtual_bytes.saturating_sub(guest))
    }

    fn serve(&self, receiver: &Mutex<Option<Receiver<Work>>>) -> DiskResult<()> {
        let mut decoder =
            Decoder::new(self.image.header.compression).at("make a decoder for", &self.image.path)?;
        let (mut data, mut out) = (Vec::new(), Vec::new());
        loop {
            let work = match lock(receiver).as_ref().map(Receiver::recv) {
                Some(Ok(work)) => work,
                _ => return Ok(()),
            };
            self.cancel.check()?;
            match work {
                Work::Copy { from, to, len } => self.copy(from, to, len, &mut out)?,
                Work::Uncompress { to, clusters } => {
                    self.uncompress(to, &clusters, &mut decoder, &mut data, &mut out)?;
                }
            }
        }
    }

    fn copy(&self, from: u64, to: u64, len: u64, buffer: &mut Vec<u8>) -> DiskResult<()> {
        let mut done = 0;
        while done < len {
            let step = (len - done).min(COPY_BYTES);
            buffer.resize(usize::try_from(step).unwrap_or(usize::MAX), 0);
            self.image.file.read_exact_at(buffer, from + done).at("read", &self.image.path)?;
            self.put(buffer, to + done)?;
            done += step;
        }
        Ok(())
    }

    fn uncompress(
        &self,
        to: u64,
        clusters: &[(u64, u64)],
        decoder: &mut Decoder,
        data: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> DiskResult<()> {
        let cluster = usize::try_from(self.image.header.cluster_bytes()).unwrap_or(usize::MAX);
        out.resize(cluster * clusters.len(), 0);
        for (number, ((at, len), room)) in clusters.iter().zip(out.chunks_exact_mut(cluster)).enumerate() {
            data.resize(usize::try_from(*len).unwrap_or(usize::MAX), 0);
            self.image.file.read_exact_at(data, *at).at("read", &self.image.path)?;
            if !decoder.fill(data, room) {
                let guest = to + (number * cluster) as u64;
                let format = decoder.name();
                return Err(self.image.refused(Qcow2Error::Uncompress { format, guest }));
            }
        }
        let seen = self.inside(to, out.len() as u64);
        self.put(&out[..usize::try_from(seen).unwrap_or(usize::MAX)], to)
    }

    fn put(&self, bytes: &[u8], at: u64) -> DiskResult<()> {
        let _alone = lock(&self.writing);
        if self.over {
            return Ok(self.to.write_all_at(bytes, at).at("write", self.path)?);
        }
        Ok(write_sparse(self.to, bytes, at).at("write", self.path)?)
    }
}
