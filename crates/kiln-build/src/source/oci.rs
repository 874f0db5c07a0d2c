//! OCI images: the root file system is what their layers come to, and their configuration is the guest's where the recipe
//! says nothing.

use super::catalog::{FetchOptions, client, telling};
use super::kernel::KernelPlan;
use crate::archive::{self, ArchiveError};
use crate::debian::in_directory_of;
use crate::error::BuildError;
use crate::key::Parts;
use crate::plan::{BuildPlan, PlanContext};
use crate::report::{BuildEvent, Running, Step};
use crate::run::{BuildContext, BuildOutput, SPACE_RESERVE};
use crate::steps::{Output, Root, disk, need_space, need_space_in, ownership};
use crate::unpack;
use kiln_core::arch::Arch;
use kiln_core::image::{ContentDigest, ImageName, Platform};
use kiln_core::lock::{PinKind, Pins};
use kiln_core::recipe::{AgentOptions, Entrypoint, Init, OciSource};
use kiln_core::size::ByteSize;
use kiln_core::text::{clip, count};
use kiln_source::oci::{
    self, ArchiveKind, BlobCache, DockerConfig, Fetching, Image, ImageConfig, OciError, RegistryOptions,
    UncompressOptions,
};
use kiln_sys::{Toolbox, fs};
use std::io::IsTerminal as _;
use std::path::{Component, Path, PathBuf};

/// Where layers are uncompressed, in the scratch directory.
const LAYERS: &str = "layers";
/// The most labels of an image that are noted, and the most bytes of one.
const LABELS_MAX: usize = 64;
const LABEL_BYTES_MAX: usize = 1024;

/// An image for the guest's platform.
#[derive(Debug, Clone)]
pub(crate) struct OciPlan {
    name: ImageName,
    /// How the recipe names it; none for one that was made on the way.
    named: Option<String>,
    /// What errors call it.
    shown: String,
    image: Image,
    kernel: KernelPlan,
    fetch: FetchOptions,
}

impl OciPlan {
    pub(super) fn plan(
        source: &OciSource,
        cx: &PlanContext<'_>,
        parts: &mut Parts,
    ) -> Result<Self, BuildError> {
        let platform = source.platform.clone().unwrap_or_else(|| Platform::of(cx.host.arch));
        if !platform.runs_on(cx.host.arch) {
            return Err(BuildError::Platform { platform, arch: cx.host.arch });
        }
        let shown = format!("`{}`", clip(&source.image.to_string()));
        let refuse = |error| BuildError::image(&shown, error);
        let image = match &source.image {
            ImageName::Layout(path, name) => Image::layout(&cx.base.join(path), name.as_deref(), &platform),
            ImageName::OciArchive(path, name) => {
                Image::archive(&cx.base.join(path), Some(ArchiveKind::Oci), name.as_deref(), &platform)
            }
            ImageName::DockerArchive(path, name) => {
                Image::archive(&cx.base.join(path), Some(ArchiveKind::Docker), name.as_deref(), &platform)
            }
            ImageName::Stdin => {
                let stdin = std::io::stdin();
                if stdin.is_terminal() {
                    return Err(BuildError::NoImageInput);
                }
                let cache = BlobCache::open(cx.cache).map_err(refuse)?;
                let digest = cache.take(stdin.lock(), cx.cancel).map_err(refuse)?;
                Image::archive(&cache.path(&digest), None, None, &platform)
            }
            ImageName::Registry(reference) => {
                let docker = docker_config(cx.toolbox).map_err(refuse)?;
                let client = client(cx.toolbox, cx.offline, cx.fetch);
                let options = RegistryOptions { client: &client, docker: &docker, cancel: cx.cancel };
                let name = reference.to_string();
                // A pin that is none is as good as missing.
                let pinned = cx.pins.get(PinKind::Oci, &name).and_then(|pin| pin.parse().ok());
                let cache = BlobCache::open(cx.cache).map_err(refuse)?;
                let tell = &mut telling(cx.reporter);
                let found = oci::resolve(reference, pinned.as_ref(), &platform, &cache, &options, tell);
                found.map(|(top, image)| {
                    parts.pin(PinKind::Oci, &name, &top.to_string());
                    image
                })
            }
            other => return Err(BuildError::ImageName(other.to_string())),
        }
        .map_err(refuse)?;
        parts.ask("source", "oci");
        if let ImageName::Registry(reference) = &source.image {
            parts.ask("reference", reference.to_string());
            parts.ask("platform", platform.to_string());
        }
        parts.add("image", &image.id);
        Ok(Self {
            name: source.image.clone(),
            named: Some(source.image.to_string()),
            shown,
            image,
            kernel: KernelPlan::plan(&source.kernel, cx, parts)?,
            fetch: cx.fetch,
        })
    }

