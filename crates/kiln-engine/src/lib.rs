//! The operations of kiln: what a command line, a server or an embedder calls. This crate decides order, policy and
//! locks; it prints nothing and reads no environment: everything arrives in [`Settings`].

pub mod adopt;
pub mod bench;
pub mod build;
pub mod capture;
pub mod catalogs;
pub mod clone;
pub mod collect;
mod command;
pub mod control;
pub mod copy;
pub mod create;
pub mod diff;
pub mod doctor;
mod error;
pub mod explain;
pub mod fork;
pub mod grow;
pub mod guest;
pub mod images;
mod kvm_cache;
pub mod lock;
pub mod machines;
pub mod memory;
pub mod pause;
pub mod preflight;
pub mod private;
pub mod progress;
pub mod ready;
pub mod restore;
pub mod rewarm;
mod seed;
pub mod snapshots;
mod spec;
pub mod ssh;
pub mod start;
mod steps;
pub mod supervisor;
pub mod suspend;
pub mod template_test;
pub mod templates;
pub mod verify;

pub use error::{EngineError, EngineResult, RegistryProblem};
pub use kiln_store::{Protect, Store};
pub use kvm_cache::PROBE_COMMAND;
pub use progress::{Progress, Reporter, Silent};

use kiln_sys::{Cancel, Toolbox};
use std::path::PathBuf;

/// Everything an engine needs to know of its surroundings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The store's directory.
    pub home: PathBuf,
    /// Where programs are found.
    pub toolbox: Toolbox,
    /// The program to re-execute as supervisor and probe: kiln itself. It must understand `__supervise` and
    /// `__probe-kvm`.
    pub own_program: PathBuf,
}

/// An open store with the means to work on it.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(crate) settings: Settings,
    pub(crate) store: Store,
    pub(crate) cancel: Cancel,
}

impl Engine {
    /// Opens the store. `cancel` ends whatever the engine does next.
    pub fn open(settings: Settings, cancel: Cancel) -> EngineResult<Self> {
        Self::open_with(settings, cancel, &Silent)
    }

    /// Like [`Engine::open`]; `reporter` is told for whom a migration of an older store waits.
    pub fn open_with(settings: Settings, cancel: Cancel, reporter: &dyn Reporter) -> EngineResult<Self> {
        let store = Store::open_with(&settings.home, &cancel, &mut progress::waiting(reporter))?;
        Ok(Self { settings, store, cancel })
    }

    /// Sets what is to protect the store's artifacts from now on.
    ///
    /// # Errors
    /// When it is asked for by name and cannot be done here: the setting stays as it was.
    pub fn set_protect(&mut self, protect: Protect, reporter: &dyn Reporter) -> EngineResult<()> {
        Ok(self.store.set_protect(protect, &self.cancel, &mut progress::waiting(reporter))?)
    }

    /// Returns the store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Returns the flag that ends the engine's work.
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }
}
