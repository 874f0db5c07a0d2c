use super::*;
use crate::layout::STORE_VERSION;
use kiln_sys::fail::{ANY, Action, arm, disarm, trace};
use kiln_sys::tool::ScratchDir;

/// A point of these tests alone.
const NOTE: &str = "test.note";

/// Does what `name` says to a file that lists what was done, unless it says so already.
fn note(store: &Store, name: &str) -> StoreResult<()> {
    let path = store.root().join("done");
    fail::point(NOTE, &path)?;
    let done = fs::read_optional(&path, 1 << 10)?.unwrap_or_default();
    let mut done = String::from_utf8(done).unwrap();
    if !done.contains(name) {
        done.push_str(name);
        write_file(&path, done.as_bytes(), 0o600, Existing::Replace)?;
    }
    Ok(())
}

/// Out of order in the list: the versions decide.
const STEPS: [Migration; 3] = [
    Migration { from: 8, to: 9, name: "c", apply: |store, _| note(store, "c") },
    Migration {
        from: 5,
        to: 7,
        name: "a",
        apply: |store, meta| {
            meta.insert("added".to_owned(), true.into());
            note(store, "a")
        },
    },
    Migration { from: 7, to: 8, name: "b", apply: |store, _| note(store, "b") },
];

fn old() -> (ScratchDir, Store, Cancel) {
    let dir = ScratchDir::new(&std::env::temp_dir()).unwrap();
    let store = Store::open(&dir.path().join("home")).unwrap();
    let mut meta = read_meta(&store).unwrap();
    meta.insert("version".to_owned(), 5.into());
    meta.insert("of_somebody".to_owned(), "kept".into());
    write_meta(&store, &meta).unwrap();
    (dir, store, Cancel::new().unwrap())
}

fn check(store: &Store) {
    let meta = read_meta(store).unwrap();
    assert_eq!((&meta["version"], &meta["added"]), (&json!(9), &json!(true)));
    assert_eq!(meta["of_somebody"], json!("kept"), "what is not known stays");
    assert_eq!(fs::read_limited(&store.root().join("done"), 9).unwrap(), b"abc");
}

#[test]
fn the_migrations_lead_from_0_to_today_without_a_gap() {
    let mut version = 0;
    for migration in MIGRATIONS {
        assert_eq!(migration.from, version, "{}", migration.name);
        assert!(migration.to > migration.from);
        version = migration.to;
    }
    assert_eq!(version, STORE_VERSION);
}

#[test]
fn steps_run_in_order_of_versions_and_once() {
    let (_dir, store, cancel) = old();
    run(&store, &STEPS, &cancel, &mut |_| ()).unwrap();
    check(&store);
    let ((), points) = trace(|| run(&store, &STEPS, &cancel, &mut |_| ()).unwrap());
    assert!(!points.contains(&"migrate.version"), "{points:?}");
}

#[test]
fn what_was_ended_at_any_step_is_finished_by_the_next_opening() {
    let (_dir, store, cancel) = old();
    let ((), points) = trace(|| run(&store, &STEPS, &cancel, &mut |_| ()).unwrap());
    for (point, nth) in points.iter().zip(1..) {
        let (_dir, store, cancel) = old();
        arm(ANY, nth, Action::Error(5));
        let ended = run(&store, &STEPS, &cancel, &mut |_| ());
        assert!(!disarm() && (ended.is_err() || *point == "lock.name"), "{point}");
        run(&store, &STEPS, &cancel, &mut |_| ()).unwrap();
        check(&store);
    }
}
