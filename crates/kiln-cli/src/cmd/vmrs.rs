//! `kiln import vmrs` and `kiln export vmrs`: images of vm-rs, in and out.

use super::Context;
use super::catalog::VerifyArgs;
use crate::error::{self, CliError, CliResult};
use crate::{env, output};
use clap::Args;
use kiln_build::catalog::Verify;
use kiln_core::text::chain;
use kiln_core::{Digest, Reference};
use kiln_engine::adopt::vmrs::{ExportVmrs, ImportVmrs, ImportedVmrs, ImportedVmrsImage};
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "\
Each image for this host becomes the template of its distribution, with its release as the tag:
Ubuntu/24.04 becomes ubuntu:24.04. It is compared with what its distribution publishes, as the
catalog tells; one that is something else is told, and the others come. The kernel is the one
inside the disk image unless what is published tells of vmlinuz too.

Examples:
  kiln import vmrs
  kiln import vmrs /srv/vm-rs --verify checksum
  kiln import vmrs ~/.vm-rs/images --verify none --offline")]
pub(super) struct ImportVmrsArgs {
    /// The data directory, or the directory of images in it [default: $VMRS_DATA_DIR, else ~/.vm-rs]
    dir: Option<PathBuf>,
    #[command(flatten)]
    verify: VerifyArgs,
    /// Ask nothing of the network: with --verify none
    #[arg(long)]
    offline: bool,
    /// Take the kernel inside each disk image, whatever lies beside it
    #[arg(long)]
    kernel_inside: bool,
    /// Print an object of JSON
    #[arg(long)]
    json: bool,
    /// Print references only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Serialize)]
struct Shown {
    images: Vec<ShownImage>,
    failed: Vec<ShownFailure>,
}

#[derive(Serialize)]
struct ShownImage {
    image: String,
    directory: String,
    revision: Digest,
    digest: String,
    serial: Option<String>,
    signer: Option<String>,
    verified: String,
    kernel: &'static str,
    size_bytes: u64,
    moved: bool,
}

#[derive(Serialize)]
struct ShownFailure {
    directory: String,
    reason: String,
}

impl ShownImage {
    fn of(image: &ImportedVmrsImage) -> Self {
        Self {
            image: image.name.clone(),
            directory: image.place.clone(),
            revision: image.revision,
            digest: image.pin.disk.to_string(),
            serial: image.pin.serial.map(|serial| serial.to_string()),
            signer: image.pin.signer.map(|signer| signer.to_string()),
            verified: image.verified.clone(),
            kernel: if image.kernel_beside { "vmlinuz" } else { "inside" },
            size_bytes: image.size.bytes(),
            moved: image.moved,
        }
    }
}

pub(super) fn import(context: &Context, args: &ImportVmrsArgs) -> CliResult {
    let fetch = args.verify.options();
    if args.offline && fetch.verify != Verify::Nothing {
        let text =
            "what is published cannot be asked for with --offline: --verify none takes images as they are";
        return Err(CliError::Usage(text.to_owned()));
    }
    let dir = args.dir.clone().map_or_else(env::vmrs_data, Ok)?;
    let request = ImportVmrs { dir: &dir, fetch, kernel_inside: args.kernel_inside };
    let reporter = context.reporter(args.quiet);
    let imported = context.engine.import_vmrs(&request, &reporter)?;
    drop(reporter);
    render(args, &imported);
    let (failed, all) = (imported.failed.len(), imported.failed.len() + imported.images.len());
    for failure in imported.failed {
        error::tell(&failure.error.into());
    }
    if failed == 0 { Ok(ExitCode::SUCCESS) } else { Err(CliError::Some { failed, all }) }
}

fn render(args: &ImportVmrsArgs, imported: &ImportedVmrs) {
    if args.json {
        let failed = imported.failed.iter().map(|failure| ShownFailure {
            directory: failure.place.clone(),
            reason: std::error::Error::source(&failure.error).map_or_else(|| chain(&failure.error), chain),
        });
        let images = imported.images.iter().map(ShownImage::of).collect();
        output::json(Shown { images, failed: failed.collect() });
        return;
    }
    for image in &imported.images {
        if args.quiet {
            output::line(&image.name);
            continue;
        }
        let verb = if image.moved { "is now" } else { "was already" };
        let word = match image.verified.as_str() {
            "nothing" => "not compared with what is published".to_owned(),
            how => format!("as published, by {how}"),
        };
        output::line(&format!("{} {verb} {} ({word})", image.name, image.revision));
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Each reference becomes DIR/images/TEMPLATE/TAG/ARCHITECTURE with vmlinuz, initramfs and disk.img.
The initramfs is kiln's: it boots the disk with the agent. Nothing is overwritten, and an image
that is there with the same content stays; what cannot be written is refused with the whole list
before anything is.

Examples:
  kiln export vmrs ~/.vm-rs ubuntu:24.04
  kiln export vmrs /srv/vm-rs web:v1 tools")]
pub(super) struct ExportVmrsArgs {
    /// The data directory, or the directory of images in it; made where it is missing
    dir: PathBuf,
    /// What to write, one of each template and tag
    #[arg(required = true)]
    references: Vec<Reference>,
    /// Print an object of JSON
    #[arg(long)]
    json: bool,
    /// Print paths only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Serialize)]
struct ShownExport {
    images: Vec<ShownExported>,
}

#[derive(Serialize)]
struct ShownExported {
    image: String,
    revision: Digest,
    path: PathBuf,
    size_bytes: u64,
    there: bool,
}

pub(super) fn export(context: &Context, args: &ExportVmrsArgs) -> CliResult {
    let request = ExportVmrs { dir: &args.dir, references: &args.references };
    let reporter = context.reporter(args.quiet);
    let exported = context.engine.export_vmrs(&request, &reporter)?;
    drop(reporter);
    let images = exported.into_iter().map(|image| ShownExported {
        image: image.name,
        revision: image.revision,
        path: image.path,
        size_bytes: image.size.bytes(),
        there: image.there,
    });
    if args.json {
        output::json(ShownExport { images: images.collect() });
        return Ok(ExitCode::SUCCESS);
    }
    for image in images {
        let path = image.path.display();
        let verb = if image.there { "has" } else { "is" };
        let line = format!("{path}: {verb} {} of {}", image.revision.short(), image.image);
        output::line(&if args.quiet { path.to_string() } else { line });
    }
    Ok(ExitCode::SUCCESS)
}
