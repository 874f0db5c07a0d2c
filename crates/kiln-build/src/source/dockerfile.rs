//! Dockerfiles: a builder that the host has makes an image of one, which then becomes a root file system as any other.

use super::input;
use super::kernel::KernelPlan;
use super::oci::OciPlan;
use crate::error::BuildError;
use crate::fingerprint::FileIdentity;
use crate::key::Parts;
use crate::plan::{BuildPlan, PlanContext};
use crate::report::{BuildEvent, Running, Step};
use crate::run::{BuildContext, BuildOutput};
use crate::tree;
use kiln_core::lock::Pins;
use kiln_core::recipe::{AgentOptions, DockerfileSource};
use kiln_core::size::ByteSize;
use kiln_sys::{Cancel, IoResultExt as _, Tool, Toolbox, clock, fs};
use std::path::{Path, PathBuf};

/// Builders that need no daemon first. Each is asked for an archive of the image it made.
const BUILDERS: [(&str, Builder); 3] =
    [("buildah", Builder::Buildah), ("podman", Builder::Podman), ("docker", Builder::Docker)];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Builder {
    Buildah,
    Podman,
    Docker,
}

/// A Dockerfile with its paths resolved.
#[derive(Debug, Clone)]
pub(crate) struct DockerfilePlan {
    file: PathBuf,
    context: PathBuf,
    target: Option<String>,
    args: Vec<String>,
    kernel: KernelPlan,
    agent: AgentOptions,
}

impl DockerfilePlan {
    pub(super) fn plan(
        source: &DockerfileSource,
        agent: &AgentOptions,
        cx: &PlanContext<'_>,
        parts: &mut Parts,
    ) -> Result<Self, BuildError> {
        let file = input("source.path", cx.base, &source.path, false)?;
        let context = input("source.context", cx.base, &source.context, true)?;
        let (name, _) = find(cx.toolbox, cx.offline)?;
        let args: Vec<String> = source.args.iter().map(|(name, to)| format!("{name}={to}")).collect();
        parts.ask("source", "dockerfile");
        parts.add("builder", name);
        parts.add("dockerfile", FileIdentity::at(&file)?);
        parts.add("content", tree::walk(&context, None, false)?.identity);
        parts.add("target", &source.target);
        parts.add("args", &args);
        let kernel = KernelPlan::plan(&source.kernel, cx, parts)?;
        Ok(Self { file, context, target: source.target.clone(), args, kernel, agent: agent.clone() })
    }

    pub(super) fn resolve(&self, plan: &BuildPlan, cx: &BuildContext<'_>) -> Result<Pins, BuildError> {
        let mut pins = Pins::default();
        self.kernel.resolve(plan, cx, &mut pins)?;
        Ok(pins)
    }

    pub(super) fn run(&self, plan: &BuildPlan, cx: &BuildContext<'_>) -> Result<BuildOutput, BuildError> {
        let archive = self.image(cx)?;
        let shown = format!("of {}", self.file.display());
        let image = OciPlan::made(archive, shown, self.kernel.clone(), plan.arch)?;
        // Who the guest's command is, the image tells only now.
        let plan = BuildPlan { agent: image.agent(&self.agent)?, ..plan.clone() };
        image.run(&plan, cx)
    }

    /// Has the builder make the image, and returns an archive of it.
    fn image(&self, cx: &BuildContext<'_>) -> Result<PathBuf, BuildError> {
        let (name, builder) = find(cx.toolbox, cx.offline)?;
        let step = Running::start(cx.reporter, Step::Image, name);
        // A name of its own: an image of yours with the same content keeps its names.
        let tag = format!("localhost/kiln-build:{}", clock::random_hex::<8>());
        let mut build = cx.toolbox.find(name)?.arg("build");
        build = match builder {
            // The runtimes that it would have commands run by are packages of their own.
            Builder::Buildah if !has_runtime(cx.toolbox) => build.arg("--isolation=chroot").arg("--layers"),
            Builder::Buildah => build.arg("--layers"),
            Builder::Podman | Builder::Docker => build,
        };
        if cx.offline {
            build = build.arg("--network=none").arg("--pull=never");
        }
        if let Some(target) = &self.target {
            build = build.arg(format!("--target={target}"));
        }
        for arg in &self.args {
            build = build.arg(format!("--build-arg={arg}"));
        }
        build = build.arg("--file").arg(&self.file).args(["--tag", &tag]).arg(&self.context);
        // What commands say goes there, however much it is; progress and errors go to the other stream.
        let said = cx.scratch.join("image.log");
        build.stdout_file(fs::create_new(&said)?).run(cx.cancel, &mut step.lines())?;
        fs::remove_file(&said)?;
        let archive = cx.scratch.join("image.tar");
        let saved = save(cx.toolbox.find(name)?, builder, &tag, &archive).run(cx.cancel, &mut step.lines());
        // Also when the build was cancelled meanwhile: nobody else knows the name.
        let removed = cx
            .toolbox
            .find(name)?
            .args(["rmi", &tag])
            .run(&Cancel::new().at("make", "an event")?, &mut |_| {});
        if let Err(error) = removed {
            cx.reporter.event(BuildEvent::Note { text: format!("the image {tag} stays: {error}") });
        }
        saved?;
        step.done(ByteSize::from_bytes(fs::metadata(&archive)?.len()).human());
        Ok(archive)
    }
}

fn save(tool: Tool, builder: Builder, tag: &str, archive: &Path) -> Tool {
    match builder {
        Builder::Buildah => {
            let mut to = std::ffi::OsString::from("oci-archive:");
            to.push(archive);
            tool.args(["push", "--quiet", tag]).arg(to)
        }
        Builder::Podman => {
            tool.args(["save", "--quiet", "--format=oci-archive", "--output"]).arg(archive).arg(tag)
        }
        Builder::Docker => tool.args(["save", "--output"]).arg(archive).arg(tag),
    }
}

fn has_runtime(toolbox: &Toolbox) -> bool {
    ["crun", "runc"].iter().any(|name| toolbox.find(name).is_ok())
}

/// Finds a builder; `offline`, one that can be kept from pulling base images.
fn find(toolbox: &Toolbox, offline: bool) -> Result<(&'static str, Builder), BuildError> {
    let fit = |builder: Builder| !(offline && builder == Builder::Docker);
    let found = BUILDERS.into_iter().find(|(name, builder)| fit(*builder) && toolbox.find(name).is_ok());
    found.ok_or(BuildError::NoBuilder)
}
