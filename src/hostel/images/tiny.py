"""A compiler for a tiny subset of Python: what the guest's agent is written in.

The guest has no Python, and hostel has no C. So the agent is a Python module whose functions are compiled
here to a static x86-64 program. In the subset everything is a signed 64-bit integer:

* functions with positional parameters; ``if``, ``while``, ``break``, ``continue``, ``return``; assignment,
  also augmented; calls of the module's functions; ``+ - * // % & | ^ << >> ~ not and or`` and comparisons
  (``//`` and ``%`` truncate towards zero, as the processor does; ``and``, ``or``, ``not`` give 1 or 0);
* UPPER_CASE names of the module are constants; lower-case ones are global variables, written after
  ``global``; a ``buffer`` is so many zeroed bytes, and its name is its address;
* ``text("…")`` is the address of bytes that end with a zero; ``load8`` to ``store64`` and ``copy`` reach
  memory; ``syscall(number, …)`` calls Linux.

A function named ``main`` gets the address of argc on the initial stack (System V ABI, 3.4.1) and its result
is the exit status. Expressions go through rax, with the left side kept on the stack: nobody waits for this
code, and a reader can follow it.
"""

import ast
import inspect
from types import ModuleType

from hostel.images.asm import (
    DATA_BASE,
    INVERSE,
    R8,
    R9,
    R10,
    RAX,
    RBP,
    RCX,
    RDI,
    RDX,
    RSI,
    RSP,
    Assembler,
    Label,
    Mem,
    Operand,
    elf,
)


class Buffer(int):
    """A size, told apart from a number."""


def buffer(size: int) -> int:
    """Declares so many zeroed bytes; in compiled code the name is their address."""
    return Buffer(size)


def unavailable(*_: int) -> int:
    raise NotImplementedError("this name has a meaning in compiled code only")


load8 = load16 = load32 = load64 = unavailable
store8 = store16 = store32 = store64 = unavailable
syscall = copy = unavailable


def text(literal: str) -> int:
    raise NotImplementedError(literal)


LOADS = {"load8": 1, "load16": 2, "load32": 4, "load64": 8}
STORES = {"store8": 1, "store16": 2, "store32": 4, "store64": 8}
SYSCALL_REGISTERS = (RAX, RDI, RSI, RDX, R10, R8, R9)
ARITHMETIC = {ast.Add: "add", ast.Sub: "sub", ast.BitAnd: "and", ast.BitOr: "or", ast.BitXor: "xor"}
COMPARISONS = {ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}


class TinyError(Exception):
    """A program that isn't in the subset: a mistake of ours, not of a person who uses hostel."""


def compiled(module: ModuleType) -> bytes:
    """The program, an ELF file, of a module and of those that its ``PARTS`` names, if it has such."""
    return Program(module, *getattr(module, "PARTS", ())).link()


