use super::*;
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
fn a_source_is_needed_and_of_a_known_type() {
    assert!(error("name=\"a\"").contains("missing field `source`"));
    assert!(error("name=\"a\"\n[source]\ntype=\"floppy\"").contains("unknown variant `floppy`"));
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
