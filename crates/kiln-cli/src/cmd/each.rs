//! Options of several machines that are made at once, and what is told of them.

use super::clone::CloneBy;
use super::private::PrivateOptions;
use super::run::Identity;
use super::suspend::idle_after;
use crate::error::{self, CliError};
use clap::Args;
use kiln_core::TimeSpan;
use kiln_engine::EngineResult;
use kiln_engine::create::CreateRequest;
use kiln_engine::fork::{FORKS_MAX, ForkRequest, Forked};
use std::num::NonZeroUsize;

#[derive(Debug, Args)]
pub(super) struct EachOptions {
    /// How many
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(FORKS_MAX)))]
    pub(super) count: u32,
    /// How many are started at a time [default: the host's processors]
    #[arg(short, long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// How their private disks are made
    #[arg(long, value_enum, default_value = "auto", value_name = "METHOD")]
    clone: CloneBy,
    /// Remove each machine and its disk when it ends
    #[arg(long)]
    rm: bool,
    /// Stop each when it has run so long since its start, such as 90s, 10m or 2h
    #[arg(long, value_name = "TIME")]
    ttl: Option<TimeSpan>,
    /// Suspend each when nobody used it and it did nothing for so long; whoever asks for it wakes it
    #[arg(long, value_name = "TIME")]
    idle_suspend: Option<TimeSpan>,
    #[command(flatten)]
    private: PrivateOptions,
}

impl EachOptions {
    /// Asks for so many machines like this one, with these options.
    ///
    /// # Errors
    /// When an environment or a secret cannot be read, or does not go with the others.
    pub(super) fn request(
        &self,
        machine: CreateRequest,
        identity: Identity,
        numbered: bool,
    ) -> Result<ForkRequest, CliError> {
        let machine = CreateRequest {
            clone: self.clone.into(),
            identity: identity.into(),
            remove_on_exit: self.rm,
            ttl: self.ttl.map(TimeSpan::get),
            private: self.private.read(identity, false)?,
            idle_suspend: idle_after(self.idle_suspend)?,
            ..machine
        };
        Ok(ForkRequest { machine, count: self.count, jobs: self.jobs, numbered })
    }
}

/// Tells why there is no machine, of each that there is not; returns the others, and these reasons.
pub(super) fn tell_failed(machines: Vec<EngineResult<Forked>>) -> (Vec<Forked>, Vec<String>) {
    let (mut made, mut failed) = (Vec::new(), Vec::new());
    for machine in machines {
        match machine {
            Ok(machine) => made.push(machine),
            Err(error) => {
                failed.push(kiln_core::text::chain(&error));
                error::tell(&error.into());
            }
        }
    }
    (made, failed)
}
