//! The rows of the fault matrix, by theme.

mod commit;
mod crash;
mod input;
mod log;
mod postgres;
mod rebalance;

use crate::row::Row;

/// Every row, by its number.
pub fn all() -> Vec<Row> {
    let themes =
        [commit::rows(), crash::rows(), input::rows(), log::rows(), postgres::rows(), rebalance::rows()];
    let mut rows: Vec<Row> = themes.into_iter().flatten().collect();
    rows.sort_by_key(|row| row.number);
    rows
}
