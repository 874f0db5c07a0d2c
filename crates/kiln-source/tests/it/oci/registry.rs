//! Images of registries: a real one on loopback, filled by skopeo, and one of our own that misbehaves.

mod faults;

use super::make::{Layout, Tar, amd64, digest, layout, listing, merged, scratch};
use crate::download::Waits;
use crate::download::server::{Act, Reply, Request, Server};
use kiln_core::image::ContentDigest;
use kiln_source::download::{Client, ClientOptions};
use kiln_source::oci::{BlobCache, DockerConfig, Image, OciError, RegistryOptions, fetch_layers, resolve};
use kiln_sys::tool::ScratchDir;
use kiln_sys::{Cancel, Toolbox};
use kiln_testing::Registry;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// A cache of its own, and how a registry is asked from it.
struct Puller {
    dir: ScratchDir,
    docker: DockerConfig,
    toolbox: Toolbox,
    offline: bool,
    waits: Waits,
    ranges_bytes_min: u64,
}

impl Puller {
    fn new() -> Self {
        Self {
            dir: scratch(),
            docker: DockerConfig::default(),
            toolbox: Toolbox::default(),
            offline: false,
            waits: Waits::default(),
            ranges_bytes_min: u64::MAX,
        }
    }

    /// Returns one that knows docker's configuration of this text.
    fn configured(text: &str) -> Self {
        let mut puller = Self::new();
        puller.configure(text);
        puller
    }

    fn configure(&mut self, text: &str) {
        std::fs::write(self.dir.path().join("config.json"), text).unwrap();
        self.docker = DockerConfig::read(self.dir.path()).unwrap();
    }

    fn cache(&self) -> BlobCache {
        BlobCache::open(self.dir.path()).unwrap()
    }

