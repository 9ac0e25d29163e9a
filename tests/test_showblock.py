"""tools/showblock: what docs/translator.md shows is what the translator does."""

import importlib.machinery
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "showblock"
_loader = importlib.machinery.SourceFileLoader("showblock", str(TOOL))
_spec = importlib.util.spec_from_loader("showblock", _loader)
showblock = importlib.util.module_from_spec(_spec)
_loader.exec_module(showblock)


def test_every_guest_instruction_is_shown_with_its_bytes():
    shown = showblock.show(showblock.EXAMPLE)
    guest = re.findall(r"^(40[0-9a-f]{4})  ((?:[0-9a-f]{2} )*[0-9a-f]{2}) +(\S+)", shown, re.M)
    assert bytes.fromhex("".join(raw for _, raw, _ in guest)) == showblock.EXAMPLE
    assert [name for *_, name in guest] == "push mov mov add mov cmp jl xor pop ret".split()
    assert "tag_w[user]" in shown and "entry_host:" in shown and "jump_cache[user]" in shown
    assert f"{len(showblock.EXAMPLE)} bytes of the guest's" in shown
    assert "(bad)" not in shown and not re.search(r"gs:\[[^\]]*0x", shown), shown  # everything is named


def test_the_command(tmp_path):
    done = subprocess.run([sys.executable, str(TOOL), "4801c8c3"], capture_output=True, text=True)
    assert done.returncode == 0 and "add rax, rcx" in done.stdout and "4 bytes of the guest's" in done.stdout
    done = subprocess.run([sys.executable, str(TOOL), "xyz"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)


def test_the_page_takes_a_new_block():
    text = showblock.DOC.read_text()
    once = showblock.document(text, "something else\n")
    assert "something else" in once and "0f 8" not in once and once.count("```") == 2
    assert showblock.document(once, "something else\n") == once


@pytest.mark.slow
def test_the_page_is_of_today():
    text = showblock.DOC.read_text()
    assert showblock.document(text, showblock.show(showblock.EXAMPLE)) == text, "run tools/showblock --write"
