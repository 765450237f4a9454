//! The rows of the fault matrix, by theme.

mod crash;
mod input;

use crate::row::Row;

/// Every row, by its number.
pub fn all() -> Vec<Row> {
    let themes = [crash::rows(), input::rows()];
    let mut rows: Vec<Row> = themes.into_iter().flatten().collect();
    rows.sort_by_key(|row| row.number);
    rows
}
