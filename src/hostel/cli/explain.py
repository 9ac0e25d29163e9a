"""Show how a container or a VM is isolated and what it uses, as it is now.

  hostel explain container NAME   each namespace: what it isolates, its inode, what is seen inside and by the host;
                                  each limit of its cgroup beside its use; its capabilities
  hostel explain vm NAME          why vCPUs leave guest code, translations, TLBs, interrupts, memory by state
"""

import argparse
import json
from typing import Any

from hostel.cli.table import aligned


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", metavar="KIND", choices=["container", "vm"], help="container or vm")
    parser.add_argument("name", metavar="NAME", help="which")
    parser.add_argument("--json", action="store_true", help="for programs: an object")


def run(args: argparse.Namespace) -> int:
    from hostel.base.errors import UsageError
    from hostel.client import machines

    found = machines.get(args.name)
    if found.isolation != args.kind:
        raise UsageError(f"'{args.name}' is a {found.isolation}: hostel explain {found.isolation} {args.name}")
    told = found.explain()
    if args.json:
        print(json.dumps(told, indent=2))
    else:
        print("\n".join(container_page(told) if args.kind == "container" else vm_page(told)))
    return 0


def container_page(told: dict[str, Any]) -> list[str]:
    lines = [f"'{told['name']}' is a container: its processes run on the host's kernel, Linux {told['kernel']}; "
             f"the first is the host's {told['pid']}.", "", "What it sees: namespaces"]  # fmt: skip
    for row in told["namespaces"]:
        whose = "its own" if row["own"] else "the host's"
        lines += ["", f"  {row['namespace']} ({whose}: {row['inode']}): {row['isolates']}"]
        if row["own"]:
            lines += [f"    inside    {row['container'] or '?'}", f"    the host  {row['host'] or '?'}"]
        else:
            lines.append(f"    both      {row['host'] or '?'}")
    lines += ["", "What it may use: cgroups", ""]
    table = [["  CONTROLLER", "WHAT", "USE", "LIMIT", "FILE"]]
    for row in told["limits"]:
        table.append([f"  {row['controller']}", row["what"], amount(row["use"], row["unit"]),
                      amount(row["limit"], row["unit"]), row["file"]])  # fmt: skip
    lines += aligned(table)
    rights = told["privileges"]
    names = ", ".join(name.removeprefix("CAP_").lower() for name in rights["capabilities"]) or "none"
    filters = rights["seccomp_filters"]
    lines += [
        "", "What it may do", "",
        f"  capabilities  {len(rights['capabilities'])} of {rights['of']}: {names}",
        f"  seccomp       {rights['seccomp']}" + (f" ({filters} of them)" if filters > 1 else ""),
        f"  privileges    {'can not grow' if rights['no_new_privs'] else 'can grow by set-user-ID programs'}"
        f", to {len(rights['may_gain'])} capabilities at most",
    ]
    return lines


def vm_page(told: dict[str, Any]) -> list[str]:
    lines = [f"'{told['name']}' is a VM: a kernel of its own on {len(told['vcpus'])} vCPUs, which the host's process "
             f"{told['pid']} runs (engine {told['engine']['name']})."]  # fmt: skip
    for vcpu in told["vcpus"]:
        lines += ["", f"vCPU {vcpu['vcpu']}: why it left guest code"]
        table = [["  BY", "REASON", "TIMES"]]
        for by, reasons in vcpu["exits"].items():
            for reason, count in sorted(reasons.items(), key=lambda pair: -pair[1]):
                if count:
                    table.append([f"  {by}", reason, str(count)])
        lines += aligned(table, numbers=(2,))
        tlb = vcpu["tlb"]
        lines += ["", f"  TLB         {tlb['misses']} misses, {tlb['fills']} fills, {tlb['flushes']} flushes; address "
                  f"spaces switched {tlb['switches']} times, and found again {tlb['spaces_found']}",
                  f"  interrupts  {vcpu['interrupts']} delivered; exceptions "
                  + (", ".join(f"{name} {count}" for name, count in vcpu["exceptions"].items()) or "none")]  # fmt: skip
    code = told["translations"]
    lines += ["", "Translations", "",
              f"  {code['translated_blocks']} blocks of {code['translated_instructions']} instructions; "
              f"{code['invalidated_blocks']} dropped as their code was written; {code['blocks']} are kept, in "
              f"{amount(code['code_bytes'], 'bytes')} of {amount(code['code_capacity'], 'bytes')}"]  # fmt: skip
    if told["interrupts"]:
        lines += ["", "Interrupts by card", ""]
        lines += aligned([["  CARD", "TIMES"], *([f"  {name}", str(n)] for name, n in told["interrupts"].items())],
                         numbers=(1,))  # fmt: skip
    lines += ["", "Memory", ""]
    lines += aligned([["  STATE", "SIZE"], *([f"  {name.replace('_', ' ')}", amount(size, "bytes")]
                                             for name, size in told["memory"].items())], numbers=(1,))  # fmt: skip
    return lines


def amount(value: Any, unit: str) -> str:
    from hostel.base.units import format_rough

    if value is None:
        return "-"
    if unit == "bytes" and isinstance(value, int | float):
        return format_rough(int(value))
    text = f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{text} {unit}" if unit else text
