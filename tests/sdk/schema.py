"""Exact shapes: a missing key, a key too many and a value of another type are all errors.

OpenAI's library builds its models leniently, so that nothing raises when a field is missing; hence this.
"""


class Optional:
    """The value, or null."""

    def __init__(self, schema):
        self.schema = schema


def check(value, schema, place="answer"):
    if isinstance(schema, Optional):
        if value is not None:
            check(value, schema.schema, place)
    elif isinstance(schema, dict):
        assert isinstance(value, dict), f"{place} is no object: {value!r}"
        assert set(value) == set(schema), f"{place} has the keys {sorted(value)}, not {sorted(schema)}"
        for key, inner in schema.items():
            check(value[key], inner, f"{place}.{key}")
    elif isinstance(schema, list):
        assert isinstance(value, list), f"{place} is no list: {value!r}"
        for number, item in enumerate(value):
            check(item, schema[0], f"{place}[{number}]")
    elif isinstance(schema, type):
        wrong = schema is int and isinstance(value, bool)
        assert isinstance(value, schema) and not wrong, f"{place} is no {schema.__name__}: {value!r}"
    elif callable(schema):
        assert schema(value), f"{place} is not as it should be: {value!r}"
    else:
        assert value == schema and type(value) is type(schema), f"{place} is {value!r}, not {schema!r}"


def prefixed(prefix):
    return lambda value: isinstance(value, str) and value.startswith(prefix)


def one_of(*values):
    return lambda value: value in values
