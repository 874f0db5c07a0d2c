//! Migrations: what makes a store of an older version one of the next, in order. They run when the store is opened, under
//! its lock, held alone. Each can be done again after it was ended anywhere; the version is written last, in one step.

use crate::error::{StoreError, StoreResult};
use crate::layout::{META_BYTES_MAX, Store};
use kiln_sys::commit::{Existing, write_file};
use kiln_sys::lock::{Holder, Share};
use kiln_sys::{Cancel, fail, fs};
use serde_json::{Map, Value, json};

/// What `meta.json` holds, as far as it is known or not.
pub(crate) type Meta = Map<String, Value>;

/// One step from a version to the next.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Migration {
    /// The version it takes.
    pub(crate) from: u32,
    /// The version it makes.
    pub(crate) to: u32,
    /// What it does, for people, in a few words.
    pub(crate) name: &'static str,
    /// Changes the files, and what `meta.json` will hold beside the version. Done again on what it left half done, or
    /// did, it comes to the same.
    pub(crate) apply: fn(&Store, &mut Meta) -> StoreResult<()>,
}

/// All migrations, each from where the one before leads to.
pub(crate) const MIGRATIONS: [Migration; 1] =
    [Migration { from: 0, to: 1, name: "disks of other programs, features", apply: from_0 }];

/// Version 0 has no `clones/`, and need not name features. Artifacts without seals and block tables are the same in
/// version 1: they are sealed when they are first used.
fn from_0(store: &Store, meta: &mut Meta) -> StoreResult<()> {
    let clones = store.root().join("clones");
    fail::point("migrate.clones", &clones)?;
    fs::create_dir_all(&clones)?;
    meta.entry("features")
        .or_insert_with(|| json!({"compatible": {}, "read_only_compatible": {}, "incompatible": {}}));
    Ok(())
}

/// Migrates a store as far as the migrations lead. `waiting` is told when somebody else has the store.
pub(crate) fn run(
    store: &Store,
    migrations: &[Migration],
    cancel: &Cancel,
    waiting: &mut dyn FnMut(&Holder),
) -> StoreResult<()> {
    let Some(first) = next(migrations, &read_meta(store)?) else { return Ok(()) };
    let work = format!("migrating the store: {}", first.name);
    let _alone = store.lock(Share::Exclusive, &work, cancel, waiting)?;
    // Who waited finds what the one before it made.
    let mut meta = read_meta(store)?;
    while let Some(migration) = next(migrations, &meta) {
        cancel.check()?;
        (migration.apply)(store, &mut meta)?;
        meta.insert("version".to_owned(), migration.to.into());
        fail::point("migrate.version", store.root())?;
        fs::sync_dir(store.root())?;
        write_meta(store, &meta)?;
    }
    Ok(())
}

fn next<'a>(migrations: &'a [Migration], meta: &Meta) -> Option<&'a Migration> {
    let version = meta.get("version").and_then(Value::as_u64)?;
    migrations.iter().find(|migration| u64::from(migration.from) == version)
}

/// Reads all of `meta.json`, so that what is not known is kept when it is written again.
pub(crate) fn read_meta(store: &Store) -> StoreResult<Meta> {
    let path = store.root().join("meta.json");
    let bytes = fs::read_limited(&path, META_BYTES_MAX)?;
    serde_json::from_slice(&bytes).map_err(|error| StoreError::NotAStore {
        path: store.root().to_owned(),
        reason: format!("meta.json: {error}"),
    })
}

/// Replaces `meta.json` in one step. The caller holds the store's lock alone.
pub(crate) fn write_meta(store: &Store, meta: &Meta) -> StoreResult<()> {
    #[expect(clippy::unwrap_used, reason = "plain data always serializes")]
    let bytes = serde_json::to_vec_pretty(meta).unwrap();
    Ok(write_file(&store.root().join("meta.json"), &bytes, 0o644, Existing::Replace)?)
}

#[cfg(test)]
mod tests;