    /// An image that a build made, in an archive. Errors call it `shown`.
    pub(super) fn made(
        archive: PathBuf,
        shown: String,
        kernel: KernelPlan,
        arch: Arch,
    ) -> Result<Self, BuildError> {
        let image = Image::archive(&archive, None, None, &Platform::of(arch));
        let image = image.map_err(|error| BuildError::image(&shown, error))?;
        let (name, fetch) = (ImageName::OciArchive(archive, None), FetchOptions::default());
        Ok(Self { name, named: None, shown, image, kernel, fetch })
    }

    /// Returns how the guest starts: what the recipe says, field by field, and what the image says where it says nothing.
    pub(super) fn agent(&self, recipe: &AgentOptions) -> Result<AgentOptions, BuildError> {
        let entrypoint = match &recipe.init {
            // The recipe names process 1: the image's command is not wanted.
            Init::Image(_) => None,
            _ => entrypoint(recipe.entrypoint.as_ref(), &self.image.config),
        };
        if recipe.entrypoint.is_some() && entrypoint.is_none() {
            return Err(BuildError::NoCommand);
        }
        Ok(AgentOptions { entrypoint, ..recipe.clone() })
    }

    pub(super) fn resolve(&self, plan: &BuildPlan, cx: &BuildContext<'_>) -> Result<Pins, BuildError> {
        let mut pins = Pins::default();
        self.kernel.resolve(plan, cx, &mut pins)?;
        Ok(pins)
    }

    pub(super) fn run(&self, plan: &BuildPlan, cx: &BuildContext<'_>) -> Result<BuildOutput, BuildError> {
        let mut output = Output::default();
        self.fetch(cx)?;
        let root = match self.unpacked(cx) {
            // What lies in the cache is not what was put there: fetched anew, it either is, or the error stays.
            Err(BuildError::Image { source: OciError::Digest { expected, .. }, .. })
                if matches!(self.name, ImageName::Registry(_))
                    && !cx.offline
                    && self.has_layer(&expected) =>
            {
                let forgotten = BlobCache::open(cx.cache).and_then(|cache| cache.forget(&expected));
                forgotten.map_err(|error| self.refused(error))?;
                fs::remove_tree(&cx.scratch.join(LAYERS))?;
                self.fetch(cx).and_then(|()| self.unpacked(cx))
            }
            other => other,
        }?;
        if let Some(dir) = plan.agent.entrypoint.as_ref().and_then(|entrypoint| entrypoint.workdir.as_deref())
        {
            make_workdir(&root.path, Path::new(dir))?;
        }
        self.kernel.run(plan, cx, &mut output)?;
        disk(plan, &root.path, &root.ownership, root.size, root.listing, cx, &mut output)?;
        self.facts(&mut output);
        Ok(output.sorted(cx))
    }

    fn refused(&self, error: OciError) -> BuildError {
        BuildError::image(&self.shown, error)
    }

    fn has_layer(&self, digest: &ContentDigest) -> bool {
        self.image.layers.iter().any(|layer| layer.blob.digest.as_ref() == Some(digest))
    }

