//! `kiln import`: templates and disks from other programs' directories.

use super::Context;
use super::mvm::ImportMvmArgs;
use super::vmrs::ImportVmrsArgs;
use crate::error::{CliError, CliResult};
use crate::{env, output};
use clap::{Args, Subcommand};
use kiln_core::Digest;
use kiln_engine::adopt::{ImportRegistry, Imported};
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    #[command(subcommand)]
    format: Format,
}

#[derive(Debug, Subcommand)]
enum Format {
    /// The rootfs registry of microvm-runtime: STACK/rootfs.ext4
    RootfsRegistry(RegistryArgs),
    /// Templates of mvm: templates/ID/artifacts/REVISION
    Mvm(ImportMvmArgs),
    /// Images of distributions that vm-rs fetched: images/DISTRIBUTION/RELEASE/ARCHITECTURE
    Vmrs(ImportVmrsArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Each stack becomes a template of its name; its tag `latest` moves to what was read. The layout has
no kernel, so one is needed. With --clones each machine's disk becomes that of an owner of its
name: stop the machines first. What kiln cannot name, or the layout cannot tell apart, is refused
with the whole list before anything is written.

Examples:
  kiln import rootfs-registry --kernel /boot/vmlinuz
  kiln import rootfs-registry /srv/t --kernel vmlinux --modules /lib/modules/6.1.0-9-cloud-amd64
  kiln import rootfs-registry /srv/templates --kernel vmlinux --clones /srv/rootfs")]
struct RegistryArgs {
    /// The directory of stacks [default: $MICROVM_ROOTFS_TEMPLATE_DIR, else /var/lib/microvm/rootfs-templates]
    dir: Option<PathBuf>,
    /// The kernel that the templates boot
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The directory of the kernel's modules, where it needs some to boot
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,
    /// Also take machines' disks [default: $MICROVM_ROOTFS_CLONES_DIR, else /var/lib/microvm/rootfs]
    #[arg(long, value_name = "DIR", num_args = 0..=1)]
    clones: Option<Option<PathBuf>>,
    /// Print an object of JSON
    #[arg(long)]
    json: bool,
    /// Print references only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Serialize)]
struct Shown {
    templates: Vec<ShownTemplate>,
    disks: Vec<String>,
}

#[derive(Serialize)]
struct ShownTemplate {
    template: String,
    revision: Digest,
    artifact: Digest,
    size_bytes: u64,
    moved: bool,
}

pub(crate) fn run(context: &Context, args: &ImportArgs) -> CliResult {
    match &args.format {
        Format::RootfsRegistry(args) => registry(context, args),
        Format::Mvm(args) => super::mvm::import(context, args),
        Format::Vmrs(args) => super::vmrs::import(context, args),
    }
}

fn registry(context: &Context, args: &RegistryArgs) -> CliResult {
    let Some(kernel) = &args.kernel else {
        let text = "a rootfs registry has no kernel: --kernel FILE names one, such as /boot/vmlinuz";
        return Err(CliError::Usage(text.to_owned()));
    };
    let dir = args.dir.clone().unwrap_or_else(env::rootfs_templates);
    let clones = args.clones.as_ref().map(|dir| dir.clone().unwrap_or_else(env::rootfs_clones));
    let request = ImportRegistry {
        templates: &dir,
        clones: clones.as_deref(),
        kernel,
        modules: args.modules.as_deref(),
    };
    let reporter = context.reporter(args.quiet);
    let imported = context.engine.import_rootfs_registry(&request, &reporter)?;
    drop(reporter);
    render(args, &imported);
    Ok(ExitCode::SUCCESS)
}

fn render(args: &RegistryArgs, imported: &Imported) {
    if args.json {
        let template = |imported: &kiln_engine::adopt::ImportedTemplate| ShownTemplate {
            template: imported.template.to_string(),
            revision: imported.revision,
            artifact: imported.artifact,
            size_bytes: imported.size.bytes(),
            moved: imported.moved,
        };
        output::json(Shown {
            templates: imported.templates.iter().map(template).collect(),
            disks: imported.disks.iter().map(ToString::to_string).collect(),
        });
        return;
    }
    for template in &imported.templates {
        let name = format!("{}:latest", template.template);
        if args.quiet {
            output::line(&name);
        } else {
            let verb = if template.moved { "is now" } else { "was already" };
            output::line(&format!("{name} {verb} {} ({})", template.revision, template.size.human()));
        }
    }
    for owner in imported.disks.iter().filter(|_| !args.quiet) {
        output::line(&format!("disk of {owner} taken over"));
    }
}
