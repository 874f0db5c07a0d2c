//! What the tests share: scratch directories, facts, programs of the host.

use kiln_build::{BuildError, BuildPlan, FetchOptions, HostFacts, PlanContext, Quiet, plan};
use kiln_core::catalog::Catalog;
use kiln_core::lock::Pins;
use kiln_core::recipe::Recipe;
use kiln_sys::tool::ScratchDir;
use kiln_sys::{Cancel, Toolbox, fs};
use std::io::Write as _;
use std::path::Path;

pub(crate) fn scratch() -> ScratchDir {
    ScratchDir::new(&std::env::temp_dir()).unwrap()
}

pub(crate) fn facts() -> HostFacts {
    HostFacts::gather(&Toolbox::default(), &Cancel::new().unwrap()).unwrap()
}

/// Runs a program and returns its standard output.
pub(crate) fn output(program: &str, args: &[&str]) -> String {
    let tool = Toolbox::default().find(program).unwrap().args(args);
    let output = tool.run(&Cancel::new().unwrap(), &mut |_| ()).unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn write(path: &Path, bytes: &[u8]) {
    fs::create_new(path).unwrap().write_all(bytes).unwrap();
}

/// An ELF file that passes for a kernel: one note segment with the PVH entry.
pub(crate) fn kernel() -> Vec<u8> {
    let mut bytes = vec![0; 120];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    bytes[18] = 62;
    for (at, value) in [(32, 64), (54, 56), (56, 1), (64, 4), (72, 120), (96, 20)] {
        bytes[at] = value;
    }
    bytes.extend([4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
    bytes.extend(b"Xen\0\0\0\0\0");
    bytes
}

/// Plans a build of a recipe whose paths begin at `base`.
pub(crate) fn planned(recipe: &Recipe, base: &Path, host: &HostFacts) -> Result<BuildPlan, BuildError> {
    planned_with(recipe, base, host, &Toolbox::default(), &Pins::default(), base)
}

/// The same with programs, pins and a cache of its own.
pub(crate) fn planned_with(
    recipe: &Recipe,
    base: &Path,
    host: &HostFacts,
    toolbox: &Toolbox,
    pins: &Pins,
    cache: &Path,
) -> Result<BuildPlan, BuildError> {
    let cancel = Cancel::new().unwrap();
    plan(
        recipe,
        &PlanContext {
            base,
            host,
            toolbox,
            cancel: &cancel,
            cache,
            pins,
            offline: false,
            catalog: &Catalog::default(),
            fetch: FetchOptions::default(),
            reporter: &Quiet,
        },
    )
}
