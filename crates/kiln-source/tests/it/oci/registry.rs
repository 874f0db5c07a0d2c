//! Images of registries: a real one on loopback, filled by skopeo, and one of our own that misbehaves.

use super::make::{Layout, Tar, amd64, digest, layout, listing, merged, scratch};
use kiln_core::image::{ContentDigest, RegistryReference};
use kiln_source::oci::{BlobCache, DockerConfig, Image, OciError, RegistryOptions, fetch_layers, resolve};
use kiln_sys::tool::ScratchDir;
use kiln_sys::{Cancel, Toolbox};
use kiln_testing::Registry;
use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// A cache of its own, and how a registry is asked from it.
struct Puller {
    dir: ScratchDir,
    docker: DockerConfig,
    toolbox: Toolbox,
    offline: bool,
}

impl Puller {
    fn new() -> Self {
        Self { dir: scratch(), docker: DockerConfig::default(), toolbox: Toolbox::default(), offline: false }
    }

    fn cache(&self) -> BlobCache {
        BlobCache::open(self.dir.path()).unwrap()
    }

    fn resolve(
        &self,
        name: &str,
        pinned: Option<&ContentDigest>,
    ) -> Result<(ContentDigest, Image), OciError> {
        let cancel = Cancel::new().unwrap();
        let (docker, toolbox) = (&self.docker, &self.toolbox);
        let options = RegistryOptions { offline: self.offline, docker, toolbox, cancel: &cancel };
        resolve(&name.parse().unwrap(), pinned, &amd64(), &self.cache(), &options)
    }

    fn pull(&self, name: &str) -> Result<Image, OciError> {
        let (_, image) = self.resolve(name, None)?;
        self.fetch(name, &image)?;
        Ok(image)
    }

    fn fetch(&self, name: &str, image: &Image) -> Result<(), OciError> {
        let cancel = Cancel::new().unwrap();
        let (docker, toolbox) = (&self.docker, &self.toolbox);
        let options = RegistryOptions { offline: self.offline, docker, toolbox, cancel: &cancel };
        let reference: RegistryReference = name.parse().unwrap();
        fetch_layers(&reference, &image.layers, &self.cache(), &options, &|_| ())
    }
}

#[test]
fn an_image_that_skopeo_pushed_is_pulled_pinned_and_there_offline() {
    let real = Registry::start();
    let layers =
        [Tar::new().dir("d").file("d/a", "1").end(), Tar::new().file("d/.wh.a", "").file("b", "2").end()];
    let made = layout(&layers);
    let name = format!("{}/team/app:v1", real.host());
    real.push(made.path(), None, "team/app:v1");
    let mut puller = Puller::new();
    let image = puller.pull(&name).unwrap();
    assert_eq!(listing(&merged(&image).unwrap()), ["b: 2", "d/"]);
    let (top, _) = puller.resolve(&name, None).unwrap();
    let missing = format!("{}/team/none:v1", real.host());
    assert!(matches!(puller.resolve(&missing, None), Err(OciError::NotFound { .. })));
    drop(real);
    // Pinned, nobody is asked; a tag alone means nothing offline.
    assert_eq!(puller.resolve(&name, Some(&top)).unwrap().1.id, image.id);
    puller.offline = true;
    assert_eq!(puller.resolve(&name, Some(&top)).unwrap().1.id, image.id);
    puller.fetch(&name, &image).unwrap();
    assert!(matches!(puller.resolve(&name, None), Err(OciError::Offline { .. })));
    let other = digest(b"other");
    assert!(matches!(puller.resolve(&name, Some(&other)), Err(OciError::Offline { .. })));
}

/// What a registry of our own does wrong.
#[derive(Default, Clone)]
struct Faults {
    /// Breaks off the first answer with each blob after so many bytes.
    cut: Option<usize>,
    /// Knows no ranges.
    no_ranges: bool,
    /// Wants a token, which it gives to whoever comes with this, or to nobody in particular.
    token: Option<Option<&'static str>>,
    /// Gives more bytes with a token than any needs.
    endless_token: bool,
    /// Serves these bytes in place of a blob's.
    lies: HashMap<String, Vec<u8>>,
}

/// A registry that serves a layout as `app:v1`.
struct Fake {
    host: String,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    fn start(layout: &Layout, faults: Faults) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (root, own, log) = (layout.path().to_owned(), host.clone(), Arc::clone(&seen));
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (root, own, log, faults) = (root.clone(), own.clone(), Arc::clone(&log), faults.clone());
                std::thread::spawn(move || serve(stream, &root, &own, &log, &faults));
            }
        });
        Self { host, seen }
    }

    fn name(&self) -> String {
        format!("{}/app:v1", self.host)
    }
}

