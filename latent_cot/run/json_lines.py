"""Files of JSON lines that a command writes where its user says."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from latent_cot import disk
from latent_cot.run.paths import check_writable
from latent_cot.run.run_folder import write_text
from latent_cot.types import UsageError, finite


class JsonLines:
    """A file that takes the place of an older one with its first lines, and then grows, by whole lines.

    Raises UsageError, naming the option, where it cannot be written, and where it is one of the `inputs`.
    """

    def __init__(self, path: Path, option: str, inputs: Sequence[str] = ()) -> None:
        self.path, self.lines = disk.expanded(path), 0
        check_writable(self.path, option)
        for name in inputs:
            with suppress(OSError):  # a data set on the hub is no file
                if self.path.samefile(disk.expanded(name)):
                    raise UsageError(f"{option} {path}: is the file that the questions are in; name another")

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """A line a row; NaN and infinities are null. ASCII: no text of a model can steer a terminal that shows it."""
        lines = [json.dumps(finite(dict(row)), allow_nan=False) + "\n" for row in rows]
        text = "".join(lines)
        if not self.lines:
            write_text(self.path, text)
        else:
            try:
                disk.append(self.path, text.encode())
            except OSError as error:
                raise UsageError(f"{self.path}: cannot be written ({error}); repeat the command elsewhere") from error
        self.lines += len(lines)
