//! The recipe as written: every key of `kiln.toml`, and the checks that make it a [`Recipe`].

mod source;
mod step;

use self::source::{SourceTable, words};
use super::{
    AgentOptions, BOOT_ARGS_BYTES_MAX, Entrypoint, Init, Recipe, RecipeError, RootFormat, SeedOptions,
    SnapshotOptions, Source,
};
use crate::capture::CapturePlan;
use crate::ready::{HttpCheck, ReadyCheck, ReadyProbe};
use crate::revision::VARIANTS_MAX;
use crate::size::ByteSize;
use crate::ssh::InvalidLoginName;
use crate::time::Milliseconds;
use crate::variant::{Board, DISK_MIB_MAX, MachineShape, Variant, boot_args_bytes};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::PathBuf;
use std::str::FromStr;

/// A kiln recipe: bakes one template.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RecipeFile {
    /// The template's name: 1 to 63 of a-z, 0-9, `.`, `_`, `-`.
    #[schemars(regex(pattern = r"^[a-z0-9][a-z0-9._-]{0,62}$"))]
    name: String,
    /// The build profile, for sources that know profiles.
    profile: Option<String>,
    /// Where the content comes from.
    source: SourceTable,
    /// The machine.
    #[serde(default)]
    machine: MachineTable,
    /// The kernel's command line.
    #[serde(default)]
    boot: BootTable,
    /// When a machine is ready: at most one of `command`, `tcp`, `http` and `file`. Without any: when the guest agent answers.
    ready: Option<ReadyTable>,
    /// How snapshots are made.
    #[serde(default)]
    snapshot: SnapshotTable,
    /// What machines tell the guest's cloud-init, on a small disk that it looks for. Without this table: who they are, where the root file system has cloud-init.
    seed: Option<SeedTable>,
    /// How the guest starts.
    #[serde(default)]
    agent: AgentTable,
    /// The command that is the machine's purpose. The machine ends when it does.
    entrypoint: Option<EntrypointTable>,
    /// Variants of the template: what one leaves out comes from the template.
    #[serde(default)]
    variant: Vec<VariantTable>,
    /// What is done to the template that a source of type `template` names, in order.
    #[serde(default)]
    step: Vec<step::StepTable>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct MachineTable {
    /// Virtual processors. Default: 1.
    vcpus: Option<u32>,
    /// Memory, such as `"256M"` (the default) or `"2G"`.
    memory: Option<String>,
    /// The least size of the root disk, such as `"4G"`. Default: content and some slack.
    disk: Option<String>,
    /// The size of a second, blank disk. Default: none.
    data_disk: Option<String>,
    /// The board. Default: `pc`.
    board: Option<Board>,
    /// The root file system: `ext4` (default), of which each machine has a clone, or `erofs` or `squashfs`, which all
    /// share; what a machine writes goes to a scratch disk of its own, of the size that `disk` says.
    #[serde(default)]
    root: RootWord,
}

