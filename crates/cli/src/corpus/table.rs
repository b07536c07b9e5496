//! Rows of a `.parquet` file, one column of them, page by page.

use std::fs::File;
use std::path::Path;

use parquet::basic::{ConvertedType, LogicalType, Repetition};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row as Record};
use parquet::schema::types::Type;

use super::{CorpusError, Row};

/// Rows that are decoded at a time: documents can be long.
const BATCH_ROWS: usize = 64;

/// The rows of a column.
pub(super) fn rows(
    path: &Path,
    column: &str,
) -> Result<impl Iterator<Item = Result<Row, CorpusError>> + use<>, CorpusError> {
    let parquet = |source| damaged(path, source);
    let file = File::open(path).map_err(CorpusError::io(path))?;
    let reader = SerializedFileReader::new(file).map_err(parquet)?;
    let schema = reader.metadata().file_metadata().schema();
    let Some(chosen) = schema.get_fields().iter().find(|field| field.name() == column) else {
        let texts = schema.get_fields().iter().filter(|field| is_text(field));
        let found = texts.map(|field| field.name().to_owned()).collect();
        return Err(CorpusError::ColumnMissing { path: path.to_owned(), column: column.to_owned(), found });
    };
    if !is_text(chosen) {
        let found = describe(chosen);
        return Err(CorpusError::ColumnNotText { path: path.to_owned(), column: column.to_owned(), found });
    }
    let projection = Type::group_type_builder(schema.name()).with_fields(vec![chosen.clone()]).build();
    let projection = projection.map_err(parquet)?;
    let rows = RowIter::from_file_into(Box::new(reader)).project(Some(projection)).map_err(parquet)?;
    let (path, column) = (path.to_owned(), column.to_owned());
    Ok(rows.with_batch_size(BATCH_ROWS).zip(1..).map(move |(record, row)| text(record, row, &path, &column)))
}

fn text(
    record: Result<Record, ParquetError>,
    row: usize,
    path: &Path,
    column: &str,
) -> Result<Row, CorpusError> {
    let record = record.map_err(|source| damaged(path, source))?;
    match record.into_columns().pop() {
        Some((_, Field::Str(text))) => Ok(Ok(text)),
        _ => Ok(Err(CorpusError::NullRow { path: path.to_owned(), row, column: column.to_owned() })),
    }
}

fn damaged(path: &Path, source: ParquetError) -> CorpusError {
    CorpusError::Parquet { path: path.to_owned(), source }
}

fn is_text(field: &Type) -> bool {
    let info = field.get_basic_info();
    let is_string = matches!(info.logical_type_ref(), Some(LogicalType::String));
    field.is_primitive() && !is_list(field) && (is_string || info.converted_type() == ConvertedType::UTF8)
}

fn is_list(field: &Type) -> bool {
    let info = field.get_basic_info();
    info.has_repetition() && info.repetition() == Repetition::REPEATED
}

fn describe(field: &Type) -> String {
    match field {
        Type::PrimitiveType { .. } if is_list(field) => "a list".to_owned(),
        Type::PrimitiveType { physical_type, .. } => physical_type.to_string().to_lowercase(),
        Type::GroupType { .. } => "a nested column".to_owned(),
    }
}
