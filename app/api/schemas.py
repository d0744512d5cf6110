"""Schemas of bodies and answers, quicker than marshmallow's own.

This is the only place that uses a private interface of marshmallow: `_deserialize` and `_serialize`, which it documents
for field types. To call the public `deserialize` for each field would cost 5 µs a body.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import marshmallow as ma

from app.api import bodies, json_values

MAX_TEXT = 262_144
T = TypeVar("T")


class RequestField(ma.fields.Field[T]):
    """A field of a body. A subclass says in `read` what it accepts."""

    def read(self, value: Any) -> T:
        """Return the value as it is stored. Raises marshmallow's ValidationError. value: never None."""
        raise NotImplementedError

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> T:
        return self.read(value)


class AnswerField(ma.fields.Field[T]):
    """A field of an answer. A subclass says in `write` how a column is shown."""

    def write(self, value: Any) -> Any:
        """Return the JSON of a column's value, which may be None."""
        raise NotImplementedError

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> Any:
        return self.write(value)


class Schema(ma.Schema):
    """A body. Newer agents talk to older servers: unknown fields are ignored.

    max_size: bytes of a body, inflated. max_values: values in it.
    """

    max_size = bodies.MAX_BODY
    max_values = bodies.MAX_VALUES

    class Meta:
        unknown = ma.EXCLUDE

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._empty: dict[str, Any] = dict.fromkeys(self.load_fields)
        # Not inherited: a subclass may accept less.
        self._plain = {name for name, field in self.load_fields.items() if vars(type(field)).get("is_plain_text")}
        self._readers: dict[str, Callable[[Any], Any]] = {
            name: field.read if isinstance(field, RequestField) else field.deserialize
            for name, field in self.load_fields.items()
        }
        self._required = [name for name, field in self.load_fields.items() if field.required]

    def load(self, data: Any, **kwargs: Any) -> Any:
        """As marshmallow does. marshmallow itself is asked only about an invalid body, to name all of its errors."""
        if type(data) is not dict:
            return super().load(data, **kwargs)
        loaded = self._empty.copy()
        readers, plain = self._readers, self._plain
        try:
            for name, value in data.items():
                if value is None:
                    continue
                # Most values are ASCII text, for which these checks cost less than a call.
                if name in plain and type(value) is str and value.isascii() and "\x00" not in value:
                    if not 0 < len(value) <= MAX_TEXT:
                        value = readers[name](value)
                    loaded[name] = value
                elif name in readers:
                    loaded[name] = readers[name](value)
        except ma.ValidationError:
            return super().load(data, **kwargs)
        for name in self._required:
            if loaded[name] is None:
                return super().load(data, **kwargs)
        return loaded

    def violations(self, value: Any) -> Iterator[str]:
        """What makes a parsed body unacceptable as a whole."""
        return json_values.violations(value)


class Answer(ma.Schema):
    """A body of an answer, made of a row."""

    def dump(self, obj: Any, *, many: bool | None = None) -> Any:
        """As marshmallow does; text and integers are taken as they are."""
        answer = {}
        for name, field in self.dump_fields.items():
            value = obj[name]
            if type(value) not in (str, int):
                value = field.write(value) if isinstance(field, AnswerField) else field.serialize(name, obj)
            answer[name] = value
        return answer
