//! The table of mutants, `loom-tests/mutants.txt`. The header of that file describes its lines.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::process::root;

/// A mutant, and a model that must fail with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) mutant: String,
    pub(super) binary: String,
    pub(super) filter: String,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}", self.mutant, self.binary, self.filter)
    }
}

/// Reads the table and compares it with the core's source. Both must have the same mutants.
pub(super) fn read() -> Result<Vec<Row>> {
    let path = root().join("loom-tests/mutants.txt");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let rows = parse(&text).with_context(|| format!("in {}", path.display()))?;
    let mut in_source = BTreeSet::new();
    collect(&root().join("core/src"), &mut in_source)?;
    let in_table: BTreeSet<String> = rows.iter().map(|row| row.mutant.clone()).collect();
    compare(&in_table, &in_source)?;
    Ok(rows)
}

/// Returns the rows of the mutants called `names`, or all rows if there are no names.
pub(super) fn select(rows: Vec<Row>, names: &[String]) -> Result<Vec<Row>> {
    ensure!(!rows.is_empty(), "loom-tests/mutants.txt names no mutant: the models are unproved");
    for name in names {
        ensure!(rows.iter().any(|row| row.mutant == *name), "there is no mutant `{name}`");
    }
    Ok(rows.into_iter().filter(|row| names.is_empty() || names.contains(&row.mutant)).collect())
}

fn parse(text: &str) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let (fields, why) = line.split_once('#').unwrap_or((line, ""));
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let row = match fields[..] {
            [] => continue,
            [mutant, binary, filter] => {
                Row { mutant: mutant.into(), binary: binary.into(), filter: filter.into() }
            }
            _ => bail!("line {number}: not `mutant-name  test-binary  test-filter  # why`"),
        };
        ensure!(!why.trim().is_empty(), "line {number}: does not say why the mutant is a bug");
        ensure!(!rows.contains(&row), "line {number}: repeats an earlier one");
        rows.push(row);
    }
    Ok(rows)
}

fn collect(dir: &Path, names: &mut BTreeSet<String>) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, names)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text =
                fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            names.extend(mutants_in(&text));
        }
    }
    Ok(())
}

fn mutants_in(source: &str) -> impl Iterator<Item = String> {
    let cfgs = source.split("mutant = \"").skip(1);
    cfgs.filter_map(|rest| rest.split('"').next()).map(str::to_owned)
}

fn compare(in_table: &BTreeSet<String>, in_source: &BTreeSet<String>) -> Result<()> {
    let list = |names: Vec<&str>| names.join(", ");
    let unlisted: Vec<&str> = in_source.difference(in_table).map(String::as_str).collect();
    ensure!(
        unlisted.is_empty(),
        "core/src has mutants that loom-tests/mutants.txt does not list: {}",
        list(unlisted)
    );
    let unknown: Vec<&str> = in_table.difference(in_source).map(String::as_str).collect();
    ensure!(
        unknown.is_empty(),
        "loom-tests/mutants.txt lists mutants that core/src does not have: {}",
        list(unknown)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_comments() {
        let rows = parse("# header\n\n early-put  irq  put_vs_get  # frees too early\n");
        let row =
            Row { mutant: "early-put".into(), binary: "irq".into(), filter: "put_vs_get".into() };
        assert_eq!(rows.ok(), Some(vec![row]));
    }

    #[test]
    fn faulty_rows_name_their_line() {
        for text in ["a b c", "a b # why", "a b c d # why", "a b c # why\na b c # why"] {
            let number = text.lines().count();
            let error = parse(text).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.starts_with(&format!("line {number}: ")), "{text}: {error}");
        }
    }

    #[test]
    fn table_and_source_agree() {
        let source = r#"if cfg!(mutant = "a") {} #[cfg(not(mutant = "b"))] fn f() {}"#;
        let found: BTreeSet<String> = mutants_in(source).collect();
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        assert!(compare(&names(&["a", "b"]), &found).is_ok());
        assert!(compare(&names(&["a"]), &found).is_err());
        assert!(compare(&names(&["a", "b", "c"]), &found).is_err());
    }
}
