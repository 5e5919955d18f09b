"""Documents of a known form: JSON becomes a class, and what is wrong is named by file and field.

Reading is strict: a number is no text, nothing is rounded to an integer, and a field that the form
does not have is an error. `validation.files` reads the bytes, within bounds.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from validation.files import DamagedFileError

T = TypeVar("T")

Number = float | Literal["nan", "inf", "-inf"]
"""A recorded number, as `validation.files.encode_json` writes it."""
Size = Annotated[float, msgspec.Meta(ge=0.0, le=sys.float_info.max)]
"""A finite number from zero."""
Count = Annotated[int, msgspec.Meta(ge=0)]
Text = Annotated[str, msgspec.Meta(pattern=r"\S")]
"""Words that are not blank."""


class Form(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The form of an object whose fields are all known; declare its subclasses frozen, too."""


def parse(document: Any, form: type[T], path: Path) -> T:
    """Reads a document as its form.

    Args:
        document: what JSON holds.
        form: a `Form`, or a type made of them.
        path: of the file, for messages.

    Returns:
        The document.

    Raises:
        DamagedFileError: the document has another form; the path comes first, then the field.
    """
    try:
        return msgspec.convert(document, form, str_keys=True)
    except msgspec.ValidationError as error:
        raise DamagedFileError(f"{path}: {error}") from error
