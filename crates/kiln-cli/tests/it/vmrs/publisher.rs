//! Somebody who publishes images: a server on loopback, a key, and a catalog that tells of both.

use kiln_testing::{FileServer, Gpg, TestContext};
use std::path::{Path, PathBuf};
use std::process::Command;

pub(super) struct Publisher {
    files: PathBuf,
    server: FileServer,
    gpg: Gpg,
}

impl Publisher {
    /// Begins to serve, and adds a catalog: `demo`, which is signed, and `plain`, which is not and has its kernel outside.
    pub(super) fn new(context: &TestContext) -> Self {
        let files = context.work().join("published");
        std::fs::create_dir(&files).unwrap();
        let (server, gpg) = (FileServer::start(&files), Gpg::new());
        let signer = gpg.key("demo", "ed25519", "sign", "never");
        let key = String::from_utf8(gpg.run(0, &["--armor", "--export"], b"")).unwrap();
        let address = server.url("");
        let address = address.trim_end_matches('/');
        let catalog = format!(
            "version = 1\n[[distribution]]\nname = \"demo\"\ntitle = \"Demo\"\nuser = \"demo\"\n\
             arch = {{ x86_64 = \"amd64\", aarch64 = \"arm64\" }}\nformat = \"qcow2\"\nurl = \"{address}\"\n\
             disk = \"demo-{{release}}.img\"\nchecksums = \"SHA256SUMS\"\nsignature = \"SHA256SUMS.sig\"\n\
             signers = [\"{signer}\"]\nkeys = [\"\"\"{key}\"\"\"]\n\
             [[distribution.release]]\nname = \"1\"\naliases = [\"one\"]\n[[distribution.release]]\nname = \"2\"\n\
             [[distribution]]\nname = \"plain\"\ntitle = \"Plain\"\nuser = \"plain\"\n\
             arch = {{ x86_64 = \"amd64\", aarch64 = \"arm64\" }}\nformat = \"qcow2\"\nurl = \"{address}\"\n\
             disk = \"plain.img\"\nkernel = \"plain-kernel\"\nchecksums = \"SHA512SUMS\"\n\
             [[distribution.release]]\nname = \"1\"\n"
        );
        context.kiln(["ls"]).ok();
        let catalogs = context.home().join("catalogs");
        std::fs::create_dir_all(&catalogs).unwrap();
        std::fs::write(catalogs.join("test.toml"), catalog).unwrap();
        Self { files, server, gpg }
    }

    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.files.join(name), bytes).unwrap();
    }

    /// Publishes the checksums of disks of `demo`, by release, signed on a day. The disks cannot be fetched.
    pub(super) fn demo(&self, day: u64, disks: &[(&str, &Path)]) {
        let lines =
            disks.iter().map(|(release, path)| format!("{}  demo-{release}.img\n", sum("sha256sum", path)));
        let text: String = lines.collect();
        let sign = ["--batch", "--armor", "--output", "-", "--detach-sign"];
        let signature = self.gpg.run(day, &sign, text.as_bytes());
        self.put("SHA256SUMS", text);
        self.put("SHA256SUMS.sig", signature);
    }

    /// Publishes the checksums of `plain`.
    pub(super) fn plain(&self, disk: &Path, kernel: &Path) {
        let (disk, kernel) = (sum("sha512sum", disk), sum("sha512sum", kernel));
        self.put("SHA512SUMS", format!("{disk}  plain.img\n{kernel}  plain-kernel\n"));
    }

    /// Returns what was asked for since this was asked last.
    pub(super) fn asked(&self) -> Vec<String> {
        self.server.asked()
    }
}

pub(super) fn sum(program: &str, path: &Path) -> String {
    let output = Command::new(program).arg(path).output().unwrap();
    assert!(output.status.success(), "{program} {}", path.display());
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}
