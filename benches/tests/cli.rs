//! `lpi-storm` as a process: exit statuses, and the files that it writes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn storm(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lpi-storm")).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Where a test may write: a name per test.
fn scratch(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

#[test]
fn wrong_arguments_exit_with_2_and_a_reason() {
    for (args, reason) in [
        (&["-v", "0"][..], "0 is not in 1..=512"),
        (&["-v", "513"], "513 is not in 1..=512"),
        (&["-d", "0"], "0 is not in 1..=4096"),
        (&["-e", "0"], "0 is not in 1..=16769024"),
        (&["-i", "0"], "0 is not in 1.."),
        (&["-i", "many"], "invalid value 'many'"),
        (&["--lrs", "17"], "17 is not in 1..=16"),
        (&["--priorities", "32"], "32 is not in 1..=31"),
        (&["-d", "4096", "-e", "4096"], "only 16769024 INTIDs"),
        (&["-i", "1", "--duration", "1"], "cannot be used with"),
        (&["--duration", "0"], "must be more than 0"),
        (&["--json", "/no/such/directory/x"], "cannot write `/no/such/directory/x`"),
        (&["--svg", "/"], "cannot write `/`"),
    ] {
        let output = storm(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let message = text(&output.stderr);
        assert!(message.contains(reason), "{args:?}: {message}");
        // Before the run, not after it.
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn one_file_cannot_be_both() {
    let file = scratch("both");
    let file = file.to_str().unwrap();
    let output = storm(&["--json", file, "--svg", file]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("both name"));
}

#[test]
fn help_names_the_exit_statuses() {
    let output = storm(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("Exit status: 0 if nothing is lost"));
}

#[test]
fn both_engines_report_as_text_json_and_svg() {
    let (json, svg) = (scratch("report.json"), scratch("report.svg"));
    // Longer than what will be written: nothing of it may remain.
    fs::write(&json, "x".repeat(100_000)).unwrap();
    let output = storm(&[
        "--engine=both",
        "-v2",
        "-d2",
        "-e8",
        "-i500",
        "--lrs=2",
        "--priorities=3",
        "--seed=7",
        "--json",
        json.to_str().unwrap(),
        "--svg",
        svg.to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let out = text(&output.stdout);
    assert_eq!(out.matches("  Rate: ").count(), 2, "{out}");
    assert!(out.contains("lockfree/locked"), "{out}");
    // No bar where there is no terminal.
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));

    let report: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    let runs = report["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2);
    for (run, engine) in runs.iter().zip(["lockfree", "locked"]) {
        assert_eq!(run["engine"], engine);
        for (field, value) in [
            ("vcpus", 2),
            ("devices", 2),
            ("events", 8),
            ("iterations", 500),
            ("lrs", 2),
            ("priorities", 3),
            ("seed", 7),
            ("injected", 8000),
            ("unmapped", 0),
            ("lost", 0),
        ] {
            assert_eq!(run[field], value, "{field}");
        }
        assert_eq!(run["churn"], false);
        let count = |field: &str| run[field].as_u64().unwrap();
        assert_eq!(count("delivered") + count("merged") + count("coalesced"), 8000);
        assert!(count("kicks") > 0 && count("entries") > 0);
        for field in ["injected_per_s", "delivered_per_s", "bytes_per_lpi", "seconds"] {
            assert!(run[field].as_f64().unwrap() > 0.0, "{field}");
        }
        let latency = |field: &str| run["latency_ns"][field].as_u64().unwrap();
        assert!(latency("p50") > 0);
        assert!(latency("p50") <= latency("p99") && latency("p99") <= latency("p999"));
        assert!(latency("p999") <= latency("max"));
    }
    assert!(report["machine"]["cpus"].as_u64().unwrap() > 0);
    assert!(report["machine"]["compiler"].as_str().unwrap().starts_with("rustc "));

    let svg = fs::read_to_string(svg).unwrap();
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
    for shown in ["lockfree", "locked", "million LPIs per second", "p99.9"] {
        assert!(svg.contains(shown), "{shown}");
    }
    assert!(!svg.contains("NaN") && !svg.contains("inf"));
}
