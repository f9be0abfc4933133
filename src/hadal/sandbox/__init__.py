"""Runs code that nobody trusts, and functions that are trusted but may hang.

`Sandbox` runs model-written Python on this machine, `RemoteSandbox` on a service; `check_stdin` and `check_asserts`
hold a program to tests; `Workers` call a function of ours in processes that can be killed. docs/sandbox.md says what
holds where.
"""

from .judge import Verdict, check_asserts, check_stdin, free_names, same_output
from .pool import Sandbox
from .remote import RemoteSandbox
from .result import Job, Limits, Result
from .workers import Outcome, Workers

__all__ = [
    "Job", "Limits", "Outcome", "RemoteSandbox", "Result", "Sandbox", "Verdict", "Workers", "check_asserts",
    "check_stdin", "free_names", "same_output",
]  # fmt: skip
