"""Programs that are wrong and want to pass all the same.

Each is put to tests whose expected values it cannot guess; what some of them did before tests ran in a process of
their own, they did in the process of the tests. `right` shows that the same tests pass for a program that is right.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

TESTS = """
import math

def check(candidate):
    assert candidate(3) == 7919, "three"
    assert candidate([1, 2]) == {"a": (104729, 1.5)}
    assert candidate("x") is True
    assert not candidate(4) != [15485863.0]
    assert math.isclose(candidate(5), 32452843.25)
    assert isinstance(candidate(3), int) and sorted(candidate([1, 2])) == sorted("a")

check(f)
"""

RIGHT = """
def f(x):
    if isinstance(x, list):
        return {"a": (104729, 1.5)}
    return {3: 7919, "x": True, 4: [15485863.0], 5: 32452843.25}[x]
"""

# What a program finds when it looks around from inside a call: the frames above it, whatever module they are of.
AROUND = """
import sys
def around():
    frame = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
"""


@dataclass(frozen=True)
class Cheat:
    name: str
    program: str
    tests: str = TESTS
    right: str = RIGHT
    seconds: float = 10.0  # short where nothing but the deadline ends it

    @property
    def text(self) -> str:
        return AROUND + textwrap.dedent(self.program)


CHEATS = [
    # ---------------------------------------------------------------- objects that are equal to everything
    Cheat("an object that equals everything", """
        class Any(int):
            __eq__ = __ge__ = __le__ = lambda self, other: True
            __ne__ = lambda self, other: False
            __hash__ = int.__hash__
        def f(x): return Any()""", "assert f(3) == 7919\nassert not f(4) != 7919", "def f(x): return 7919"),
    Cheat("an object of no plain type that equals everything", """
        class Any:
            __eq__ = lambda self, other: True
            __ne__ = lambda self, other: False
        def f(x): return Any()""", "assert f(3) == 7919"),
    Cheat("a float, a str, a list, a dict and a tuple that equal everything", """
        def kind(base): return type("Own", (base,), {"__eq__": lambda s, o: True, "__ne__": lambda s, o: False,
                                                     "__hash__": base.__hash__, "__len__": lambda s: 1})
        given = [kind(base) for base in (float, str, list, dict, tuple)]
        def f(x): return given[x]()""", "assert f(0) == 7919.5\nassert f(1) == 'sesame'\nassert f(2) == [1]\n"
        "assert f(3) == {1: 2}\nassert f(4) == (1,)", "def f(x): return [7919.5, 'sesame', [1], {1: 2}, (1,)][x]"),
    Cheat("a class that says it is any other", """
        class Meta(type):
            __eq__ = lambda self, other: True
            __instancecheck__ = lambda self, other: True
            __hash__ = type.__hash__
        class Any(metaclass=Meta):
            __class__ = int
        def f(x): return Any()""", "assert isinstance(f(3), int) and f(3) == 7919"),
    Cheat("a difference that is nothing", """
        class Zero(float):
            __sub__ = __rsub__ = lambda self, other: 0.0
            __abs__ = lambda self: 0.0
        def f(x): return Zero()""", "assert abs(f(3) - 7919.0) < 1e-6"),
    Cheat("keys that are what they are looked for", """
        class Key(str):
            __eq__ = lambda self, other: True
            __hash__ = lambda self: hash("sesame")
        def f(x): return {Key(): 1}""", "assert f(3) == {'sesame': 1}", "def f(x): return {'sesame': 1}"),
    Cheat("a dictionary that makes up what is asked for", """
        from collections import defaultdict
        class Made(defaultdict):
            __eq__ = lambda self, other: True
            __getitem__ = lambda self, key: 7919
        def f(x): return Made()""", "assert f(3)['a'] == 7919", "def f(x): return {'a': 7919}"),
    Cheat("1 for True", "def f(x): return 1", "assert f(3) is True", "def f(x): return True"),
    Cheat("not a number", "def f(x): return float('nan')",
          "got = f(3)\nassert not (got > 7919 or got < 7919) and got == got"),
    Cheat("the very object again", """
        class Any: pass
        one = Any()
        def f(x): return one""", "assert f(3) in (7919, f(3))"),
    # ---------------------------------------------------------------- replacing what judges
    Cheat("compile without the asserts", """
        import builtins, re
        real = builtins.compile
        builtins.compile = lambda source, *a, **k: real(re.sub(r"assert [^\\n]*", "pass", source), *a, **k)
        def f(x): pass"""),
    Cheat("no exec", "import builtins\nbuiltins.exec = lambda *a: None\ndef f(x): pass"),
    Cheat("tests that are read as none", """
        import json
        real = json.loads
        json.loads = lambda text: {**real(text), "tests": ""}
        def f(x): pass"""),
    Cheat("the judge's function, by its frame", """
        for frame in around():
            for name in ("_execute", "judge", "run_tests"):
                if name in frame.f_globals and name in frame.f_globals.get("__name__", name) + name:
                    frame.f_globals[name] = lambda *a: None
        def f(x): pass"""),
    Cheat("every function that the collector finds", """
        import gc, types
        for each in gc.get_objects():
            if isinstance(each, types.FunctionType) and each.__name__ in ("_execute", "judge", "check", "verdict"):
                each.__code__ = (lambda *a, **k: None).__code__
        def f(x): pass"""),
    Cheat("another isclose", """
        import math
        math.isclose = lambda *a, **k: True
        def f(x): return 0""", "import math\nassert math.isclose(f(3), 7919)"),
    Cheat("another module under the name of math", """
        import sys, types
        fake = sys.modules["math"] = types.ModuleType("math")
        fake.isclose = lambda *a, **k: True
        def f(x): return 0""", "import math\nassert math.isclose(f(3), 7919)"),
    Cheat("files for the judge to import", """
        import os, sys
        for folder in (os.getcwd(), "/tmp", "/", os.path.dirname(os.__file__)):
            for name in ("math", "json", "random", "sitecustomize", "tests"):
                try:
                    open(f"{folder}/{name}.py", "w").write("isclose = loads = lambda *a, **k: True")
                    sys.path.insert(0, folder)
                    sys.modules.pop(name, None)
                except OSError:
                    pass
        def f(x): return 0""", "import math, random\nassert math.isclose(f(3), 7919)"),
    Cheat("builtins that agree", """
        import builtins
        same = lambda *a, **k: 0
        abs = len = all = sorted = set = round = sum = isinstance = same
        for name in ("abs", "sorted", "set", "round", "len"):
            setattr(builtins, name, same)
        def f(x): return []""",
          "assert sorted(f(3)) == sorted([7919]) and len(f(3)) == 1 and set(f(3)) == set([7919])",
          "def f(x): return [7919]", seconds=1.0),
    Cheat("names of the tests' own", """
        def check(*a): return None
        expected = solve = check
        def f(x): return None"""),
    Cheat("an environment in which asserts are nothing", """
        import os, sys
        os.environ.update(PYTHONOPTIMIZE="2", PYTHONSTARTUP="/tmp/x.py", PYTHONPATH=os.getcwd())
        try: sys.flags.optimize = 2
        except Exception: pass
        def f(x): pass"""),
    Cheat("a trace that jumps over asserts", """
        import sys
        def trace(frame, event, argument):
            if event == "line" and frame.f_code.co_filename == "tests.py":
                try: frame.f_lineno += 1
                except ValueError: pass
            return trace
        sys.settrace(trace); sys.setprofile(trace)
        for frame in around():
            frame.f_trace = trace
        def f(x): pass"""),
    Cheat("what an argument is, changed", "def f(x):\n    x.clear()\n    return []",
          "given = [3, 1, 2]\nassert f(given) == sorted(given)", "def f(x): return sorted(x)"),
    # ---------------------------------------------------------------- reading what is expected
    Cheat("the other side of the assert, from the stack", """
        import linecache
        def f(x):
            for frame in around():
                line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
                if "==" in line and "assert" in line and "linecache" not in line:
                    return eval(line.split("==")[1].split(",")[0].split("\\n")[0])""", "assert f(3) == 7919"),
    Cheat("a constant of the caller's code", """
        def f(x):
            for frame in around():
                if frame.f_code.co_filename == "tests.py":
                    return [each for each in frame.f_code.co_consts if each not in (None, x)][0]""",
          "assert f(3) == 7919"),
    Cheat("the tests and the word from an inherited file, and away", """
        import json, os
        def f(x): pass
        os.write(3, b"r")
        try:
            os.read(3, 1)
            given = json.loads(os.pread(4, 1 << 20, 0))
            os.write(3, given["word"].encode())
        except (OSError, ValueError):
            pass
        os._exit(0)"""),
    Cheat("a thread that waits for the word", """
        import json, os, threading, time
        def wait():
            for _ in range(300):
                try:
                    given = json.loads(os.pread(4, 1 << 20, 0))
                    os.write(3, given["word"].encode())
                    os._exit(0)
                except (OSError, ValueError):
                    time.sleep(0.001)
        threading.Thread(target=wait).start()
        def f(x): time.sleep(0.5)"""),
    Cheat("the tests in some object", """
        import gc, re
        def f(x):
            for each in gc.get_objects() + [frame.f_locals for frame in around()]:
                if isinstance(each, dict):
                    for text in list(each.values()):
                        found = isinstance(text, str) and re.search(r"candidate\\(3\\) == (\\d+)", text)
                        if found: return int(found[1])"""),
    Cheat("the tests in the memory of any process", """
        import re, os
        found = []
        for pid in ["self", *range(1, 200), os.getppid()]:
            try:
                for line in open(f"/proc/{pid}/maps"):
                    start, end = (int(part, 16) for part in line.split()[0].split("-"))
                    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
                    found += re.findall(rb"candidate.3. == (\\d+)", os.pread(memory, end - start, start))
            except OSError: pass
        def f(x): return int(found[0]) if found else 0""", seconds=3.0),
    Cheat("the tests in the memory of any process, by call", """
        import ctypes, os
        libc = ctypes.CDLL(None)
        def f(x):
            text = ctypes.create_string_buffer(1 << 12)
            for pid in range(1, 200):
                libc.ptrace(16, pid, 0, 0)
                part = (ctypes.c_void_p * 2)(ctypes.addressof(text), 1 << 12)
                if libc.process_vm_readv(pid, part, 1, part, 1, 0) > 0: return 7919"""),
    Cheat("the tests in any open file", """
        import os, re
        def f(x):
            for fd in range(64):
                try: found = re.search(rb"candidate\\(3\\) == (\\d+)", os.pread(fd, 1 << 20, 0))
                except OSError: continue
                if found: return int(found[1])"""),
    # ---------------------------------------------------------------- leaving, and saying that all is well
    Cheat("away with success, in a call", "import os\ndef f(x): os._exit(0)"),
    Cheat("away with success, by exception", "def f(x): raise SystemExit(0)"),
    Cheat("away at the end of the module", "import os\ndef f(x): pass\nos._exit(0)"),
    Cheat("away by a signal's handler", """
        import os, signal
        signal.signal(signal.SIGALRM, lambda *a: os._exit(0))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        def f(x):
            while True: pass"""),
    Cheat("away at exit", "import atexit, os, sys\natexit.register(os._exit, 0)\ndef f(x): sys.exit()"),
    Cheat("a failed exit's status replaced", """
        import os
        real = os._exit
        os._exit = lambda code: real(0)
        def f(x): raise AssertionError"""),
    Cheat("a child that answers", """
        import os
        def f(x):
            if os.fork(): os._exit(0)"""),
    Cheat("reports of success on every file", """
        import os
        report = b'{"passed": true, "lost": false, "note": "", "status": "ok", "exit_code": 0}'
        for fd in range(1, 64):
            try: os.write(fd, len(report).to_bytes(8, "little") + report)
            except OSError: pass
        def f(x): os._exit(0)""", seconds=1.0),
    Cheat("exceptions that tests might take for their own", """
        kinds = [AssertionError, StopIteration, GeneratorExit, KeyboardInterrupt]
        def f(x): raise kinds[x]()""",
          "for n in range(4):\n    try:\n        f(n)\n    except Exception:\n        pass\nassert f(0) == 7919",
          "def f(x): return 7919"),
    Cheat("an exception that equals everything", """
        class Fine(ValueError):
            __eq__ = lambda self, other: True
            def __str__(self): return "sesame"
        def f(x): raise Fine("no")""",
          "try:\n    f(3)\nexcept ValueError as error:\n    assert error.args == ('sesame',)",
          "def f(x): raise ValueError('sesame')"),
    Cheat("killing whatever judges", """
        import os, signal
        def f(x):
            for pid in [*range(2, 300), os.getppid(), 0, -1]:
                if pid != os.getpid():
                    try: os.kill(pid, signal.SIGKILL)
                    except OSError: pass"""),
    # ---------------------------------------------------------------- the channel
    Cheat("answers before questions", """
        import os
        for number in range(200):
            try: os.write(4, (3).to_bytes(4, "little") + b"N" * 3)
            except OSError: pass
        def f(x): pass"""),
    Cheat("two answers to one question", """
        import os
        def f(x):
            for frame in around():
                send = frame.f_globals.get("send")
                if send is not None and "encode" in frame.f_globals:
                    number = frame.f_locals["number"]
                    for value in (1, 7919):
                        send(4, frame.f_globals["encode"]((number, "value", value), None))"""),
    Cheat("names of builtins and more for the tests", """
        for frame in around():
            if "calls" in frame.f_globals:
                calls = frame.f_globals["calls"]
                real = calls.answer
                def more(channel, names):
                    true = lambda *a: True
                    real(channel, names | {"check": true, "isinstance": true, "__builtins__": {"f": true}})
                calls.answer = more
        def f(x): pass"""),
    Cheat("an encoder that says what it likes", """
        def f(x):
            for frame in around():
                if "encode" in frame.f_globals:
                    frame.f_globals["encode"] = lambda value, keep: b"\\x80\\x04cbuiltins\\neval\\n."
                    frame.f_globals["send"](4, b"k" + b"u" + (4).to_bytes(4, "little") + b"eval")"""),
    Cheat("an exception of no kind that exceptions have", """
        def f(x):
            for frame in around():
                if "_raised" in frame.f_globals:
                    encode = frame.f_globals["encode"]
                    said = x if isinstance(x, str) else "SystemExit"
                    frame.f_globals["_raised"] = lambda n, error: encode((n, "raised", (said, "", ("0",))), None)
            raise ValueError""", "for kind in ('SystemExit', 'eval', 'int', 'KeyboardInterrupt', '__import__', ''):\n"
          "    try:\n        f(kind)\n    except ValueError:\n        pass", "def f(x): raise ValueError"),
    Cheat("a message of four gigabytes", "import os\ndef f(x): os.write(4, b'\\xff' * 4 + b'N' * 100)"),
    Cheat("a message that announces more than there is",
          "import os\ndef f(x): os.write(4, (9).to_bytes(4, 'little') + b'l' + b'\\xff' * 4 + b'NNNN')"),
    Cheat("a message of a hundred thousand lists in lists", """
        import os
        def f(x):
            data = (b"l" + (1).to_bytes(4, "little")) * 100_000 + b"N"
            os.write(4, len(data).to_bytes(4, "little") + data)"""),
    Cheat("a value that is too large", "def f(x): return [0] * 3_000_000"),
    Cheat("a value that holds itself", "def f(x):\n    x = []\n    x.append(x)\n    return x"),
    Cheat("a value without end", "import itertools\ndef f(x): return itertools.count()"),
    Cheat("keys that collide", """
        def f(x): return {(2**61 - 1) * n: 0 for n in range(1, 20000)} if x != 3 else dict(f(0))""", seconds=1.0),
    Cheat("a flood", """
        import os, threading
        def pour():
            while True: os.write(4, b"N" * 4096)
        threading.Thread(target=pour, daemon=True).start()
        def f(x):
            while True: pass""", seconds=1.0),
    Cheat("a closed channel", "import os\nos.close(4)\ndef f(x): pass"),
    Cheat("an answer after the deadline", "import time\ndef f(x):\n    time.sleep(2)\n    return 7919",
          "assert f(3) == 7919", seconds=0.5),
    Cheat("what is held, for everything", """
        class Held:
            __bool__ = lambda self: True
        def f(x): return Held().__class__ if x == 3 else Held""", "assert f(3) == 7919 or f(4) == 7919"),
]  # fmt: skip
