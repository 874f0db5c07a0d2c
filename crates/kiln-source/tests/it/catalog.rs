//! What an image is at present: from a real server, signed by GnuPG, in each of the ways that distributions have.

use kiln_core::Arch;
use kiln_core::catalog::{Catalog, Fingerprint, Image, ImageName};
use kiln_core::image::Algorithm;
use kiln_source::catalog::{
    Found, LookUp, LookUpError, Verify, Word, cached_path, check_image_signature, fetch,
};
use kiln_source::download::{Client, ClientOptions};
use kiln_source::openpgp::SignatureError;
use kiln_sys::tool::ScratchDir;
use kiln_sys::{Cancel, Toolbox};
use kiln_testing::{Gpg, Nginx, gpg_day};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

const BYTES: &[u8] = b"the bytes of an image";
struct Site {
    nginx: Nginx,
    gpg: Gpg,
    key: Fingerprint,
    cache: ScratchDir,
}

impl Site {
    fn new() -> Self {
        let gpg = Gpg::new();
        let key = gpg.key("Images <images@example.org>", "ed25519", "sign", "never");
        let nginx = Nginx::start(false);
        nginx.put("disk.img", BYTES);
        Self { nginx, gpg, key, cache: ScratchDir::new(&std::env::temp_dir()).unwrap() }
    }

    /// Returns an image whose entry has these lines.
    fn image(&self, lines: &str) -> Image {
        let text = format!(
            "version = 1\n[[distribution]]\nname = \"demo\"\ntitle = \"Demo\"\nuser = \"me\"\nformat = \"raw\"\n\
             arch = {{ x86_64 = \"amd64\" }}\nurl = \"{}\"\ndisk = \"disk.img\"\n{}\n[[distribution.release]]\nname = \"1\"\n",
            self.nginx.url(""),
            lines.replace("\"KEY\"", &format!("\"{}\"", self.key)),
        );
        let catalog = Catalog::parse(&text).unwrap();
        let name: ImageName = "demo".parse().unwrap();
        catalog.image(&name, Arch::X86_64).unwrap().clone()
    }

    fn look_up(&self, image: &Image, verify: Verify, day: u64) -> Result<Found, LookUpError> {
        let (toolbox, cancel) = (Toolbox::default(), Cancel::new().unwrap());
        let client = Client::new(ClientOptions::new(&toolbox));
        let look_up = LookUp { image, verify, cache: self.cache.path(), now: gpg_day(day) };
        look_up.run(&client, &mut |_| {}, &cancel)
    }

    fn sign(&self, day: u64, text: &[u8]) -> Vec<u8> {
        self.gpg.run(day, &["--batch", "--output", "-", "--detach-sign"], text)
    }

    fn publish_key(&self) {
        self.nginx.put("key.gpg", &self.gpg.export());
    }
}

/// Returns the digest of [`BYTES`], as `sha256sum` computes it.
fn digest() -> String {
    let mut sum = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    sum.stdin.take().unwrap().write_all(BYTES).unwrap();
    let output = sum.wait_with_output().unwrap().stdout;
    String::from_utf8(output).unwrap().split(' ').next().unwrap().to_owned()
}

#[track_caller]
fn assert_signed(found: &Found, site: &Site, serial: &str) {
    assert_eq!(found.pin.disk.hex(), digest());
    assert_eq!(found.pin.signer, Some(site.key));
    assert_eq!(found.pin.serial.unwrap().to_string(), serial);
    assert!(matches!(&found.word, Word::Signed(verified) if verified.signer == site.key), "{:?}", found.word);
}

