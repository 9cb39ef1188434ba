"""What decides a fit and its score, as one number.

Defaults are in it: when one changes, what was fitted with the old one is no longer asked for.
"""

import hashlib
import json
from typing import Any

from training.config import TrainConfig
from training.data import check
from training.families import FAMILIES


def digest_of(config: TrainConfig) -> str:
    """sha256 of the family, its hyperparameters, input rule, data options and seed; not of how the
    training is spread over devices, and not of the code.

    Raises:
        InvalidInput: an unknown data set, or an option that it does not allow.
    """
    family = FAMILIES[config.family]
    return _sha256(
        {
            "family": config.family,
            "seed": config.seed,
            "data": _data(config),
            "input": {task: family.input_defaults(task) | config.input for task in family.tasks},
            "training_stride": config.training_stride,
            "model": family.Config.model_validate(config.model).model_dump(mode="json"),
        }
    )


def data_digest(config: TrainConfig) -> str:
    """The same of the data and the seed of its split alone.

    Raises:
        InvalidInput: an unknown data set, or an option that it does not allow.
    """
    return _sha256({"data": _data(config), "seed": config.seed})


def _data(config: TrainConfig) -> dict[str, Any]:
    options = {k: v for k, v in config.data.items() if k != "name"}
    name = str(config.data.get("name", ""))
    return {"name": name, "options": check(name, options).model_dump(mode="json")}


def _sha256(members: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(members, sort_keys=True).encode()).hexdigest()
