//! Decoding rows: text columns become domain types here, and a contradictory row is an error, not a guess.

use std::str::FromStr;

use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{ColumnIndex, Decode, Postgres, Row, Type};

use super::{StoreError, StoreResult};
use crate::domain::{Id, IdKind};

/// A column as it is stored.
pub(super) fn get<'r, T, I>(row: &'r PgRow, column: I) -> StoreResult<T>
where
    T: Decode<'r, Postgres> + Type<Postgres>,
    I: ColumnIndex<PgRow>,
{
    Ok(row.try_get(column)?)
}

/// A text column that names a value of a domain enum.
pub(super) fn parse<T>(row: &PgRow, column: &str) -> StoreResult<T>
where
    T: FromStr,
    T::Err: std::fmt::Display,
{
    row.try_get::<&str, _>(column)?
        .parse()
        .map_err(StoreError::contradiction)
}

/// A count or id that the database keeps signed.
pub(super) fn unsigned(row: &PgRow, column: &str) -> StoreResult<u32> {
    u32::try_from(row.try_get::<i32, _>(column)?).map_err(StoreError::contradiction)
}

/// A JSON column that reads as a domain type, or null.
pub(super) fn json<T: serde::de::DeserializeOwned + 'static>(row: &PgRow, column: &str) -> StoreResult<Option<T>> {
    let value: Option<Json<T>> = row.try_get(column).map_err(StoreError::contradiction)?;
    Ok(value.map(|value| value.0))
}

/// A JSON column that must not be null.
pub(super) fn present<T>(value: Option<T>, column: &str) -> StoreResult<T> {
    value.ok_or_else(|| StoreError::contradiction(format_args!("`{column}` is null")))
}

/// A column of ids, in the order of the rows.
pub(super) fn ids<K: IdKind>(rows: &[PgRow], column: &str) -> StoreResult<Vec<Id<K>>> {
    rows.iter().map(|row| Ok(Id::from_uuid(get(row, column)?))).collect()
}

/// One column of many rows, for `unnest`.
pub(super) fn column<'r, R, T>(rows: &'r [R], value: impl Fn(&'r R) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}
