"""Data frames and data sets from plain records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from latent_cot.types import UsageError

if TYPE_CHECKING:
    import datasets
    import pandas as pd


def data_frame(records: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A row a record. `columns`: which, in this order; None: all of them.

    Raises UsageError without pandas.
    """
    try:
        import pandas as pd
    except ImportError:
        raise UsageError("data frames need pandas: pip install 'latent-cot[notebook]'") from None
    return pd.DataFrame(list(records), columns=None if columns is None else list(columns))


def data_set(records: Iterable[Mapping[str, Any]]) -> datasets.Dataset:
    """A row a record, in memory."""
    import datasets

    return datasets.Dataset.from_list([dict(record) for record in records])
