"""Random operations on random images, with QEMU's in between (disk_sequences.py)."""

import os

import pytest
import qemu
from disk_sequences import Sequence

SEED = int(os.environ.get("DISK_SEED", "1"))


@qemu.needed
@pytest.mark.parametrize("seed", range(12))
def test_a_sequence(seed, tmp_path):
    Sequence(SEED * 1000 + seed, tmp_path).play()


@qemu.needed
@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_many_sequences(part, tmp_path):
    for seed in range(20):
        (tmp_path / str(seed)).mkdir()
        Sequence(SEED * 1000 + 100 + part * 20 + seed, tmp_path / str(seed)).play()
