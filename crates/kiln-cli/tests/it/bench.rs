//! Benchmarks, with next to no data: what is printed, not what is measured.

use crate::context;
use serde_json::Value;

#[test]
fn benchmarks_are_listed() {
    let context = context();
    let names: Vec<String> = context
        .kiln(["bench", "--list", "--json"])
        .json()
        .as_array()
        .unwrap()
        .iter()
        .map(|listed| listed["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["disk", "download", "fork", "store"]);
    assert!(context.kiln(["bench", "--list"]).ok().contains("store      verification"));
    for bad in [
        &["bench"][..],
        &["bench", "boat"],
        &["bench", "store", "--size", "0"],
        &["bench", "store", "--rounds", "0"],
    ] {
        context.kiln(bad).fails(2);
    }
    assert!(!context.home().exists(), "a benchmark does not touch the store");
}

#[test]
fn a_download_is_measured_beside_what_does_the_same() {
    let context = context();
    let args = ["bench", "download", "--size", "2", "--rounds", "1", "--json", "--dir"];
    let told = context.kiln(args.into_iter().chain([context.work().to_str().unwrap()])).json();
    assert_eq!(told["size_bytes"], 2 << 20);
    let row = &told["rows"][0];
    assert_eq!((&row["name"], &row["compares"]), (&"a file fetched and checked".into(), &"programs".into()));
    assert!(row["peers"][0]["wall_ratio"].as_f64().unwrap() > 0.0 && row["met"].is_boolean(), "{row}");
    assert_eq!(std::fs::read_dir(context.work()).unwrap().count(), 0, "it leaves nothing");
}

#[test]
fn the_store_is_measured_in_a_directory_that_is_gone_afterwards() {
    let context = context();
    std::fs::create_dir(context.work().join("here")).unwrap();
    let args = ["bench", "store", "--dir", "here", "--size", "2", "--rounds", "1", "--json"];
    let told = context.kiln(args).json();
    assert_eq!(told["schema_version"], 1);
    assert_eq!(told["size_bytes"], 2 << 20);
    assert!(told["load_before"].is_f64() && told["file_system"].is_string() && told["kernel"].is_string());
    let shares = told["reflink"] == true;
    let mut shape = String::new();
    for row in told["rows"].as_array().unwrap() {
        let (name, compares) = (row["name"].as_str().unwrap(), row["compares"].as_str().unwrap());
        // Rows that not every host has, and the peers that not every host has installed.
        if !(name.contains("reflink") || name.contains("pieces")) {
            shape.push_str(&format!("{name}, {compares}\n"));
        }
        assert!(row["kiln"]["wall_us"].as_f64().unwrap() > 0.0, "{row}");
        assert_eq!(row["kiln"]["wall_samples_us"].as_array().unwrap().len(), 1, "{row}");
        assert!(row["floor"]["what"].is_string(), "{row}");
        let programs = compares == "programs";
        for side in row["peers"].as_array().unwrap().iter().chain([&row["kiln"], &row["floor"]]) {
            assert_eq!(side["resident_bytes"] != Value::Null, programs, "calls with calls only: {row}");
        }
        assert!(row["peers"].as_array().unwrap().iter().all(|peer| peer["cpu_ratio"].is_f64()));
    }
    insta::assert_snapshot!(shape, @r"
    memory of a verification, programs
    memory of a copy, programs
    verify dense, calls
    verify dense, programs
    verify sparse, calls
    verify sparse, programs
    seal check on second use, calls
    clone by copy, calls
    clone by copy, programs
    clone by overlay, calls
    clone by overlay, programs
    ingest, first version, programs
    ingest, second version with 1 % changed, programs
    ");
    assert_eq!(shape.lines().count() + if shares { 3 } else { 0 }, told["rows"].as_array().unwrap().len());
    assert_eq!(std::fs::read_dir(context.work().join("here")).unwrap().count(), 0);
    assert!(!context.home().exists(), "a benchmark does not touch the store");
}

#[test]
fn boot_forks_are_measured_and_nothing_of_the_benchmark_stays() {
    let context = context();
    let dir = kiln_testing::recipe(&context, "web", "[machine]\nmemory = \"128M\"\n");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    let missing = context.kiln(["bench", "fork"]).fails(1);
    assert!(missing.contains("demo"), "{missing}");
    let args = ["bench", "fork", "--template", "web", "--rounds", "1", "--forks", "2", "--json"];
    let told = context.kiln(args).json();
    let mut shape = String::new();
    for row in told["rows"].as_array().unwrap() {
        shape.push_str(row["name"].as_str().unwrap());
        shape.push('\n');
        assert!(row["kiln"]["wall_us"].as_f64().unwrap() > 0.0, "{row}");
        let peers = row["peers"].as_array().unwrap();
        assert!(peers.iter().all(|peer| peer["wall_ratio"].as_f64().unwrap() > 0.0), "{row}");
    }
    insta::assert_snapshot!(shape, @r"
    capture
    first answer of a command
    size of memory
    many
    create, written
    create, synced
    monitor's start to first exec, disk cloned
    ");
    for list in [&["ps", "-aq"][..], &["snapshot", "ls", "-q"]] {
        assert_eq!(context.kiln(list).ok(), "");
    }
    assert_eq!(context.staged(), Vec::<String>::new());
    context.eventually("no process is left", || context.processes().is_empty());
}

#[test]
fn disk_images_are_measured_in_a_directory_that_is_gone_afterwards() {
    let context = context();
    std::fs::create_dir(context.work().join("here")).unwrap();
    let args = ["bench", "disk", "--dir", "here", "--size", "4", "--rounds", "1", "--json"];
    let told = context.kiln(args).json();
    let rows = told["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        ["zlib qcow2 to raw", "zstd qcow2 to raw", "plain qcow2 to raw", "plain qcow2 to raw, synced"]
    );
    for row in rows {
        assert!(row["kiln"]["wall_us"].as_f64().unwrap() > 0.0, "{row}");
        assert!(row["kiln"]["resident_bytes"].as_u64().unwrap() <= 128 << 20, "{row}");
        assert!(row["peers"][0]["target"].is_string(), "{row}");
    }
    assert_eq!(std::fs::read_dir(context.work().join("here")).unwrap().count(), 0);
}
