//! A fast check during development: formatting, one set of lints, the core's tests, and the models
//! of the changed files.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::process::{self, cargo, root};
use crate::{lint, loom};

/// The folder of the models.
const MODELS: &str = "loom-tests/tests";

/// Runs the checks. `base` names the commit to compare with for changed files.
pub(crate) fn run(base: &str) -> Result<()> {
    let start = Instant::now();
    lint::fmt()?;
    process::run(
        cargo(["clippy", "--package", "vgic-core", "--all-features", "--all-targets"])
            .args(["--", "--deny", "warnings"]),
    )?;
    process::run(&mut cargo(["test", "--package", "vgic-core", "--all-features"]))?;

    let changed = changed(base)?;
    let models = models_of(&changed)?;
    if models.is_empty() {
        println!("no file with models has changed since {base}");
    } else {
        println!("models of what has changed since {base}: {}", models.join(", "));
        let args = models.iter().flat_map(|model| ["--test".into(), model.clone()]);
        loom::run(&args.collect::<Vec<String>>())?;
    }
    println!("quick: {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Returns the files that differ from `base`, including new ones.
fn changed(base: &str) -> Result<Vec<String>> {
    let mut files = git(&["diff", "--name-only", base])?;
    files.extend(git(&["ls-files", "--others", "--exclude-standard"])?);
    Ok(files)
}

fn git(args: &[&str]) -> Result<Vec<String>> {
    let output = Command::new("git")
        .args(args)
        .current_dir(root())
        .output()
        .context("git cannot be started")?;
    let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    ensure!(output.status.success(), "git {}: {error}", args.join(" "));
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

/// Returns the models that cover some files: those in the files' headers, and changed models.
fn models_of(files: &[String]) -> Result<Vec<String>> {
    let mut models = BTreeSet::new();
    for file in files {
        if let Some(model) = file.strip_prefix(MODELS).and_then(|rest| rest.strip_suffix(".rs")) {
            models.insert(model.trim_start_matches('/').to_owned());
        }
        let path = root().join(file);
        if file.ends_with(".rs") && path.exists() {
            let text = fs::read_to_string(&path).with_context(|| format!("reading {file}"))?;
            models.extend(named_in(&text));
        }
    }
    // Storms run under shuttle.
    models.retain(|model| {
        !crate::shuttle::STORMS.contains(&model.as_str())
            && root().join(MODELS).join(format!("{model}.rs")).exists()
    });
    Ok(models.into_iter().collect())
}

/// Returns the models that a file's header names after `Models:`.
fn named_in(text: &str) -> Vec<String> {
    let header = text.lines().take_while(|line| line.starts_with("//!"));
    let lines: Vec<&str> = header.map(|line| line.trim_start_matches("//!").trim()).collect();
    let Some(at) = lines.iter().position(|line| line.starts_with("Models:")) else {
        return Vec::new();
    };
    let paragraph = lines[at..].iter().take_while(|line| !line.is_empty());
    let words = paragraph.flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_'));
    words.filter(|word| word.contains('_')).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_names_its_models() {
        let text = "//! A queue.\n//!\n//! Models: `delivery_push`, `delivery_kick`,\n//! and `its_turn`.\n//!\n//! More: `not_this`.\n";
        assert_eq!(named_in(text), ["delivery_push", "delivery_kick", "its_turn"]);
        assert!(named_in("//! A queue.\nfn models() {}\n").is_empty());
    }

    #[test]
    fn every_model_that_a_header_names_exists() -> Result<()> {
        for file in crate::prose::sources(&root().join("core/src"))? {
            for model in named_in(&fs::read_to_string(&file)?) {
                let path = root().join(MODELS).join(format!("{model}.rs"));
                ensure!(path.exists(), "{}: no model {model}", file.display());
            }
        }
        Ok(())
    }
}
