"""Results in JSON: infinities are None, values without a form are shown as text."""

from __future__ import annotations

import json
import math

import numpy as np

from pellucid.engine.output import logprobs_as_dict, step_options
from pellucid.sample.logprobs import Logprobs
from pellucid.sample.options import Options
from pellucid.sample.steps.cuts import Temperature
from pellucid.sample.steps.forbidden import Constraint
from pellucid.sample.steps.penalties import LogitBias


def test_options_of_a_step() -> None:
    assert step_options(Temperature(temperature=0.5))["temperature"] == 0.5
    (bias,) = Options.of(logit_bias={1: -math.inf, "a": 2.5}, temperature=0).chain().steps
    assert isinstance(bias, LogitBias)
    assert step_options(bias) == {"logit_bias": [[1, None], ["a", 2.5]]}
    options = step_options(Constraint(json_schema={"type": "number", "maximum": 2.5}))
    assert options["json_schema"] == {"type": "number", "maximum": 2.5}
    assert options["regex"] is None
    assert json.loads(json.dumps(options, allow_nan=False)) == options


def test_log_probabilities() -> None:
    made = Logprobs(
        ids=np.array([3, 4]),
        chosen=np.array([-0.5, -np.inf]),
        ranks=np.array([1, 9]),
        top_ids=np.array([[3, 5], [5, -1]]),
        top=np.array([[-0.5, -2.0], [0.0, -np.inf]]),
    )
    found = logprobs_as_dict(made)
    assert found == {
        "ids": [3, 4],
        "chosen": [-0.5, None],
        "ranks": [1, 9],
        "top": [[{"id": 3, "logprob": -0.5}, {"id": 5, "logprob": -2.0}], [{"id": 5, "logprob": 0.0}]],
    }
    assert json.loads(json.dumps(found, allow_nan=False)) == found
