//! `kiln export`: templates and disks into other programs' directories.

use super::Context;
use super::mvm::ExportMvmArgs;
use super::vmrs::ExportVmrsArgs;
use crate::error::CliResult;
use crate::output;
use clap::{Args, Subcommand};
use kiln_core::machine::CloneMethod;
use kiln_core::{Digest, Reference};
use kiln_engine::adopt::ExportRegistry;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    #[command(subcommand)]
    format: Format,
}

#[derive(Debug, Subcommand)]
enum Format {
    /// The rootfs registry of microvm-runtime: STACK/rootfs.ext4
    RootfsRegistry(RegistryArgs),
    /// Templates of mvm: templates/ID/artifacts/REVISION
    Mvm(ExportMvmArgs),
    /// Images of distributions as vm-rs keeps them: images/DISTRIBUTION/RELEASE/ARCHITECTURE
    Vmrs(ExportVmrsArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Each template becomes a stack of its name. With --clones the raw disks made from the same
revisions are written too, with their stamps. Nothing is overwritten; what cannot be written is
refused with the whole list before anything is.

Examples:
  kiln export rootfs-registry /srv/templates
  kiln export rootfs-registry /srv/templates web:v1 tools
  kiln export rootfs-registry /srv/templates web --clones /srv/rootfs")]
struct RegistryArgs {
    /// The directory of stacks, made where it is missing
    dir: PathBuf,
    /// What to write, one of each template [default: every template's latest]
    references: Vec<Reference>,
    /// Also write disks, to this directory
    #[arg(long, value_name = "DIR")]
    clones: Option<PathBuf>,
    /// Print an object of JSON
    #[arg(long)]
    json: bool,
    /// Print paths only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Serialize)]
struct Shown {
    stacks: Vec<ShownStack>,
    disks: Vec<ShownDisk>,
}

#[derive(Serialize)]
struct ShownStack {
    stack: String,
    revision: Digest,
    path: PathBuf,
    size_bytes: u64,
    method: CloneMethod,
}

#[derive(Serialize)]
struct ShownDisk {
    owner: String,
    path: PathBuf,
    size_bytes: u64,
}

pub(crate) fn run(context: &Context, args: &ExportArgs) -> CliResult {
    match &args.format {
        Format::RootfsRegistry(args) => registry(context, args),
        Format::Mvm(args) => super::mvm::export(context, args),
        Format::Vmrs(args) => super::vmrs::export(context, args),
    }
}

fn registry(context: &Context, args: &RegistryArgs) -> CliResult {
    let clones = args.clones.as_deref();
    let request = ExportRegistry { templates: &args.dir, clones, references: &args.references };
    let reporter = context.reporter(args.quiet);
    let exported = context.engine.export_rootfs_registry(&request, &reporter)?;
    drop(reporter);
    let stacks = exported.stacks.into_iter().map(|stack| ShownStack {
        stack: stack.stack.to_string(),
        revision: stack.revision,
        path: stack.path,
        size_bytes: stack.size.bytes(),
        method: stack.method,
    });
    let disks = exported.disks.into_iter().map(|disk| ShownDisk {
        owner: disk.owner.to_string(),
        path: disk.path,
        size_bytes: disk.size.bytes(),
    });
    if args.json {
        output::json(Shown { stacks: stacks.collect(), disks: disks.collect() });
        return Ok(ExitCode::SUCCESS);
    }
    for stack in stacks {
        let path = stack.path.display();
        if args.quiet {
            output::line(&path.to_string());
        } else {
            output::line(&format!("{path}: {} by {}", stack.revision.short(), stack.method));
        }
    }
    for disk in disks {
        let path = disk.path.display();
        let text = if args.quiet { path.to_string() } else { format!("{path}: disk of {}", disk.owner) };
        output::line(&text);
    }
    Ok(ExitCode::SUCCESS)
}
