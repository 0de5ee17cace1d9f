"""CPU seconds of a command before it reads a source: `--help`, and every other command on a path that does not exist.

    python benchmarks/startup.py [--rounds 7]

Exit 1 when a budget is missed. The least of the rounds counts. Modules are compiled once, in the first round, as pip
does when it installs: PYTHONDONTWRITEBYTECODE of the caller does not count.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile

HELP, COMMAND = 0.2, 0.3
NOWHERE = "no-such-checkpoint"
COMMANDS: dict[str, tuple[str, ...]] = {
    "--help": (),
    "inspect": (NOWHERE,),
    "plan": (NOWHERE, "--to", "gguf"),
    "export": (NOWHERE, "--to", "gguf", "-o", "no-such-output.gguf"),
    "verify": (NOWHERE, "--against", NOWHERE),
    "diff": (NOWHERE, NOWHERE),
    "scan": (NOWHERE,),
}


def seconds(command: str, rounds: int, compiled: str) -> float:
    """The least CPU seconds of one process of `command`; `compiled`: a folder for compiled modules."""
    found = []
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = compiled
    for _ in range(rounds):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        arguments = [sys.executable, "-m", "crossdock", command, *COMMANDS[command]]
        subprocess.run(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(found)


def main() -> int:
    """A line a command; the budgets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    missed = False
    with tempfile.TemporaryDirectory() as compiled:
        for command in COMMANDS:
            found, budget = seconds(command, rounds, compiled), HELP if command == "--help" else COMMAND
            missed |= found > budget
            print(f"{command:10s} {found:.2f} s of {budget} s{'  MISSED' if found > budget else ''}")
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
