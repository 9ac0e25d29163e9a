"""JSON-RPC 2.0, one object a line, as control sockets speak it: its numbers."""

MAX_LINE = 1 << 20

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
MACHINE_ERROR = 1              # the message is a HostelError's line, for people


class Refused(Exception):
    """A request that makes no sense."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code
