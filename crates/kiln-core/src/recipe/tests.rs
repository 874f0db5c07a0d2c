use super::*;
use crate::revision::VARIANTS_MAX;
use proptest::prelude::*;

const FULL: &str = r#"
name = "web"
profile = "prod"
[source]
type = "debian"
suite = "bookworm"
packages = ["nginx-light"]
[machine]
vcpus = 2
memory = "512M"
data_disk = "1G"
board = "q35"
[boot]
args = ["loglevel=3"]
[ready]
command = ["test", "-e", "/run/ready"]
timeout = "2m"
[[variant]]
name = "small"
memory = "128M"
[[variant]]
name = "big"
role = "worker"
vcpus = 4
"#;

fn error(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn a_full_recipe_is_understood() {
    let recipe = parse(FULL).unwrap();
    assert_eq!(recipe.machine.vcpus, 2);
    assert_eq!(recipe.ready.as_ref().unwrap().timeout_ms, 120_000);
    assert_eq!(recipe.variants[0].name.as_str(), "big");
}

#[test]
fn captures_are_planned_in_the_recipe() {
    let with = |part: &str| format!("name=\"a\"\n[source]\ntype=\"debian\"\nsuite=\"x\"\n{part}");
    assert_eq!(parse(&with("")).unwrap().snapshot, SnapshotOptions::default());
    let auto = parse(&with("[snapshot]\nauto = true")).unwrap().snapshot;
    assert_eq!((auto.auto, auto.of_revision()), (true, None));
    let full = "[snapshot]\nwarm_up = [[\"curl\", \"-s\"], [\"true\"]]\ndrop_caches = true";
    let full = parse(&with(full)).unwrap().snapshot;
    assert!(!full.auto);
    let plan = full.of_revision().unwrap();
    assert_eq!(
        (plan.warm_up[0].join(" "), plan.warm_up.len(), plan.drop_caches),
        ("curl -s".to_owned(), 2, true)
    );
    let many = format!("[snapshot]\nwarm_up = [{}]", "[\"true\"],".repeat(17));
    assert_eq!(error(&with(&many)), "`snapshot.warm_up`: 17 warm-up commands, more than 16");
    let empty = error(&with("[snapshot]\nwarm_up = [[]]"));
    assert_eq!(empty, "`snapshot.warm_up`: warm-up command 1 is not a list of program and arguments");
    let unknown = error(&with("[snapshot]\nwarmup = []"));
    assert!(unknown.contains("did you mean `warm_up`?"), "{unknown}");
}

#[test]
fn a_probe_is_of_one_kind_with_its_times() {
    use crate::ready::ReadyCheck;
    let probe = |part: &str| {
        let text = format!("name=\"a\"\n[ready]\n{part}\n[source]\ntype=\"debian\"\nsuite=\"x\"\n");
        parse(&text).unwrap().ready.unwrap()
    };
    let full = probe("tcp = 80\nretries = 3\nstart_period = \"5s\"\ninterval = \"1s\"");
    assert_eq!((full.interval_ms, full.timeout_ms, full.start_period_ms), (1000, 120_000, Some(5000)));
    assert_eq!(full.retries.map(std::num::NonZeroU32::get), Some(3));
    for (part, words) in [
        ("", "the agent answers"),
        ("tcp = 80", "tcp 80"),
        ("http = \"80/health\"", "http 80/health"),
        ("http = { port = 80 }", "http 80/"),
        ("http = { port = 80, path = \"/up\", status = \"204\" }", "http 80/up status 204"),
        ("file = \"/run/ready\"", "file /run/ready"),
        ("command = [\"test\", \"-e\", \"/x\"]", "test -e /x"),
    ] {
        assert_eq!(probe(part).check.to_string(), words);
    }
    assert_eq!(probe("").check, ReadyCheck::Agent);
}

#[test]
fn what_a_variant_omits_comes_from_the_template() {
    let recipe = parse(FULL).unwrap();
    let big = recipe.variants[0].shape(&recipe.machine);
    assert_eq!((big.vcpus, big.memory.mib(), big.data_disk.unwrap().mib()), (4, 512, 1024));
    assert_eq!(recipe.variants[1].profile, None, "an omitted profile stays open, it is not a default");
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_known_one() {
    let top = error("name = \"a\"\nnmae = \"b\"\n[source]\ntype = \"debian\"\nsuite = \"x\"");
    assert_eq!(top, "line 2: unknown key `nmae`, did you mean `name`?");
    let machine = error("name=\"a\"\n[source]\ntype=\"debian\"\nsuite=\"x\"\n[machine]\nmemroy = \"1G\"");
    assert_eq!(machine, "line 6: unknown key `memroy`, did you mean `memory`?");
    let source = error("name=\"a\"\n[source]\ntype=\"debian\"\nsuite=\"x\"\npackage = [\"y\"]");
    assert_eq!(source, "line 5: unknown key `package`, did you mean `packages`?");
    let far = error("name=\"a\"\nzzz=1\n[source]\ntype=\"tar\"\npath=\"x\"\nkernel=\"k\"");
    assert!(far.starts_with("line 2: unknown key `zzz`, known here are name, "), "{far}");
}

#[test]
fn bad_values_name_their_field() {
    let with = |part: &str| format!("name=\"a\"\n{part}\n[source]\ntype=\"debian\"\nsuite=\"x\"\n");
    for (part, want) in [
        ("[machine]\nmemory = \"lots\"", "`machine.memory`: `lots` is not a size"),
        ("[machine]\nmemory = \"1M\"", "`machine`: memory is 1M"),
        ("[machine]\nvcpus = 0", "`machine`: vcpus is 0"),
        ("[ready]\ncommand = []", "`ready.command`: a list"),
        ("[ready]\ncommand = [\"x\"]\ntimeout = \"soon\"", "`ready.timeout`: `soon` is not a time"),
        ("[ready]\ntcp = 80\nfile = \"/x\"", "`ready`: `tcp` and `file` exclude each other"),
        ("[ready]\ncommand = [\"x\"]\nhttp = \"80/\"", "`ready`: `command` and `http` exclude each other"),
        ("[ready]\ntcp = 0", "`ready.tcp`: a port from 1 to 65535"),
        ("[ready]\nhttp = \"web/\"", "`ready.http`: `web/` is not a port and a path"),
        ("[ready]\nhttp = { port = 80, status = \"2xx\" }", "`ready.http.status`: `2xx` is not a status"),
        ("[ready]\nfile = \"run\"", "`ready.file`: `run` is not an absolute path"),
        ("[ready]\nretries = 0", "`ready.retries`: at least 1"),
        ("[ready]\ntimeout = \"5s\"\nstart_period = \"5s\"", "`ready.start_period`: a start period of 5000"),
        ("[agent]\ninit = \"sbin/init\"", "`agent.init`: "),
        ("[boot]\nargs = [\"a b\"]", "`boot.args`: `a b` is not one kernel argument"),
        ("[[variant]]\nname = \"a\"\n[[variant]]\nname = \"a\"", "`variant.name`: `a` is given twice"),
        ("[[variant]]\nname = \"A\"", "`variant.name`: `A` is not a valid variant name"),
    ] {
        let message = error(&with(part));
        assert!(message.starts_with(want), "{message}");
    }
    assert!(error("name=\"../x\"\n[source]\ntype=\"debian\"\nsuite=\"x\"").starts_with("`name`: `../x`"));
    assert!(error("name=\"a\"\n[source]\ntype=\"debian\"\nsuite=\"-x\"").starts_with("`source.suite`"));
    let option = "name=\"a\"\n[source]\ntype=\"debian\"\nsuite=\"x\"\npackages=[\"--hook=rm\"]";
    assert!(error(option).starts_with("`source.packages`"), "an option is not a package");
}

#[test]
fn steps_do_one_thing_each() {
    let of = |steps: &str| format!("name='a'\n[source]\ntype='template'\nfrom='base:v1'\n{steps}");
    let recipe = parse(&of("[[step]]\nrun='a && b'\n[[step]]\nrun=['a','b']\ntimeout='2m'\n[[step]]\ncopy='x'\nto='/y/'\n[[step]]\nenv={A='1'}\n[[step]]\nuser='www'\n[[step]]\nworkdir='/srv'")).unwrap();
    let Source::Template(source) = recipe.source else { panic!("not a template") };
    assert_eq!((source.from.to_string().as_str(), source.network), ("base:v1", true));
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        source.steps,
        [
            BuildStep::Run { command: words(&["/bin/sh", "-c", "a && b"]), timeout_ms: 30 * 60_000 },
            BuildStep::Run { command: words(&["a", "b"]), timeout_ms: 120_000 },
            BuildStep::Copy { from: "x".into(), to: "/y/".to_owned() },
            BuildStep::Env([("A".to_owned(), "1".to_owned())].into()),
            BuildStep::User("www".to_owned()),
            BuildStep::Workdir("/srv".to_owned()),
        ]
    );
    let many = "[[step]]\nuser='a'\n".repeat(STEPS_MAX + 1);
    let long = format!("[[step]]\nrun='{}'", "x".repeat(STEP_COMMAND_BYTES_MAX));
    for (steps, want) in [
        ("[[step]]", "`step.1`: exactly one of"),
        ("[[step]]\nrun='a'\nuser='b'", "`step.1`: exactly one of"),
        ("[[step]]\nuser='a'\n[[step]]\ncopy='x'", "`step.2`: `copy` and `to` belong together"),
        ("[[step]]\ncopy='x'\nto='y'", "`step.1.to`: an absolute path"),
        ("[[step]]\nworkdir='y'", "`step.1.workdir`: an absolute path"),
        ("[[step]]\nrun=[]", "`step.1.run`: a list"),
        ("[[step]]\nuser='a'\ntimeout='1s'", "`step.1.timeout`: only `run` has one"),
        ("[[step]]\nenv={'A=B'='1'}", "`step.1.env`: `A=B` is not a variable"),
        (&many, "`step`: 257 steps, more than 256"),
        (&long, "`step.1.run`: 49164 bytes, more than 49152"),
    ] {
        let message = error(&of(steps));
        assert!(message.starts_with(want), "{message}");
    }
    let debian = "name='a'\n[source]\ntype='debian'\nsuite='x'\n[[step]]\nuser='a'";
    assert_eq!(error(debian), "`step`: steps belong to a source of type `template`");
    let variant = "name='a'\n[source]\ntype='template'\nfrom='base/big'";
    assert!(error(variant).starts_with("`source.from`: a template is wanted"));
}

#[test]
fn a_disk_says_who_loads_its_kernel() {
    let of = |more: &str| format!("name='a'\n[source]\ntype='disk'\npath='x.qcow2'\n{more}");
    for (more, want) in [
        ("", DiskBoot::Auto),
        ("boot='auto'", DiskBoot::Auto),
        ("boot='direct'\nkernel='k'", DiskBoot::Direct),
        ("boot='firmware'", DiskBoot::Firmware),
    ] {
        let Source::Disk(source) = parse(&of(more)).unwrap().source else { panic!("not a disk") };
        assert_eq!(source.boot, want, "{more}");
        assert!(more.is_empty() || more.contains(want.as_str()));
    }
    assert!(error(&of("boot='bios'")).contains("bios"));
    for more in ["partition=2", "kernel='k'", "kernel_package='k'"] {
        let told = error(&of(&format!("boot='firmware'\n{more}")));
        assert!(told.starts_with("`source.boot`: firmware takes the whole disk"), "{told}");
    }
}

/// Returns a recipe with a part before its source and one in it.
fn recipe(part: &str, in_source: &str) -> String {
    format!("name=\"a\"\n{part}\n[source]\ntype=\"debian\"\nsuite=\"x\"\n{in_source}\n")
}

/// Returns a list of `count` equal words.
fn list(word: &str, count: usize) -> String {
    format!("[{}]", format!("\"{word}\",").repeat(count))
}

#[test]
fn a_recipe_has_a_largest_size() {
    let mut text = recipe("", "#");
    text.push_str(&"#".repeat(RECIPE_BYTES_MAX - text.len()));
    parse(&text).unwrap();
    text.push('#');
    assert_eq!(error(&text), "recipe has 1048577 bytes, more than 1048576");
}

#[test]
fn lists_of_words_are_limited() {
    for field in ["source.packages", "source.components", "agent.modules"] {
        let with = |count| {
            let list = list("x", count);
            match field.split_once('.').unwrap() {
                ("source", key) => recipe("", &format!("{key}={list}")),
                (table, key) => recipe(&format!("[{table}]\n{key}={list}"), ""),
            }
        };
        parse(&with(PACKAGES_MAX)).unwrap();
        assert_eq!(error(&with(PACKAGES_MAX + 1)), format!("`{field}`: 4097 entries, more than 4096"));
    }
}

#[test]
fn kernel_arguments_are_limited_together() {
    for (field, table) in
        [("boot.args", "[boot]\nargs="), ("variant.v.boot_args", "[[variant]]\nname=\"v\"\nboot_args=")]
    {
        // Each word counts with the space after it.
        let with =
            |count, last: &str| recipe(&format!("{table}{}", list("abcdefg", count).replace("]", last)), "");
        parse(&with(BOOT_ARGS_BYTES_MAX / 8, "]")).unwrap();
        assert_eq!(
            error(&with(BOOT_ARGS_BYTES_MAX / 8 - 1, "\"abcdefgh\"]")),
            format!("`{field}`: 1025 bytes in all, more than 1024")
        );
    }
}

#[test]
fn variants_are_limited() {
    let with = |count: usize| {
        let tables: String = (0..count).map(|n| format!("[[variant]]\nname=\"v{n}\"\n")).collect();
        recipe(&tables, "")
    };
    assert_eq!(parse(&with(VARIANTS_MAX)).unwrap().variants.len(), VARIANTS_MAX);
    assert_eq!(error(&with(VARIANTS_MAX + 1)), "`variant`: 257 variants, more than 256");
}

#[test]
fn a_root_disk_has_a_most() {
    let with = |size: &str| recipe(&format!("[machine]\ndisk=\"{size}\""), "");
    parse(&with("16T")).unwrap();
    for size in ["16777217M", "17179869185K", "17T"] {
        assert_eq!(error(&with(size)), "`machine.disk`: at most 16T are possible");
    }
}

#[test]
fn a_source_is_needed_and_of_a_known_type() {
    assert!(error("name=\"a\"").contains("missing field `source`"));
    assert!(error("name=\"a\"\n[source]\ntype=\"floppy\"").contains("unknown variant `floppy`"));
}

#[test]
fn a_flake_has_an_attribute_by_its_profile() {
    let nix = |top: &str, table: &str, rest: &str| {
        format!("name=\"a\"\n{top}\n[source]\ntype=\"nix\"\nflake=\".\"\n{table}\n{rest}")
    };
    let attribute = |text: &str| match parse(text).unwrap().source {
        Source::Nix(source) => source.attribute.resolve("x86_64-linux"),
        other => panic!("{other:?}"),
    };
    assert_eq!(attribute(&nix("", "", "")), "packages.x86_64-linux.default");
    assert_eq!(attribute(&nix("profile=\"web\"", "", "")), "packages.x86_64-linux.tenant-web");
    assert_eq!(attribute(&nix("profile=\"web\"", "attribute=\"a\"", "")), "packages.x86_64-linux.a");
    let variants = "[[variant]]\nname=\"one\"\nvcpus=2\n[[variant]]\nname=\"two\"\nprofile=\"web\"";
    assert_eq!(attribute(&nix("profile=\"web\"", "", variants)), "packages.x86_64-linux.tenant-web");
    assert_eq!(
        error(&nix("", "", variants)),
        "`variant.two.profile`: it wants `tenant-web` of the flake and the template `default`: one revision holds one set of files"
    );
    assert_eq!(attribute(&nix("", "attribute=\"both\"", variants)), "packages.x86_64-linux.both");
    assert!(error(&nix("profile=\"a.b\"", "", "")).starts_with("`profile`: `a.b` is no attribute"));
    let refused = |flake: &str| error(&nix("", "", "").replace("flake=\".\"", &format!("flake='{flake}'")));
    assert_eq!(refused("--impure"), "`source.flake`: `--impure` begins with `-`");
    assert_eq!(refused(". --impure"), "`source.flake`: `. --impure` holds ' '");
    assert!(refused(".#x").contains("the attribute has a key of its own"));
}

#[test]
fn the_schema_lists_every_section() {
    let schema = json_schema();
    for key in ["name", "source", "machine", "boot", "ready", "agent", "entrypoint", "variant"] {
        assert!(schema["properties"][key].is_object(), "{key}");
    }
}

proptest! {
    #[test]
    fn parsing_never_panics(text in "\\PC{0,200}") {
        let _ = parse(&text);
    }
}
