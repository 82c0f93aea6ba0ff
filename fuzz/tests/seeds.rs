//! Runs the stored inputs without a fuzzer. Each of them passes, and together they reach a minimum
//! of coverage.

use std::fs;
use std::path::Path;

use vgic_fuzz::{Frame, Report, run, sysreg};

const TARGETS: [(&str, Frame); 7] = [
    ("gicc", Frame::Gicc),
    ("gicd_v2", Frame::GicdV2),
    ("gicd_v3", Frame::GicdV3),
    ("gicr", Frame::Gicr),
    ("gicv2m", Frame::Gicv2m),
    ("icc", Frame::Icc),
    ("its", Frame::Its),
];
/// Returns how much a target that tests no frame finds in an input.
type Find = fn(&[u8]) -> usize;
const OTHERS: [(&str, Find); 2] =
    [("sysreg_decode", sysreg::decode_all), ("sysreg_walk", sysreg::walk_all)];
/// The largest number of seeds of one target.
const MOST_SEEDS: usize = 60;
/// The bound on a seed's size in bytes.
const LONGEST_SEED: usize = 1024;

/// Reads a target's seeds.
fn seeds(name: &str) -> impl Iterator<Item = Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(name);
    let mut files: Vec<_> =
        fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!files.is_empty() && files.len() <= MOST_SEEDS, "{} seeds of {name}", files.len());
    files.sort();
    files.into_iter().map(|file| {
        let data = fs::read(&file).unwrap();
        assert!(data.len() < LONGEST_SEED, "{} is too long", file.display());
        // When a seed fails, its name is the last one printed.
        println!("{}", file.display());
        data
    })
}

/// Runs a target's seeds and returns the sum of their reports.
fn run_all(name: &str, frame: Frame) -> Report {
    let mut sum = Report::default();
    for data in seeds(name) {
        sum += run(frame, &data);
    }
    println!("{name}: {sum:?}");
    sum
}

#[test]
fn every_seed_passes() {
    for (name, frame) in TARGETS {
        let sum = run_all(name, frame);
        // Seeds in which nothing happens would always pass. So the seeds of each target must reach
        // a good part of the counts that they had when they were chosen.
        if frame == Frame::Its {
            // This target counts nothing else. It checks after each step.
            assert!(sum.steps >= 300 && sum.lpis >= 40 && sum.drained >= 80, "{name}: {sum:?}");
            assert!(sum.left >= 100, "{name}: {sum:?}");
            continue;
        }
        let has_lpis = matches!(frame, Frame::GicdV3 | Frame::Gicr | Frame::Icc);
        for (what, count, least) in [
            ("steps", sum.steps, 3000),
            ("SGIs taken", sum.sgis, 40),
            ("PPIs taken", sum.ppis, 15),
            ("SPIs taken", sum.spis, 40),
            ("LPIs taken", sum.lpis, if has_lpis { 20 } else { 0 }),
            ("interrupts ended in a list register", sum.ended, 60),
            ("interrupts checked to be offered", sum.offered, 300),
            ("interrupts checked to wait for a list register", sum.waiting, 200),
            ("waits for another vCPU's exit", sum.waits, 7),
            ("interrupts left for the end", sum.drained, 200),
        ] {
            assert!(count >= least, "{name}: {count} {what}, at least {least} before: {sum:?}");
        }
    }
}

#[test]
fn every_seed_of_the_system_registers_passes() {
    for (name, run) in OTHERS {
        let found: usize = seeds(name).map(|data| run(&data)).sum();
        println!("{name}: {found}");
        assert!(found >= 20, "{name}: {found}");
    }
}

/// A target that is missing from the tables above would not be run.
#[test]
fn every_target_is_here() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz_targets");
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    names.sort();
    let here = TARGETS.map(|(name, _)| name).into_iter().chain(OTHERS.map(|(name, _)| name));
    assert!(names.iter().eq(here), "{names:?}");
}

#[test]
fn any_bytes_are_an_input() {
    for (_, frame) in TARGETS {
        assert_eq!(run(frame, &[]), Report::default());
        for byte in [0, 1, 0x55, 0x7f, 0x80, 0xff] {
            run(frame, &[byte; 64]);
        }
    }
    for (_, run) in OTHERS {
        (0..=255).for_each(|byte| _ = run(&[byte; 100]));
    }
}
