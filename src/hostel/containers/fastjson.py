"""JSON by the C half of Python's ``json`` alone.

``import json`` brings ``re`` with it, and msgspec ``typing`` and ``inspect``: 10 and 25 ms of a command that
should take 15. Where an interpreter has no such half, the whole ``json`` does it.
"""

from hostel.base.errors import ContainerError

try:
    import _json

    class _Decoder:
        strict = True
        object_hook = object_pairs_hook = None
        parse_float = float
        parse_int = int
        memo: dict[str, str] = {}

        @staticmethod
        def parse_constant(name: str) -> float:
            raise ValueError(f"{name} isn't JSON")

    _scan = _json.make_scanner(_Decoder)  # type: ignore[arg-type]

    def _refuse(value: object) -> object:
        raise TypeError(f"{type(value).__name__} can't be written as JSON")

    def _decode(text: str) -> object:
        start = len(text) - len(text.lstrip(" \t\r\n"))
        value, end = _scan(text, start)
        if text[end:].strip(" \t\r\n"):
            raise ValueError(f"more follows at character {end}")
        return value

    def dumps(value: object, indent: bool = False) -> str:
        if indent:
            import json

            return json.dumps(value, indent=1)
        encode = _json.make_encoder(None, _refuse, _json.encode_basestring_ascii, None, ":", ",", False, False, True)
        return "".join(encode(value, 0))

except (ImportError, AttributeError, TypeError):  # not CPython as we know it
    import json

    _decode = json.loads  # type: ignore[assignment]

    def dumps(value: object, indent: bool = False) -> str:
        return json.dumps(value, indent=1 if indent else None)


def loads(raw: bytes, what: str) -> dict:
    """The object that ``raw`` is; ``what`` names it in errors."""
    try:
        value = _decode(raw.decode())
    except StopIteration:
        raise ContainerError(f"{what}: not JSON") from None
    except RecursionError:
        raise ContainerError(f"{what}: nested too deeply") from None
    except ValueError as error:
        raise ContainerError(f"{what}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ContainerError(f"{what}: not a JSON object")
    return value
