//! Capture and restore: what makes a guest ready to be captured, and a restored one a machine of its own.

use std::time::Instant;

use super::Session;
use super::stream::Stream;
use crate::error::SessionError;
use crate::identity::{Identity, IdentityReport, Part};
use crate::message::{FEATURE_ENVIRONMENT, FEATURE_IDENTITY, FEATURE_QUIESCE, Opened, Request};
use crate::quiesce::{Quiesce, Quiesced};

impl Session {
    /// Makes the guest ready to be captured: the image's hooks `pre-snapshot`, then the filesystems. At the
    /// deadline the agent is told to give up and kills the hook that runs.
    ///
    /// # Errors
    /// [`SessionError::Hook`] names a hook that failed or hung; the filesystems are then not written. Others: the
    /// deadline, a lost connection, an agent that does not do this.
    pub fn quiesce(&self, request: Quiesce, deadline: Instant) -> Result<Quiesced, SessionError> {
        self.require(FEATURE_QUIESCE)?;
        let opened = self.request_until(&Request::Quiesce(request), deadline)?;
        let quiesced = opened
            .quiesced
            .ok_or(SessionError::Violation { what: "quiesce was answered without a result" })?;
        match quiesced.hooks.failure {
            Some(failure) => Err(SessionError::Hook(Box::new(failure))),
            None => Ok(quiesced),
        }
    }

    /// Makes a restored guest a machine of its own; to be called on a session that began after the restore.
    ///
    /// # Errors
    /// [`SessionError::NotIdentified`] holds what became of each part when one of them is not as asked. Others: a
    /// request over a limit, an environment that the agent would give to no program, the deadline, a lost connection, an agent that does not do this. After an error the
    /// guest must not be handed over; the same request may be made again.
    pub fn identify(&self, request: Identity, deadline: Instant) -> Result<IdentityReport, SessionError> {
        self.require(FEATURE_IDENTITY)?;
        request.check()?;
        if request.environment.as_ref().is_some_and(|environment| !environment.is_empty()) {
            self.require(FEATURE_ENVIRONMENT)?;
        }
        let opened = self.request_until(&Request::Identity(Box::new(request)), deadline)?;
        let report = opened
            .identified
            .ok_or(SessionError::Violation { what: "identity was answered without a result" })?;
        let complete =
            report.failed().is_none() && Part::ALL.iter().all(|part| report.result(*part).is_some());
        if complete { Ok(report) } else { Err(SessionError::NotIdentified { report: Box::new(report) }) }
    }

    pub(super) fn require(&self, feature: &'static str) -> Result<(), SessionError> {
        let has = self.agent().features.iter().any(|name| name == feature);
        if has { Ok(()) } else { Err(SessionError::Lacks { feature }) }
    }

    fn request_until(&self, request: &Request, deadline: Instant) -> Result<Opened, SessionError> {
        let (mut stream, opened) = Stream::open(&self.handle, request, Some(deadline))?;
        stream.wait_exit(Some(deadline))?;
        Ok(opened)
    }
}
