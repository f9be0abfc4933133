"""Runs code that nobody trusts, and functions that are trusted but may hang.

`Sandbox` runs model-written Python on this machine, `RemoteSandbox` on a service; `check_stdin` and `check_asserts`
hold a program to tests; `Workers` call a function of ours in processes that can be killed. docs/sandbox.md says what
holds where.
"""

from .pool import Job, Sandbox
from .result import Limits, Result

__all__ = ["Job", "Limits", "Result", "Sandbox"]
