"""The errors of the contract, drawn once.

    ContractError
    ├── InvalidValue      a value breaks a rule; the message names field, rule and value
    ├── UnknownModel      the store has no such name or version
    ├── DamagedArtifact   files are missing, half-written or not what the manifest says
    └── VersionExists     a published version is never overwritten

Each takes one message, so that it survives a trip between processes. What status a caller
over HTTP sees is decided in `service.http_errors`, nowhere deeper.
"""

import reprlib
from itertools import islice
from typing import Any


class ContractError(Exception):
    """Root of all errors that `models` raises for a user's mistake or a damaged store."""


class InvalidValue(ContractError, ValueError):
    """A value breaks a rule. The message names the field, the rule and the value."""


class UnknownModel(ContractError):
    """The store has no model of that name, or not that version of it."""


class DamagedArtifact(ContractError):
    """An artifact's files are missing, half-written or not what its manifest says."""


class VersionExists(ContractError):
    """That version is published already; versions are never overwritten."""


class _Quote(reprlib.Repr):
    """Values as their owner wrote them: true, false and null are JSON's and YAML's words."""

    def repr_bool(self, value: bool, level: int) -> str:
        return "true" if value else "false"

    def repr_dict(self, value: dict[Any, Any], level: int) -> str:
        # No more than is shown: reprlib sorts all that it gets.
        return super().repr_dict(dict(islice(value.items(), self.maxdict + 1)), level)

    def repr_NoneType(self, value: None, level: int) -> str:  # noqa: N802  reprlib asks by the type's name
        return "null"


_QUOTE = _Quote()
_QUOTE.maxstring = _QUOTE.maxother = 80
_QUOTE.maxlist = _QUOTE.maxtuple = _QUOTE.maxdict = 8
_QUOTE.maxlevel = 3


def show(value: object) -> str:
    """`repr(value)`, shortened, with JSON's true, false and null.

    What an error message quotes of a user's value, however large it is.
    """
    try:
        return _QUOTE.repr(value)
    except ValueError:  # an int of more than 4,300 digits has no decimal text
        return f"a number of {value.bit_length()} bits" if isinstance(value, int) else "a value without text"
