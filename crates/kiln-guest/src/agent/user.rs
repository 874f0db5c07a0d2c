//! Users and groups of the guest, from `/etc/passwd` and `/etc/group`.

use std::fs::File;
use std::io::{self, Read};

use rustix::fs::{Gid, Uid};

use crate::error::{ErrorKind, RemoteError};
use crate::name::UserSpec;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// Largest of these files that is read.
const DATABASE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Who a program runs as.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    /// All groups, with the primary one.
    pub(super) groups: Vec<Gid>,
    pub(super) name: Option<String>,
    pub(super) home: String,
}

#[derive(Debug, PartialEq, Eq)]
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// Resolves a user; a number needs no entry.
pub(super) fn resolve(user: Option<&UserSpec>) -> Result<Identity, RemoteError> {
    resolve_in(user, &read(PASSWD)?, &read(GROUP)?, rustix::process::geteuid().as_raw())
}

fn read(path: &str) -> Result<String, RemoteError> {
    let failed = |error| RemoteError::from_io(format!("cannot read {path}"), &error);
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(DATABASE_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?,
        // An image without users has numbers only.
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(failed(error)),
    };
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn resolve_in(
    user: Option<&UserSpec>,
    passwd: &str,
    groups: &str,
    current: u32,
) -> Result<Identity, RemoteError> {
    let current = current.to_string();
    let wanted = user.map_or(current.as_str(), UserSpec::user);
    let number = wanted.parse::<u32>().ok();
    let account = accounts(passwd)
        .find(|account| account.name == wanted)
        .or_else(|| accounts(passwd).find(|account| Some(account.uid) == number));
    let (uid, primary) = match (&account, number) {
        (Some(account), _) => (account.uid, account.gid),
        (None, Some(number)) => (number, if user.is_none() { number } else { 0 }),
        (None, None) => {
            return Err(RemoteError::new(ErrorKind::NotFound, format!("user {wanted} is not in {PASSWD}")));
        }
    };
    let gid = match user.and_then(UserSpec::group) {
        None => primary,
        Some(group) => group_id(group, groups)?,
    };
    let mut all = vec![gid];
    if let (Some(account), None) = (&account, user.and_then(UserSpec::group)) {
        for (_, id, members) in group_entries(groups) {
            if members.split(',').any(|member| member == account.name) && !all.contains(&id) {
                all.push(id);
            }
        }
    }
    if uid == u32::MAX || all.contains(&u32::MAX) {
        return Err(RemoteError::new(ErrorKind::Invalid, format!("user {wanted} has no valid number")));
    }
    Ok(Identity {
        uid: Uid::from_raw(uid),
        gid: Gid::from_raw(gid),
        groups: all.into_iter().map(Gid::from_raw).collect(),
        name: account.as_ref().map(|account| account.name.to_owned()),
        home: account.as_ref().filter(|a| !a.home.is_empty()).map_or("/", |a| a.home).to_owned(),
    })
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1)?;
        Some(Account { name, uid, gid, home })
    })
}

fn group_entries(groups: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    groups.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let id = fields.nth(1)?.parse().ok()?;
        Some((name, id, fields.next().unwrap_or_default()))
    })
}

fn group_id(group: &str, groups: &str) -> Result<u32, RemoteError> {
    group_entries(groups)
        .find(|(name, _, _)| *name == group)
        .map(|(_, id, _)| id)
        .or_else(|| group.parse().ok())
        .ok_or_else(|| RemoteError::new(ErrorKind::NotFound, format!("group {group} is not in {GROUP}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:100:101:Web:/srv/web:/bin/false\nbroken\n";
    const GROUPS: &str = "root:x:0:\nweb:x:101:\nlog:x:7:root,web\naudio:x:29:web\n";

    fn resolved(user: &str) -> Result<(u32, Vec<u32>, String), ErrorKind> {
        let user: UserSpec = user.parse().unwrap();
        resolve_in(Some(&user), USERS, GROUPS, 0)
            .map(|i| (i.uid.as_raw(), i.groups.iter().map(|g| g.as_raw()).collect(), i.home))
            .map_err(|error| error.kind)
    }

    #[test]
    fn names_bring_their_groups() {
        assert_eq!(resolved("web"), Ok((100, vec![101, 7, 29], "/srv/web".to_owned())));
        assert_eq!(resolved("100"), Ok((100, vec![101, 7, 29], "/srv/web".to_owned())));
        assert_eq!(resolved("web:audio"), Ok((100, vec![29], "/srv/web".to_owned())));
    }

    #[test]
    fn numbers_need_no_entry() {
        assert_eq!(resolved("4242"), Ok((4242, vec![0], "/".to_owned())));
        assert_eq!(resolved("4242:17"), Ok((4242, vec![17], "/".to_owned())));
    }

    #[test]
    fn unknown_names_are_not_found() {
        assert_eq!(resolved("nobody"), Err(ErrorKind::NotFound));
        assert_eq!(resolved("web:nogroup"), Err(ErrorKind::NotFound));
        assert_eq!(resolved("4294967295"), Err(ErrorKind::Invalid));
    }

    #[test]
    fn no_user_is_the_agent_itself() {
        let identity = resolve_in(None, USERS, GROUPS, 0).unwrap();
        assert_eq!((identity.uid.as_raw(), identity.home.as_str()), (0, "/root"));
        assert_eq!(resolve_in(None, "", "", 5).unwrap().home, "/");
    }
}
