//! Real machines: booting, running commands, ending.

use crate::context;
use kiln_testing::recipe;

#[test]
fn boot_runs_a_command_and_passes_its_exit_code() {
    let context = context();
    let dir = recipe(&context, "web", "");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    let output = context.kiln(["run", "--rm", "web", "--", "sh", "-c", "uname -a; echo err >&2; exit 7"]);
    assert_eq!(output.code, 7, "{}", output.stderr);
    assert!(output.stdout.starts_with("Linux web-"), "{}", output.stdout);
    assert_eq!(output.stderr.lines().last(), Some("err"));
    assert_eq!(context.machine_dirs(), Vec::<String>::new());
    context.eventually("no process is left", || context.processes().is_empty());
    assert_eq!(context.kiln(["run", "--rm", "web", "--", "no-such-program"]).code, 127);
}

#[test]
fn boot_detached_stop_start_keeps_the_disk() {
    let context = context();
    let dir = recipe(&context, "web", "");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    assert_eq!(context.kiln(["run", "-d", "--name", "w1", "web"]).ok(), "w1\n");
    let taken = context.kiln(["run", "-d", "--name", "w1", "web"]).fails(1);
    assert!(taken.contains("a machine named `w1` exists already"), "{taken}");
    assert_eq!(context.kiln(["ps", "-q"]).ok(), "w1\n");
    context.kiln(["exec", "w1", "--", "sh", "-c", "echo kept > /root/file; sync"]).ok();
    assert!(context.kiln(["rm", "w1"]).fails(1).contains("machine `w1` is running"));
    assert!(context.kiln(["rm", "--template", "web"]).fails(1).contains("is in use by w1"));
    assert_eq!(context.kiln(["stop", "w1"]).ok(), "w1\n");
    context.eventually("no process is left", || context.processes().is_empty());
    let ended = context.kiln(["ps", "-a", "--json"]).json();
    assert_eq!(
        (ended[0]["phase"].as_str(), ended[0]["end"]["cause"].as_str()),
        (Some("stopped"), Some("requested"))
    );
    assert!(context.kiln(["exec", "w1", "--", "true"]).fails(1).contains("machine `w1` is stopped"));
    context.kiln(["start", "w1"]).ok();
    assert_eq!(context.kiln(["exec", "w1", "--", "cat", "/root/file"]).ok(), "kept\n");
    context.kiln(["exec", "w1", "--", "sh", "-c", "echo a line > /dev/console"]).ok();
    assert!(context.kiln(["logs", "w1"]).ok().contains("a line"));
    context.kiln(["rm", "-f", "w1"]).ok();
    assert_eq!(context.machine_dirs(), Vec::<String>::new());
}

#[test]
fn boot_machines_have_disks_of_their_own_and_the_artifact_stays() {
    let context = context();
    let dir = recipe(&context, "web", "");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    let digest = |context: &kiln_testing::TestContext| {
        let mut files: Vec<_> =
            std::fs::read_dir(context.home().join("artifacts")).unwrap().flatten().collect();
        files.sort_by_key(std::fs::DirEntry::file_name);
        files.iter().map(|file| std::fs::read(file.path()).unwrap()).collect::<Vec<_>>()
    };
    let before = digest(&context);
    let one = context.start(["run", "-d", "--name", "one", "--clone", "overlay", "web"]);
    let two = context.start(["run", "-d", "--name", "two", "--clone", "copy", "web"]);
    one.finish().ok();
    two.finish().ok();
    let listed = context.kiln(["ps", "--json"]).json();
    let mut ways: Vec<_> = listed.as_array().unwrap().iter().map(|line| line["clone"].clone()).collect();
    ways.sort_by_key(ToString::to_string);
    assert_eq!(ways, ["copy", "overlay"]);
    for name in ["one", "two"] {
        context.kiln(["exec", name, "--", "sh", "-c", "echo kept > /kept; sync"]).ok();
        context.kiln(["stop", name]).ok();
        context.kiln(["start", name]).ok();
        assert_eq!(context.kiln(["exec", name, "--", "cat", "/kept"]).ok(), "kept\n", "{name}");
    }
    context.kiln(["exec", "one", "--", "sh", "-c", "echo HACKED > /etc/passwd; sync"]).ok();
    let other = context.kiln(["exec", "two", "--", "head", "-n1", "/etc/passwd"]).ok();
    assert!(other.starts_with("root:"), "{other}");
    assert_eq!(context.kiln(["exec", "one", "--", "hostname"]).ok(), "one\n");
    assert_eq!(context.kiln(["exec", "two", "--", "hostname"]).ok(), "two\n");
    context.kiln(["rm", "-f", "one", "two"]).ok();
    assert!(digest(&context) == before, "no artifact changed");
}

#[test]
fn boot_boards_variants_and_sizes() {
    let context = context();
    let dir = recipe(&context, "web", "[[variant]]\nname = \"big\"\nvcpus = 2\nmemory = \"512M\"");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    for board in ["pc", "q35", "microvm"] {
        let output = context.kiln(["run", "--rm", "--board", board, "web", "--", "echo", "up"]);
        assert_eq!(output.ok(), "up\n", "{board}");
    }
    assert_eq!(context.kiln(["run", "--rm", "web/big", "--", "nproc"]).ok(), "2\n");
    let memory = context
        .kiln(["run", "--rm", "-m", "128M", "web", "--", "sh", "-c", "free -m | head -2 | tail -1"])
        .ok();
    let total: u32 = memory.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((60..=128).contains(&total), "{memory}");
}

