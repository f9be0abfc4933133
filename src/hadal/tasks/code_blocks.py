"""The program in a reply: which of its blocks of Python it is, and how much of it is run.

Models open fences in every way, explain between blocks, and show off what they wrote. Chosen is the last block that
defines the wanted names; what it lacks comes from the others. What only shows off the wanted functions behind them
(prints, loops, asserts, `if __name__ == "__main__"`) is left out. A program that is wrong is not mended.
"""

from __future__ import annotations

import ast
import builtins
import re
import symtable
import textwrap
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice

_FENCE = re.compile(r"(?P<before>.*?)(?P<fence>`{3,}|~{3,})(?P<info>[^`]*)")
_PYTHON = re.compile(r"(?<!\w)(?:i?python|py)[\d.]*(?!\w)", re.IGNORECASE)
_START = re.compile(r"(?:async\s+def|def|class|import|from)\b|@")
_TRIES = 20  # at ends of a block, and at beginnings of a text without one
_DEEPEST = 150  # a tree that is looked into: Python walks no deeper ones without end


@dataclass(frozen=True)
class Block:
    """A piece of a reply that may be Python. tree: of `code`; None where it is none."""

    code: str
    tree: ast.Module | None


def code_of(answer: str, wanted: Collection[str] = ()) -> str | None:
    """The program in a reply, which should define the names `wanted`; None where there is no Python.

    Where no block defines them it is the last block of Python as it is, such as the body of a function alone.
    """
    names = set(wanted)
    blocks, rest = _blocks(answer)
    parsed = [block for block in blocks if block.tree is not None]
    best = max((len(names & _defined(block.tree)) for block in parsed), default=0)
    if names and not best:
        loose = _unfenced(rest, names)
        if loose is not None:
            return without_demos(loose.code, names)
        return blocks[-1].code if blocks else None
    if not names and not blocks:
        loose = _unfenced(rest, names)
        return None if loose is None else loose.code
    if not parsed:
        return blocks[-1].code
    chosen = [block for block in parsed if len(names & _defined(block.tree)) == best][-1]
    return _with_helpers(chosen, [block for block in parsed if block is not chosen], names) if names else chosen.code


def fenced(code: str) -> str:
    """Code as a reply writes it."""
    return f"```python\n{code.strip(chr(10))}\n```"


def missing_names(code: str) -> set[str]:
    """Names that code uses and neither binds nor has from Python; empty where it is none."""
    block = _block(code)
    return set() if block.tree is None else _lacking(block.tree)


def joined(*parts: str) -> str:
    """Programs as one: imports from `__future__` have to come first."""
    lines = "\n".join(parts).split("\n")
    future = [line for line in lines if line.startswith("from __future__ import ")]
    return "\n".join([*dict.fromkeys(future), *(line for line in lines if line not in future)])


# ------------------------------------------------------------------------------------- blocks of a reply


def _blocks(answer: str) -> tuple[list[Block], str]:
    """The blocks that are tagged as Python or as nothing, and the text outside of all blocks.

    A fence may be indented, or end a line of prose that is tagged or ends in a colon; the block may lack its end.
    """
    lines, found, outside = answer.replace("\r\n", "\n").split("\n"), list[Block](), list[str]()
    at = 0
    while at < len(lines):
        match = _FENCE.fullmatch(lines[at])
        if match is None or not _opens(match):
            outside.append(lines[at])
            at += 1
            continue
        begin, ends = at + 1, list(islice(_ends(lines, at + 1, match["fence"]), _TRIES))
        is_python = not match["info"].strip() or bool(_PYTHON.search(match["info"]))
        block: Block | None = None
        at, _ = ends[0] if ends else (len(lines), "")
        if is_python:
            # The first end that leaves whole Python: others stand in its docstrings.
            for end, last in ends:
                tried = _block("\n".join([*lines[begin:end], last]))
                if tried.tree is not None:
                    block, at = tried, end
                    break
            else:
                code = "\n".join([*lines[begin:at], *([ends[0][1]] if ends else [""])])
                block = _beginning(code)
                if block.tree is None and ends:
                    block = Block(code, None)
            if block.code.strip():
                found.append(block)
        if at < len(lines) and not _reopens(lines[at]):
            at += 1
    return found, "\n".join(outside)


