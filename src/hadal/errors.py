"""The one error that is shown to a user without a traceback.

Everything else that is raised is a bug and keeps its traceback.
"""


class UserError(Exception):
    """What a user did or met: a wrong argument, a full disk, a broken file.

    `cause` says what is wrong, `remedy` what to do about it; each is a plain sentence
    on one line. The command line prints `hadal: CAUSE REMEDY` and exits with status 2.
    """

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(cause, remedy)
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        return " ".join(f"{self.cause} {self.remedy}".split())
