"""Plain values as text: JSON read without repeated keys, texts in one form, hashes that tell one value from another."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any


def json_value(text: str) -> Any:
    """Return what JSON says.

    Raises:
        ValueError: it is no JSON, or an object has a key twice.
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} stands twice in one object")
    return value


def one_form(text: str) -> str:
    """Return the text with its accents written in one way (Unicode's NFC); two ways look the same, and mean it."""
    return unicodedata.normalize("NFC", text)


def in_words(value: Any) -> str:
    """Return a value for reading: of a dataclass its name, and the fields that are not what they are if not given."""
    if is_dataclass(value) and not isinstance(value, type):
        own = [f for f in fields(value) if f.init and f.repr and f.name != "name"]
        given = [f for f in own if getattr(value, f.name) != _default(f)]
        said = ", ".join(f"{f.name} {in_words(getattr(value, f.name))}" for f in given)
        return f"{type(value).__name__}{f' ({said})' if said else ''}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {in_words(one)}" for key, one in value.items())
    if isinstance(value, list | tuple | range):
        return " / ".join(map(in_words, value))
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def hash_of(value: Any) -> str:
    """Return the SHA-256 in hexadecimal of bytes, of a text's UTF-8, or of any other value as JSON with sorted keys.

    What JSON does not have is hashed as `str` says it.
    """
    if not isinstance(value, bytes | str):
        value = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(value.encode() if isinstance(value, str) else value).hexdigest()