def _opens(match: re.Match[str]) -> bool:
    before, info = match["before"].strip(), match["info"].strip()
    if not before or re.fullmatch(r"[-*+>]|\d+[.)]", before):
        return True
    return bool(_PYTHON.fullmatch(info)) or (not info and before.endswith(":"))


def _reopens(line: str) -> bool:
    """Whether a line with a fence begins the next block: it names a language."""
    match = _FENCE.fullmatch(line)
    return match is not None and bool(re.match(r"[A-Za-z]", match["info"].strip())) and _opens(match)


def _ends(lines: list[str], begin: int, fence: str) -> Iterator[tuple[int, str]]:
    """The lines at which a block may end, each with the code that stands on it before the fence."""
    for at in range(begin, len(lines)):
        match = _FENCE.fullmatch(lines[at])
        if match and match["fence"].startswith(fence) and (not match["info"].strip() or _reopens(lines[at])):
            yield at, "" if match["info"].strip() else match["before"].rstrip()


def _block(code: str) -> Block:
    """Code with its tree; where all of it is indented, without that."""
    for text in dict.fromkeys([code, textwrap.dedent(code)]):
        if (tree := _parse(text)) is None:
            continue
        # A body alone keeps its indentation: what it continues has it as well.
        whole = text if any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body) else code
        return Block(whole, tree)
    return Block(code, None)


def _parse(code: str) -> ast.Module | None:
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    level: list[ast.AST] = [tree]
    for _ in range(_DEEPEST):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    return None if level else tree


def _beginning(code: str) -> Block:
    """The longest beginning of code that is Python, as far as a few tries find it; empty where none is."""
    lines = textwrap.dedent(code).split("\n")
    for _ in range(_TRIES):
        try:
            ast.parse("\n".join(lines))
            return Block("\n".join([*lines, ""]), _parse("\n".join(lines))) if lines else Block("", None)
        except SyntaxError as error:
            lines = lines[: min(error.lineno or 1, len(lines)) - 1]
        except (ValueError, RecursionError, MemoryError):
            break
    return Block("", None)


def _unfenced(text: str, names: set[str]) -> Block | None:
    """The Python in a text that has no fence around it: from an import or a definition to where prose goes on."""
    lines = text.split("\n")
    starts = [i for i, line in enumerate(lines) if _START.match(line)]
    for start in starts[:_TRIES]:
        block = _beginning("\n".join(lines[start:]))
        if block.tree is not None and (names & _defined(block.tree) or (not names and _functions(block.tree))):
            return block if names else Block(block.code.removesuffix("\n"), block.tree)
    return None


# ------------------------------------------------------------------------------------- what of them is run


def without_demos(code: str, wanted: Collection[str]) -> str:
    """A program without what only runs when it is started, or shows the wanted functions off behind them.

    All before the last wanted definition stays, but for imports that nothing uses. Behind it stays what is read there:
    functions, imports, and what sets or fills a variable.
    """
    block = _block(code)
    if block.tree is None:
        return code
    body = [part for node in block.tree.body for part in _without_main_guard(node)]
    bound = [_bound(node) for node in body]
    last = max((i for i, names in enumerate(bound) if names & set(wanted)), default=len(body) - 1)
    kept = {i for i in range(last + 1) if not isinstance(body[i], ast.Import | ast.ImportFrom)}
    while True:
        read = _read(ast.Module([body[i] for i in sorted(kept)], [])) | set(wanted) | {"*", "annotations"}
        variables = {name for i in kept if not isinstance(body[i], _DEFINITION) for name in bound[i]}
        more = {i for i in range(len(body)) if bound[i] & read or _filled(body[i]) & read & variables} - kept
        if not more:
            break
        kept |= more
    if len(kept) == len(block.tree.body):
        return block.code
    return ast.unparse(ast.Module([body[i] for i in sorted(kept)], [])) + "\n"


