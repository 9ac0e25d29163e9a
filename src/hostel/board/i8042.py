"""The keyboard controller, as far as a machine without keyboard and mouse needs it: A20 and reset.

IBM PS/2 technical reference, keyboard and auxiliary device controller. It passes its self test; both
interfaces are there, and behind them nothing answers: an operating system that looks for a keyboard finds
none. ACPI doesn't announce it.
"""

from collections.abc import Callable

from hostel.bus.space import PyRegion

OUTPUT_FULL, SYSTEM_FLAG, IS_COMMAND, UNLOCKED, TIMEOUT = 1, 4, 8, 0x10, 0x40
RESET = 0xFE


class I8042:
    """Ports 0x60 (data) and 0x64 (status, command)."""

    VERSION = 1

    def __init__(self, reset: Callable[[], None]):
        self.reset = reset
        self.status = SYSTEM_FLAG | UNLOCKED
        self.command_byte = 0x74  # both interfaces disabled, no interrupts, translation
        self.output_port = 3  # not in reset, A20 open
        self.output: list[int] = []
        self.expects: int | None = None  # the command whose parameter comes next
        self.data = _Port("i8042-data", self._read_data, self._write_data)
        self.command = _Port("i8042", self._read_status, self._command)

    def _answer(self, *values: int) -> None:
        self.output = list(values)

    def _read_status(self) -> int:
        return self.status | (OUTPUT_FULL if self.output else 0)

    def _read_data(self) -> int:
        self.status &= ~TIMEOUT
        return self.output.pop(0) if self.output else 0

    def _command(self, value: int) -> None:
        self.status |= IS_COMMAND
        self.expects = None
        if value & 0xE0 == 0x20:
            self._answer(self.command_byte)
        elif value & 0xE0 == 0x60 or value in (0xD1, 0xD2, 0xD3, 0xD4):
            self.expects = value
        elif value == 0xAA:  # self test
            self._answer(0x55)
        elif value in (0xA9, 0xAB):  # interface tests: no error
            self._answer(0)
        elif value == 0xA7:
            self.command_byte |= 0x20
        elif value == 0xA8:
            self.command_byte &= ~0x20
        elif value == 0xAD:
            self.command_byte |= 0x10
        elif value == 0xAE:
            self.command_byte &= ~0x10
        elif value == 0xC0:  # input port
            self._answer(0x80)
        elif value == 0xD0:
            self._answer(self.output_port)
        elif value & 0xF1 == 0xF0 and not value & 1:  # pulse output lines 3:0 that are 0; line 0 is reset
            self.reset()

    def _write_data(self, value: int) -> None:
        self.status &= ~IS_COMMAND
        command, self.expects = self.expects, None
        if command is None or command == 0xD4:  # to a device: nobody is there
            self.status |= TIMEOUT
            self._answer(RESET)
        elif command & 0xE0 == 0x60:
            self.command_byte = value
        elif command == 0xD1:
            self.output_port = value | 2
            if not value & 1:
                self.reset()
        else:  # 0xD2, 0xD3: loops the byte back
            self._answer(value)

    def save(self) -> dict:
        """All of it."""
        return {
            "version": self.VERSION,
            "status": self.status,
            "command_byte": self.command_byte,
            "output_port": self.output_port,
            "output": list(self.output),
            "expects": self.expects,
        }

    def load(self, state: dict) -> None:
        """Restore what ``save`` gave."""
        if state["version"] != self.VERSION:
            raise ValueError(f"i8042: state version {state['version']} is not {self.VERSION}")
        self.status = state["status"]
        self.command_byte = state["command_byte"]
        self.output_port = state["output_port"]
        self.output = list(state["output"])
        self.expects = state["expects"]


class _Port(PyRegion):
    def __init__(self, name: str, read: Callable[[], int], write: Callable[[int], None]):
        super().__init__(name)
        self._read, self._write = read, write

    def read_py(self, offset: int, size: int) -> int:
        return self._read()

    def write_py(self, offset: int, size: int, value: int) -> None:
        self._write(value & 0xFF)