fn serve(stream: TcpStream, root: &Path, own: &str, log: &Mutex<Vec<String>>, faults: &Faults) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut stream = stream;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let path = line.split(' ').nth(1)?.to_owned();
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            match line.trim().split_once(": ") {
                Some((key, value)) => headers.insert(key.to_lowercase(), value.to_owned()),
                None => break,
            };
        }
        let range: Option<usize> =
            headers.get("range").map(|text| text["bytes=".len()..].trim_end_matches('-').parse().unwrap());
        log.lock()
            .unwrap()
            .push(format!("{path} {}", range.map_or_else(|| "-".to_owned(), |from| from.to_string())));
        let mut answer = |status: &str, extra: &str, body: &[u8], sent: usize| {
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{extra}\r\n", body.len());
            stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body[..sent])).ok()
        };
        if path.starts_with("/token") {
            let known = headers.get("authorization").map(String::as_str);
            if faults.endless_token {
                let body = vec![b' '; 2 << 20];
                answer("200 OK", "", &body, body.len())?;
                continue;
            }
            let body = if Some(known) == faults.token { r#"{"token":"good"}"# } else { r#"{"token":"bad"}"# };
            answer("200 OK", "", body.as_bytes(), body.len())?;
            continue;
        }
        if faults.token.is_some() && headers.get("authorization").map(String::as_str) != Some("Bearer good") {
            let extra = format!("WWW-Authenticate: Bearer realm=\"http://{own}/token\",service=\"own\"\r\n");
            answer("401 Unauthorized", &extra, b"", 0)?;
            continue;
        }
        let digest = match path.rsplit('/').next()? {
            "v1" => {
                let index: serde_json::Value =
                    serde_json::from_slice(&std::fs::read(root.join("index.json")).unwrap()).unwrap();
                index["manifests"][0]["digest"].as_str().unwrap().to_owned()
            }
            digest => digest.to_owned(),
        };
        let hex = digest.strip_prefix("sha256:")?;
        let body = faults
            .lies
            .get(&digest)
            .cloned()
            .or_else(|| std::fs::read(root.join("blobs/sha256").join(hex)).ok());
        let Some(body) = body else {
            answer("404 Not Found", "", b"", 0)?;
            continue;
        };
        match (range.filter(|_| !faults.no_ranges), faults.cut) {
            (Some(from), _) => {
                let extra = format!("Content-Range: bytes {from}-{}/{}\r\n", body.len() - 1, body.len());
                answer("206 Partial Content", &extra, &body[from..], body.len() - from)?;
            }
            (None, Some(cut)) if path.contains("/blobs/") && range.is_none() && cut < body.len() => {
                answer("200 OK", "", &body, cut)?;
                return None;
            }
            _ => answer("200 OK", "", &body, body.len())?,
        }
    }
}

fn large() -> (Layout, Vec<u8>) {
    let content: String = (0..60_000).map(|number| format!("{number}\n")).collect();
    let layer = Tar::new().file("numbers", &content).end();
    (layout(std::slice::from_ref(&layer)), layer)
}

#[test]
fn a_broken_connection_is_gone_on_with_where_it_broke() {
    let (made, layer) = large();
    let fake = Fake::start(&made, Faults { cut: Some(100_000), ..Faults::default() });
    let puller = Puller::new();
    merged(&puller.pull(&fake.name()).unwrap()).unwrap();
    let seen = fake.seen.lock().unwrap().join("\n");
    assert!(seen.ends_with(&format!("{} 100000", digest(&layer))), "{seen}");
    // Without ranges, from the beginning; and a server that always breaks off is told.
    let fake = Fake::start(&made, Faults { cut: Some(100_000), no_ranges: true, ..Faults::default() });
    Puller::new().pull(&fake.name()).unwrap();
}

#[test]
fn two_that_pull_at_once_fetch_each_layer_once() {
    let (made, layer) = large();
    let fake = Fake::start(&made, Faults::default());
    let puller = Puller::new();
    std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| puller.pull(&fake.name()).map(|image| merged(&image))));
        for pulled in both {
            pulled.join().unwrap().unwrap().unwrap();
        }
    });
    let asked = format!("/blobs/{} ", digest(&layer));
    assert_eq!(fake.seen.lock().unwrap().iter().filter(|line| line.contains(&asked)).count(), 1);
}

