//! Fail-points: named places in durable work where a test makes the process die, fail or wait.
//!
//! Every step that changes a disk has one before it, so that dying at a point is dying after the step before. Without
//! the feature `failpoints` a point is nothing at all. With it, points do what the **calling thread** has armed: tests
//! that share a process do not meet each other's faults. Nothing is armed by environment.

use crate::error::IoResult;
use std::path::Path;

#[cfg(feature = "failpoints")]
pub use armed::{ANY, Action, arm, disarm, trace};

/// Passes the point `name`. `path` is what the next step is about, for the error that a test asks for.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn point(_name: &'static str, _path: &Path) -> IoResult<()> {
    Ok(())
}

/// Passes the point `name`. `path` is what the next step is about, for the error that a test asks for.
#[cfg(feature = "failpoints")]
pub fn point(name: &'static str, path: &Path) -> IoResult<()> {
    armed::pass(name, path)
}

#[cfg(feature = "failpoints")]
mod armed {
    use crate::error::{IoResult, IoResultExt as _};
    use rustix::process::{Signal, getpid, kill_process};
    use std::cell::RefCell;
    use std::io;
    use std::path::Path;

    /// What happens at an armed point.
    #[derive(Debug, Clone, Copy)]
    pub enum Action {
        /// The process is killed, as by `SIGKILL`: nothing is cleaned up.
        Kill,
        /// This is called, and the step taken when it returns: somebody else may work meanwhile.
        Call(fn()),
        /// The step fails with this error number.
        Error(i32),
    }

    #[derive(Debug, Default)]
    struct Plan {
        armed: Option<(String, u32, Action)>,
        passed: Option<Vec<&'static str>>,
    }

    thread_local! {
        static PLAN: RefCell<Plan> = RefCell::default();
    }

    /// Stands for whichever point is passed.
    pub const ANY: &str = "*";

    /// Arms a point, or [`ANY`], of this thread in place of what was armed: at the `nth` pass from now, counted from 1,
    /// `action` happens, once.
    pub fn arm(name: &str, nth: u32, action: Action) {
        PLAN.with_borrow_mut(|plan| plan.armed = Some((name.to_owned(), nth.max(1), action)));
    }

    /// Disarms this thread's point; returns whether it was still waiting to happen.
    pub fn disarm() -> bool {
        PLAN.with_borrow_mut(|plan| plan.armed.take().is_some())
    }

    /// Does `work` and returns what it returned with the points that it passed, in order.
    pub fn trace<T>(work: impl FnOnce() -> T) -> (T, Vec<&'static str>) {
        PLAN.with_borrow_mut(|plan| plan.passed = Some(Vec::new()));
        let result = work();
        (result, PLAN.with_borrow_mut(|plan| plan.passed.take().unwrap_or_default()))
    }

    pub(super) fn pass(name: &'static str, path: &Path) -> IoResult<()> {
        let due = PLAN.with_borrow_mut(|plan| {
            plan.passed.iter_mut().for_each(|passed| passed.push(name));
            let (armed, left, action) = plan.armed.as_mut()?;
            if armed != name && armed != ANY {
                return None;
            }
            *left -= 1;
            let action = *action;
            (*left == 0).then(|| plan.armed = None).map(|()| action)
        });
        match due {
            None => Ok(()),
            Some(Action::Kill) => {
                kill_process(getpid(), Signal::KILL).at("kill the process that works on", path)
            }
            Some(Action::Call(call)) => {
                call();
                Ok(())
            }
            Some(Action::Error(number)) => Err(io::Error::from_raw_os_error(number)).at("write", path),
        }
    }
}

#[cfg(all(test, feature = "failpoints"))]
mod tests {
    use super::*;
    use crate::commit::{Existing, write_file};

    #[test]
    fn an_armed_point_acts_once_at_its_pass_and_on_its_thread() {
        let here = Path::new("here");
        arm("a", 2, Action::Error(28));
        assert!(
            std::thread::spawn(|| point("a", Path::new("x")).is_ok() && point("a", Path::new("x")).is_ok())
                .join()
                .unwrap()
        );
        let (results, passed) = trace(|| ["a", "b", "a", "a"].map(|name| point(name, here)));
        assert_eq!(passed, ["a", "b", "a", "a"]);
        let [one, other, two, three] = results;
        assert!(one.is_ok() && other.is_ok() && three.is_ok());
        assert!(two.unwrap_err().is_no_space());
        assert!(!disarm());
    }

    #[test]
    fn a_write_that_fails_anywhere_leaves_the_old_file_or_the_new_and_nothing_aside() {
        let dir = crate::tool::ScratchDir::new(&std::env::temp_dir()).unwrap();
        let path = dir.path().join("file");
        for existing in [Existing::Replace, Existing::Keep] {
            let ((), points) = trace(|| write_file(&path, b"old", 0o644, existing).unwrap());
            for (name, nth) in points.iter().zip(1..) {
                write_file(&path, b"old", 0o644, Existing::Replace).unwrap();
                arm(ANY, nth, Action::Error(5));
                write_file(&path, b"new", 0o644, existing).unwrap_err();
                let content = crate::fs::read_limited(&path, 16).unwrap();
                assert!(content == b"old" || content == b"new");
                assert_eq!(crate::fs::list_dir(dir.path()).unwrap(), ["file"], "at {name}");
            }
        }
    }
}
