//! Dockerfiles, built by the host's builder.

use crate::context;
use kiln_testing::{TestContext, busybox_rootfs, fixtures, plain};

const FILE: &str = "\
FROM scratch AS base
COPY busybox /bin/busybox
COPY busybox /bin/sh
FROM base AS app
ARG WHO=nobody
RUN /bin/busybox --install -s /bin && echo hello $WHO > /made
ENV COLOUR=blue
WORKDIR /srv/app
ENTRYPOINT [\"/bin/sh\", \"-c\", \"echo $COLOUR $(pwd) > /env; sleep 1000\"]
FROM app
ENV COLOUR=red
";

fn recipe(context: &TestContext, more: &str) {
    let fixtures = fixtures();
    context.write(
        "web/kiln.toml",
        format!(
            "name = \"web\"\n[source]\ntype = \"dockerfile\"\nkernel = \"{}\"\nmodules = \"{}\"\n{more}\n",
            fixtures.join("vmlinuz").display(),
            fixtures.join("modules").display()
        ),
    );
}

#[test]
fn boot_a_dockerfile_is_built_and_its_image_runs() {
    let context = context();
    recipe(&context, "target = \"app\"\nargs = { WHO = \"you; $(id)\" }");
    context.write("web/Dockerfile", FILE);
    let busybox = busybox_rootfs(&context, "rootfs").join("bin/busybox");
    std::fs::copy(busybox, context.work().join("web/busybox")).unwrap();
    let first = context.kiln(["build", "web"]);
    assert!(first.stderr.contains("  image: "), "{}", first.stderr);
    first.ok();
    assert!(context.kiln(["build", "web"]).stderr.contains("cache hit"));
    context.kiln(["run", "-d", "--name", "w", "web"]).ok();
    assert_eq!(context.kiln(["exec", "w", "--", "/bin/cat", "/made"]).ok(), "hello you; $(id)\n");
    // Commands begin with the image's variables, as the entry point does, and the machine's own go above them.
    let colour = ["exec", "w", "--", "/bin/sh", "-c", "echo $COLOUR"];
    assert_eq!(context.kiln(colour).ok(), "blue\n");
    context.eventually("the entry point ran", || {
        context.kiln(["exec", "w", "--", "/bin/cat", "/env"]).stdout == "blue /srv/app\n"
    });
    context.kiln(["rm", "-f", "w"]).ok();
    context.kiln(["run", "-d", "--name", "w", "-e", "COLOUR=green", "web"]).ok();
    assert_eq!(context.kiln(colour).ok(), "green\n");
    context.kiln(["rm", "-f", "w"]).ok();
    // What a build may copy is an input.
    context.write("web/other", "x");
    assert!(!context.kiln(["build", "web"]).stderr.contains("cache hit"));
    assert_eq!(context.staged(), Vec::<String>::new());
}

#[test]
fn a_dockerfile_that_fails_or_is_not_there_is_told() {
    let context = context();
    recipe(&context, "");
    let error = plain(&context, &context.kiln(["build", "web"]).fails(1));
    assert!(error.contains("`source.path` is [WORK]/web/Dockerfile, which does not exist"), "{error}");
    context.write("web/Dockerfile", "FROM scratch\nCOPY nothing /x\n");
    let error = context.kiln(["build", "-q", "web"]).fails(1);
    assert!(error.contains("`buildah` failed") && error.contains("nothing"), "{error}");
    recipe(&context, "args = { \"a b\" = \"1\" }");
    assert!(context.kiln(["build", "web"]).fails(2).contains("`a b` is not an argument"));
    recipe(&context, "target = \"--privileged\"");
    assert!(context.kiln(["build", "web"]).fails(2).contains("`source.target`"));
    assert_eq!(context.kiln(["ls", "-aq"]).ok(), "");
    assert_eq!(context.staged(), Vec::<String>::new());
}
