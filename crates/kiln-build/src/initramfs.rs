//! The initramfs: the agent as `/init`, its configuration, and the modules it loads. The same input gives the same
//! bytes.

use crate::modules::LoadedModule;
use cpio::newc::{Builder, ModeFileType, Reader, trailer};
use kiln_core::recipe::{AgentOptions, Entrypoint, Init, RootFormat};
use kiln_guest::config::{self, INIT_CONFIG_VERSION, InitConfig};
use kiln_guest::name::NameError;
use kiln_guest::{GuestPath, UserSpec};
use std::io::{self, Read as _, Write};

/// Where modules lie in the initramfs.
pub const MODULES_DIR: &str = "/kiln/modules";
/// Mount options of the root: its unused inode tables stay unwritten, which keeps clones small.
pub const ROOT_OPTIONS: &str = "noinit_itable";

/// Why there is no initramfs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitramfsError {
    /// A name of the recipe is none in a guest.
    #[error("`{field}` cannot be used in a guest")]
    Name {
        /// The recipe's key.
        field: &'static str,
        /// Why not.
        #[source]
        source: NameError,
    },
    /// The configuration breaks a rule of the agent's.
    #[error("the guest's configuration cannot be used")]
    Config(#[source] config::ConfigError),
    /// A file is larger than the format allows.
    #[error("`{name}` has {len} bytes, more than an initramfs can hold in one file")]
    TooLarge {
        /// The file.
        name: String,
        /// Its length.
        len: usize,
    },
    /// It was not made by kiln, or is damaged.
    #[error("the initramfs is not one of kiln's")]
    NotKilns(#[source] io::Error),
    /// Writing failed.
    #[error("cannot write the initramfs")]
    Write(#[from] io::Error),
}

/// Makes the agent's configuration.
pub fn init_config(agent: &AgentOptions, modules: &[LoadedModule]) -> Result<InitConfig, InitramfsError> {
    let path =
        |field, text: &str| GuestPath::new(text).map_err(|source| InitramfsError::Name { field, source });
    let module = |module: &LoadedModule| {
        let path = path("agent.modules", &format!("{MODULES_DIR}/{}.ko", module.name))?;
        Ok(config::Module { path, when: module.when })
    };
    let entrypoint = agent.entrypoint.as_ref().map(entrypoint).transpose()?;
    let config = InitConfig {
        version: INIT_CONFIG_VERSION,
        modules: modules.iter().map(module).collect::<Result<_, InitramfsError>>()?,
        root: config::RootDevice {
            device: path("root", "/dev/vda")?,
            fstype: "ext4".to_owned(),
            options: ROOT_OPTIONS.to_owned(),
            read_only: false,
        },
        base: match agent.root {
            RootFormat::Ext4 => None,
            format => Some(config::RootDevice {
                device: path("root", "/dev/vdb")?,
                fstype: format.as_str().to_owned(),
                options: String::new(),
                read_only: true,
            }),
        },
        init: match &agent.init {
            Init::Agent => config::Init::Agent,
            Init::Image(program) => config::Init::Image(path("agent.init", program)?),
            _ => config::Init::Auto,
        },
        entrypoint,
    };
    // What the agent would refuse at each start is refused once, here.
    InitConfig::from_json(&config.to_json()).map_err(InitramfsError::Config)
}

/// Writes an initramfs.
pub fn write(
    out: &mut dyn Write,
    agent: &[u8],
    config: &InitConfig,
    modules: &[LoadedModule],
) -> Result<(), InitramfsError> {
    let mut archive = Archive { out, inode: 0 };
    for dir in ["dev", "proc", "sys", "newroot", "kiln", "kiln/modules"] {
        archive.entry(dir, ModeFileType::Directory, 0o755, &[], None)?;
    }
    archive.entry("dev/console", ModeFileType::Char, 0o600, &[], Some((5, 1)))?;
    archive.entry("init", ModeFileType::Regular, 0o755, agent, None)?;
    archive.entry("kiln/init.json", ModeFileType::Regular, 0o644, &config.to_json(), None)?;
    for module in modules {
        let name = format!("kiln/modules/{}.ko", module.name);
        archive.entry(&name, ModeFileType::Regular, 0o644, &module.bytes, None)?;
    }
    trailer(archive.out)?;
    Ok(())
}

/// Returns the initramfs with the agent's configuration changed; none where the change is none.
///
/// # Errors
/// [`InitramfsError::NotKilns`] for one that was not made by [`write()`].
pub fn reconfigure(
    initramfs: &[u8],
    change: impl FnOnce(&mut InitConfig) -> Result<(), InitramfsError>,
) -> Result<Option<Vec<u8>>, InitramfsError> {
    let name = config::INIT_CONFIG_PATH.trim_start_matches('/');
    let mut rest = initramfs;
    let mut entries = Vec::new();
    let mut config = None;
    loop {
        let mut reader = Reader::new(rest).map_err(InitramfsError::NotKilns)?;
        if reader.entry().is_trailer() {
            break;
        }
        let entry = reader.entry();
        let (path, mode, inode) = (entry.name().to_owned(), entry.mode(), entry.ino());
        let device = (entry.rdev_major(), entry.rdev_minor());
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).map_err(InitramfsError::NotKilns)?;
        rest = reader.finish().map_err(InitramfsError::NotKilns)?;
        if path == name {
            config = Some((entries.len(), bytes.clone()));
        }
        entries.push((path, mode, inode, device, bytes));
    }
    let Some((index, json)) = config else {
        return Err(InitramfsError::NotKilns(io::Error::new(
            io::ErrorKind::NotFound,
            "it has no configuration",
        )));
    };
    let before = InitConfig::from_json(&json).map_err(InitramfsError::Config)?;
    let mut after = before.clone();
    change(&mut after)?;
    if after == before {
        return Ok(None);
    }
    let json = after.to_json();
    InitConfig::from_json(&json).map_err(InitramfsError::Config)?;
    entries[index].4 = json;
    let mut out = Vec::with_capacity(initramfs.len() + 4096);
    for (path, mode, inode, (major, minor), bytes) in &entries {
        let too_large = |_| InitramfsError::TooLarge { name: path.clone(), len: bytes.len() };
        let builder = Builder::new(path).ino(*inode).mode(*mode).rdev_major(*major).rdev_minor(*minor);
        let mut file = builder.write(&mut out, u32::try_from(bytes.len()).map_err(too_large)?);
        file.write_all(bytes)?;
        file.finish()?;
    }
    trailer(&mut out)?;
    Ok(Some(out))
}

/// Makes what the agent starts of what a recipe says.
///
/// # Errors
/// [`InitramfsError::Name`] when a path or user is none in a guest.
pub fn entrypoint(entrypoint: &Entrypoint) -> Result<config::Entrypoint, InitramfsError> {
    let workdir = |text: &String| {
        GuestPath::new(text.as_str())
            .map_err(|source| InitramfsError::Name { field: "entrypoint.workdir", source })
    };
    let user = |text: &String| {
        text.parse::<UserSpec>().map_err(|source| InitramfsError::Name { field: "entrypoint.user", source })
    };
    Ok(config::Entrypoint {
        argv: entrypoint.command.clone(),
        env: entrypoint.env.clone(),
        cwd: entrypoint.workdir.as_ref().map(workdir).transpose()?,
        user: entrypoint.user.as_ref().map(user).transpose()?,
    })
}

struct Archive<'a> {
    out: &'a mut dyn Write,
    inode: u32,
}

impl Archive<'_> {
    fn entry(
        &mut self,
        name: &str,
        kind: ModeFileType,
        mode: u32,
        bytes: &[u8],
        device: Option<(u32, u32)>,
    ) -> Result<(), InitramfsError> {
        self.inode += 1;
        let mut builder = Builder::new(name).ino(self.inode).mode(mode).set_mode_file_type(kind);
        if let Some((major, minor)) = device {
            builder = builder.rdev_major(major).rdev_minor(minor);
        }
        let too_large = |_| InitramfsError::TooLarge { name: name.to_owned(), len: bytes.len() };
        let mut file = builder.write(&mut self.out, u32::try_from(bytes.len()).map_err(too_large)?);
        file.write_all(bytes)?;
        file.finish()?;
        Ok(())
    }
}
