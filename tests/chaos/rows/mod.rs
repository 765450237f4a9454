//! The rows of the fault matrix, by theme.

mod crash;
mod images;
mod input;
mod model;
mod s3;

use crate::row::Row;

/// Every row, by its number.
pub fn all() -> Vec<Row> {
    let themes = [crash::rows(), s3::rows(), images::rows(), model::rows(), input::rows()];
    let mut rows: Vec<Row> = themes.into_iter().flatten().collect();
    rows.sort_by_key(|row| row.number);
    rows
}
