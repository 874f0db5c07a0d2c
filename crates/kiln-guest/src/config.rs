//! `/kiln/init.json` of the initramfs: what the agent does as PID 1. Written by the image builder.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::limits::{INIT_CONFIG_BYTES_MAX, MODULES_MAX};
use crate::name::{GuestPath, UserSpec};

/// Where the agent looks for the configuration.
pub const INIT_CONFIG_PATH: &str = "/kiln/init.json";

/// Word of the kernel's command line: the entry point waits until the machine has been told its own environment and secrets.
pub const WAIT_ARGUMENT: &str = "kiln.wait=private";

/// Version of the format.
pub const INIT_CONFIG_VERSION: u32 = 1;

/// What the agent does as PID 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitConfig {
    /// Version of the format, [`INIT_CONFIG_VERSION`].
    pub version: u32,
    /// Kernel modules, in load order.
    #[serde(default)]
    pub modules: Vec<Module>,
    /// Root filesystem.
    pub root: RootDevice,
    /// A filesystem that is only read and lies below the root: what is written goes to the root, and the two are one by an
    /// overlay. Left out where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<RootDevice>,
    /// Who is PID 1 once the root is mounted.
    #[serde(default)]
    pub init: Init,
    /// Program the agent runs when it stays PID 1; the guest powers off when it ends.
    #[serde(default)]
    pub entrypoint: Option<Entrypoint>,
}

/// One kernel module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// Uncompressed module in the initramfs.
    pub path: GuestPath,
    /// When it is loaded.
    #[serde(default)]
    pub when: When,
}

/// The serial number of a disk with a seed for the image's cloud-init.
pub const SEED_SERIAL: &str = "seed";

/// When a module is loaded. Each costs time, most of it for its signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// In every guest.
    #[default]
    Always,
    /// When virtio devices are on this bus.
    Bus(Bus),
    /// When a virtio device of this type exists: 1 net, 2 block, 3 console, 4 rng, 19 vsock.
    Device(u32),
    /// When a disk has the serial [`SEED_SERIAL`]; after the driver of disks.
    Seed,
}

/// A bus of virtio devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bus {
    /// PCI.
    Pci,
    /// Memory-mapped registers, told by ACPI or the kernel's command line.
    Mmio,
}

/// Root filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootDevice {
    /// Block device.
    pub device: GuestPath,
    /// Type of the filesystem.
    pub fstype: String,
    /// Mount options for the filesystem, comma separated.
    #[serde(default)]
    pub options: String,
    /// Mounts it read-only.
    #[serde(default)]
    pub read_only: bool,
}

/// Who is PID 1 once the root is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// The agent when there is an entry point or the image has no init, else the image's init.
    #[default]
    Auto,
    /// The agent.
    Agent,
    /// This program of the image.
    Image(GuestPath),
}

/// Program the agent runs as PID 1; its output goes to the console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entrypoint {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Added to the default environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory.
    #[serde(default)]
    pub cwd: Option<GuestPath>,
    /// User to run as.
    #[serde(default)]
    pub user: Option<UserSpec>,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Over the limit.
    #[error("init configuration has {size} bytes, more than {INIT_CONFIG_BYTES_MAX}")]
    TooLarge {
        /// Its size.
        size: usize,
    },
    /// Not JSON, or not of this shape.
    #[error("cannot parse the init configuration: {0}")]
    Parse(#[from] serde_json::Error),
    /// Another version.
    #[error("init configuration has version {version}, not {INIT_CONFIG_VERSION}")]
    Version {
        /// The version.
        version: u32,
    },
    /// Over the limit.
    #[error("init configuration lists {count} modules, more than {MODULES_MAX}")]
    TooManyModules {
        /// The count.
        count: usize,
    },
}

impl InitConfig {
    /// Parses a configuration.
    ///
    /// # Errors
    /// Refuses another version and anything over a limit.
    pub fn from_json(bytes: &[u8]) -> Result<Self, ConfigError> {
        if bytes.len() > INIT_CONFIG_BYTES_MAX {
            return Err(ConfigError::TooLarge { size: bytes.len() });
        }
        let config: Self = serde_json::from_slice(bytes)?;
        if config.version != INIT_CONFIG_VERSION {
            return Err(ConfigError::Version { version: config.version });
        }
        if config.modules.len() > MODULES_MAX {
            return Err(ConfigError::TooManyModules { count: config.modules.len() });
        }
        Ok(config)
    }

    /// Prints the configuration.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        crate::message::to_json(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"version":1,"modules":[{"path":"/kiln/modules/virtio.ko"},
        {"path":"/kiln/modules/virtio_blk.ko","when":{"device":2}},
        {"path":"/kiln/modules/virtio_pci.ko","when":{"bus":"pci"}}],
        "root":{"device":"/dev/vda","fstype":"ext4","options":"","read_only":false},
        "init":{"image":"/sbin/init"},"entrypoint":null}"#;

    #[test]
    fn the_documented_form_parses_and_prints() {
        let config = InitConfig::from_json(TEXT.as_bytes()).unwrap();
        assert_eq!(config.init, Init::Image(GuestPath::new("/sbin/init").unwrap()));
        assert_eq!(config.modules[0].when, When::Always);
        assert_eq!(config.modules[1].when, When::Device(2));
        assert_eq!(config.modules[2].when, When::Bus(Bus::Pci));
        assert_eq!(InitConfig::from_json(&config.to_json()).unwrap(), config);
    }

    #[test]
    fn init_has_plain_names() {
        for (name, init) in [("\"auto\"", Init::Auto), ("\"agent\"", Init::Agent)] {
            let text = TEXT.replace(r#"{"image":"/sbin/init"}"#, name);
            assert_eq!(InitConfig::from_json(text.as_bytes()).unwrap().init, init);
        }
    }

    #[test]
    fn a_configuration_has_a_largest_size() {
        let mut text = TEXT.as_bytes().to_vec();
        text.resize(INIT_CONFIG_BYTES_MAX, b' ');
        InitConfig::from_json(&text).unwrap();
        text.push(b' ');
        let error = InitConfig::from_json(&text).unwrap_err().to_string();
        assert_eq!(error, "init configuration has 262145 bytes, more than 262144");
    }

    #[test]
    fn the_modules_of_a_configuration_are_limited() {
        let with = |count| {
            let mut config = InitConfig::from_json(TEXT.as_bytes()).unwrap();
            config.modules = vec![config.modules[0].clone(); count];
            InitConfig::from_json(&config.to_json())
        };
        assert_eq!(with(MODULES_MAX).unwrap().modules.len(), MODULES_MAX);
        let error = with(MODULES_MAX + 1).unwrap_err().to_string();
        assert_eq!(error, "init configuration lists 129 modules, more than 128");
    }

    #[test]
    fn another_version_is_refused() {
        let text = TEXT.replace("\"version\":1", "\"version\":2");
        assert!(matches!(InitConfig::from_json(text.as_bytes()), Err(ConfigError::Version { version: 2 })));
    }
}