    /// Brings the layers of a registry's image into the cache.
    fn fetch(&self, cx: &BuildContext<'_>) -> Result<(), BuildError> {
        let ImageName::Registry(reference) = &self.name else { return Ok(()) };
        let refuse = |error| self.refused(error);
        let cache = BlobCache::open(cx.cache).map_err(refuse)?;
        let lacks = |layer: &&oci::Layer| {
            layer.blob.digest.as_ref().is_some_and(|digest| !fs::exists(&cache.path(digest)).unwrap_or(false))
        };
        let missing = self.image.layers.iter().filter(lacks).map(|layer| layer.blob.place.len);
        need_space_in(cx.cache, missing.fold(0, u64::saturating_add))?;
        let step = Running::start(cx.reporter, Step::Fetch, clip(&self.name.to_string()));
        let docker = docker_config(cx.toolbox).map_err(refuse)?;
        let client = client(cx.toolbox, cx.offline, self.fetch);
        let options = RegistryOptions { client: &client, docker: &docker, cancel: cx.cancel };
        let tell = |event: Fetching<'_>| match event {
            Fetching::Download(progress) => telling(cx.reporter)(progress),
            Fetching::Layer { digest, bytes } => {
                let line = format!("{digest} {bytes}");
                cx.reporter.event(BuildEvent::StepOutput { step: Step::Fetch, line });
            }
            _ => {}
        };
        oci::fetch_layers(reference, &self.image.layers, &cache, &options, &tell).map_err(refuse)?;
        step.done(count(self.image.layers.len(), "layer"));
        Ok(())
    }

    fn unpacked(&self, cx: &BuildContext<'_>) -> Result<Root, BuildError> {
        let stored: u64 = self.image.layers.iter().map(|layer| layer.blob.place.len).sum();
        let detail =
            format!("{}, {}", count(self.image.layers.len(), "layer"), ByteSize::from_bytes(stored).human());
        let step = Running::start(cx.reporter, Step::Layers, detail);
        need_space(cx, stored)?;
        let layers = cx.scratch.join(LAYERS);
        fs::create_dir(&layers)?;
        let room = fs::space(cx.scratch)?.available.saturating_sub(SPACE_RESERVE.bytes());
        let options = UncompressOptions { directory: &layers, bytes_max: room, cancel: cx.cancel };
        let plain = oci::uncompress(&self.image.layers, &options);
        let merged = plain.and_then(|layers| oci::merge(layers, cx.cancel));
        let merged = merged.map_err(|error| self.refused(error))?;
        step.done(count(merged.names(), "name"));

        let check = Running::start(cx.reporter, Step::Check, clip(&self.name.to_string()));
        let checked =
            archive::check(merged.reader(), &|| !cx.cancel.is_cancelled()).map_err(|error| match error {
                ArchiveError::Read(_) if cx.cancel.is_cancelled() => BuildError::Cancelled,
                source => BuildError::ImageTree { image: self.shown.clone(), source },
            })?;
        let (size, listing) = (checked.size, checked.listing);
        check.done(count(size.inodes, "file"));
        need_space(cx, size.bytes().saturating_mul(2))?;
        let step = Running::start(cx.reporter, Step::Unpack, ByteSize::from_bytes(size.bytes()).human());
        let (path, ownership) = (cx.scratch.join("rootfs"), ownership(cx));
        let feed = unpack::Feeding { input: &mut merged.reader(), checked: &checked };
        feed.unpack(&path, unpack::epoch(), &ownership, cx.toolbox, cx.cancel, &mut step.lines())?;
        step.done("");
        fs::remove_tree(&layers)?;
        Ok(Root { path, ownership, size, listing })
    }

    fn facts(&self, output: &mut Output) {
        if let Some(name) = &self.named {
            output.fact("image", clip(name));
        }
        output.fact("image_digest", &self.image.id);
        if let Some(signal) = &self.image.config.stop_signal {
            output.fact("image_stop_signal", clip(signal));
        }
        let labels = self.image.config.labels.iter();
        let short = labels.filter(|(key, value)| key.len() + value.len() <= LABEL_BYTES_MAX).take(LABELS_MAX);
        for (key, value) in short {
            output.fact(&format!("image_label.{key}"), value);
        }
    }
}

/// Makes the directory that the entry point runs in where an image only names it, as container runtimes do. One behind a
/// symbolic link is left to the image.
fn make_workdir(root: &Path, dir: &Path) -> Result<(), BuildError> {
    let mut path = root.to_owned();
    for part in dir.components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::RootDir | Component::CurDir => continue,
            Component::ParentDir | Component::Prefix(_) => return Ok(()),
        }
        match fs::optional(fs::symlink_metadata(&path))? {
            Some(meta) if meta.is_dir() => {}
            Some(_) => return Ok(()),
            None => in_directory_of(&path, || {
                fs::create_dir(&path)?;
                fs::set_mode(&path, 0o755)?;
                unpack::set_time(&path, unpack::epoch())
            })?,
        }
    }
    Ok(())
}

