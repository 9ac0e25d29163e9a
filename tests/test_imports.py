"""The floors: imports run downstairs only, and rooms on one floor don't see each other (docs/architecture.md).

Looks at Python's imports, Cython's cimports in the .py files and those in the .pxd files, late ones too.
"""

import ast
import re
from pathlib import Path

import pytest

import hostel

HOUSE = Path(hostel.__file__).parent

# From the ground up. spec stands on base; everything else on a line can't see its neighbours.
FLOORS = [
    ("base",), ("spec",),
    ("memory", "bus"),
    ("cpu", "block", "net"),
    ("board",),
    ("devices", "images"),
    ("vm", "containers"),
    ("cluster",),
    ("daemon",),
]
# The annex reaches the house through client. Its commands may also use what has no VM behind it.
ANNEX = {
    "client": {"base", "spec", "block", "net", "vm", "containers", "images", "cluster", "daemon"},
    "cli": {"base", "spec", "block", "client", "images"},
    "web": {"base", "spec", "client"},
}
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: str) -> str:
    """The room of a dotted name: ``hostel.cpu.bt.run`` is in ``cpu``; ``hostel`` itself is in none."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(path: Path) -> set[str]:
    """The modules of hostel that a file imports or cimports."""
    text = path.read_text()
    found = set()
    if path.suffix == ".pxd":
        found = set(re.findall(r"^\s*(?:from|cimport)\s+(hostel[\w.]*)", text, re.M))
    else:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                assert node.level == 0, f"{path}: a relative import"
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("cython.cimports.") for name in found if re.match(r"(cython\.cimports\.)?hostel\b", name)}


def may(room: str, other: str) -> bool:
    """Whether a module in ``room`` may import from ``other``."""
    if room == other or other.startswith("_"):  # hostel._version
        return True
    if room in ANNEX:
        return other in ANNEX[room]
    return other in LEVEL and LEVEL[other] < LEVEL[room]


FILES = sorted(path for path in HOUSE.rglob("*") if path.suffix in (".py", ".pxd") and path.parent != HOUSE)


def test_every_room_has_a_floor():
    rooms = {path.relative_to(HOUSE).parts[0] for path in FILES}
    assert rooms <= set(LEVEL) | set(ANNEX)


@pytest.mark.parametrize("room", sorted({path.relative_to(HOUSE).parts[0] for path in FILES}))
def test_imports_run_downstairs(room):
    wrong = []
    for path in FILES:
        if path.relative_to(HOUSE).parts[0] == room:
            for module in imports(path):
                other = room_of(module)
                if not may(room, other):
                    wrong.append(f"{path.relative_to(HOUSE)} imports {module}")
    assert wrong == []


def test_the_test_sees_what_it_should(tmp_path):
    (tmp_path / "a.py").write_text(
        "import hostel.vm.worker\nfrom cython.cimports.hostel.cpu.engine import Vcpu\n"
        "def f():\n    from hostel import VM\n    import os\n"
    )
    (tmp_path / "a.pxd").write_text("from libc.stdint cimport int8_t\nfrom hostel.bus.irq cimport IrqLine\n")
    assert imports(tmp_path / "a.py") == {"hostel.vm.worker", "hostel.cpu.engine.Vcpu", "hostel.VM"}
    assert imports(tmp_path / "a.pxd") == {"hostel.bus.irq"}
    assert may("vm", "cpu") and may("cli", "client") and may("devices", "bus")
    assert not may("cpu", "vm") and not may("memory", "bus") and not may("cli", "vm") and not may("board", "devices")
