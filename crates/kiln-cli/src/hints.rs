//! What to try next. Library errors say what is so; this says what may help.

use crate::cmd::private::PrivateError;
use crate::cmd::ssh::keys::SshKeyError;
use crate::error::CliError;
use kiln_build::catalog::{DownloadError, LookUpError, SignatureError};
use kiln_build::disk::{DiskError, ImageError, Qcow2Error};
use kiln_build::ext4::Ext4Error;
use kiln_build::{BuildError, NixError, OciError};
use kiln_core::Arch;
use kiln_core::lock::PinKind;
use kiln_core::machine::EndCause;
use kiln_core::ssh::InvalidSshKey;
use kiln_engine::EngineError;
use kiln_engine::adopt::vmrs::ImageFilesError;
use kiln_engine::catalogs::{BucketError, CatalogsError, ShelfError};
use kiln_engine::supervisor::OLD_AGENT;
use kiln_guest::message::FEATURE_CONNECT;
use kiln_store::{CannotGrow, StoreError};
use kiln_sys::ToolError;
use kiln_sys::protect::{Means, ProtectError};
use std::path::Path;

/// Returns lines that belong to an error, such as the console's last ones.
pub(crate) fn details(error: &CliError) -> Vec<String> {
    match error {
        CliError::Engine(EngineError::Ended { console, .. }) => console.clone(),
        CliError::Engine(EngineError::Store(StoreError::Ambiguous { candidates, .. })) => {
            candidates.iter().map(ToString::to_string).collect()
        }
        CliError::Engine(EngineError::Store(StoreError::AmbiguousSnapshot { candidates, .. })) => {
            candidates.iter().map(ToString::to_string).collect()
        }
        CliError::Engine(EngineError::Registry { problems, .. }) => {
            problems.iter().map(|problem| format!("{}: {}", problem.name, problem.reason)).collect()
        }
        _ => Vec::new(),
    }
}

/// Returns what to try.
pub(crate) fn hints(error: &CliError) -> Vec<String> {
    match error {
        CliError::Engine(error) => engine(error),
        CliError::Verify { repaired, artifacts, captured, revisions, lost, .. } => {
            let mut hints = Vec::new();
            if artifacts > captured && !repaired {
                hints.push("kiln verify --all --repair builds them again".to_owned());
            } else if artifacts > captured || *revisions > 0 {
                hints.push("kiln build --force in each recipe's directory makes new revisions".to_owned());
            }
            if !lost.is_empty() {
                hints.push(format!("kiln snapshot rm {}: what they captured is lost", lost.join(" ")));
            }
            hints
        }
        CliError::Private(error) => private(error),
        CliError::SshKey(error) => ssh_key(error),
        CliError::SshPath(_) => one("set KILN_HOME to a directory with a plainer name"),
        CliError::NoBucketKey => vec![
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY name it".to_owned(),
            "eval \"$(aws configure export-credentials --format env)\" sets them to those of the AWS command line".to_owned(),
        ],
        CliError::Usage(_) => vec!["kiln --help".to_owned()],
        _ => Vec::new(),
    }
}

