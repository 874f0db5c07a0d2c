//! Formats that QEMU's program reads: asked first what an image consists of, so that none makes it read other files.

use super::image::Reading;
use super::qcow2::VIRTUAL_BYTES_MAX;
use super::{DiskError, DiskResult};
use kiln_core::recipe::DiskFormat;
use kiln_sys::{Tool, fs};
use serde::Deserialize;
use std::path::Path;
use std::time::Duration;

/// The most bytes that the program may say of an image.
const INFO_BYTES_MAX: usize = 1 << 20;
/// How long a conversion may take.
const DEADLINE: Duration = Duration::from_secs(3600);

#[derive(Debug, Deserialize)]
struct Info {
    #[serde(rename = "virtual-size")]
    virtual_size: u64,
    #[serde(rename = "backing-filename")]
    backing: Option<String>,
    encrypted: Option<bool>,
    #[serde(rename = "format-specific")]
    specific: Option<Specific>,
}

#[derive(Debug, Deserialize)]
struct Specific {
    data: Option<SpecificData>,
}

#[derive(Debug, Deserialize)]
struct SpecificData {
    #[serde(default)]
    extents: Vec<Extent>,
}

#[derive(Debug, Deserialize)]
struct Extent {
    filename: String,
}

/// Checks what has to be known before the program sees the image.
pub(super) fn check_head(path: &Path, format: DiskFormat, head: &[u8]) -> DiskResult<()> {
    // A capacity of zero makes its reader look for a list of other files.
    let capacity = head.get(12..20);
    if head.starts_with(b"KDMV") && capacity.is_none_or(|bytes| bytes.iter().all(|byte| *byte == 0)) {
        return Err(refused(path, format, "its data lies in other files"));
    }
    Ok(())
}

fn refused(path: &Path, format: DiskFormat, problem: impl Into<String>) -> DiskError {
    DiskError::Foreign { path: path.to_owned(), format: format.as_str(), problem: problem.into() }
}

fn tool(path: &Path, format: DiskFormat, reading: &Reading<'_>) -> DiskResult<Tool> {
    let missing = |_| DiskError::NoConverter { path: path.to_owned(), format: format.as_str() };
    reading.toolbox.find("qemu-img").map_err(missing)
}

/// Returns the program as it tells of an image.
fn teller(path: &Path, format: DiskFormat, reading: &Reading<'_>) -> DiskResult<Tool> {
    let tool = tool(path, format, reading)?.stdout_max(INFO_BYTES_MAX);
    Ok(tool.args(["info", "--output=json", "-f", format.as_str(), "--"]).arg(path))
}

/// Returns the program as it converts an image.
fn converter(path: &Path, format: DiskFormat, to: &Path, reading: &Reading<'_>) -> DiskResult<Tool> {
    let tool = tool(path, format, reading)?.deadline(DEADLINE);
    Ok(tool.args(["convert", "-f", format.as_str(), "-O", "raw", "--"]).arg(path).arg(to))
}

/// Checks an image with the program, and returns its virtual size.
pub(super) fn info(path: &Path, format: DiskFormat, reading: &Reading<'_>) -> DiskResult<u64> {
    let path = fs::canonicalize(path)?;
    let said = teller(&path, format, reading)?.run(reading.cancel, &mut |_| ())?.stdout;
    let info: Info =
        serde_json::from_slice(&said).map_err(|error| refused(&path, format, error.to_string()))?;
    if let Some(backing) = info.backing {
        return Err(refused(&path, format, format!("it is based on `{backing}`")));
    }
    if info.encrypted == Some(true) {
        return Err(refused(&path, format, "it is encrypted"));
    }
    let extents = info.specific.and_then(|it| it.data).map(|data| data.extents).unwrap_or_default();
    if extents.iter().any(|extent| Path::new(&extent.filename) != path) {
        return Err(refused(&path, format, "its data lies in other files"));
    }
    if info.virtual_size > VIRTUAL_BYTES_MAX {
        return Err(DiskError::TooLarge { path, size: info.virtual_size });
    }
    Ok(info.virtual_size)
}

/// Writes the disk to a new raw file.
pub(super) fn convert(path: &Path, format: DiskFormat, to: &Path, reading: &Reading<'_>) -> DiskResult<()> {
    info(path, format, reading)?;
    let path = fs::canonicalize(path)?;
    converter(&path, format, to, reading)?.run(reading.cancel, &mut |_| ())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_sys::{Cancel, Toolbox};

    #[test]
    fn the_program_has_so_much_time_and_may_say_so_much() {
        let (toolbox, cancel) = (Toolbox::default(), Cancel::new().unwrap());
        let reading = Reading { toolbox: &toolbox, threads: 1, kept: false, cancel: &cancel };
        let (image, to) = (Path::new("/image"), Path::new("/raw"));
        assert_eq!(teller(image, DiskFormat::Vmdk, &reading).unwrap().limits().1, 1 << 20);
        let hour = Duration::from_secs(3600);
        assert_eq!(converter(image, DiskFormat::Vmdk, to, &reading).unwrap().limits().0, hour);
    }
}
