"""Names that are made up, for VMs and containers that weren't given one."""

import os

_ADJECTIVES = (
    "able amber bold brave brisk calm clear clever cosy crisp deft eager early fair fleet fond frank fresh gentle "
    "glad golden grand green hardy honest humble jolly keen kind light lively lucky mellow merry mild modest neat "
    "nimble noble olive patient plain polite prime proud quick quiet ready rosy royal shiny silent silver sleek "
    "smart snug solid spry steady still stout sunny swift tidy true vivid warm wise witty young"
).split()
_NOUNS = (
    "acorn alder ash aspen badger beaver birch bison brook cedar clover comet coral crane crow dove eagle elm falcon "
    "fern finch fir fox gull harbor hare hawk hazel heron hill ibis iris jay juniper kestrel lake lark laurel lynx "
    "maple marten meadow mole moss newt oak orchid osprey otter owl panda pearl pine plover pond poplar quail raven "
    "reed robin rowan sable sparrow spruce stork stream swan thrush tiger trout tulip violet vole walnut willow wolf "
    "wren yew"
).split()


def _any_of(words: list[str]) -> str:
    return words[int.from_bytes(os.urandom(4), "little") % len(words)]


def new_name() -> str:
    """One that is made up."""
    return f"{_any_of(_ADJECTIVES)}-{_any_of(_NOUNS)}"
