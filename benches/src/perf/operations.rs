//! The tables of counts that do not depend on the machine's load, and that tests keep true:
//! `perf-reports/operations.md` and `perf-reports/instructions.md`.

/// The table of operations, in Markdown.
pub const OPERATIONS: &str = include_str!("../../../perf-reports/operations.md");
/// The table of instructions, in Markdown.
pub const INSTRUCTIONS: &str = include_str!("../../../perf-reports/instructions.md");

/// A row of the table of operations.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operation {
    /// The operation.
    pub name: String,
    /// Number of atomic read-modify-writes.
    pub rmws: u32,
    /// The words that they modify, if the table names them.
    pub words: Vec<String>,
}

impl Operation {
    /// Returns whether this is a step of a full cycle.
    pub fn is_part_of_cycle(&self) -> bool {
        !self.words.is_empty()
    }
}

/// Parses the table: name, read-modify-writes, and in the last column the words that they modify.
pub fn operations(text: &str) -> Vec<Operation> {
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
        let (name, rmws, words) = (*cells.first()?, cells.get(1)?.parse().ok()?, *cells.last()?);
        let words = words.split(", ").filter(|w| !w.is_empty()).map(str::to_owned).collect();
        Some(Operation { name: name.to_owned(), rmws, words })
    };
    text.lines().filter(|line| line.starts_with('|')).filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_cycle_are_in_the_table() {
        let all = operations(OPERATIONS);
        let parts: Vec<_> = all.iter().filter(|op| op.is_part_of_cycle()).collect();
        assert!(parts.len() >= 3, "{all:?}");
        for op in &parts {
            assert_eq!(op.rmws as usize, op.words.len(), "{op:?}");
        }
        let whole = all.iter().find(|op| op.name.starts_with("full cycle")).unwrap();
        assert_eq!(whole.rmws, parts.iter().map(|op| op.rmws).sum::<u32>());
    }
}
