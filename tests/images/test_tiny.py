"""The compiler of the agent: its programs do what Python does with the same source."""

import importlib.util
import random
import re
import struct
import subprocess

import pytest

from hostel.images import tiny


def module(tmp_path, source, name="program"):
    path = tmp_path / f"{name}.py"
    path.write_text("from hostel.images.tiny import *\n" + source)
    spec = importlib.util.spec_from_file_location(name, path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def run(tmp_path, source, *arguments):
    path = tmp_path / "program"
    path.write_bytes(tiny.compiled(module(tmp_path, source)))
    path.chmod(0o755)
    return subprocess.run([path, *arguments], capture_output=True, timeout=20)


PRINT = """
OUT = buffer(8)

def show(value):
    store64(OUT, value)
    return syscall(1, 1, OUT, 8)
"""


def shown(result):
    assert result.returncode == 0
    return [value for (value,) in struct.iter_unpack("<q", result.stdout)]


class Word(int):
    """A signed 64-bit number, as the compiled code has them."""

    def __new__(cls, value):
        return super().__new__(cls, (int(value) + (1 << 63)) % (1 << 64) - (1 << 63))


for _name in "add sub mul and or xor lshift rshift lt le gt ge eq ne neg invert radd rsub rmul rand ror rxor".split():
    _of_int = getattr(int, f"__{_name}__")
    setattr(Word, f"__{_name}__", lambda *words, of_int=_of_int: Word(of_int(*words)))


def test_arithmetic_and_conditions_are_pythons(tmp_path):
    """200 random expressions, in 64 bits, both compiled and evaluated."""
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    values = {"a": 7, "b": -3, "c": 1 << 40, "d": 0, "e": -(1 << 33), "FAR": 1 << 20}

    def expression(depth):
        if depth == 0:
            return chance.choice([*values, str(chance.randrange(100)), "0x12345678", "4000000000", "-5"])
        left, right = expression(depth - 1), expression(chance.randrange(depth))
        kind = chance.randrange(9)
        if kind < 5:
            return f"({left} {chance.choice('+-*&|^')} {right})"
        if kind == 5:
            return f"({left} {chance.choice(['<<', '>>'])} ({right} & 15))"
        if kind == 6:
            return f"({left} {chance.choice(['<', '<=', '>', '>=', '==', '!='])} {right})"
        if kind == 7:
            return f"twice({chance.choice('-~')}{left}, {right})"
        return f"truth(({left} and not {right}) or {left} > {right})"

    expressions = [expression(chance.randrange(1, 5)) for _ in range(200)]
    assign = "".join(f"    {name} = {value}\n" for name, value in values.items() if name != "FAR")
    source = PRINT + "FAR = 1 << 20\n\ndef twice(x, y):\n    return x * 2 - y\n\ndef truth(x):\n    return x != 0\n\n"
    source += f"def main(stack):\n{assign}" + "".join(f"    show({text})\n" for text in expressions)

    names = {"Word": Word, **{name: Word(value) for name, value in values.items()}}
    names |= {"twice": lambda x, y: x * 2 - y, "truth": lambda x: Word(bool(x))}
    for text, value in zip(expressions, shown(run(tmp_path, source)), strict=True):
        words = re.sub(r"\b(0x\w+|\d+)\b", r"Word(\1)", text)
        assert value == int(Word(eval(words, names))), (seed, text)


def test_loops_calls_globals_and_memory(tmp_path):
    source = PRINT + '''
TABLE = buffer(1000)
total = 5
limit = -2

def fibonacci(n):
    if n < 2:
        return n
    return fibonacci(n - 1) + fibonacci(n - 2)

def add(a, b, c):
    global total
    total += a * 100 + b * 10 + c
    return total

def early(n):
    while 1:
        n += 1
        if n % 2:
            continue
        elif n > 10:
            break
        else:
            pass
    return n

def nothing():
    """Returns 0."""

def main(stack):
    show(fibonacci(20))
    show(add(1, 2, 3))
    show(total + limit)
    show(early(1))
    show(nothing())
    i = 0
    while i < 10:
        store16(TABLE + i * 2, 65530 + i)
        i += 1
    show(load16(TABLE + 10))
    show(load16(TABLE + 12))
    store64(TABLE, -1)
    show(load8(TABLE))
    show(load32(TABLE))
    show(load64(TABLE))
    store8(TABLE + 1, 0)
    store32(TABLE + 4, 0x80000000)
    show(load64(TABLE) & 0xffffffffff)
    copy(TABLE + 100, text("ab"), 3)
    show(load32(TABLE + 100))
    show(text("ab") == text("ab"))
    show(load64(stack))
    show(load8(load64(stack + 16)))
    show(-7 // 2)
    show(-7 % 2)
'''
    expected = [6765, 128, 126, 12, 0, 65535, 0, 255, 0xFFFFFFFF, -1, 0xFFFF00FF, 0x6261, 1, 2, ord("x"), -3, -1]
    # the third store16 past 65535 wraps; truncation is the processor's, as the compiler says
    expected[10] = 0x80000000_FFFF00FF & 0xFFFFFFFFFF
    assert shown(run(tmp_path, source, "xyz")) == expected


def test_the_result_of_main_is_the_exit_status(tmp_path):
    assert run(tmp_path, "def main(stack):\n    return 42\n").returncode == 42


def test_the_data_of_a_program_is_not_executable_nor_its_code_writable(tmp_path):
    assert run(tmp_path, "DATA = buffer(8)\n\ndef main(stack):\n    return load8(DATA)\n").returncode == 0
    program = (tmp_path / "program").read_bytes()
    flags = [struct.unpack_from("<II", program, 64 + 56 * n) for n in range(3)]
    assert all(not (bits & 1 and bits & 2) for _, bits in flags)


@pytest.mark.parametrize(
    "body",
    ["return [1]", "x.y = 1", "for i in x: pass", "return unknown", "return f(1, 2)", "return 1 / 2", "text(1)"],
)
def test_what_isnt_in_the_subset_is_refused(tmp_path, body):
    with pytest.raises(tiny.TinyError):
        tiny.compiled(module(tmp_path, f"def f(a):\n    return a\n\ndef main(x):\n    {body}\n"))