#[test]
fn what_a_registry_lies_about_is_not_kept() {
    let (made, layer) = large();
    let id = digest(&layer);
    let lying = |bytes: Vec<u8>| Faults { lies: [(id.to_string(), bytes)].into(), ..Faults::default() };
    let mut other = layer.clone();
    other[600] ^= 1;
    let puller = Puller::new();
    let fake = Fake::start(&made, lying(other));
    assert!(matches!(puller.pull(&fake.name()), Err(OciError::Digest { .. })));
    assert!(!puller.cache().path(&id).exists());
    let fake = Fake::start(&made, lying([layer.clone(), vec![0; 512]].concat()));
    assert!(matches!(puller.pull(&fake.name()), Err(OciError::Size { .. })));
    let fake = Fake::start(&made, lying(layer[..512].to_vec()));
    let error = Puller::new().pull(&fake.name()).unwrap_err();
    assert!(matches!(error, OciError::Registry { .. }), "{error:?}");
    let manifest = made.open().unwrap().id;
    let lies = [(manifest.to_string(), b"{}".to_vec())].into();
    let fake = Fake::start(&made, Faults { lies, ..Faults::default() });
    let name = format!("{}/app@{manifest}", fake.host);
    assert!(matches!(Puller::new().pull(&name), Err(OciError::Digest { .. })));
}

#[test]
fn a_document_that_is_damaged_in_the_cache_is_fetched_anew() {
    let (made, _) = large();
    let fake = Fake::start(&made, Faults::default());
    let puller = Puller::new();
    let (top, image) = puller.resolve(&fake.name(), None).unwrap();
    let path = puller.cache().path(&top);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[5] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(puller.resolve(&fake.name(), Some(&top)).unwrap().1.id, image.id);
}

#[test]
fn what_is_public_is_had_with_a_token_for_nobody() {
    let (made, _) = large();
    let fake = Fake::start(&made, Faults { token: Some(None), ..Faults::default() });
    let puller = Puller::new();
    merged(&puller.pull(&fake.name()).unwrap()).unwrap();
    let seen = fake.seen.lock().unwrap();
    let asked = seen.iter().find(|line| line.starts_with("/token")).unwrap();
    assert!(asked.contains("service=own") && asked.contains("scope=repository"), "{asked}");
    // No token is as long as what this one says.
    let fake = Fake::start(&made, Faults { token: Some(None), endless_token: true, ..Faults::default() });
    let error = Puller::new().pull(&fake.name()).unwrap_err().to_string();
    assert_eq!(error, "the image has more bytes in the answer of its token server than 1048576");
}

#[test]
fn credentials_come_from_the_configuration_of_docker_or_a_helper() {
    let (made, _) = large();
    // "me:secret"
    let faults = Faults { token: Some(Some("Basic bWU6c2VjcmV0")), ..Faults::default() };
    let fake = Fake::start(&made, faults);
    let mut puller = Puller::new();
    assert!(matches!(puller.pull(&fake.name()), Err(OciError::Denied { .. })));
    let config = |puller: &mut Puller, text: String| {
        std::fs::write(puller.dir.path().join("config.json"), text).unwrap();
        puller.docker = DockerConfig::read(puller.dir.path()).unwrap();
    };
    config(&mut puller, format!(r#"{{"auths":{{"{}":{{"auth":"bWU6c2VjcmV0"}}}}}}"#, fake.host));
    puller.pull(&fake.name()).unwrap();
    // A helper for this host; another for all others.
    let mut puller = Puller::new();
    let helper = puller.dir.path().join("docker-credential-mine");
    let script = "#!/bin/sh\n[ \"$1\" = get ] && read -r host; echo \"{\\\"ServerURL\\\":\\\"$host\\\",\\\"Username\\\":\\\"me\\\",\\\"Secret\\\":\\\"secret\\\"}\"\n";
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    puller.toolbox = Toolbox::new(vec![puller.dir.path().to_owned(), "/bin".into()], Vec::new());
    config(&mut puller, format!(r#"{{"credsStore":"none","credHelpers":{{"{}":"mine"}}}}"#, fake.host));
    puller.pull(&fake.name()).unwrap();
    config(&mut puller, r#"{"credsStore":"../../bin/sh"}"#.to_owned());
    assert!(matches!(Puller { dir: scratch(), ..puller }.pull(&fake.name()), Err(OciError::Helper { .. })));
}