    fn asking<T>(&self, ask: impl FnOnce(&RegistryOptions<'_>) -> T) -> T {
        let mut options = ClientOptions::new(&self.toolbox);
        (options.offline, options.ranges_bytes_min) = (self.offline, self.ranges_bytes_min);
        options.clock = Box::new(self.waits.clone());
        let (client, cancel) = (Client::new(options), Cancel::new().unwrap());
        ask(&RegistryOptions { client: &client, docker: &self.docker, cancel: &cancel })
    }

    fn resolve(
        &self,
        name: &str,
        pinned: Option<&ContentDigest>,
    ) -> Result<(ContentDigest, Image), OciError> {
        let (name, cache) = (name.parse().unwrap(), self.cache());
        self.asking(|options| resolve(&name, pinned, &amd64(), &cache, options, &mut |_| ()))
    }

    fn pull(&self, name: &str) -> Result<Image, OciError> {
        let (_, image) = self.resolve(name, None)?;
        self.fetch(name, &image)?;
        Ok(image)
    }

    fn fetch(&self, name: &str, image: &Image) -> Result<(), OciError> {
        let (reference, cache) = (name.parse().unwrap(), self.cache());
        self.asking(|options| fetch_layers(&reference, &image.layers, &cache, options, &|_| ()))
    }

    /// Returns the kinds of files that are there beside the blobs.
    fn left(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.dir.path().join("oci/v1")).unwrap();
        let names = files.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter_map(|name| Some(name.rsplit_once('.')?.1.to_owned())).collect()
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

/// Answers as a registry does that has the image of a layout as `app:v1`, without a name of versions.
fn registry(root: &Path, request: &Request) -> Reply {
    let last = request.path.rsplit('/').next().unwrap();
    let digest = if last == "v1" {
        let index = std::fs::read(root.join("index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
        index["manifests"][0]["digest"].as_str().unwrap().to_owned()
    } else {
        last.to_owned()
    };
    let blob = root.join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap_or_default());
    match std::fs::read(blob) {
        Ok(bytes) => Reply::file(request, &bytes, "").without("ETag"),
        Err(_) => Reply::status(404),
    }
}

/// A registry of our own, whose answers are spoilt.
struct Fake(Server);

impl Fake {
    fn start(layout: &Layout, spoil: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) -> Self {
        let root = layout.path().to_owned();
        Self(Server::start(move |request| spoil(request, registry(&root, request))))
    }

    /// One that gives its images for a token, which it gives to whoever comes with `credentials`.
    fn with_tokens(layout: &Layout, credentials: Option<&'static str>) -> Self {
        Self::start(layout, move |request, reply| {
            if request.path.starts_with("/token") {
                let token = if request.authorization.as_deref() == credentials { "good" } else { "bad" };
                return token_reply(token);
            }
            match request.authorization.as_deref() {
                Some("Bearer good") => reply,
                _ => challenge(request),
            }
        })
    }

    fn host(&self) -> String {
        self.0.address().to_string()
    }

    fn name(&self) -> String {
        format!("{}/app:v1", self.host())
    }

    /// Returns what was asked for a blob.
    fn seen(&self, digest: &ContentDigest) -> Vec<Request> {
        let end = format!("/blobs/{digest}");
        self.0.seen().into_iter().filter(|request| request.path.ends_with(&end)).collect()
    }
}

fn is_blob(request: &Request, digest: &ContentDigest) -> bool {
    request.path == format!("/v2/app/blobs/{digest}")
}

fn with_body(body: &[u8]) -> Reply {
    let mut reply =
        Reply::status(200).without("Content-Length").with(&format!("Content-Length: {}", body.len()));
    reply.body = body.to_vec();
    reply
}

fn token_reply(token: &str) -> Reply {
    with_body(format!(r#"{{"token":"{token}"}}"#).as_bytes())
}

fn challenge(request: &Request) -> Reply {
    let host = request.host.as_deref().unwrap();
    let realm = format!("WWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"own\"");
    Reply::status(401).with(&realm)
}

fn large() -> (Layout, Vec<u8>) {
    let content: String = (0..60_000).map(|number| format!("{number}\n")).collect();
    let layer = Tar::new().file("numbers", &content).end();
    (layout(std::slice::from_ref(&layer)), layer)
}

#[test]
fn two_that_pull_at_once_fetch_each_layer_once() {
    let (made, layer) = large();
    let fake = Fake::start(&made, |_, reply| reply);
    let puller = Puller::new();
    std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| puller.pull(&fake.name()).map(|image| merged(&image))));
        for pulled in both {
            pulled.join().unwrap().unwrap().unwrap();
        }
    });
    assert_eq!(fake.seen(&digest(&layer)).len(), 1);
}

#[test]
fn what_a_registry_lies_about_is_not_kept() {
    let (made, layer) = large();
    let id = digest(&layer);
    let lying = |id: &ContentDigest, bytes: Vec<u8>| {
        let id = format!("/{id}");
        Fake::start(
            &made,
            move |request, reply| {
                if request.path.ends_with(&id) { with_body(&bytes) } else { reply }
            },
        )
    };
    let mut other = layer.clone();
    other[600] ^= 1;
    let puller = Puller::new();
    for (bytes, long) in
        [(other, false), ([layer.clone(), vec![0; 512]].concat(), true), (layer[..512].to_vec(), false)]
    {
        let error = puller.pull(&lying(&id, bytes).name()).unwrap_err();
        match error {
            OciError::Size { actual, expected, .. } => assert!(long && actual == expected + 512),
            error => assert!(matches!(error, OciError::Digest { .. }) && !long, "{error:?}"),
        }
        assert!(!puller.cache().path(&id).exists());
        assert_eq!(puller.left(), Vec::<String>::new());
    }
    let manifest = made.open().unwrap().id;
    let fake = lying(&manifest, b"{}".to_vec());
    let name = format!("{}/app@{manifest}", fake.host());
    assert!(matches!(Puller::new().pull(&name), Err(OciError::Digest { .. })));
}

#[test]
fn a_document_that_is_damaged_in_the_cache_is_fetched_anew() {
    let (made, _) = large();
    let fake = Fake::start(&made, |_, reply| reply);
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
    let fake = Fake::with_tokens(&made, None);
    let puller = Puller::new();
    merged(&puller.pull(&fake.name()).unwrap()).unwrap();
    let seen = fake.0.seen();
    let asked = &seen.iter().find(|request| request.path.starts_with("/token")).unwrap().path;
    assert!(asked.contains("service=own") && asked.contains("scope=repository%3Aapp%3Apull"), "{asked}");
    // No token is as long as what this one says.
    let fake = Fake::start(&made, |request, _| {
        if request.path.starts_with("/token") { with_body(&vec![b' '; 2 << 20]) } else { challenge(request) }
    });
    let error = Puller::new().pull(&fake.name()).unwrap_err().to_string();
    assert_eq!(error, "the image has more bytes in the answer of its token server than 1048576");
}

#[test]
fn credentials_come_from_the_configuration_of_docker_or_a_helper() {
    let (made, _) = large();
    // "me:secret"
    let fake = Fake::with_tokens(&made, Some("Basic bWU6c2VjcmV0"));
    let mut puller = Puller::new();
    assert!(matches!(puller.pull(&fake.name()), Err(OciError::Denied { .. })));
    puller.configure(&format!(r#"{{"auths":{{"{}":{{"auth":"bWU6c2VjcmV0"}}}}}}"#, fake.host()));
    puller.pull(&fake.name()).unwrap();
    // A helper for this host; another for all others.
    let mut puller = Puller::new();
    let helper = puller.dir.path().join("docker-credential-mine");
    let script = "#!/bin/sh\n[ \"$1\" = get ] && read -r host; echo \"{\\\"ServerURL\\\":\\\"$host\\\",\\\"Username\\\":\\\"me\\\",\\\"Secret\\\":\\\"secret\\\"}\"\n";
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    puller.toolbox = Toolbox::new(vec![puller.dir.path().to_owned(), "/bin".into()], Vec::new());
    puller.configure(&format!(r#"{{"credsStore":"none","credHelpers":{{"{}":"mine"}}}}"#, fake.host()));
    puller.pull(&fake.name()).unwrap();
    puller.configure(r#"{"credsStore":"../../bin/sh"}"#);
    assert!(matches!(Puller { dir: scratch(), ..puller }.pull(&fake.name()), Err(OciError::Helper { .. })));
}
