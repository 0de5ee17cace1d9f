"""Everything crossdock raises on purpose, as one tree. Each leaf maps to an exit code.

    CrossdockError
    ├── CheckFailed                 exit 1   a check ran and the answer is no
    ├── UsageError                  exit 2   the request cannot be met as asked
    │   └── MemoryPlanError                  --memory is too small for one block of the work
    ├── InputError                  exit 3   what was given cannot be used
    │   ├── NotACheckpointError              nothing readable at that path
    │   ├── FormatError                      a file breaks its format (truncated, sizes that lie)
    │   ├── UnsafePickleError                a pickle wants to do more than hold data
    │   ├── ConfigError                      fields missing, unknown or contradicting
    │   ├── PlanError                        tensors missing, unmapped or of the wrong shape
    │   └── TokenizerError                   a tokenizer that cannot be carried over faithfully
    └── EnvironmentProblem          exit 4   disk, permissions, missing extra, interrupted

An error carries one or more `Problem`s: a stage collects all it can find and raises once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, in the order in which a reader wants to know it.

    what      the sentence: what is wrong
    where     file, tensor, key, byte offset
    expected  what should be there, as text
    got       what is there, as text
    cause     the likely cause
    fix       what to do: a flag, a command, a file to look at
    check     the short name of the check that found it, for programs: in JSON, not in the text
    """

    what: str
    where: str = ""
    expected: str = ""
    got: str = ""
    cause: str = ""
    fix: str = ""
    check: str = ""

    def lines(self) -> list[str]:
        """The problem as text: the sentence first, details indented below it."""
        head = f"{self.where}: {self.what}" if self.where else self.what
        out = [head]
        if self.expected or self.got:
            pair = [f"expected {self.expected}"] if self.expected else []
            pair += [f"got {self.got}"] if self.got else []
            out.append("  " + ", ".join(pair))
        if self.cause:
            out.append(f"  likely cause: {self.cause}")
        if self.fix:
            out.append(f"  to do: {self.fix}")
        return out

    def as_dict(self) -> dict[str, str]:
        """The non-empty fields, for `--json`."""
        fields = ("what", "where", "expected", "got", "cause", "fix", "check")
        return {name: getattr(self, name) for name in fields if getattr(self, name)}


class CrossdockError(Exception):
    """Base of every error that crossdock raises: `CrossdockError("sentence", where=..., fix=...)`, or of problems.

    exit_code  of the command line: 1 a check failed, 2 wrong usage, 3 bad input, 4 the machine
    problems   everything that is wrong, each with place, cause and remedy
    """

    exit_code: ClassVar[int] = 3
    problems: tuple[Problem, ...]

    def __init__(
        self,
        what: str | Problem | Iterable[Problem],
        *,
        where: str = "",
        expected: str = "",
        got: str = "",
        cause: str = "",
        fix: str = "",
        check: str = "",
    ) -> None:
        if isinstance(what, str):
            self.problems = (Problem(what, where, expected, got, cause, fix, check),)
        elif isinstance(what, Problem):
            self.problems = (what,)
        else:
            self.problems = tuple(what)
        super().__init__(self.text())

    def text(self) -> str:
        """All problems, one below the other."""
        return "\n".join(line for problem in self.problems for line in problem.lines())


class CheckFailed(CrossdockError):
    """A check ran to its end and failed."""

    exit_code = 1


class UsageError(CrossdockError):
    """Flags or arguments that do not fit together or with the checkpoint."""

    exit_code = 2


class MemoryPlanError(UsageError):
    """The memory allowed is smaller than the smallest possible step needs."""


class InputError(CrossdockError):
    """The input cannot be used."""

    exit_code = 3


class NotACheckpointError(InputError):
    """There is no checkpoint that crossdock reads at this path."""


class FormatError(InputError):
    """A file does not follow its own format: truncated, flipped bytes, sizes that cannot be."""


class UnsafePickleError(InputError):
    """A pickle asks for something outside the allow-list, or for more than the limits."""


class ConfigError(InputError):
    """The model's configuration is incomplete, contradictory, or says something unknown."""


class PlanError(InputError):
    """Source and target do not fit: tensors missing, unmapped, doubly provided, or of other shapes."""


class TokenizerError(InputError):
    """The tokenizer cannot be expressed faithfully in the target."""


class EnvironmentProblem(CrossdockError):
    """The machine says no: disk, permission, a missing extra, an interruption."""

    exit_code = 4