/// Reads docker's configuration, where the environment of programs says that it is.
fn docker_config(toolbox: &Toolbox) -> Result<DockerConfig, OciError> {
    let variable =
        |name: &str| toolbox.env().iter().find(|(key, _)| key == name).map(|(_, value)| PathBuf::from(value));
    let directory = variable("DOCKER_CONFIG").or_else(|| Some(variable("HOME")?.join(".docker")));
    Ok(directory.map(|directory| DockerConfig::read(&directory)).transpose()?.unwrap_or_default())
}

fn entrypoint(recipe: Option<&Entrypoint>, image: &ImageConfig) -> Option<Entrypoint> {
    let given = recipe.map(|it| it.command.clone()).filter(|command| !command.is_empty());
    let command = given.unwrap_or_else(|| image.command.clone());
    if command.is_empty() {
        return None;
    }
    let mut env = image.env.clone();
    env.extend(recipe.map(|it| it.env.clone()).unwrap_or_default());
    let user = recipe.and_then(|it| it.user.clone()).or_else(|| image.user.clone());
    let workdir = recipe.and_then(|it| it.workdir.clone()).or_else(|| image.workdir.clone());
    Some(Entrypoint { command, env, workdir, user })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> ImageConfig {
        ImageConfig {
            command: vec!["/app".to_owned(), "--serve".to_owned()],
            env: [("A", "image"), ("B", "image")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            workdir: Some("/srv".to_owned()),
            user: Some("web".to_owned()),
            ..ImageConfig::default()
        }
    }

    #[test]
    fn the_recipe_wins_field_by_field() {
        let recipe = Entrypoint {
            command: vec!["/bin/other".to_owned()],
            env: [("A".to_owned(), "recipe".to_owned())].into(),
            workdir: None,
            user: Some("0:0".to_owned()),
        };
        let both = entrypoint(Some(&recipe), &image()).unwrap();
        assert_eq!(both.command, ["/bin/other"]);
        assert_eq!((both.env["A"].as_str(), both.env["B"].as_str()), ("recipe", "image"));
        assert_eq!((both.workdir.as_deref(), both.user.as_deref()), (Some("/srv"), Some("0:0")));
        let alone = entrypoint(None, &image()).unwrap();
        assert_eq!((alone.command.len(), alone.user.as_deref()), (2, Some("web")));
        let rest = Entrypoint { command: Vec::new(), ..recipe };
        assert_eq!(entrypoint(Some(&rest), &image()).unwrap().command, ["/app", "--serve"]);
    }

    #[test]
    fn the_directory_of_the_command_is_made_and_leads_nowhere_else() {
        let scratch = kiln_sys::tool::ScratchDir::new(&std::env::temp_dir()).unwrap();
        let root = scratch.path();
        fs::create_dir(&root.join("srv")).unwrap();
        unpack::set_time(&root.join("srv"), unpack::epoch()).unwrap();
        make_workdir(root, Path::new("/srv/app/data")).unwrap();
        make_workdir(root, Path::new("/srv/app/data")).unwrap();
        for made in ["srv", "srv/app", "srv/app/data"] {
            let meta = fs::metadata(&root.join(made)).unwrap();
            assert!(meta.is_dir() && meta.modified().unwrap() == unpack::epoch(), "{made}");
        }
        let outside = kiln_sys::tool::ScratchDir::new(&std::env::temp_dir()).unwrap();
        fs::symlink(outside.path(), &root.join("link")).unwrap();
        make_workdir(root, Path::new("/link/app")).unwrap();
        make_workdir(root, Path::new("/../../app")).unwrap();
        assert_eq!(fs::list_dir(outside.path()).unwrap(), Vec::<std::ffi::OsString>::new());
    }

    #[test]
    fn an_image_without_a_command_has_no_entry_point() {
        assert_eq!(entrypoint(None, &ImageConfig { command: Vec::new(), ..image() }), None);
    }
}
