//! Times what a collection does before it moves anything: the survey of the store, and the mark on what it found.
//!
//! ```text
//! cargo run --release -p kiln-store --example mark -- DIRECTORY [ROUNDS]
//! ```
//!
//! Prints one line for each round: microseconds of the survey, microseconds of the mark, revisions, artifacts.
#![expect(clippy::print_stdout, reason = "an example shows what it did")]

use kiln_store::{CollectPolicy, Store};
use std::error::Error;
use std::path::Path;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let home = args.first().ok_or("DIRECTORY is wanted")?;
    let rounds: usize = args.get(1).map_or(Ok(1), |text| text.parse())?;
    let store = Store::open(Path::new(home))?;
    for _ in 0..rounds {
        let begun = Instant::now();
        let survey = store.survey()?;
        let surveyed = begun.elapsed().as_micros();
        let begun = Instant::now();
        let plan = store.plan_surveyed(&survey, &CollectPolicy::default())?;
        let marked = begun.elapsed().as_micros();
        let revisions = plan.kept_revisions + plan.revisions.len() + plan.unreadable.len();
        println!("{surveyed} {marked} {revisions} {}", survey.artifacts.len());
    }
    Ok(())
}