#[derive(Debug, Default, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum RootWord {
    #[default]
    Ext4,
    Erofs,
    Squashfs,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct BootTable {
    /// Kernel arguments added to those kiln needs.
    #[serde(default)]
    args: Vec<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ReadyTable {
    /// A command in the guest that succeeds once the machine is ready.
    command: Option<Vec<String>>,
    /// A port of the guest's loopback address that takes connections once the machine is ready.
    #[schemars(range(min = 1))]
    tcp: Option<u16>,
    /// A GET in the guest that is answered with success once the machine is ready: `"80/health"`, or a table.
    http: Option<HttpValue>,
    /// An absolute path that exists in the guest once the machine is ready.
    file: Option<String>,
    /// Time between two tries, such as `"500ms"` (the default) or `"2s"`.
    interval: Option<String>,
    /// Time after which the machine counts as never ready. Default: `"120s"`.
    timeout: Option<String>,
    /// Time from the start in which a failed try does not count. Default: none.
    start_period: Option<String>,
    /// Failed tries in a row after which the machine counts as never ready. Default: only the timeout ends it.
    #[schemars(range(min = 1))]
    retries: Option<u32>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "`http` is a port and a path, \"80/health\", or a table of `port`, `path` and `status`"
)]
enum HttpValue {
    /// A port and a path, such as `"80/health"`.
    Text(String),
    /// The same in parts.
    Table(HttpTable),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct HttpTable {
    /// The port.
    #[schemars(range(min = 1))]
    port: u16,
    /// What is requested. Default: `/`.
    path: Option<String>,
    /// The statuses that are a success, `"204"` or `"200-399"` (the default).
    status: Option<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SnapshotTable {
    /// Whether `kiln build` makes a snapshot without being asked to. Default: false.
    #[serde(default)]
    auto: bool,
    /// Commands, each a list of program and arguments, run in the ready guest one after the other before it is captured.
    #[serde(default)]
    #[schemars(length(max = 16))]
    warm_up: Vec<Vec<String>>,
    /// Whether the guest drops clean caches before the capture: a smaller snapshot, slower first reads. Default: false.
    #[serde(default)]
    drop_caches: bool,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SeedTable {
    /// `nocloud` (default), or `none`: machines have no such disk.
    #[serde(default, rename = "type")]
    kind: SeedWord,
    /// A file with what cloud-init is to do, such as a `#cloud-config`; at most 64 KiB.
    user_data: Option<PathBuf>,
    /// The user whom `kiln ssh` logs in as, such as `ubuntu`. Default: `root`.
    user: Option<String>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum SeedWord {
    #[default]
    NoCloud,
    None,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AgentTable {
    /// Process 1: `auto` (the image's init, else the agent), `agent`, or a path in the image. Default: `auto`.
    init: Option<String>,
    /// Kernel modules loaded besides those kiln needs, by name.
    #[serde(default)]
    modules: Vec<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct EntrypointTable {
    /// Program and arguments. Default: the image's, for a source that has one.
    command: Option<Vec<String>>,
    /// Environment variables.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// The working directory. Default: `/`.
    workdir: Option<String>,
    /// Who runs it: `name`, `uid`, `name:group` or `uid:gid`. Default: root.
    user: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct VariantTable {
    /// The variant's name.
    name: String,
    /// What the variant is for, a label.
    role: Option<String>,
    /// The build profile. Default: the template's.
    profile: Option<String>,
    /// Virtual processors.
    vcpus: Option<u32>,
    /// Memory.
    memory: Option<String>,
    /// The size of a second, blank disk.
    data_disk: Option<String>,
    /// The board.
    board: Option<Board>,
    /// Kernel arguments, in place of the template's.
    boot_args: Option<Vec<String>>,
}

fn value(field: &str, reason: impl Display) -> RecipeError {
    RecipeError::Value { field: field.to_owned(), reason: reason.to_string() }
}

fn parsed<T: FromStr>(field: &str, text: &str) -> Result<T, RecipeError>
where
    T::Err: Display,
{
    text.parse().map_err(|error| value(field, error))
}

fn parsed_opt<T: FromStr>(field: &str, text: Option<&str>) -> Result<Option<T>, RecipeError>
where
    T::Err: Display,
{
    text.map(|text| parsed(field, text)).transpose()
}

impl TryFrom<RecipeFile> for Recipe {
    type Error = RecipeError;

    fn try_from(file: RecipeFile) -> Result<Self, RecipeError> {
        let machine = MachineShape {
            vcpus: file.machine.vcpus.unwrap_or(1),
            memory: parsed_opt("machine.memory", file.machine.memory.as_deref())?
                .unwrap_or(ByteSize::from_mib(256)),
            data_disk: parsed_opt("machine.data_disk", file.machine.data_disk.as_deref())?,
            board: file.machine.board.unwrap_or_default(),
        }
        .checked()
        .map_err(|error| value("machine", error))?;
        let disk_size_min: Option<ByteSize> = parsed_opt("machine.disk", file.machine.disk.as_deref())?;
        if disk_size_min.is_some_and(|size| size.bytes() > DISK_MIB_MAX << 20) {
            return Err(value("machine.disk", "at most 16T are possible"));
        }
        let profile = parsed_opt("profile", file.profile.as_deref())?;
        let variants = variants(file.variant, &machine)?;
        let others = source::Others {
            steps: step::checked(file.step)?,
            profile: profile.as_ref(),
            variants: &variants,
        };
        let source = source::checked(file.source, others)?;
        Ok(Self {
            name: parsed("name", &file.name)?,
            profile,
            disk_size_min,
            boot_args: boot_args("boot.args", file.boot.args)?,
            ready: file.ready.map(ready).transpose()?,
            snapshot: snapshot(file.snapshot)?,
            seed: seed(file.seed)?,
            agent: AgentOptions {
                root: match file.machine.root {
                    RootWord::Ext4 => RootFormat::Ext4,
                    RootWord::Erofs => RootFormat::Erofs,
                    RootWord::Squashfs => RootFormat::Squashfs,
                },
                ..agent(
                    file.agent,
                    file.entrypoint,
                    matches!(source, Source::Oci(_) | Source::Dockerfile(_)),
                )?
            },
            source,
            variants,
            machine,
        })
    }
}

fn boot_args(field: &str, args: Vec<String>) -> Result<Vec<String>, RecipeError> {
    let bytes = boot_args_bytes(&args);
    if bytes > BOOT_ARGS_BYTES_MAX {
        return Err(value(field, format_args!("{bytes} bytes in all, more than {BOOT_ARGS_BYTES_MAX}")));
    }
    match args.iter().find(|arg| arg.is_empty() || !arg.chars().all(|c| c.is_ascii_graphic())) {
        Some(arg) => {
            Err(value(field, format_args!("`{}` is not one kernel argument", crate::text::clip(arg))))
        }
        None => Ok(args),
    }
}

fn duration_ms(field: &str, text: &str) -> Result<u64, RecipeError> {
    parsed::<Milliseconds>(field, text).map(Milliseconds::get)
}

fn command(field: &str, command: Vec<String>) -> Result<Vec<String>, RecipeError> {
    match command.first() {
        Some(program) if !program.is_empty() && command.iter().all(|word| !word.contains('\0')) => {
            Ok(command)
        }
        _ => Err(value(field, "a list of program and arguments is wanted")),
    }
}

fn port(field: &str, number: u16) -> Result<NonZeroU16, RecipeError> {
    NonZeroU16::new(number).ok_or_else(|| value(field, "a port from 1 to 65535 is wanted"))
}

fn http(given: HttpValue) -> Result<HttpCheck, RecipeError> {
    match given {
        HttpValue::Text(text) => parsed("ready.http", &text),
        HttpValue::Table(table) => Ok(HttpCheck {
            port: port("ready.http.port", table.port)?,
            path: parsed("ready.http.path", table.path.as_deref().unwrap_or("/"))?,
            status: parsed_opt("ready.http.status", table.status.as_deref())?.unwrap_or_default(),
        }),
    }
}

fn ready(table: ReadyTable) -> Result<ReadyProbe, RecipeError> {
    let check = ReadyCheck::one_of(
        table.command.map(|words| command("ready.command", words)).transpose()?,
        table.tcp.map(|number| port("ready.tcp", number)).transpose()?,
        table.http.map(http).transpose()?,
        parsed_opt("ready.file", table.file.as_deref())?,
    );
    let start_period = table.start_period.as_deref();
    let probe = ReadyProbe {
        check: check.map_err(|error| value("ready", error))?,
        interval_ms: duration_ms("ready.interval", table.interval.as_deref().unwrap_or("500ms"))?,
        timeout_ms: duration_ms("ready.timeout", table.timeout.as_deref().unwrap_or("120s"))?,
        start_period_ms: start_period.map(|text| duration_ms("ready.start_period", text)).transpose()?,
        retries: match table.retries {
            None => None,
            Some(count) => {
                Some(NonZeroU32::new(count).ok_or_else(|| value("ready.retries", "at least 1 is wanted"))?)
            }
        },
    };
    probe.checked().map_err(|error| value("ready.start_period", error))
}

fn snapshot(table: SnapshotTable) -> Result<SnapshotOptions, RecipeError> {
    let plan = CapturePlan { warm_up: table.warm_up, drop_caches: table.drop_caches };
    plan.check().map_err(|error| value("snapshot.warm_up", error))?;
    Ok(SnapshotOptions { auto: table.auto, plan })
}

fn seed(table: Option<SeedTable>) -> Result<SeedOptions, RecipeError> {
    match table {
        None => Ok(SeedOptions::Auto),
        Some(SeedTable { kind: SeedWord::None, user_data: Some(_), .. }) => {
            Err(value("seed.user_data", "a seed of type `none` has no user data"))
        }
        Some(SeedTable { kind: SeedWord::None, user: Some(_), .. }) => {
            Err(value("seed.user", "a seed of type `none` lets no user in"))
        }
        Some(SeedTable { kind: SeedWord::None, .. }) => Ok(SeedOptions::Never),
        Some(SeedTable { kind: SeedWord::NoCloud, user_data, user }) => {
            let user = user.map(|name| name.parse()).transpose();
            Ok(SeedOptions::NoCloud {
                user_data,
                user: user.map_err(|error: InvalidLoginName| value("seed.user", error))?,
            })
        }
    }
}

fn agent(
    table: AgentTable,
    entrypoint: Option<EntrypointTable>,
    image_has_one: bool,
) -> Result<AgentOptions, RecipeError> {
    let init = match table.init.as_deref() {
        None | Some("auto") => Init::Auto,
        Some("agent") => Init::Agent,
        Some(path) if path.starts_with('/') && path.len() > 1 && !path.contains('\0') => {
            Init::Image(path.to_owned())
        }
        Some(_) => {
            return Err(value("agent.init", "`auto`, `agent` or an absolute path in the image is wanted"));
        }
    };
    let entrypoint = entrypoint
        .map(|table| {
            Ok(Entrypoint {
                command: match table.command {
                    None if image_has_one => Vec::new(),
                    given => command("entrypoint.command", given.unwrap_or_default())?,
                },
                env: table.env,
                workdir: table.workdir,
                user: table.user,
            })
        })
        .transpose()?;
    if let (Init::Image(path), Some(_)) = (&init, &entrypoint) {
        return Err(value("agent.init", format_args!("`{path}` and an entrypoint cannot both be process 1")));
    }
    let modules = words("agent.modules", table.modules, &['-', '_'])?;
    Ok(AgentOptions { init, entrypoint, modules, root: RootFormat::default() })
}

fn variants(tables: Vec<VariantTable>, base: &MachineShape) -> Result<Vec<Variant>, RecipeError> {
    if tables.len() > VARIANTS_MAX {
        return Err(value("variant", format_args!("{} variants, more than {VARIANTS_MAX}", tables.len())));
    }
    let mut variants = Vec::with_capacity(tables.len());
    for table in tables {
        let field = |name: &str| format!("variant.{}.{name}", crate::text::clip(&table.name));
        let variant = Variant {
            name: parsed("variant.name", &table.name)?,
            role: parsed_opt(&field("role"), table.role.as_deref())?,
            profile: parsed_opt(&field("profile"), table.profile.as_deref())?,
            vcpus: table.vcpus,
            memory: parsed_opt(&field("memory"), table.memory.as_deref())?,
            data_disk: parsed_opt(&field("data_disk"), table.data_disk.as_deref())?,
            board: table.board,
            boot_args: table.boot_args.map(|args| boot_args(&field("boot_args"), args)).transpose()?,
        };
        variant.shape(base).checked().map_err(|error| value(&format!("variant.{}", variant.name), error))?;
        variants.push(variant);
    }
    variants.sort_by(|a, b| a.name.cmp(&b.name));
    match variants.windows(2).find(|pair| pair[0].name == pair[1].name) {
        Some(pair) => Err(value("variant.name", format_args!("`{}` is given twice", pair[0].name))),
        None => Ok(variants),
    }
}
