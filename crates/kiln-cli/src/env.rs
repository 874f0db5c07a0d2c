//! The environment: the one place that reads it.
#![expect(clippy::disallowed_methods, reason = "this is where the environment is collected")]

use crate::error::CliError;
use kiln_engine::Settings;
use kiln_engine::catalogs::{AccessKey, BucketAccess};
use kiln_guest::token::VariableName;
use kiln_sys::{IoResult, Toolbox, fs, process, tool};
use std::ffi::OsString;
use std::path::PathBuf;

/// Variables that programs kiln runs may see: how to reach the network, with which credentials, and where temporary files go.
const HANDED_ON: [&str; 12] = [
    "HOME",
    "GNUPGHOME",
    "DOCKER_CONFIG",
    "TMPDIR",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// Collects what the engine needs to know.
pub(crate) fn settings(home: Option<PathBuf>) -> IoResult<Settings> {
    Ok(Settings { home: self::home(home), toolbox: toolbox(), own_program: process::own_program()? })
}

/// Returns the store's directory: the option, `KILN_HOME`, `/var/lib/kiln` for root, else the user's data directory.
fn home(option: Option<PathBuf>) -> PathBuf {
    let path = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let chosen = option.or_else(|| path("KILN_HOME")).unwrap_or_else(|| {
        if process::is_root() {
            return PathBuf::from("/var/lib/kiln");
        }
        path("XDG_DATA_HOME")
            .or_else(|| path("HOME").map(|home| home.join(".local/share")))
            .map_or_else(|| PathBuf::from("kiln-home"), |data| data.join("kiln"))
    });
    std::path::absolute(&chosen).unwrap_or(chosen)
}

/// Returns where microvm-runtime keeps its templates.
pub(crate) fn rootfs_templates() -> PathBuf {
    directory("MICROVM_ROOTFS_TEMPLATE_DIR", "/var/lib/microvm/rootfs-templates")
}

/// Returns where microvm-runtime keeps its machines' disks.
pub(crate) fn rootfs_clones() -> PathBuf {
    directory("MICROVM_ROOTFS_CLONES_DIR", "/var/lib/microvm/rootfs")
}

/// Returns where mvm keeps its templates.
pub(crate) fn mvm_data() -> Result<PathBuf, CliError> {
    data("MVM_DATA_DIR", ".mvm")
}

/// Returns where vm-rs keeps its images.
pub(crate) fn vmrs_data() -> Result<PathBuf, CliError> {
    data("VMRS_DATA_DIR", ".vm-rs")
}

/// Returns the directory that a variable names, else one in the user's home.
fn data(variable: &str, in_home: &str) -> Result<PathBuf, CliError> {
    let path = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    path(variable)
        .or_else(|| Some(path("HOME")?.join(in_home)))
        .ok_or_else(|| CliError::Usage(format!("neither {variable} nor HOME is set: name the directory")))
}

fn directory(variable: &str, otherwise: &str) -> PathBuf {
    let chosen = std::env::var_os(variable).filter(|value| !value.is_empty());
    chosen.map_or_else(|| PathBuf::from(otherwise), PathBuf::from)
}

/// Returns what the user's variables say of buckets, as Amazon's own programs read them.
pub(crate) fn bucket_access() -> Result<BucketAccess, CliError> {
    let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let endpoint = text("AWS_ENDPOINT_URL_S3").or_else(|| text("AWS_ENDPOINT_URL"));
    let region = text("AWS_REGION").or_else(|| text("AWS_DEFAULT_REGION"));
    let key = match (text("AWS_ACCESS_KEY_ID"), text("AWS_SECRET_ACCESS_KEY")) {
        (Some(id), Some(secret)) => AccessKey { id, secret, token: text("AWS_SESSION_TOKEN") },
        _ => return Err(CliError::NoBucketKey),
    };
    Ok(BucketAccess { endpoint, region, key })
}

/// Returns the system's directory for temporary files.
pub(crate) fn temporary() -> PathBuf {
    std::env::temp_dir()
}

/// The user's path first, then the system's: administrators' tools are often missing from a user's.
pub(crate) fn toolbox() -> Toolbox {
    let mut search: Vec<PathBuf> = std::env::var_os("PATH")
        .map(|path| std::env::split_paths(&path).filter(|dir| dir.is_absolute()).collect())
        .unwrap_or_default();
    for dir in tool::SEARCH_DEFAULT {
        if !search.iter().any(|known| known.as_os_str() == dir) {
            search.push(PathBuf::from(dir));
        }
    }
    let env =
        HANDED_ON.iter().filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?))).collect();
    Toolbox::new(search, env)
}

/// Returns a variable that the user names, as it is.
pub(crate) fn variable(name: &VariableName) -> Option<OsString> {
    std::env::var_os(name.as_str())
}

/// Returns where the user's SSH agent listens.
pub(crate) fn ssh_agent() -> Option<OsString> {
    std::env::var_os("SSH_AUTH_SOCK").filter(|value| !value.is_empty())
}

/// Names of private keys that OpenSSH looks for by itself.
const SSH_IDENTITIES: [&str; 5] = ["id_ed25519", "id_ecdsa", "id_rsa", "id_ed25519_sk", "id_ecdsa_sk"];

fn ssh_directory() -> Option<PathBuf> {
    Some(PathBuf::from(std::env::var_os("HOME").filter(|home| !home.is_empty())?).join(".ssh"))
}

/// Returns the user's private SSH keys that OpenSSH looks for by itself.
pub(crate) fn ssh_identities() -> Vec<PathBuf> {
    let all = ssh_directory().into_iter().flat_map(|dir| SSH_IDENTITIES.map(|name| dir.join(name)));
    all.filter(|path| fs::exists(path).unwrap_or(false)).collect()
}

/// Returns the user's public SSH keys; a user without a directory of them has none.
pub(crate) fn ssh_public_files() -> IoResult<Vec<PathBuf>> {
    let Some(dir) = ssh_directory() else { return Ok(Vec::new()) };
    let wanted = |name: &std::ffi::OsStr| {
        let name = name.to_str()?;
        (name.starts_with("id_") && name.ends_with(".pub")).then(|| dir.join(name))
    };
    Ok(fs::optional(fs::list_dir_where(&dir, wanted))?.unwrap_or_default())
}

/// Returns whether colours are unwanted.
pub(crate) fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
        || std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

/// Returns the kind of the user's terminal, for programs in the guest.
pub(crate) fn term() -> String {
    std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned())
}