#[test]
fn checksums_are_signed_beside_or_in_them() {
    let site = Site::new();
    site.publish_key();
    let sums = format!("{}  disk.img\n", digest());
    site.nginx.put("SUMS", sums.as_bytes());
    site.nginx.put("SUMS.gpg", &site.sign(30, sums.as_bytes()));
    let keys = "signers = [\"KEY\"]\nkeys = [\"key.gpg\"]";
    let beside = site.image(&format!("checksums = \"SUMS\"\nsignature = \"SUMS.gpg\"\n{keys}"));
    assert_signed(&site.look_up(&beside, Verify::Usual, 31).unwrap(), &site, "20240131T000000Z");
    let inline = format!("# disk.img: {} bytes\nSHA256 (disk.img) = {}\n", BYTES.len(), digest());
    let inline = site.gpg.run(40, &["--batch", "--output", "-", "--clear-sign"], inline.as_bytes());
    site.nginx.put("CHECKSUM", &inline);
    let within = site.image(&format!("checksums = \"CHECKSUM\"\nsignature = \"inline\"\n{keys}"));
    let found = site.look_up(&within, Verify::Signature, 41).unwrap();
    assert_signed(&found, &site, "20240210T000000Z");
    assert_eq!(found.disk_bytes, Some(BYTES.len() as u64));
    // The word of the server alone, though it is signed.
    let found = site.look_up(&within, Verify::Checksum, 41).unwrap();
    assert_eq!((found.word, found.pin.signer, found.pin.serial), (Word::Checksum, None, None));
    // Text that is not signed at all where it should be.
    site.nginx.put("CHECKSUM", format!("SHA256 (disk.img) = {}\n", digest()).as_bytes());
    let error = site.look_up(&within, Verify::Usual, 41).unwrap_err();
    assert!(
        matches!(&error, LookUpError::Signature { source, .. } if matches!(**source, SignatureError::ClearSigned(_))),
        "{error:?}"
    );
    // From the future.
    site.nginx.put("CHECKSUM", &inline);
    let error = site.look_up(&within, Verify::Usual, 30).unwrap_err();
    assert!(
        matches!(&error, LookUpError::Signature { source, .. } if matches!(**source, SignatureError::Future { .. })),
        "{error:?}"
    );
}

#[test]
fn a_signature_of_a_key_that_has_expired_is_refused() {
    let mut site = Site::new();
    site.key = site.gpg.key("Old <old@example.org>", "ed25519", "sign", "1y");
    site.publish_key();
    let sums = format!("{}  disk.img\n", digest());
    site.nginx.put("SUMS", sums.as_bytes());
    let old = site.key.to_string();
    let signature = site.gpg.run(
        30,
        &["--batch", "--local-user", &old, "--output", "-", "--detach-sign"],
        sums.as_bytes(),
    );
    site.nginx.put("SUMS.gpg", &signature);
    let image = site
        .image("checksums = \"SUMS\"\nsignature = \"SUMS.gpg\"\nsigners = [\"KEY\"]\nkeys = [\"key.gpg\"]");
    site.look_up(&image, Verify::Usual, 300).unwrap();
    let error = site.look_up(&image, Verify::Usual, 400).unwrap_err();
    assert!(
        matches!(&error, LookUpError::Signature { source, .. } if matches!(**source, SignatureError::KeyExpired { .. })),
        "{error:?}"
    );
}

#[test]
fn keys_come_with_the_catalog_and_nobody_is_asked_for_them() {
    let site = Site::new();
    let sums = format!("{}  disk.img\n", digest());
    site.nginx.put("SUMS", sums.as_bytes());
    site.nginx.put("SUMS.gpg", &site.sign(30, sums.as_bytes()));
    let armoured = String::from_utf8(site.gpg.run(0, &["--armor", "--export"], b"")).unwrap();
    let image = site.image(&format!(
        "checksums = \"SUMS\"\nsignature = \"SUMS.gpg\"\nsigners = [\"KEY\"]\nkeys = ['''{armoured}''']"
    ));
    assert_signed(&site.look_up(&image, Verify::Usual, 31).unwrap(), &site, "20240131T000000Z");
    let Site { nginx, .. } = site;
    assert_eq!(nginx.answered().len(), 2);
}