#[test]
fn boot_publishes_ports_only_when_asked() {
    use std::io::{Read as _, Write as _};
    let context = context();
    let dir = recipe(&context, "web", "");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    let devices = context.kiln(["run", "--rm", "web", "--", "ls", "/sys/class/net"]).ok();
    assert_eq!(devices, "lo\n");
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    let busy = context.kiln(["run", "--rm", "-p", &format!("{port}:80"), "web", "--", "true"]).fails(1);
    assert!(busy.contains("host forwarding"), "QEMU's words are shown: {busy}");
    assert_eq!(context.machine_dirs(), Vec::<String>::new());
    drop(free);
    context.kiln(["run", "-d", "--name", "w", "-p", &format!("{port}:80"), "web"]).ok();
    context
        .kiln([
            "exec",
            "w",
            "--",
            "sh",
            "-c",
            "mkdir -p /www && echo page > /www/index.html && httpd -h /www",
        ])
        .ok();
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("page\n"), "{answer}");
}

#[test]
fn boot_entrypoint_is_the_purpose_and_its_code_the_end() {
    let context = context();
    let extra =
        "[entrypoint]\ncommand = [\"sh\", \"-c\", \"echo from $WHO; exit 5\"]\nenv = { WHO = \"entry\" }";
    let dir = recipe(&context, "job", extra);
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    let output = context.kiln(["run", "--rm", "job"]);
    assert_eq!(output.code, 5, "{}\n{}", output.stdout, output.stderr);
    assert!(output.stdout.contains("from entry"), "{}", output.stdout);
}

#[test]
fn boot_waits_for_the_probe_and_gives_up_with_its_words() {
    let context = context();
    let probe = "[ready]\ncommand = [\"sh\", \"-c\", \"echo still missing >&2; echo a line > /dev/console; busybox yes | busybox head -n 20000; test -e /ready\"]\ninterval = \"100ms\"\ntimeout = \"10s\"";
    let dir = recipe(&context, "slow", probe);
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    let error = context.kiln(["run", "-d", "--name", "s", "slow"]).fails(1);
    assert!(error.contains("it never became ready: probe `sh -c echo still missing"), "{error}");
    assert!(error.contains("did not succeed within 10 s ("), "{error}");
    assert!(error.contains(" tries): exit code 1: still missing"), "{error}");
    assert!(error.contains("  | a line"), "the console's tail is shown: {error}");
    context.eventually("no process is left", || context.processes().is_empty());
    let listed = context.kiln(["ps", "-a", "--json"]).json();
    assert_eq!(listed[0]["phase"], "failed");
    std::fs::write(context.work().join("rootfs/ready"), "").unwrap();
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    context.kiln(["run", "--rm", "slow", "--", "true"]).ok();
}

#[test]
fn boot_a_panic_is_reported_as_one() {
    let context = context();
    let dir = recipe(&context, "bad", "[boot]\nargs = [\"init=/nowhere\", \"rdinit=/nowhere\"]");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    let error = context.kiln(["run", "--rm", "bad", "--", "true"]).fails(1);
    assert!(error.contains("the guest's kernel panicked: "), "{error}");
    assert!(error.contains("  | "), "{error}");
    assert_eq!(context.machine_dirs(), Vec::<String>::new());
}

#[test]
fn boot_an_image_without_its_init_says_so() {
    let context = context();
    let dir = recipe(&context, "noinit", "[agent]\ninit = \"/sbin/nowhere\"");
    let error = context.kiln(["build".as_ref(), dir.as_os_str()]).fails(1);
    assert!(error.contains("/sbin/nowhere"), "{error}");
}

#[test]
fn boot_without_qemu_names_the_package() {
    let context = context();
    let dir = recipe(&context, "web", "");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    // A view of the system without the program: an empty file stands over it.
    let script = "for q in $(type -aP qemu-system-x86_64); do mount --bind /dev/null \"$q\" || exit 9; done; \
                  exec \"$KILN\" run --rm web -- true";
    let output = std::process::Command::new("unshare")
        .args(["--mount", "--user", "--map-root-user", "bash", "-c", script])
        .current_dir(context.work())
        .env("KILN", context.program())
        .env("KILN_HOME", context.home())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("qemu-system-x86"), "{said}");
    assert_eq!(context.machine_dirs(), Vec::<String>::new());
}

#[test]
fn boot_a_larger_disk_is_a_larger_file_system() {
    let context = context();
    let dir = recipe(&context, "web", "");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    let blocks = |name: &str| -> u64 {
        let line = context.kiln(["exec", name, "--", "stat", "-f", "-c", "%b %S", "/"]).ok();
        let numbers: Vec<u64> = line.split_whitespace().map(|word| word.parse().unwrap()).collect();
        numbers[0] * numbers[1]
    };
    for (name, method) in [("one", "overlay"), ("two", "copy")] {
        context.kiln(["run", "-d", "--name", name, "--disk", "3G", "--clone", method, "web"]).ok();
        let grown = blocks(name);
        assert!(grown > 28 * (100 << 20) && grown <= 3 << 30, "{grown}");
        context.kiln(["exec", name, "--", "sh", "-c", "echo kept > /kept"]).ok();
        context.kiln(["stop", name]).ok();
        context.kiln(["start", name]).ok();
        assert_eq!(context.kiln(["exec", name, "--", "cat", "/kept"]).ok(), "kept\n");
        assert_eq!(blocks(name), grown, "{method}");
        context.kiln(["rm", "-f", name]).ok();
    }
    let small = context.kiln(["run", "--rm", "--disk", "1M", "web", "--", "true"]).fails(1);
    assert!(small.starts_with("error: a disk of 1.0 MiB is too small: its template's has "), "{small}");
    assert_eq!(context.machine_dirs(), Vec::<String>::new());
}
