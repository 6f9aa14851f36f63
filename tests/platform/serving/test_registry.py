"""The folder of a model is an MLflow model with a signature and an example that fits it."""

from __future__ import annotations

import mlflow
import numpy as np
import torch
from mlflow.models import Model

from starlab.platform.serving.recogniser import Place, Recogniser


def test_the_input_example_fits_the_signature_and_the_model_predicts_it(place: Place, recogniser: Recogniser) -> None:
    folder = str(place.model)
    example = Model.load(folder).load_input_example(folder)
    assert {name: (values.shape, values.dtype) for name, values in example.items()} == {
        "frames": ((1, 4, 24, 24, 3), np.uint8),
        "joints": ((1, 4, 1, 13, 3), np.float32),
    }
    assert (example["joints"] == (0.5, 0.5, 1.0)).all()
    loaded = mlflow.pyfunc.load_model(folder)
    with torch.inference_mode():
        expected = recogniser.model(torch.from_numpy(example["frames"]), torch.from_numpy(example["joints"]))
    assert np.array_equal(loaded.predict(example), expected.numpy())
    assert loaded.input_example.keys() == example.keys()
