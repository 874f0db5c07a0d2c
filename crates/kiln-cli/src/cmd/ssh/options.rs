//! What OpenSSH is told of a machine, as options of its command line and of its configuration.

use super::super::Context;
use crate::cmd::ssh::keys;
use crate::env;
use crate::error::CliError;
use kiln_core::LoginName;
use kiln_engine::ssh::{DIAL_COMMAND, SSH_PORT, SshTarget, SshTransport};
use kiln_store::MachineEntry;
use kiln_sys::process;
use std::path::{Path, PathBuf};

/// How a machine is reached.
#[derive(Debug, Clone)]
pub(super) struct SshOptions {
    pub(super) target: SshTarget,
    pub(super) user: LoginName,
    /// Private keys besides those of the user's agent; none where kiln has none of its own, and OpenSSH knows where to look.
    pub(super) identities: Vec<PathBuf>,
    program: PathBuf,
    home: PathBuf,
}

/// A path that OpenSSH's configuration has no form for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} cannot be written in a configuration of ssh: it has a quote, a backslash, `${{` or a control character", .0.display())]
pub(crate) struct UnwritablePath(PathBuf);

impl SshOptions {
    pub(super) fn of(
        context: &Context,
        entry: &MachineEntry,
        user: Option<LoginName>,
    ) -> Result<Self, CliError> {
        let target = context.engine.ssh_target(entry)?;
        // One identity that is named keeps OpenSSH from its usual ones.
        let identities = match keys::own(context)? {
            Some(own) => std::iter::once(own.private).chain(env::ssh_identities()).collect(),
            None => Vec::new(),
        };
        Ok(Self {
            user: user.unwrap_or_else(|| target.user.clone()),
            target,
            identities,
            program: process::own_program()?,
            home: context.engine.store().root().to_owned(),
        })
    }

    /// Returns the command by which OpenSSH comes through the agent, where it has to.
    pub(super) fn proxy_command(&self) -> Result<Option<String>, UnwritablePath> {
        if self.target.transport != SshTransport::Agent {
            return Ok(None);
        }
        let (program, home) = (shell_word(&self.program)?, shell_word(&self.home)?);
        let machine = &self.target.host_key_alias;
        Ok(Some(format!("{program} --home {home} {DIAL_COMMAND} {machine} {SSH_PORT}")))
    }

    /// Returns the port on this host, where one is published.
    pub(super) fn port(&self) -> Option<u16> {
        match self.target.transport {
            SshTransport::Port(port) => Some(port),
            _ => None,
        }
    }

    /// Returns names and values, in the order in which they are written.
    pub(super) fn pairs(&self) -> Result<Vec<(&'static str, String)>, UnwritablePath> {
        let mut pairs = vec![("HostName", "127.0.0.1".to_owned())];
        if let Some(port) = self.port() {
            pairs.push(("Port", port.to_string()));
        }
        pairs.extend(self.proxy_command()?.map(|command| ("ProxyCommand", command)));
        pairs.push(("User", self.user.to_string()));
        for path in &self.identities {
            pairs.push(("IdentityFile", quoted(path)?));
        }
        pairs.extend([
            ("UserKnownHostsFile", quoted(&self.target.known_hosts)?),
            ("HostKeyAlias", self.target.host_key_alias.clone()),
            ("StrictHostKeyChecking", "accept-new".to_owned()),
            ("CheckHostIP", "no".to_owned()),
        ]);
        Ok(pairs)
    }
}

/// Returns a path's text with OpenSSH's tokens taken for themselves.
fn text(path: &Path) -> Result<String, UnwritablePath> {
    let unwritable = || UnwritablePath(path.to_owned());
    let text = path.to_str().ok_or_else(unwritable)?;
    // Not all of its versions know an escape for these, and none has one for the last.
    if text.contains(['"', '\\']) || text.contains("${") || text.chars().any(char::is_control) {
        return Err(unwritable());
    }
    Ok(text.replace('%', "%%"))
}

/// Returns a path as a value of OpenSSH's configuration.
fn quoted(path: &Path) -> Result<String, UnwritablePath> {
    Ok(format!("\"{}\"", text(path)?))
}

/// Returns a path as a word of the shell's that runs a `ProxyCommand`.
fn shell_word(path: &Path) -> Result<String, UnwritablePath> {
    Ok(format!("'{}'", text(path)?.replace('\'', r"'\''")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(transport: SshTransport) -> SshOptions {
        SshOptions {
            target: SshTarget {
                user: LoginName::root(),
                transport,
                known_hosts: "/a b/machines/0123456789ab/known_hosts".into(),
                host_key_alias: "0123456789ab".to_owned(),
            },
            user: LoginName::root(),
            identities: vec!["/a b/ssh/id_ed25519".into()],
            program: "/it's/50%/kiln".into(),
            home: "/a b".into(),
        }
    }

    fn block(options: &SshOptions) -> String {
        let pairs = options.pairs().unwrap();
        pairs.iter().map(|(key, value)| format!("{key} {value}\n")).collect()
    }

    #[test]
    fn paths_are_quoted_as_each_reader_wants_them() {
        insta::assert_snapshot!(block(&options(SshTransport::Agent)), @r#"
        HostName 127.0.0.1
        ProxyCommand '/it'\''s/50%%/kiln' --home '/a b' __dial 0123456789ab 22
        User root
        IdentityFile "/a b/ssh/id_ed25519"
        UserKnownHostsFile "/a b/machines/0123456789ab/known_hosts"
        HostKeyAlias 0123456789ab
        StrictHostKeyChecking accept-new
        CheckHostIP no
        "#);
        let direct = block(&options(SshTransport::Port(2222)));
        assert!(direct.starts_with("HostName 127.0.0.1\nPort 2222\nUser root\n"), "{direct}");
    }

    #[test]
    fn a_path_that_cannot_be_written_is_refused() {
        for path in ["/a\"b", "/a\\b", "/a\nb", "/${HOME}/x"] {
            let mut options = options(SshTransport::Agent);
            options.target.known_hosts = path.into();
            assert_eq!(options.pairs(), Err(UnwritablePath(path.into())));
        }
        assert_eq!(quoted(Path::new("/a$b/~c")).unwrap(), "\"/a$b/~c\"");
    }
}
