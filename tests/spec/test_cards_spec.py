"""What --device says, and what it can't."""

import pytest

from hostel.base.errors import UsageError
from hostel.spec.cards import ConsoleSpec, parse_devices


def test_devices_become_fields_of_the_spec():
    assert parse_devices([]) == {}
    assert parse_devices(["rng", "balloon"]) == {"rng": True, "balloon": True}
    assert parse_devices(["port:a.b", "hvc", "port:c"]) == {"console": ConsoleSpec(hvc=True, ports=["a.b", "c"])}


@pytest.mark.parametrize("word", ["disk", "rng:", "port:", "port:a/b", "port", "hvc:0", ""])
def test_others_are_refused_in_one_line(word):
    with pytest.raises(UsageError) as refused:
        parse_devices([word])
    assert "\n" not in str(refused.value)