class Program:
    """The compilation of some modules, whose names are one another's."""

    def __init__(self, *modules: ModuleType) -> None:
        self.names: dict[str, object] = {}
        body: list[ast.stmt] = []
        for module in modules:
            for name, value in vars(module).items():
                if isinstance(value, int) and self.names.setdefault(name, value) != value:
                    raise TinyError(f"{module.__name__}: {name} has another value elsewhere")
            body += ast.parse(inspect.getsource(module)).body
        functions = [node for node in body if isinstance(node, ast.FunctionDef)]
        self.functions = {node.name: node for node in functions}
        if len(functions) != len(self.functions):
            raise TinyError("two functions have one name")
        self.labels = {name: Label() for name in self.functions}
        self.asm = Assembler()
        self.data = bytearray()
        self.addresses: dict[str, int] = {}
        self.strings: dict[bytes, int] = {}
        self.buffers: dict[str, int] = {}  # offset among the zeroed bytes, which follow the data
        self.zeroed = 0
        assigned = [node.targets[0] for node in body if isinstance(node, ast.Assign)]
        for name in (target.id for target in assigned if isinstance(target, ast.Name)):
            value = self.names.get(name)
            if isinstance(value, Buffer):
                self.buffers[name] = self.zeroed
                self.zeroed += -(-int(value) // 16) * 16
            elif isinstance(value, int) and name.islower():
                self.addresses[name] = DATA_BASE + len(self.data)
                self.data += value.to_bytes(8, "little", signed=True)

    def link(self) -> bytes:
        # Strings lie between variables and buffers: all of them must be known before the first address is
        # used, so they are collected first.
        for function in self.functions.values():
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "text":
                    self.string(node)
        start = -(-len(self.data) // 4096) * 4096
        self.addresses |= {name: DATA_BASE + start + offset for name, offset in self.buffers.items()}
        asm = self.asm
        asm.mov(RAX, RSP)
        asm.push(RAX)
        asm.call(self.labels["main"])
        asm.mov(RDI, RAX)
        asm.mov_imm(RAX, 231)  # exit_group
        asm.syscall()
        for name, node in self.functions.items():
            asm.bind(self.labels[name])
            Function(self, node).compile()
        return elf(asm.finish(), bytes(self.data), start - len(self.data) + self.zeroed)

    def string(self, call: ast.Call) -> int:
        literal = call.args[0]
        if not isinstance(literal, ast.Constant) or not isinstance(literal.value, str):
            raise TinyError(f"line {call.lineno}: text() takes a literal")
        value = literal.value.encode() + b"\0"
        if value not in self.strings:
            self.strings[value] = DATA_BASE + len(self.data)
            self.data += value
        return self.strings[value]


class Function:
    """The compilation of one function."""

    def __init__(self, program: Program, node: ast.FunctionDef) -> None:
        self.program, self.node, self.asm = program, node, program.asm
        self.globals = {n for s in ast.walk(node) if isinstance(s, ast.Global) for n in s.names}
        parameters = [argument.arg for argument in node.args.args]
        # Pushed left to right by the caller: the last lies next to the return address.
        self.slots = {name: 8 + 8 * (len(parameters) - n) for n, name in enumerate(parameters)}
        self.loops: list[tuple[Label, Label]] = []
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store) and inner.id not in self.globals:
                if inner.id not in self.slots:
                    self.slots[inner.id] = -8 * (1 + sum(slot < 0 for slot in self.slots.values()))
        self.frame = 8 * sum(slot < 0 for slot in self.slots.values())

    def compile(self) -> None:
        asm = self.asm
        asm.push(RBP)
        asm.mov(RBP, RSP)
        if self.frame:
            asm.alu_imm("sub", RSP, self.frame)
        self.block(self.node.body)
        asm.mov_imm(RAX, 0)
        asm.leave_and_return()

    # Statements

    def block(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            self.statement(statement)

    def statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Expr(ast.Constant()) | ast.Global() | ast.Pass():
                pass
            case ast.Expr(value):
                self.value(value)
            case ast.Assign([ast.Name(name)], value):
                self.value(value)
                self.asm.mov(self.place(name, node), RAX)
            case ast.AugAssign(ast.Name(name), operator, value):
                self.value(ast.BinOp(ast.Name(name, ast.Load()), operator, value, lineno=node.lineno))
                self.asm.mov(self.place(name, node), RAX)
            case ast.If(test, body, orelse):
                other, end = Label(), Label()
                self.branch(test, other, unless=True)
                self.block(body)
                if orelse:
                    self.asm.jump(end)
                self.asm.bind(other)
                self.block(orelse)
                self.asm.bind(end)
            case ast.While(test, body, []):
                again, end = Label(), Label()
                self.loops.append((again, end))
                self.asm.bind(again)
                if not (isinstance(test, ast.Constant) and test.value):
                    self.branch(test, end, unless=True)
                self.block(body)
                self.asm.jump(again)
                self.asm.bind(end)
                self.loops.pop()
            case ast.Break():
                self.asm.jump(self.loops[-1][1])
            case ast.Continue():
                self.asm.jump(self.loops[-1][0])
            case ast.Return(value):
                if value:
                    self.value(value)
                else:
                    self.asm.mov_imm(RAX, 0)
                self.asm.leave_and_return()
            case _:
                raise self.foreign(node)

    def branch(self, test: ast.expr, label: Label, unless: bool) -> None:
        """Jumps to ``label`` when ``test`` is true, or with ``unless`` when it is false."""
        match test:
            case ast.UnaryOp(ast.Not(), operand):
                self.branch(operand, label, not unless)
            case ast.BoolOp(operator, values):
                if isinstance(operator, ast.And) == unless:
                    for value in values:
                        self.branch(value, label, unless)
                else:
                    through = Label()
                    for value in values[:-1]:
                        self.branch(value, through, not unless)
                    self.branch(values[-1], label, unless)
                    self.asm.bind(through)
            case ast.Compare(left, [operator], [right]) if type(operator) in COMPARISONS:
                self.binary("cmp", left, right)
                condition = COMPARISONS[type(operator)]
                self.asm.jump_if(INVERSE[condition] if unless else condition, label)
            case _:
                self.value(test)
                self.asm.test(RAX, RAX)
                self.asm.jump_if("==" if unless else "!=", label)

    # Expressions: the result is in rax; every other register may have changed

    def value(self, node: ast.expr) -> None:
        asm = self.asm
        constant = self.constant(node)
        if constant is not None:
            asm.mov_imm(RAX, constant)
            return
        match node:
            case ast.Name(name):
                asm.mov(RAX, self.place(name, node))
            case ast.BinOp(left, operator, right):
                if type(operator) in ARITHMETIC:
                    self.binary(ARITHMETIC[type(operator)], left, right)
                else:
                    self.both(left, right)
                    match operator:
                        case ast.Mult():
                            asm.imul(RAX, RCX)
                        case ast.FloorDiv() | ast.Mod():
                            asm.idiv(RCX)
                            if isinstance(operator, ast.Mod):
                                asm.mov(RAX, RDX)
                        case ast.LShift() | ast.RShift():
                            asm.shift("<<" if isinstance(operator, ast.LShift) else ">>", RAX)
                        case _:
                            raise self.foreign(node)
            case ast.UnaryOp(ast.USub(), operand):
                self.value(operand)
                asm.neg(RAX)
            case ast.UnaryOp(ast.Invert(), operand):
                self.value(operand)
                asm.invert(RAX)
            case ast.Compare() | ast.BoolOp() | ast.UnaryOp(ast.Not()):
                no, end = Label(), Label()
                self.branch(node, no, unless=True)
                asm.mov_imm(RAX, 1)
                asm.jump(end)
                asm.bind(no)
                asm.mov_imm(RAX, 0)
                asm.bind(end)
            case ast.Call(ast.Name(name), arguments):
                self.call(node, name, arguments)
            case _:
                raise self.foreign(node)

    def call(self, node: ast.Call, name: str, arguments: list[ast.expr]) -> None:
        asm = self.asm
        if name == "text":
            asm.mov_imm(RAX, self.program.string(node))
        elif name in LOADS:
            self.value(arguments[0])
            asm.load(RAX, Mem(RAX, 0), LOADS[name])
        elif name in STORES:
            self.both(arguments[0], arguments[1])
            asm.store(Mem(RAX, 0), RCX, STORES[name])
        elif name == "copy":
            self.arguments(arguments, (RDI, RSI, RCX))
            asm.copy()
        elif name == "syscall":
            self.arguments(arguments, SYSCALL_REGISTERS)
            asm.syscall()
        elif name in self.program.functions:
            expected = len(self.program.functions[name].args.args)
            if expected != len(arguments):
                raise TinyError(f"line {node.lineno}: {name} takes {expected} arguments")
            for argument in arguments:
                self.value(argument)
                asm.push(RAX)
            asm.call(self.program.labels[name])
            if arguments:
                asm.alu_imm("add", RSP, 8 * len(arguments))
        else:
            raise self.foreign(node)

    def arguments(self, values: list[ast.expr], registers: tuple) -> None:
        for value in values:
            self.value(value)
            self.asm.push(RAX)
        for register in reversed(registers[: len(values)]):
            self.asm.pop(register)

    def binary(self, name: str, left: ast.expr, right: ast.expr) -> None:
        """rax = left ``name`` right, or the flags of a comparison."""
        constant = self.constant(right)
        if constant is not None and -(1 << 31) <= constant < 1 << 31:
            self.value(left)
            self.asm.alu_imm(name, RAX, constant)
        elif (place := self.simple(right)) is not None:
            self.value(left)
            self.asm.alu(name, RAX, place)
        else:
            self.both(left, right)
            self.asm.alu(name, RAX, RCX)

    def both(self, left: ast.expr, right: ast.expr) -> None:
        """left in rax, right in rcx."""
        constant, place = self.constant(right), self.simple(right)
        self.value(left)
        if constant is not None:
            self.asm.mov_imm(RCX, constant)
        elif place is not None:
            self.asm.mov(RCX, place)
        else:
            self.asm.push(RAX)
            self.value(right)
            self.asm.mov(RCX, RAX)
            self.asm.pop(RAX)

    def simple(self, node: ast.expr) -> Operand | None:
        """The place of a variable; None for any other expression."""
        return self.place(node.id, node) if isinstance(node, ast.Name) and self.constant(node) is None else None

    def place(self, name: str, node: ast.AST) -> Mem:
        if name in self.slots:
            return Mem(RBP, self.slots[name])
        if name in self.program.addresses and name not in self.program.buffers:
            return Mem(None, self.program.addresses[name])
        raise TinyError(f"line {getattr(node, 'lineno', '?')}: {name} is unknown")

    def constant(self, node: ast.expr) -> int | None:
        """The value of an expression that is known now, as a signed 64-bit number."""
        value = self.folded(node)
        return None if value is None else (value + (1 << 63)) % (1 << 64) - (1 << 63)

    def folded(self, node: ast.expr) -> int | None:
        match node:
            case ast.Constant(int(value)):
                return int(value)
            case ast.Name(name) if name not in self.slots:
                if name in self.program.buffers:
                    return self.program.addresses[name]
                known = self.program.names.get(name)
                return known if isinstance(known, int) and name.isupper() else None
            case ast.UnaryOp(ast.USub(), operand):
                inner = self.constant(operand)
                return None if inner is None else -inner
            case ast.BinOp(left, ast.Add() | ast.BitOr() | ast.Sub() | ast.Mult() as operator, right):
                a, b = self.constant(left), self.constant(right)
                if a is None or b is None:
                    return None
                match operator:
                    case ast.Add():
                        return a + b
                    case ast.Sub():
                        return a - b
                    case ast.Mult():
                        return a * b
                return a | b
        return None

    def foreign(self, node: ast.AST) -> TinyError:
        line = getattr(node, "lineno", "?")
        return TinyError(f"{self.node.name}, line {line}: {ast.unparse(node)!r} isn't in the subset")
