//! The guest's agent on vsock, as machine monitors with a hybrid vsock socket give it: QEMU with the device of a
//! separate program, `vhost-device-vsock`, which speaks the same handshake and needs no kernel module of the host.

use crate::context;
use kiln_guest::message::{AgentState, ExecRequest, ShutdownMode};
use kiln_guest::{Session, transport};
use kiln_testing::{TestContext, recipe};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A process that is ended with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Ended {
    fn spawn(command: &mut Command, log: &Path) -> Self {
        let log = std::fs::File::create(log).unwrap();
        let command = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Self(command.spawn().unwrap_or_else(|error| panic!("{:?}: {error}", command.get_program())))
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Boots a template with vsock as its only channel and talks to its agent over it.
fn boot(context: &TestContext, template: &str) {
    let home = context.home();
    let shown = context.kiln(["show", template, "--json"]).json();
    let artifact = |role: &str| {
        let list = shown["manifest"]["artifacts"].as_array().unwrap();
        let found = list.iter().find(|artifact| artifact["role"] == role).unwrap();
        home.join("artifacts").join(found["digest"].as_str().unwrap().trim_start_matches("sha256:"))
    };
    let work = context.work();
    let (device, host) = (work.join("device.sock"), work.join("host.sock"));
    let mut vsock = Command::new("vhost-device-vsock");
    vsock.arg("--socket").arg(&device).arg("--uds-path").arg(&host);
    let _vsock = Ended::spawn(&mut vsock, &work.join("vsock.log"));
    context.eventually("the device is there", || device.exists());
    let disk = work.join("disk");
    std::fs::copy(artifact("rootfs"), &disk).unwrap();
    std::fs::set_permissions(&disk, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args([
        "-M",
        "pc,memory-backend=memory",
        "-accel",
        "tcg",
        "-cpu",
        "Nehalem-v1,rdrand=on",
        "-m",
        "256M",
    ]);
    // The device's program sees the guest's memory.
    qemu.args(["-object", "memory-backend-memfd,id=memory,size=256M,share=on"]);
    qemu.args(["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"]);
    qemu.arg("-chardev").arg(format!("socket,id=vsock,path={}", device.display()));
    qemu.args(["-device", "vhost-user-vsock-pci,chardev=vsock"]);
    qemu.arg("-drive").arg(format!("if=virtio,format=raw,file={}", disk.display()));
    qemu.arg("-kernel").arg(artifact("kernel")).arg("-initrd").arg(artifact("initrd"));
    qemu.args(["-append", "console=ttyS0 reboot=t panic=-1 no_timer_check"]);
    let console = work.join("console.log");
    let mut qemu = Ended::spawn(&mut qemu, &console);
    let mut session = None;
    let said = || String::from_utf8_lossy(&std::fs::read(&console).unwrap()).into_owned();
    // The device's program keeps what it is asked before the guest has a driver, and all of it can be too much.
    context.eventually("the kernel is up", || said().contains("Run /init as init process"));
    context.eventually("the agent listens", || {
        assert!(qemu.0.try_wait().unwrap().is_none(), "{}", said());
        let at_once = Instant::now() + Duration::from_secs(2);
        session = transport::connect_hybrid_vsock(&host, transport::AGENT_VSOCK_PORT, at_once).ok();
        session.is_some()
    });
    let session = Session::connect(Box::new(session.unwrap()), soon()).unwrap();
    session.wait_ready(soon()).unwrap();
    assert_eq!(session.state(), AgentState::Ready);
    let echoed = |session: &Session| {
        let stream = session.exec(ExecRequest::new(["sh", "-c", "cat /proc/1/comm; exit 7"])).unwrap();
        let outcome = stream.collect(1 << 10, soon()).unwrap();
        (String::from_utf8(outcome.stdout).unwrap(), outcome.status.code)
    };
    let first = echoed(&session);
    assert_eq!(first.1, Some(7));
    // The next host connects when the last one has gone.
    drop(session);
    let stream = transport::connect_hybrid_vsock(&host, transport::AGENT_VSOCK_PORT, soon()).unwrap();
    let session = Session::connect(Box::new(stream), soon()).unwrap();
    session.wait_ready(soon()).unwrap();
    assert_eq!(echoed(&session), first);
    session.shutdown(ShutdownMode::Poweroff, Duration::from_secs(10)).unwrap();
    assert!(session.wait_lost(soon()));
    context.eventually("the machine is off", || qemu.0.try_wait().unwrap().is_some());
}

#[test]
fn boot_the_agent_serves_vsock() {
    let context = context();
    let dir = recipe(&context, "web", "");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    boot(&context, "web");
}

#[test]
fn boot_the_agent_serves_vsock_beside_the_image_s_init() {
    let context = context();
    let dir = recipe(&context, "web", "");
    std::fs::create_dir_all(context.work().join("rootfs/sbin")).unwrap();
    symlink("../bin/busybox", context.work().join("rootfs/sbin/init")).unwrap();
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    boot(&context, "web");
}

#[test]
fn boot_the_agent_serves_its_port_beside_the_image_s_init() {
    let context = context();
    let dir = recipe(&context, "web", "");
    std::fs::create_dir_all(context.work().join("rootfs/sbin")).unwrap();
    symlink("../bin/busybox", context.work().join("rootfs/sbin/init")).unwrap();
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    let output = context.kiln(["run", "--rm", "web", "--", "sh", "-c", "readlink /proc/1/exe; exit 7"]);
    assert_eq!((output.code, output.stdout.as_str()), (7, "/bin/busybox\n"), "{}", output.stderr);
    context.eventually("no process is left", || context.processes().is_empty());
}
