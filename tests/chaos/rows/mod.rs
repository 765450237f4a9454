//! The rows of the fault matrix, by theme.

mod commit;
mod crash;
mod holding;
mod images;
mod input;
mod log;
mod model;
mod postgres;
mod rebalance;
mod s3;

use crate::row::Row;

/// Every row, by its number.
pub fn all() -> Vec<Row> {
    let themes = [
        crash::rows(),
        rebalance::rows(),
        commit::rows(),
        log::rows(),
        s3::rows(),
        holding::rows(),
        images::rows(),
        model::rows(),
        postgres::rows(),
        input::rows(),
    ];
    let mut rows: Vec<Row> = themes.into_iter().flatten().collect();
    rows.sort_by_key(|row| row.number);
    rows
}
