"""Options of Beam, of which each view is made once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from apache_beam.options.pipeline_options import PipelineOptions

View = TypeVar('View', bound=PipelineOptions)


class Options(PipelineOptions):
    """`PipelineOptions` that keep their views.

    Beam asks for several views for each transform, and parses all flags anew for every one: half of
    the time that it takes to build a pipeline. Views share their values, so one of each is enough.
    """

    def __init__(self, flags: Sequence[str] = (), **values: Any) -> None:
        super().__init__(flags if isinstance(flags, str) else list(flags), **values)
        # Set directly: as an attribute it would be taken for an option.
        self.__dict__['_views'] = {}

    def view_as(self, cls: type[View]) -> View:
        views: dict[type[View], View] = self.__dict__['_views']
        if cls not in views:
            views[cls] = super().view_as(cls)
        return views[cls]

    def __getstate__(self) -> dict[str, Any]:
        # What Beam leaves out of the values for workers must not travel with the views.
        return {**super().__getstate__(), '_views': {}}
