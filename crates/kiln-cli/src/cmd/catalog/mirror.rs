//! `kiln catalog mirror`.

use super::super::Context;
use super::rate;
use crate::env;
use crate::error::{self, CliError, CliResult};
use crate::output;
use clap::Args;
use kiln_build::FetchOptions;
use kiln_core::catalog::ImageName;
use kiln_core::text::count;
use kiln_core::{Arch, BucketPlace, InvalidBucketPlace};
use kiln_engine::catalogs::{MirrorOptions, MirrorPlace};
use serde::Serialize;
use std::num::NonZeroU64;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "\
What is there then is a catalog: any server of files publishes the directory, and a disk carries it.
Images, checksums, signatures and keys are as their publishers made them, so who uses the mirror
checks the same signatures.

A bucket has to be there. It is written with the key in AWS_ACCESS_KEY_ID and
AWS_SECRET_ACCESS_KEY, with AWS_SESSION_TOKEN where there is one. AWS_ENDPOINT_URL and AWS_REGION
stand for the options. Who uses the mirror reads it over http or https, without a key.

Examples:
  kiln catalog mirror /srv/images ubuntu:24.04 debian --sign FINGERPRINT
  kiln catalog mirror s3://site/images ubuntu:24.04 --endpoint-url https://s3.site.example
  kiln catalog add https://images.example/catalog.toml --name site --signer FINGERPRINT
  kiln catalog add /mnt/disk/catalog.toml --name disk")]
pub(super) struct MirrorArgs {
    /// A directory, or s3://BUCKET/PREFIX
    #[arg(value_name = "DEST", value_parser = destination)]
    destination: Destination,
    /// The images: NAME or NAME:RELEASE
    #[arg(value_name = "IMAGE", required_unless_present = "all")]
    names: Vec<ImageName>,
    /// All images of the catalog that are still looked after
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// An architecture [default: this host's]
    #[arg(long = "arch", value_name = "ARCH")]
    arches: Vec<Arch>,
    /// Sign the catalog of the mirror by this key of gpg, and put the public key beside it
    #[arg(long, value_name = "KEYID")]
    sign: Option<String>,
    /// Take what was signed before that which is there, too
    #[arg(long)]
    allow_older: bool,
    /// The server of the bucket [default: Amazon's]
    #[arg(long, value_name = "URL")]
    endpoint_url: Option<String>,
    /// The region of the bucket [default: us-east-1]
    #[arg(long, value_name = "REGION")]
    region: Option<String>,
    /// The most bytes to fetch in a second, such as 2M
    #[arg(long, value_name = "SIZE", value_parser = rate)]
    limit_rate: Option<NonZeroU64>,
    /// Print an object of JSON
    #[arg(long)]
    json: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

/// Where to.
#[derive(Debug, Clone)]
enum Destination {
    Directory(std::path::PathBuf),
    Bucket(BucketPlace),
}

fn destination(text: &str) -> Result<Destination, String> {
    if BucketPlace::is_meant(text) {
        return text.parse().map(Destination::Bucket).map_err(|error: InvalidBucketPlace| error.to_string());
    }
    if text.is_empty() || text.contains("://") {
        return Err("a mirror is made in a directory or in s3://BUCKET/PREFIX".to_owned());
    }
    Ok(Destination::Directory(text.into()))
}

#[derive(Serialize)]
struct Shown {
    catalog: String,
    changed: bool,
    listed: usize,
    images: Vec<ShownImage>,
}

#[derive(Serialize)]
struct ShownImage {
    image: String,
    arch: Arch,
    digest: String,
    serial: Option<String>,
    signer: Option<String>,
    files_fetched: usize,
    bytes_fetched: u64,
}

pub(super) fn mirror(context: &Context, args: &MirrorArgs) -> CliResult {
    let place = match &args.destination {
        Destination::Directory(_) if args.endpoint_url.is_some() || args.region.is_some() => {
            return Err(CliError::Usage("--endpoint-url and --region are for s3://BUCKET/PREFIX".to_owned()));
        }
        Destination::Directory(path) => MirrorPlace::Directory(path.clone()),
        Destination::Bucket(place) => {
            let mut access = env::bucket_access()?;
            access.endpoint = args.endpoint_url.clone().or(access.endpoint);
            access.region = args.region.clone().or(access.region);
            MirrorPlace::Bucket { place: place.clone(), access }
        }
    };
    let arches = match (args.arches.as_slice(), Arch::host()) {
        ([], Some(host)) => vec![host],
        ([], None) => return Err(CliError::Usage("name an architecture with --arch".to_owned())),
        (arches, _) => arches.to_vec(),
    };
    let options = MirrorOptions {
        names: args.names.clone(),
        all: args.all,
        arches,
        fetch: FetchOptions { rate_max: args.limit_rate, ..FetchOptions::default() },
        allow_older: args.allow_older,
        sign: args.sign.clone(),
    };
    let reporter = context.reporter(args.quiet);
    let report = context.engine.mirror(&place, &options, &reporter)?;
    drop(reporter);
    let (mut images, mut failed) = (Vec::new(), 0);
    let all = report.images.len();
    for image in report.images {
        match image.result {
            Ok(mirrored) => images.push(ShownImage {
                image: image.name,
                arch: image.arch,
                digest: mirrored.pin.disk.to_string(),
                serial: mirrored.pin.serial.map(|serial| serial.to_string()),
                signer: mirrored.pin.signer.map(|signer| signer.to_string()),
                files_fetched: mirrored.fetched,
                bytes_fetched: mirrored.bytes,
            }),
            Err(error) => {
                error::tell(&error.into());
                failed += 1;
            }
        }
    }
    if !args.quiet && report.listed > 0 {
        let state = if report.changed { "lists" } else { "is as it was, with" };
        output::tell(&format!("{} {state} {}", report.catalog, count(report.listed, "image")));
        if report.unsigned {
            output::tell("its signature was of the catalog before, and was removed: --sign makes one");
        }
    }
    let (catalog, changed, listed) = (report.catalog, report.changed, report.listed);
    if args.json {
        output::json(Shown { catalog, changed, listed, images });
    } else if listed > 0 {
        output::line(&catalog);
    }
    if failed > 0 { Err(CliError::Some { failed, all }) } else { Ok(ExitCode::SUCCESS) }
}
