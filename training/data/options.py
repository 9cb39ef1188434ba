"""What every loader's options have in common: the ``[data]`` table of a TOML, less its name."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.contract.errors import FieldError, InvalidInput

Share = Annotated[float, Field(gt=0, lt=1)]


class Options(BaseModel):
    """Base of the loaders' options: immutable, unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def parse_options(model: type[Options], loader: str, options: dict[str, Any]) -> Options:
    """The options of a loader, validated.

    Raises:
        InvalidInput: an unknown or missing option, or a value out of its range; the message names
            it and lists what is allowed.
    """
    try:
        return model.model_validate(options)
    except ValidationError as error:
        places = tuple(
            FieldError("/".join(("/data", *map(str, e["loc"]))), e["msg"]) for e in error.errors()
        )
        wrong = "; ".join(f"{place.pointer}: {place.detail}" for place in places)
        allowed = ", ".join(model.model_fields)
        raise InvalidInput(
            f"options of data set {loader!r}: {wrong}. Allowed options: {allowed}", places
        ) from error
