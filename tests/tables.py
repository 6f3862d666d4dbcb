"""Comparing results in Parquet."""

import numpy as np
import pyarrow as pa

# Triton batches clips that arrive together, and rounding depends on the batch size.
TOLERANCE = 1e-4


def assert_same_rows(one: pa.Table, other: pa.Table) -> None:
    """Assert that columns, types and rows are the same, and floating-point numbers as close as in two runs of one
    engine."""
    assert one.schema == other.schema
    assert one.num_rows == other.num_rows
    order = [("video", "ascending"), ("rank", "ascending")]
    one, other = one.sort_by(order), other.sort_by(order)
    for name in one.column_names:
        if pa.types.is_floating(one[name].type):
            np.testing.assert_allclose(one[name].to_numpy(), other[name].to_numpy(), rtol=0, atol=TOLERANCE)
        else:
            assert one[name].equals(other[name]), name
