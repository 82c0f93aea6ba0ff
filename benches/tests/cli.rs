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

/// Returns the path of a test's output file.
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
        (&["--sweep"], "--its"),
        (&["--its", "--sweep", "-v", "2"], "cannot be used with"),
    ] {
        let output = storm(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let message = text(&output.stderr);
        assert!(message.contains(reason), "{args:?}: {message}");
        // The error comes before the run, not after it.
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
    // Longer than the new content: none of it may remain.
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
    // No progress bar without a terminal.
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

fn read_json(file: &Path) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

#[test]
fn through_an_its_without_churn_and_with_it() {
    let (json, svg) = (scratch("its.json"), scratch("its.svg"));
    let args = ["--its", "--churn", "--engine=both", "-v2", "-d2", "-e16", "-i300", "--json"];
    let files = [json.to_str().unwrap(), "--svg", svg.to_str().unwrap()];
    let output = storm(&[&args[..], &files[..]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let out = text(&output.stdout);
    assert_eq!(out.matches("  Rate: ").count(), 4, "{out}");
    assert_eq!(out.matches("churn/calm").count(), 2, "{out}");
    assert_eq!(out.matches("lockfree/locked").count(), 2, "{out}");
    let report = read_json(&json);
    let runs = report["runs"].as_array().unwrap();
    let expected = [("lockfree", false), ("lockfree", true), ("locked", false), ("locked", true)];
    assert_eq!(runs.len(), expected.len());
    for (run, (engine, churn)) in runs.iter().zip(expected) {
        assert_eq!((&run["engine"], &run["churn"]), (&engine.into(), &churn.into()));
        assert_eq!((&run["its"], &run["lost"]), (&true.into(), &0.into()));
        assert_eq!(run["balanced"], true);
        assert_eq!(run["churn_operations"].as_u64().unwrap() > 0, churn);
        assert_eq!(run["churn_probes"].as_u64().unwrap() > 0, churn);
        assert_eq!(run["churn_probes_effective"], 0);
    }
    let ratios = report["churn_ratios"].as_array().unwrap();
    assert_eq!(ratios.len(), 2);
    for ratio in ratios {
        assert!(ratio["injected_per_s"].as_f64().unwrap() > 0.0);
        assert!(ratio["delivered_per_s"].as_f64().unwrap() > 0.0);
    }
    let svg = fs::read_to_string(svg).unwrap();
    for shown in ["lockfree, churn", "locked, churn", ", without churn and with it"] {
        assert!(svg.contains(shown), "{shown}");
    }
}

#[test]
fn without_an_its_there_is_no_ratio() {
    let json = scratch("plain.json");
    let output = storm(&["-d1", "-e8", "-i100", "--churn", "--json", json.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report = read_json(&json);
    assert!(report.get("churn_ratios").is_none());
    assert_eq!(report["runs"][0]["its"], false);
}

#[test]
fn a_sweep_reports_as_text_json_and_svg() {
    let (json, svg) = (scratch("sweep.json"), scratch("sweep.svg"));
    let args = ["--its", "--sweep=256", "--duration=0.01", "--engine=both", "--json"];
    let files = [json.to_str().unwrap(), "--svg", svg.to_str().unwrap()];
    let output = storm(&[&args[..], &files[..]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(output.stderr.is_empty(), "no bar where there is no terminal");
    let out = text(&output.stdout);
    assert_eq!(out.matches("by (DeviceID, EventID)").count(), 2, "{out}");
    assert_eq!(out.matches(" 0 lost; ").count(), 2, "{out}");
    let report = read_json(&json);
    let points = report["sweep"].as_array().unwrap();
    // 1 x (1, 16, 256), 16 x (1, 16), 256 x 1, each in four modes, on two engines.
    assert_eq!(points.len(), 6 * 4 * 2);
    assert_eq!((&report["hot"], &report["reference"]), (&256.into(), &serde_json::json!([1, 256])));
    for point in points {
        assert_eq!((&point["lost"], &point["balanced"]), (&0.into(), &true.into()));
        assert!(point["injected_per_s"].as_f64().unwrap() > 0.0);
        assert!(point["of_reference"].as_f64().unwrap() > 0.0);
        assert_eq!(point["of_calm"].is_number(), point["churn"] == true);
    }
    let svg = fs::read_to_string(svg).unwrap();
    for shown in ["lockfree: By route", "locked: By look-up", "4,096 devices", "65,536"] {
        assert!(svg.contains(shown), "{shown}");
    }
    assert!(!svg.contains("NaN") && !svg.contains("inf"));
}