#[test]
fn a_manifest_of_one_file_needs_no_name() {
    let site = Site::new();
    site.nginx.put("disk.img.SHA256", format!("{}\n", digest()).as_bytes());
    let image = site.image("checksums = \"disk.img.SHA256\"");
    let found = site.look_up(&image, Verify::Usual, 31).unwrap();
    assert_eq!((found.pin.disk.hex(), &found.word), (digest().as_str(), &Word::Checksum));
    let error = site.look_up(&image, Verify::Signature, 31).unwrap_err();
    assert!(matches!(error, LookUpError::NobodySigns), "{error:?}");
    site.nginx.put("disk.img.SHA256", format!("{}  other.img\n", digest()).as_bytes());
    let error = site.look_up(&image, Verify::Usual, 31).unwrap_err();
    assert!(matches!(error, LookUpError::Checksums { .. }), "{error:?}");
}

#[test]
fn disk_and_kernel_are_of_one_list() {
    let site = Site::new();
    site.publish_key();
    let sums = |kernel: &str| format!("{}  disk.img\n{kernel}", digest());
    let image = site.image(
        "kernel = \"unpacked/vmlinuz\"\nchecksums = \"SUMS\"\nsignature = \"SUMS.gpg\"\nsigners = [\"KEY\"]\nkeys = [\"key.gpg\"]",
    );
    let publish = |sums: String| {
        site.nginx.put("SUMS", sums.as_bytes());
        site.nginx.put("SUMS.gpg", &site.sign(30, sums.as_bytes()));
    };
    publish(sums(""));
    let error = site.look_up(&image, Verify::Usual, 31).unwrap_err();
    assert!(matches!(error, LookUpError::NotListed { .. }), "{error:?}");
    publish(sums(&format!("{}  vmlinuz\n", "a".repeat(64))));
    let found = site.look_up(&image, Verify::Usual, 31).unwrap();
    assert_eq!(found.pin.kernel.unwrap().hex(), "a".repeat(64));
}

#[test]
fn a_signature_over_the_image_is_checked_when_it_is_there() {
    let site = Site::new();
    site.publish_key();
    site.nginx.put("disk.img.SHA256", format!("{}\n", digest()).as_bytes());
    site.nginx.put("disk.img.sig", &site.sign(30, BYTES));
    let image = site.image(
        "checksums = \"disk.img.SHA256\"\nimage_signature = \"disk.img.sig\"\nsigners = [\"KEY\"]\nkeys = [\"key.gpg\"]",
    );
    let found = site.look_up(&image, Verify::Usual, 31).unwrap();
    assert_eq!(found.word, Word::Checksum);
    let (toolbox, cancel) = (Toolbox::default(), Cancel::new().unwrap());
    let client = Client::new(ClientOptions::new(&toolbox));
    let cache = site.cache.path();
    fetch(&image.urls, &found.pin.disk, None, cache, &client, &mut |_| {}, &cancel).unwrap();
    let path = cached_path(cache, &found.pin.disk);
    let look_up = LookUp { image: &image, verify: Verify::Usual, cache, now: gpg_day(31) };
    let check = |path: &Path| check_image_signature(&look_up, path, &client, &mut |_| {}, &cancel);
    assert_eq!(check(&path).unwrap().unwrap().signer, site.key);
    let other = cache.join("other");
    std::fs::write(&other, b"the bytes of another").unwrap();
    let error = check(&other).unwrap_err();
    assert!(
        matches!(&error, LookUpError::Signature { source, .. } if matches!(**source, SignatureError::False { .. })),
        "{error:?}"
    );
}

#[test]
fn what_nobody_checks_is_named_by_what_it_is() {
    let site = Site::new();
    let image = site.image("checksums = \"missing\"");
    let found = site.look_up(&image, Verify::Nothing, 31).unwrap();
    assert_eq!((found.pin.disk.hex(), found.pin.disk.algorithm()), (digest().as_str(), Algorithm::Sha256));
    assert_eq!(std::fs::read(cached_path(site.cache.path(), &found.pin.disk)).unwrap(), BYTES);
    let error = site.look_up(&image, Verify::Usual, 31).unwrap_err();
    assert!(matches!(error, LookUpError::Download(_)), "{error:?}");
}
