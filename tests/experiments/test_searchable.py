"""Which keys a search may vary: what a trial truly varies, and nothing that every trial would get from the base."""

import dataclasses
from pathlib import Path

import pytest

from starlab.experiments.sections import ResourcesConfig, TrackingConfig
from starlab.experiments.space import why_not_searchable
from starlab.experiments.spec import SpecError, load_search
from starlab.pipelines.sources import DataConfig

BATCH_KEYS = {"frames", "size", "augment", "crop_area", "crop_aspect", "flip", "color_jitter", "oversample", "train_fraction"}
BATCH_KEYS |= {"rotation_degrees", "person_crop"}


def refusal(tmp_path: Path, space: str, *overrides: str) -> str:
    file = tmp_path / "s.yaml"
    file.write_text(f"base: demo\nspace: {space}\n")
    with pytest.raises(SpecError) as caught:
        load_search(str(file), overrides)
    return str(caught.value)


def test_a_key_of_the_data_is_searchable_only_if_a_trial_reads_its_clips_by_it() -> None:
    """A new key of `data` is refused until somebody has seen to it that a trial varies it."""
    searchable = {f.name for f in dataclasses.fields(DataConfig) if why_not_searchable(f"data.{f.name}") is None}
    assert searchable == BATCH_KEYS


@pytest.mark.parametrize(
    "space",
    [
        "{data.limit: {choice: [1, 2]}}",
        "{data.validation_fraction: {float: [0.1, 0.3]}}",
        "{data.split_seed: {int: [0, 5]}}",
        "{data.synthetic.train_clips_per_class: {int: [4, 8]}}",
        "{data.synthetic.seed: {int: [0, 3]}}",
    ],
)
def test_a_space_over_which_clips_there_are_is_refused(tmp_path: Path, space: str) -> None:
    message = refusal(tmp_path, space)
    assert "cannot be searched: it decides which clips there are" in message
    assert "start a search for each value" in message


def test_a_space_over_a_protocol_is_refused(tmp_path: Path) -> None:
    ntu = ["data.dataset=ntu60", "data.store=there", "data.protocol=xsub", "data.synthetic={}"]
    assert "cannot be searched" in refusal(tmp_path, "{data.protocol: {choice: [xsub, xview]}}", *ntu)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("{resources.workers: {int: [1, 2]}}", "where a run computes"),
        ("{resources.checkpoints: {choice: [a, b]}}", "where a run computes"),
        ("{tracking.experiment: {choice: [a, b]}}", "where a run computes"),
        ("{name: {choice: [a, b]}}", "where a run computes"),
        ("{data.store: {choice: [a, b]}}", "where the data are"),
        ("{data.decode: {choice: [cluster, worker]}}", "where clips are decoded"),
        ("{train.init_from: {choice: [a, b]}}", "one model that its trials start from"),
        ("{data.test_crop: {float: [0.5, 0.9]}}", "only the test part"),
        ("{train.profile: {choice: [true, false]}}", "would be one run"),
    ],
)
def test_a_key_that_changes_no_result_of_a_trial_is_refused(tmp_path: Path, space: str, message: str) -> None:
    assert message in refusal(tmp_path, space)


@pytest.mark.parametrize("section", [ResourcesConfig, TrackingConfig])
def test_no_key_of_resources_or_tracking_is_searchable(section: type) -> None:
    name = section.__name__.removesuffix("Config").lower()
    assert all(why_not_searchable(f"{name}.{field.name}") for field in dataclasses.fields(section))


def test_frames_can_be_searched_and_the_model_follows() -> None:
    search = load_search("demo_search", ["space.data.frames={choice: [4, 8, 16]}"])
    for frames in (4, 16):
        spec = search.spec_of({"data.frames": frames})
        assert (spec.data.frames, spec.model.frames) == (frames, frames)
    assert search.spec_of({"model.layers": 2}).model.frames == 8


def test_what_the_data_fix_still_cannot_be_searched(tmp_path: Path) -> None:
    assert "the data fix it at 10" in refusal(tmp_path, "{model.num_classes: {int: [3, 4]}}")


def test_a_search_that_would_select_by_the_test_part_is_refused() -> None:
    with pytest.raises(SpecError, match=r"data.select is 'test', so every trial would be chosen by the test part"):
        load_search("demo_search", ["data.select=test"])


def test_a_search_without_a_validation_part_is_refused() -> None:
    with pytest.raises(SpecError, match="there is no validation part to compare the trials on"):
        load_search("demo_search", ["data.select=last", "data.validation_fraction=0"])


def test_two_choices_that_are_one_value_are_refused(tmp_path: Path) -> None:
    assert "1 and True are one value" in refusal(tmp_path, "{model.layers: {choice: [1, true]}}")
    assert "16 and 16.0 are one value" in refusal(tmp_path, "{model.dim: {choice: [16, 32, 16.0]}}")


def test_the_longest_trial_counts_where_epochs_are_searched() -> None:
    assert load_search("demo_search").longest_epochs == 8
    assert load_search("demo_search", ["space.train.epochs={choice: [2, 9, 3]}"]).longest_epochs == 9
