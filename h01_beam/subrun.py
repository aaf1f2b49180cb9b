"""A job within a job: its own directory, ledger and report, one pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import apache_beam as beam

from h01_beam.run import Run


class SubRun(beam.PTransform):
    """Builds the stages of a run within another, whose end waits for them.

    Args:
      run: the outer run.
      name: of the inner one, its directory and the label of its transforms.
      build: called with the root and the inner run; adds its stages and returns their result.
    """

    def __init__(self, run: Run, name: str, build: Callable[[Any, Run], Any]):
        super().__init__(label=name)
        self._outer, self._inner, self._build = run, run.within(name), build

    def expand(self, root: Any) -> Any:
        result = self._build(root, self._inner)
        self._outer.summaries += self._inner.summaries
        return result
