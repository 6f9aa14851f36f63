"""What a search must fulfil besides its types, checked before anything starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlab.experiments.catalog import SpecError
from starlab.experiments.space import why_not_searchable

if TYPE_CHECKING:
    from starlab.experiments.spec import SearchSpec


def check_search(spec: SearchSpec, where: str) -> None:
    """Check that every edge of the space and every start point is a valid experiment, and that something ends the search.

    Raises:
        SpecError: it is not so; names the key, the value and the fix.
    """
    if spec.base.data.select == "test":
        raise SpecError(
            f"{where}: data.select is 'test', so every trial would be chosen by the test part; a search compares its trials on "
            "the validation part: leave the key out, and give data.validation_fraction a share"
        )
    if spec.base.data.validation_fraction == 0:
        raise SpecError(
            f"{where}: data.validation_fraction is 0, so there is no validation part to compare the trials on; give it a "
            "share, and train the winner on all clips afterwards"
        )
    for values in spec.edges():
        key, value = list(values.items())[-1]
        try:
            spec.spec_of(values)
        except SpecError as error:
            raise SpecError(f"{where}: space.{key} reaches {value!r}, which is not a valid experiment: {error}") from None
        if reason := why_not_searchable(key):
            raise SpecError(f"{where}: space.{key} cannot be searched: {reason}")
    if spec.search.seeds > 1 and "train.seed" in spec.space:
        raise SpecError(
            f"{where}: search.seeds is {spec.search.seeds} and the space varies train.seed too; leave one of them out"
        )
    try:
        starts = spec.start_points
    except ValueError as error:
        raise SpecError(f"{where}: search.start: {error}") from None
    for start in starts:
        spec.spec_of(start)
    budget = (spec.search.trials, spec.search.hours, spec.search.gpu_hours)
    if budget == (None, None, None) and any(distribution.size is None for distribution in spec.space.values()):
        raise SpecError(f"{where}: nothing ends this search; give search.trials, search.hours or search.gpu_hours a number")
    if spec.search.gpu_hours is not None and not spec.base.resources.gpus_per_worker:
        raise SpecError(
            f"{where}: search.gpu_hours is {spec.search.gpu_hours:g}, and resources.gpus_per_worker is 0; use search.hours"
        )
