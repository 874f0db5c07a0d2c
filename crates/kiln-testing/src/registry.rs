//! A real registry of images on loopback: Debian's `docker-registry`.

use kiln_sys::tool::ScratchDir;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A registry without credentials, over plain HTTP. It ends with this.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    host: String,
    _dir: ScratchDir,
}

impl Registry {
    /// Starts one on a free port, and waits until it takes connections.
    pub fn start() -> Self {
        let dir = ScratchDir::new(&std::env::temp_dir()).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host = format!("127.0.0.1:{port}");
        let config = dir.path().join("config.yml");
        let data = dir.path().join("data").display().to_string();
        let text = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {data}}}}}\nhttp: {{addr: {host}}}\n"
        );
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("docker-registry is installed");
        while TcpStream::connect(&host).is_err() {
            assert_eq!(child.try_wait().unwrap(), None, "the registry ended");
            std::thread::yield_now();
        }
        Self { child, host, _dir: dir }
    }

    /// Returns its address, as references begin with it.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Has `skopeo` copy an image of an OCI layout to it, under a name such as `team/app:v1`.
    pub fn push(&self, layout: &Path, image: Option<&str>, name: &str) {
        let image = image.map_or(String::new(), |image| format!(":{image}"));
        let output = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--dest-tls-verify=false"])
            .args([format!("oci:{}{image}", layout.display()), format!("docker://{}/{name}", self.host)])
            .output()
            .expect("skopeo is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