fn catalogs(error: &CatalogsError) -> Vec<String> {
    match error {
        CatalogsError::NoSigner { .. } => {
            one("--signer FINGERPRINT names the key by which it is signed; --unsigned takes it without")
        }
        CatalogsError::Exists { name } => {
            one(format!("--name gives it another name, kiln catalog rm {name} makes room"))
        }
        CatalogsError::NotFound { .. } => one("kiln catalog sources lists them"),
        CatalogsError::NotACatalog { .. } => one("docs/formats/catalog.md tells its keys"),
        CatalogsError::Older { name, .. } => vec![
            "a server that lags behind, or somebody who wants an old catalog to be used: try again later"
                .to_owned(),
            format!("kiln catalog rm {name} forgets it, kiln catalog add takes what is there now"),
        ],
        CatalogsError::Record { path, .. } => {
            one(format!("remove {} and its .toml, and add the catalog again", path.display()))
        }
        CatalogsError::Image { name, source } => catalog(name.split(' ').next().unwrap_or_default(), source),
        CatalogsError::Mirror(error) => mirror(error),
        CatalogsError::Fetch { source, .. } => match &**source {
            LookUpError::NotSigned { place } => {
                one(format!("gpg --armor --detach-sign makes its signature, {place}.asc"))
            }
            LookUpError::Download(error) => match &**error {
                DownloadError::Broken { .. } => one("http_proxy, https_proxy and no_proxy name proxies"),
                DownloadError::Status { status: 404, .. } => {
                    one("--key names where the signer's key is, if it is not beside the catalog")
                }
                _ => Vec::new(),
            },
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

fn mirror(error: &ShelfError) -> Vec<String> {
    match error {
        ShelfError::Changed { .. } => one("run it again: what others mirrored stays"),
        ShelfError::Bucket(error) => match &**error {
            BucketError::NoBucket { .. } => {
                one("buckets are made by their owner; --endpoint-url names the server, --region the region")
            }
            BucketError::Region { region, .. } => one(format!("--region {region}")),
            BucketError::Denied { said, .. }
                if ["SignatureDoesNotMatch", "InvalidAccessKeyId"]
                    .iter()
                    .any(|code| said.starts_with(code)) =>
            {
                one(
                    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY name the key, with AWS_SESSION_TOKEN where it is for a while only",
                )
            }
            BucketError::Denied { .. } => one(
                "the key in AWS_ACCESS_KEY_ID needs s3:ListBucket of the bucket, and s3:GetObject, s3:PutObject, s3:DeleteObject and s3:AbortMultipartUpload of what is in it",
            ),
            BucketError::Broken { .. } => {
                one("--endpoint-url names the server; http_proxy, https_proxy and no_proxy name proxies")
            }
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

fn one(text: impl Into<String>) -> Vec<String> {
    vec![text.into()]
}

fn engine(error: &EngineError) -> Vec<String> {
    match error {
        EngineError::NotImported { source, .. } => not_imported(source),
        EngineError::Download(error) => download(error),
        EngineError::NotListed(_) => one("kiln catalog ls --all lists every image"),
        EngineError::Catalog { path, .. } => {
            one(format!("docs/formats/catalog.md tells its keys; mend or remove {}", path.display()))
        }
        EngineError::Catalogs(error) => catalogs(error),
        EngineError::NotAnImage { name, .. } => one(format!(
            "kiln tag {name} NEW:TAG gives it another name, kiln untag {name} then makes room for the image"
        )),
        EngineError::OlderImage { .. } => vec![
            "a mirror that lags behind, or somebody who wants an old image to be used: try again later"
                .to_owned(),
            "--allow-older, of kiln catalog update and mirror, and of kiln update for a recipe, takes it all the same".to_owned(),
        ],
        EngineError::UnsignedImage { .. } => {
            one("--allow-older, of kiln catalog update and mirror, takes it all the same")
        }
        EngineError::NoRecipe { .. } => one("kiln init writes one"),
        EngineError::Recipe { .. } => {
            one("kiln schema prints every key; docs/formats/recipe.md explains them")
        }
        EngineError::Lock { path, .. }
        | EngineError::LockStale { path, .. }
        | EngineError::LockArch { path, .. } => {
            let recipe = path.with_extension("toml");
            one(format!("kiln lock {} makes it anew", recipe.display()))
        }
        EngineError::LockMissing { path } => {
            one(format!("kiln lock {} makes it", path.with_extension("toml").display()))
        }
        EngineError::StepFailed { log, machine, reason, .. } => {
            let mut hints = match machine {
                Some(name) => vec![format!("kiln shell {name} looks at it, kiln rm -f {name} removes it")],
                None => one("kiln build --shell-on-error opens a shell where it failed"),
            };
            hints.push(format!("all that steps said: {}", log.display()));
            if reason.contains("No space left") {
                hints.insert(0, "name a larger `disk` in [machine]".to_owned());
            }
            hints
        }
        EngineError::TemplateFile { .. } => {
            one("docs/formats/mvm.md lists its keys; --name NAME stands for an id it lacks")
        }
        EngineError::Exists { path } => one(format!(
            "use {} as it is, remove it, or name another place: kiln overwrites nothing",
            path.display()
        )),
        EngineError::Registry { action: "imported", .. } => one(
            "copy what is wanted to a directory of its own, under names kiln takes (cp --sparse=always), and import that",
        ),
        EngineError::Registry { .. } => {
            one("name other references, or an empty directory; a disk has to be raw and not in use")
        }
        EngineError::RegistryEmpty { .. } => one("name the directory that holds their directories"),
        EngineError::NoDirectory { path } => one(format!("mkdir -p {}", path.display())),
        EngineError::NoMachine { similar: Some(name), .. } => {
            one(format!("did you mean `{name}`? kiln ps -a lists all"))
        }
        EngineError::NoMachine { .. } => one("kiln ps -a lists machines, kiln ls templates"),
        EngineError::MachineExists { name } => one(format!("kiln rm {name}, or choose another name")),
        EngineError::Phase { name, action: "removed", .. } => {
            one(format!("kiln stop {name}, or kiln rm -f {name}"))
        }
        EngineError::Phase { name, action: "put back", .. } => one(format!("kiln stop {name}")),
        EngineError::Phase { name, action: "captured with its memory", .. } => {
            one(format!("kiln snapshot create --disk-only {name}, or kiln start {name} first"))
        }
        EngineError::Phase { name, phase: "suspended", action: "stopped" | "suspended", .. } => one(format!(
            "nothing of it runs: kiln resume {name} lets it go on, kiln start --boot {name} discards what was saved"
        )),
        EngineError::Phase { name, phase: "paused" | "suspended", .. } => one(format!("kiln resume {name}")),
        EngineError::Phase { action: "paused" | "resumed" | "suspended", phase: "starting", .. } => {
            one("try again once kiln ps shows it running")
        }
        EngineError::Phase { name, phase: "stopping", .. } => {
            one(format!("kiln start {name}, once kiln wait {name} has returned"))
        }
        EngineError::Phase { name, action: "started", .. } => one(format!("kiln exec {name} -- COMMAND")),
        EngineError::Phase { name, .. } => one(format!("kiln start {name}")),
        EngineError::Ended { cause, name, .. } => ended(cause, name),
        EngineError::NoSnapshot { reference } => one(format!(
            "kiln build --snapshot in its recipe's directory, or kiln snapshot create {reference}, makes one"
        )),
        EngineError::NotReady { name, .. } => one(format!("kiln logs {name} shows what it does")),
        EngineError::SupervisorDied { .. } => one("kiln doctor"),
        EngineError::Image { .. } => one("kiln build --force bakes it again"),
        EngineError::Memory(_) => {
            one("kiln ps --memory shows what machines have; kiln stop or kiln rm -f frees it")
        }
        EngineError::NotRestorable { reference, .. } => {
            one(format!("kiln snapshot create {reference} makes a snapshot for this host; kiln run boots it"))
        }
        EngineError::NotCaptured { .. } => {
            one("kiln run boots a template, and kiln logs shows a machine's console, to look at it")
        }
        EngineError::NotResumed { name, .. } => {
            one(format!("kiln start --boot {name} boots it; what was saved is gone then"))
        }
        EngineError::Guest(kiln_guest::SessionError::Hook(_)) => {
            one("docs/hooks.md tells what a hook must do; kiln run boots the template, to try it")
        }
        EngineError::NoSeed { .. } => {
            one("a [seed] in kiln.toml makes one, for an image with cloud-init; kiln build bakes it anew")
        }
        EngineError::SshKeys(_) => one("name fewer with --ssh-key"),
        EngineError::NoSshServer { machine, installed: true, .. } => {
            one(format!("kiln logs {machine} shows whether it comes up; kiln ssh --wait TIME waits longer"))
        }
        EngineError::NoSshServer { machine, .. } => {
            one(format!("add openssh-server to the template; kiln shell {machine} needs no SSH"))
        }
        EngineError::Guest(kiln_guest::SessionError::Lacks { feature: FEATURE_CONNECT }) => vec![
            "kiln build --force in the recipe's directory bakes the template with this kiln's agent"
                .to_owned(),
            "or kiln run -p 2222:22 publishes the port of a new machine".to_owned(),
        ],
        EngineError::CopySides => one("kiln cp file.txt MACHINE:/tmp/, or kiln cp MACHINE:/etc/hostname ."),
        EngineError::Store(error) => store(error),
        EngineError::Tool(error) => tool(error),
        EngineError::Build(error) => build(error),
        EngineError::Vmm(kiln_vmm::VmmError::NotFound { .. }) => {
            one("sudo apt-get install -y --no-install-recommends qemu-system-x86, then kiln doctor")
        }
        EngineError::Io(error) if error.is_no_space() => space(),
        EngineError::Io(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            one("set KILN_HOME to a directory of yours, or run as its owner")
        }
        _ => Vec::new(),
    }
}

fn ssh_key(error: &SshKeyError) -> Vec<String> {
    match error {
        SshKeyError::File { path, source: InvalidSshKey::Private } => {
            one(format!("--ssh-key {}.pub: the public key is beside the private one", path.display()))
        }
        SshKeyError::File { source: InvalidSshKey::Options, .. }
        | SshKeyError::Key(InvalidSshKey::Options) => {
            one("user_data in [seed] takes keys with options, as cloud-init's ssh_authorized_keys")
        }
        SshKeyError::Unreadable(error) if error.kind() == std::io::ErrorKind::NotFound => {
            one("ssh-keygen -t ed25519 makes a pair of keys; without --ssh-key, kiln gives its own")
        }
        _ => Vec::new(),
    }
}

fn private(error: &PrivateError) -> Vec<String> {
    match error {
        PrivateError::NotSet { name, .. } => {
            one(format!("{name}=VALUE sets it here, export {name} in your shell"))
        }
        PrivateError::VariableTwice { .. } => one("give each variable once"),
        PrivateError::StdinTwice { .. } | PrivateError::StdinTaken { .. } => one("put the other into a file"),
        PrivateError::StdinTerminal { name } => one(format!("--secret {name}=FILE, or a pipe into kiln")),
        PrivateError::Limit(_) => one("kiln cp brings larger files into a machine that runs"),
        PrivateError::File(error) if error.kind() == std::io::ErrorKind::InvalidInput => {
            one("--secret NAME=- reads what is no regular file from standard input")
        }
        _ => Vec::new(),
    }
}

fn ended(cause: &EndCause, name: &str) -> Vec<String> {
    match cause {
        EndCause::NeverReady { reason } if reason == OLD_AGENT => {
            one("kiln build --force in the recipe's directory bakes the template with this kiln's agent")
        }
        EndCause::NeverReady { .. } => one(format!(
            "kiln logs {name} shows the whole console; [ready] in kiln.toml sets probe and timeout"
        )),
        EndCause::GuestPanic { .. } => one(format!(
            "kiln logs {name} shows the whole console; more memory, another kernel or a root file system with an init may help"
        )),
        EndCause::Suspended => one(format!("kiln resume {name}")),
        EndCause::Expired => one("kiln run --ttl TIME gives a new machine more"),
        EndCause::VmmExited { .. } | EndCause::StartFailed { .. } => one("kiln doctor checks this host"),
        _ => Vec::new(),
    }
}

fn space() -> Vec<String> {
    one("kiln rm what is not needed, or set KILN_HOME to a larger file system; kiln doctor shows the space")
}

/// The digits of an id that listings show.
const SHORT_DIGITS: usize = 12;

/// What to try where a file is not what it should be.
const VERIFY: &str = "kiln verify --all --repair says what is damaged and bakes it again";

/// Returns what takes a record away that cannot be read: it stands in the way of removals and collections, and no
/// verification brings it back.
fn way_out(path: &Path) -> Option<String> {
    let dir = path.parent()?;
    let name = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
    let parent = name(dir.parent()?)?;
    match (name(dir)?.as_str(), parent.as_str()) {
        ("tags", template) => {
            let tag = path.file_stem()?.to_str()?;
            Some(format!(
                "kiln untag {template}:{tag} sets it aside; kiln ls -a lists the revisions to tag again"
            ))
        }
        ("snapshots", _) => {
            let id = path.file_name()?.to_str()?.get(..SHORT_DIGITS)?;
            Some(format!("kiln snapshot rm {id} removes the snapshot"))
        }
        ("leases", _) => Some("remove this file: what it kept can be collected then".to_owned()),
        (id, "machines") => Some(format!("kiln rm -f {id} removes the machine")),
        (owner, "clones") => Some(format!("kiln rm --disk {owner} removes the disk")),
        _ => None,
    }
}

fn store(error: &StoreError) -> Vec<String> {
    match error {
        StoreError::NotFound { kind: "template", name, similar } => match similar.first() {
            Some(similar) => one(format!("did you mean `{similar}`? kiln ls lists all")),
            None => vec![
                format!("kiln ls lists what is there; kiln build bakes `{name}` where its kiln.toml is"),
                "kiln catalog ls lists what kiln catalog pull and kiln run fetch".to_owned(),
            ],
        },
        StoreError::NotFound { kind: "variant", similar, .. } if !similar.is_empty() => {
            one(format!("its variants are {}", similar.join(", ")))
        }
        StoreError::NotFound { kind: "artifact" | "index", .. } | StoreError::Unsealed { .. } => one(VERIFY),
        StoreError::Damaged { path, .. } => one(way_out(path).unwrap_or_else(|| VERIFY.to_owned())),
        StoreError::BadSnapshot { id, .. } => one(format!("kiln snapshot rm {} removes it", id.short())),
        StoreError::AmbiguousSnapshot { .. } => {
            one("name it by more digits of its id; kiln snapshot ls lists all")
        }
        StoreError::SnapshotInUse { machines, .. } => {
            one(format!("kiln rm -f {} removes what continues it", machines.join(" ")))
        }
        StoreError::HasSnapshots { snapshots, .. } => {
            one(format!("kiln snapshot rm {}; kiln untag takes only a tag away", snapshots.join(" ")))
        }
        StoreError::NotFound { kind: "snapshot", similar, .. } => match similar.first() {
            Some(similar) => one(format!("did you mean `{similar}`? kiln snapshot ls lists all")),
            None => one("kiln snapshot ls lists what is there"),
        },
        StoreError::NotFound { kind: "disk", similar, .. } => match similar.first() {
            Some(similar) => one(format!("did you mean `{similar}`?")),
            None => one("kiln show REF names the disks of a revision"),
        },
        StoreError::NotFound { .. } => one("kiln ls -a lists all revisions"),
        StoreError::NoTag { template, .. } => one(format!("kiln ls lists the tags of `{template}`")),
        StoreError::Shrink { .. } => {
            one("disks only grow: a smaller [machine] disk in kiln.toml makes a smaller template")
        }
        StoreError::CannotGrow { source, .. } => grow(source),
        StoreError::SizeMismatch { owner, have, .. } => {
            one(format!("ask for {}, or release the disk of `{owner}` first", have.human()))
        }
        StoreError::NoFormer { template, tag } => {
            one(format!("kiln history {template}:{tag} shows its moves; kiln tag moves it elsewhere"))
        }
        StoreError::InUse { machines, .. } => one(format!("kiln rm -f {}", machines.join(" "))),
        StoreError::NewerStore { .. } | StoreError::UnknownFeature { .. } => {
            one("use the newer kiln that wrote it, or set KILN_HOME to another directory")
        }
        StoreError::Protect(error) => protect(error),
        StoreError::CloneUnsupported { .. } => one("--clone auto takes what this host can"),
        StoreError::NotAStore { .. } => one("set KILN_HOME to an empty directory"),
        StoreError::Exists { .. } => one("name another file, or remove it first: kiln overwrites nothing"),
        StoreError::HasDisks { owners, .. } => {
            let names: Vec<&str> = owners.iter().map(kiln_core::DiskOwner::as_str).collect();
            one(format!("have their programs release them, or kiln rm --disk {}", names.join(" ")))
        }
        StoreError::Busy { .. } => one("end the machine that runs on it, then try again"),
        StoreError::Mismatch { owner, have, .. } => {
            one(format!("release the disk of `{owner}`, or pin the reference: NAME@{have}"))
        }
        StoreError::NoSpace { path, .. } => one(format!(
            "make room in {}, or use a larger file system; kiln rm frees that of the store, kiln doctor shows it",
            path.display()
        )),
        StoreError::Io(error) if error.is_no_space() => space(),
        StoreError::Io(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            one("set KILN_HOME to a directory of yours, or run as its owner")
        }
        _ => Vec::new(),
    }
}

fn protect(error: &ProtectError) -> Vec<String> {
    match error {
        ProtectError::Denied { means: Means::Immutable, .. } => {
            one("run as root, or kiln init --protect auto and kiln verify --all as root take the flags off")
        }
        ProtectError::Unsupported { means: Means::Verity, .. } => one(
            "kiln init --protect auto does without; fs-verity needs btrfs, or ext4 with tune2fs -O verity, and a kernel that has it",
        ),
        _ => one("kiln init --protect auto takes what this host can"),
    }
}

fn grow(error: &CannotGrow) -> Vec<String> {
    one(match error {
        CannotGrow::Sectors { .. } => "a size with a unit, such as 8G, is whole sectors".to_owned(),
        CannotGrow::Room { least } => {
            format!("ask for more than {}, or leave --disk away", least.human())
        }
        CannotGrow::Mbr | CannotGrow::Hybrid => {
            "leave --disk away, or give the template's disk a GUID partition table alone: sgdisk -g converts one".to_owned()
        }
        CannotGrow::Table { .. } => {
            "leave --disk away, or repair the table before it becomes a template: sgdisk -v checks one".to_owned()
        }
        _ => "leave --disk away, or make the root file system's partition the last of the template's disk".to_owned(),
    })
}

fn tool(error: &ToolError) -> Vec<String> {
    match error {
        ToolError::NotFound { name } => one(format!("kiln doctor says which package brings `{name}`")),
        ToolError::Failed { stderr, .. } if stderr.contains("No space left") => space(),
        ToolError::Failed { stderr, .. } if stderr.contains("--no-update-lock-file") => {
            one("nix flake lock, in the flake's directory, writes its lock")
        }
        _ => Vec::new(),
    }
}

/// What to try with images.
fn image(error: &BuildError) -> Option<&'static str> {
    let image = match error {
        BuildError::NoImageInput => return Some("docker save NAME | kiln build"),
        BuildError::UserData { .. } => {
            return Some(
                "begin it with #cloud-config, #! or another word that cloud-init knows; `type = \"none\"` in [seed] is for guests without it",
            );
        }
        BuildError::NoCommand => return Some("add `command` to [entrypoint]"),
        BuildError::Platform { .. } => {
            return Some("leave `platform` out of [source], or choose one of this host's");
        }
        BuildError::Image { source, .. } => source,
        _ => return None,
    };
    Some(match image {
        OciError::NotAnImage { .. } => "skopeo copy SOURCE oci-archive:FILE makes an archive that kiln reads",
        OciError::Several { .. } | OciError::NoSuchImage { .. } => {
            "name one of them after the path: image = \"oci-layout:PATH:NAME\""
        }
        OciError::Platform { .. } => "name one of them as `platform` in [source], or another image",
        OciError::Offline { .. } => {
            "one build with the network brings it into the cache; what a tag stands for is asked each time, unless kiln lock pins it"
        }
        OciError::Denied { .. } => {
            "docker login writes credentials that kiln reads (DOCKER_CONFIG, ~/.docker)"
        }
        OciError::NotFound { .. } => {
            "a name without a host is one of docker.io; look at host, repository and tag"
        }
        OciError::Registry { .. } => {
            "what came is kept, and another build goes on there; https_proxy, no_proxy and SSL_CERT_FILE are honoured"
        }
        OciError::Digest { .. } | OciError::Size { .. } | OciError::BlobMissing { .. } => {
            "the image is damaged or was changed: make or copy it again"
        }
        _ => return None,
    })
}

fn build(error: &BuildError) -> Vec<String> {
    if matches!(error, BuildError::NoSpace { .. } | BuildError::Full { .. }) {
        return space();
    }
    if let Some(hint) = image(error).or_else(|| disk_image(error)) {
        return one(hint);
    }
    match error {
        BuildError::LockMoved { kind: PinKind::Builder, .. } => {
            return one(
                "kiln update shows and pins what is here now; a build without --locked takes it as it is",
            );
        }
        BuildError::LockMoved { .. } => {
            return vec![
                "kiln update --dry-run shows all that moved, kiln update pins what there is now".to_owned(),
                "an archive of that day, as `mirror` in [source], still has it; the lock has the dates"
                    .to_owned(),
            ];
        }
        BuildError::Offline { .. } => return one("build it once without --offline"),
        BuildError::NotListed(_) => return one("kiln catalog ls --all lists every image"),
        BuildError::ImageNotPinned { name } => {
            return one(format!("kiln catalog pull {name}, once without --offline"));
        }
        BuildError::PinnedImage { name, .. } => {
            return vec![
                "its publisher has something newer under that name, most likely".to_owned(),
                format!("kiln catalog update {name} takes it; for a recipe with a lock, kiln update does"),
            ];
        }
        BuildError::Catalog { name, source } => return catalog(name, source),
        BuildError::NoBuilder => return one("apt-get install buildah: it needs no daemon and no root"),
        BuildError::NoArchive { .. } => return one("name `kernel` and `modules` in [source]"),
        // Errors that say the same as their cause are no link of the chain that is followed below.
        BuildError::Tool(error) | BuildError::Ext4(Ext4Error::Tool(error)) => return tool(error),
        BuildError::Io(error) if error.is_no_space() => return space(),
        _ => {}
    }
    if let BuildError::Nix(error) = error {
        match error {
            NixError::NotLocked { .. } => {
                return one(
                    "commit the changes, or name the directory: flake = \"path:…\" takes it as it is",
                );
            }
            NixError::NoFlake { .. } => return one("name the directory that holds flake.nix"),
            NixError::Missing { .. } | NixError::Twice { .. } | NixError::OutputKind { .. } => {
                return one(
                    "docs/formats/recipe.md lists the names that are looked for; attribute = \"…\" names another package",
                );
            }
            NixError::ReadOnlyRoot { .. } | NixError::NotExt4 { .. } => {
                return one("let the flake make an ext4 image, rootfs.ext4");
            }
            _ => {}
        }
    }
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<ToolError>() {
            return tool(error);
        }
        if let Some(error) = cause.downcast_ref::<kiln_sys::IoError>()
            && error.is_no_space()
        {
            return space();
        }
        source = cause.source();
    }
    Vec::new()
}

/// What to try where a disk image cannot be used.
fn disk_image(error: &BuildError) -> Option<&'static str> {
    Some(match error {
        BuildError::Disk(error) => match error {
            DiskError::Qcow2 { source: Qcow2Error::Backing(_), .. } => {
                "`backing = \"flatten\"` in [source] reads the files it is based on, where they lie beside it"
            }
            DiskError::Qcow2 { source: Qcow2Error::BackingRefused { .. }, .. } => {
                "qemu-img convert makes one file of an image and what it is based on, for images you trust"
            }
            DiskError::Qcow2 { .. } => {
                "qemu-img check says more; fetch the image again if it was not made here"
            }
            DiskError::Format { found, .. }
                if found.starts_with("compressed") || found.ends_with("archive") =>
            {
                "unpack it first"
            }
            DiskError::Format { .. } => {
                "`format` in [source] says what it is, where its content does not tell"
            }
            DiskError::OtherFormat { .. } => "leave `format` away: it is told by the content",
            DiskError::NoConverter { .. } => {
                "install qemu-utils, or convert the image to qcow2 where it was made"
            }
            DiskError::Foreign { .. } => {
                "make one file of it where it was made, such as with qemu-img convert"
            }
            DiskError::NoPartition { .. } | DiskError::WhichPartition { .. } => {
                "`partition` in [source] takes the number of the root's"
            }
            DiskError::FileSystem { .. } => {
                "take a variant of the image with an EFI system partition, which firmware boots, or one with an ext4 root"
            }
            _ => return None,
        },
        BuildError::NoFirmware { arch: Arch::X86_64, .. } => {
            "apt-get install ovmf (edk2-ovmf elsewhere) brings it; kiln doctor says whether it is found"
        }
        BuildError::NoFirmware { .. } => "take an image with an ext4 root and its kernel in /boot",
        BuildError::NoEspPartition { .. } => {
            "`boot = \"direct\"` in [source] boots an ext4 root without firmware; other images need one for UEFI"
        }
        BuildError::WholeDisk { .. } => {
            "leave it away: kernel, init and their arguments are the image's own; kiln run --disk makes a machine's disk longer"
        }
        BuildError::NoKernel { .. } | BuildError::NoModules { .. } => {
            "`kernel` and `modules`, or `kernel_package`, in [source] bring another kernel"
        }
        BuildError::Contents { source: ImageError::Unsupported(_), .. } => {
            "start the image once and shut it down, or name a `kernel` in [source]: then its file system is not read"
        }
        _ => return None,
    })
}

/// What to try when an image that another program keeps did not come.
fn not_imported(error: &EngineError) -> Vec<String> {
    let taken = |name: &str| {
        one(format!(
            "kiln tag {name} NEW:TAG gives what is here another name, kiln untag {name} then makes room"
        ))
    };
    match error {
        EngineError::NotListed(_) | EngineError::Build(BuildError::UnknownKernel { .. }) => {
            one("--verify none takes it as it is")
        }
        EngineError::Build(BuildError::NotPublished { name, .. }) => vec![
            format!("an older build, or a damaged file: kiln catalog pull {name} brings what is published"),
            "--verify none takes it as it is".to_owned(),
        ],
        EngineError::Build(BuildError::NoKernel { .. }) => {
            one("a vmlinuz beside the disk is taken with --verify none")
        }
        EngineError::OlderImage { name, .. } | EngineError::UnsignedImage { name, .. } => taken(name),
        EngineError::ImageFiles(ImageFilesError::Taken { name, .. }) => taken(name),
        EngineError::ImageFiles(ImageFilesError::NoDisk { .. } | ImageFilesError::Empty(_)) => {
            one("have vm-rs fetch it again, or kiln catalog pull")
        }
        EngineError::ImageFiles(ImageFilesError::Link(_)) => {
            one("copy what it leads to into its place, or import the directory it leads to")
        }
        error => engine(error),
    }
}

/// What to try when an image of the catalog could not be looked up or fetched.
fn catalog(name: &str, error: &LookUpError) -> Vec<String> {
    match error {
        LookUpError::NobodySigns => one("--verify checksum takes the word of the server"),
        LookUpError::Signature { source, .. } => match &**source {
            SignatureError::False { .. } => {
                one("somebody changed the checksums, or the server is being updated: try again later")
            }
            SignatureError::UnknownSigner { .. } | SignatureError::NoPinnedKey => one(format!(
                "who signs it may have a new key: compare kiln catalog show {name} with what its makers say"
            )),
            _ => one("--verify checksum takes the word of the server, which is no proof"),
        },
        LookUpError::Download(error) => match &**error {
            DownloadError::Status { status: 404, .. } => {
                one("it may have moved: kiln catalog add takes a catalog with the new address")
            }
            error => download(error),
        },
        LookUpError::Shelf(error) => mirror(error),
        _ => Vec::new(),
    }
}

fn download(error: &DownloadError) -> Vec<String> {
    match error {
        DownloadError::Broken { .. } => one("http_proxy, https_proxy and no_proxy name proxies"),
        DownloadError::Offline { .. } => one("try once without --offline"),
        DownloadError::Digest { .. } => {
            one("the server has another file than it should, or somebody on the way changes it")
        }
        _ => Vec::new(),
    }
}