_DEFINITION = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom


def _without_main_guard(node: ast.stmt) -> list[ast.stmt]:
    """A statement; of `if __name__ == "__main__"` what stands behind its else."""
    if isinstance(node, ast.If):
        if any(isinstance(part, ast.Name) and part.id == "__name__" for part in ast.walk(node.test)):
            return node.orelse
    return [node]


def _with_helpers(chosen: Block, others: list[Block], names: set[str]) -> str:
    """The chosen block behind those blocks that define what it lacks, and what they lack in turn."""
    program = without_demos(chosen.code, names)
    needed, helpers = missing_names(program) | (names - _defined(chosen.tree)), list[Block]()
    while helper := next((b for b in others if b not in helpers and _all_bound(b.tree) & needed), None):
        helpers.append(helper)
        needed |= missing_names(without_demos(helper.code, _all_bound(helper.tree) & needed))
    parts = [without_demos(block.code, _all_bound(block.tree) & needed) for block in others if block in helpers]
    return joined(*parts, program)


def _functions(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for node in tree.body)


def _defined(tree: ast.Module | None) -> set[str]:
    """Names that a program binds itself: it does not import them, nor leave a function without a body."""
    body = tree.body if tree else []
    own = (node for node in body if not isinstance(node, ast.Import | ast.ImportFrom) and not _is_stub(node))
    return {name for node in own for name in _bound(node)}


def _is_stub(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and all(
        isinstance(part, ast.Pass) or (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
        for part in node.body
    )


def _all_bound(tree: ast.Module | None) -> set[str]:
    return {name for node in (tree.body if tree else []) for name in _bound(node)}


def _bound(node: ast.stmt) -> set[str]:
    """Names that a statement binds, outside of functions and classes that it defines."""
    found = set()
    for part in _outside_functions(node):
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(part.name)
        elif isinstance(part, ast.alias):
            found.add(part.asname or part.name.partition(".")[0])
        elif isinstance(part, ast.Name) and not isinstance(part.ctx, ast.Load):
            found.add(part.id)
    return found


def _filled(node: ast.stmt) -> set[str]:
    """Variables whose contents a statement changes: `memo[0] = 1`, `primes.append(2)`."""
    found = set()
    for part in _outside_functions(node):
        root: ast.AST | None = None
        if isinstance(part, ast.Subscript | ast.Attribute) and not isinstance(part.ctx, ast.Load):
            root = part.value
        elif isinstance(part, ast.Expr) and isinstance(part.value, ast.Call):
            root = part.value.func if isinstance(part.value.func, ast.Attribute) else None
        while isinstance(root, ast.Subscript | ast.Attribute | ast.Call):
            root = root.func if isinstance(root, ast.Call) else root.value
        if isinstance(root, ast.Name):
            found.add(root.id)
    return found


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
        for child in ast.iter_child_nodes(node):
            yield from _outside_functions(child)


def _read(tree: ast.Module) -> set[str]:
    """The module's names that a program reads, also inside of its functions."""
    try:
        tables = [symtable.symtable(ast.unparse(tree), "program", "exec")]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {part.id for part in ast.walk(tree) if isinstance(part, ast.Name)}
    found = set()
    for table in tables:  # which grows
        tables += table.get_children()
        top = table.get_type() == "module"
        found |= {s.get_name() for s in table.get_symbols() if s.is_referenced() and (top or s.is_global())}
    return found


def _lacking(tree: ast.Module) -> set[str]:
    return _read(tree) - _all_bound(tree) - set(dir(builtins))
