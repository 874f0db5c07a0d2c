//! What machines have of the host's memory.

use crate::context;
use kiln_testing::recipe;
use serde_json::Value;

#[test]
fn without_machines_there_is_no_memory_to_show() {
    let context = context();
    assert_eq!(
        context.kiln(["ps", "--memory"]).ok(),
        "NAME   ID   TEMPLATE   PHASE   NOMINAL   RESIDENT   PRIVATE   SHARE\n"
    );
    assert_eq!(context.kiln(["ps", "--memory", "--json"]).json(), serde_json::json!([]));
    assert_eq!(context.kiln(["df", "--json"]).json()["memory"], Value::Null);
    assert!(!context.kiln(["df"]).ok().contains("MEMORY OF"));
    assert_eq!(context.kiln(["ps", "--memory", "-q"]).code, 2);
}

#[test]
fn boot_memory_of_a_machine_is_shown() {
    let context = context();
    let dir = recipe(&context, "web", "");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    for name in ["a", "b"] {
        context.kiln(["run", "-d", "--name", name, "web"]).ok();
    }
    let list = context.kiln(["ps", "--memory", "--json"]).json();
    let bytes = |of: &Value, what: &str| of[what].as_u64().unwrap_or_else(|| panic!("{what} of {of}"));
    for line in list.as_array().unwrap() {
        let memory = &line["memory"];
        let [resident, private, share] =
            ["resident_bytes", "private_bytes", "share_bytes"].map(|what| bytes(memory, what));
        assert_eq!(memory["nominal_bytes"], line["memory_bytes"]);
        // A guest that is ready has touched some MiB; both run the same program.
        assert!(1 << 20 < private && private < share && share < resident, "{memory}");
        assert_eq!(resident, private + bytes(memory, "shared_bytes"));
        assert_eq!(memory["unknown"], Value::Null);
    }
    let used = context.kiln(["df", "--json"]).json()["memory"].clone();
    assert_eq!(used.as_array().unwrap().len(), 1);
    assert_eq!((&used[0]["template"], &used[0]["machines"]), (&"web".into(), &2.into()));
    assert_eq!(bytes(&used[0], "nominal_bytes"), 2 * bytes(&list[0], "memory_bytes"));
    assert!(bytes(&used[0], "share_bytes") < bytes(&used[0], "resident_bytes"), "{used}");
    let table = context.kiln(["df"]).ok();
    assert!(table.contains("MEMORY OF   RUNNING   NOMINAL "), "{table}");
    // What its status names may be another process by now.
    let id = list[0]["id"].as_str().unwrap();
    let path = context.home().join("machines").join(id).join("status.json");
    let status = std::fs::read_to_string(&path).unwrap();
    let mut other: Value = serde_json::from_str(&status).unwrap();
    other["vmm_pid"] = std::process::id().into();
    std::fs::write(&path, other.to_string()).unwrap();
    let shown = context.kiln(["ps", "--memory"]);
    let name = list[0]["name"].as_str().unwrap();
    let note =
        format!("memory of {name} is not known: process {} is not its machine monitor\n", std::process::id());
    assert_eq!((shown.stderr.as_str(), shown.code), (note.as_str(), 0));
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let rows: Vec<_> = shown.stdout.lines().map(words).collect();
    assert_eq!(rows[1][5..], ["MiB", "-", "-", "-"].map(str::to_owned), "{}", shown.stdout);
    assert_eq!((rows.len(), rows[3][0].as_str()), (4, "total"), "{}", shown.stdout);
    assert!(context.kiln(["df"]).ok().contains("2, 1 not known"));
    std::fs::write(&path, status).unwrap();
    context.kiln(["stop", "a"]).ok();
    let shown = context.kiln(["ps", "-a", "--memory", "--json"]).json();
    let stopped = shown.as_array().unwrap().iter().find(|line| line["name"] == "a").unwrap();
    assert!(stopped.as_object().unwrap().contains_key("memory") && stopped["memory"].is_null(), "{stopped}");
    let plain = context.kiln(["ps", "--json"]).json();
    assert!(!plain[0].as_object().unwrap().contains_key("memory"), "only what is asked for is read");
    context.kiln(["rm", "-f", "a", "b"]).ok();
    context.eventually("no process is left", || context.processes().is_empty());
}
