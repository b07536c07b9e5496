"""A tiny snappy-compressed parquet file as data sets on the hub have them: text and other columns, nulls, row groups.

Made with pyarrow 26.0.1; `python make.py` writes sample.parquet beside this file.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).resolve().parent

table = pa.table(
    {
        "id": pa.array([1, 2, 3, 4, 5, 6], pa.int64()),
        "text": pa.array(["first row", "", None, "naïve — 日本語 🦀", " \n", "last row\nof two lines"], pa.string()),
        "other": pa.array(["a", "b", "c", None, "e", "f"], pa.large_string()),
        "raw": pa.array([b"\xff", b"", None, b"x", b"y", b"z"], pa.binary()),
        "words": pa.array([["first", "row"], [], None, ["x"], [], ["last"]], pa.list_(pa.string())),
    }
)
pq.write_table(table, HERE / "sample.parquet", compression="snappy", row_group_size=4)
