//! What a revision remembers of its flake, in the words of the layout that templates of flakes come from.

use crate::error::BuildError;
use crate::steps::Output;
use kiln_core::digest::Digest;
use kiln_core::recipe::Recipe;
use kiln_sys::fs;
use std::path::Path;

/// The lock of a flake.
const LOCK_FILE: &str = "flake.lock";
/// The largest lock of a flake that is read, in bytes.
pub(super) const FLAKE_LOCK_BYTES_MAX: usize = 16 << 20;
/// The profile and the role of a template that says none.
const UNNAMED: &str = "default";

/// Returns the cache key of that layout: SHA-256 of lock hash, profile and role with `:` between them. Different parts
/// can give one key, so nothing of kiln's is found by it.
pub fn legacy_key(flake_lock_hash: &str, profile: &str, role: &str) -> Digest {
    Digest::of(format!("{flake_lock_hash}:{profile}:{role}").as_bytes())
}

/// Returns SHA-256 of a flake's lock, in hexadecimal; none where it has none.
pub(super) fn lock_hash(dir: &Path) -> Result<Option<String>, BuildError> {
    let bytes = fs::read_optional(&dir.join(LOCK_FILE), FLAKE_LOCK_BYTES_MAX)?;
    Ok(bytes.map(|bytes| Digest::of(&bytes).hex()))
}

/// Profiles and roles of a template and its variants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    profile: String,
    /// Name, profile and role.
    variants: Vec<(String, String, String)>,
}

impl Facts {
    pub(super) fn of(recipe: &Recipe) -> Self {
        let profile = recipe.profile.as_ref().map_or(UNNAMED, |name| name.as_str()).to_owned();
        let variant = |variant: &kiln_core::variant::Variant| {
            let own = variant.profile.as_ref().map_or(profile.as_str(), |name| name.as_str());
            let role = variant.role.as_ref().unwrap_or(&variant.name);
            (variant.name.to_string(), own.to_owned(), role.to_string())
        };
        let variants = recipe.variants.iter().map(variant).collect();
        Self { profile, variants }
    }

    /// Adds what is known once the flake is built.
    pub(super) fn tell(&self, lock_hash: &str, revision_hash: &str, output: &mut Output) {
        output.fact("flake_lock_hash", lock_hash);
        output.fact("nix_revision_hash", revision_hash);
        output.fact("nix_profile", &self.profile);
        output.fact("nix_role", UNNAMED);
        output.fact("nix_key", legacy_key(lock_hash, &self.profile, UNNAMED).hex());
        for (name, profile, role) in &self.variants {
            output.fact(&format!("nix_profile.{name}"), profile);
            output.fact(&format!("nix_role.{name}"), role);
            output.fact(&format!("nix_key.{name}"), legacy_key(lock_hash, profile, role).hex());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_sys::commit::{Existing, write_file};
    use kiln_sys::tool::ScratchDir;

    #[test]
    fn the_legacy_key_has_vectors() {
        // printf '%s' "$lock:$profile:$role" | sha256sum
        for (lock, profile, role, want) in VECTORS {
            assert_eq!(legacy_key(lock, profile, role).hex(), want, "{lock} {profile} {role}");
        }
        assert_eq!(legacy_key("a:b", "c", "d"), legacy_key("a", "b:c", "d"), "why it is no key of kiln's");
    }

    const VECTORS: [(&str, &str, &str, &str); 3] = [
        (
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "minimal",
            "worker",
            "a6662f27d03f81a7612b82fc869d4b73105c8a65c72dea0ca029ec2300f21e37",
        ),
        ("abc", "web", "gateway", "9e4e771338e115b7eab23c815871681f9463699102344968aa387fd8cebb3656"),
        ("", "", "", "71546855d6279ef70d20909b292c42c2dcb02cd06bde01485da52d13e304ebf4"),
    ];

    #[test]
    fn a_flakes_lock_is_hashed_and_has_a_largest_size() {
        let scratch = ScratchDir::new(&std::env::temp_dir()).unwrap();
        let dir = scratch.path();
        assert_eq!(lock_hash(dir).unwrap(), None);
        let put = |bytes: &[u8]| write_file(&dir.join(LOCK_FILE), bytes, 0o644, Existing::Replace).unwrap();
        put(b"abc");
        let want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(lock_hash(dir).unwrap().unwrap(), want);
        put(&vec![b' '; FLAKE_LOCK_BYTES_MAX]);
        assert!(lock_hash(dir).is_ok());
        put(&vec![b' '; FLAKE_LOCK_BYTES_MAX + 1]);
        assert!(lock_hash(dir).unwrap_err().to_string().contains("flake.lock"));
    }

    #[test]
    fn a_variant_has_its_own_role_and_the_templates_profile() {
        let text = "name='a'\nprofile='web'\n[source]\ntype='nix'\nflake='.'\n[[variant]]\nname='one'\n[[variant]]\nname='two'\nrole='db'\n";
        let facts = Facts::of(&kiln_core::recipe::parse(text).unwrap());
        let variant = |name: &str, role: &str| (name.to_owned(), "web".to_owned(), role.to_owned());
        assert_eq!(facts.variants, [variant("one", "one"), variant("two", "db")]);
        let mut output = Output::default();
        facts.tell("lock", "rev", &mut output);
        assert_eq!(output.facts().iter().filter(|(name, _)| name.starts_with("nix_key")).count(), 3);
    }
}
