"""What all models of bodies share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, PrivateAttr


class Strict(BaseModel):
    """A model without silent conversions and without unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid")

    # Fields that are known and not served, and which of their values ask for nothing.
    not_yet: ClassVar[Mapping[str, Callable[[Any], bool]]] = {}

    # Names of the body's fields that nobody knows, where such fields are ignored.
    _ignored: tuple[str, ...] = PrivateAttr(())

    def check(self) -> None:
        """Raises `RequestError` for fields that do not fit one another."""

    @property
    def ignored(self) -> tuple[str, ...]:
        """Names of the fields that were ignored, as `place` writes them."""
        return self._ignored

    def ignore(self, names: Iterable[str]) -> None:
        """Note that these fields were ignored."""
        self._ignored = tuple(names)


def integral(value: Any) -> Any:
    """The integer that a number is: some languages have none, and 5.0 counts as 5."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integral = BeforeValidator(integral)
