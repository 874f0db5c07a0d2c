//! Measures the block table on pairs of images: width of a fingerprint, shape of the table, cost of an update against
//! larger units, time. `docs/performance.md` has the command and the figures.
#![expect(clippy::print_stdout, reason = "it prints what it measured")]

mod image;
mod shapes;
mod time;
mod update;
mod widths;

use image::Image;
use std::error::Error;
use std::path::PathBuf;

/// What a measurement fails with.
type Failure = Box<dyn Error>;

fn main() -> Result<(), Failure> {
    let mut paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let is_first = |option: &str| paths.first().is_some_and(|first| first.as_os_str() == option);
    let (widths_only, update_only) = (is_first("--widths"), is_first("--update"));
    paths.drain(..usize::from(widths_only || update_only));
    if paths.is_empty() || paths.len() % 2 == 1 {
        return Err("usage: block_table [--widths|--update] OLD NEW [OLD NEW]...".into());
    }
    for pair in paths.chunks_exact(2) {
        let (old, new) = (Image::read(&pair[0])?, Image::read(&pair[1])?);
        println!("\n# {} -> {}\n", pair[0].display(), pair[1].display());
        for image in [&old, &new] {
            println!("{image}");
        }
        if !update_only {
            widths::print(&old, &new);
        }
        if widths_only {
            continue;
        }
        update::print(&old, &new)?;
        if !update_only {
            shapes::print(&new)?;
            time::print(&pair[0], &pair[1])?;
        }
    }
    Ok(())
}
