"""Results in Parquet, compared."""

import numpy as np
import pyarrow as pa

# Triton joins clips that meet, and a batch of another size rounds otherwise.
CLOSE = 1e-4


def assert_same_rows(one: pa.Table, other: pa.Table) -> None:
    """The same columns, types and rows; floating-point numbers as close as two runs of one engine are."""
    assert one.schema == other.schema
    assert one.num_rows == other.num_rows
    order = [("video", "ascending"), ("rank", "ascending")]
    one, other = one.sort_by(order), other.sort_by(order)
    for name in one.column_names:
        if pa.types.is_floating(one[name].type):
            np.testing.assert_allclose(one[name].to_numpy(), other[name].to_numpy(), rtol=0, atol=CLOSE)
        else:
            assert one[name].equals(other[name]), name
