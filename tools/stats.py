"""The size and shape of the code: `make stats` prints it, and tests/repository holds its limits.

Counts the Python of src/ and serving/: files, lines, long functions, functions with many parameters, lines with
`dict[str, Any]`, import circles (imports inside functions and for types only count too), and names that occur twice.
"""

import ast
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import grimp
import networkx

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("src", "serving")
PACKAGES = ("videoblip2", "serving")
MAX_PARAMETERS, LONG_FUNCTION, LONG_FILE = 7, 30, 300
#: Their functions' parameters are a command's options or a request's fields.
SIGNATURES = ("src/videoblip2/cli/", "serving/api.py")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Stats:
    """What `measure` finds; places are `file:line name`."""

    files: int
    lines: int
    functions: int
    median_function: float
    long_functions: list[str]
    many_parameters: list[str]
    long_files: list[str]
    untyped_dicts: int
    circles: list[list[str]]
    repeated_files: dict[str, list[str]]
    repeated_classes: dict[str, list[str]]


def measure(root: Path = ROOT) -> Stats:
    """Read the tree below `root`."""
    paths = sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py"))
    sources = {str(path.relative_to(root)): path.read_text(encoding="utf-8") for path in paths}
    trees = {name: ast.parse(text) for name, text in sources.items()}
    functions = [(name, node) for name, tree in trees.items() for node in ast.walk(tree) if isinstance(node, Function)]
    lines = {name: len(text.splitlines()) for name, text in sources.items()}
    return Stats(
        files=len(paths),
        lines=sum(lines.values()),
        functions=len(functions),
        median_function=statistics.median(_length(node) for _, node in functions),
        long_functions=[_place(*entry) for entry in functions if _length(entry[1]) > LONG_FUNCTION],
        many_parameters=[_place(*entry) for entry in functions if _too_many_parameters(*entry)],
        long_files=[f"{name} ({count})" for name, count in lines.items() if count > LONG_FILE],
        untyped_dicts=sum("dict[str, Any]" in line for text in sources.values() for line in text.splitlines()),
        circles=find_circles(),
        repeated_files=_repeated((Path(name).stem, name) for name in sources if not name.endswith("__init__.py")),
        repeated_classes=_repeated(_classes(trees)),
    )


def find_circles() -> list[list[str]]:
    """Groups of modules that import each other, directly or through others."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=False, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    groups = networkx.strongly_connected_components(networkx.DiGraph(imports))
    return sorted(sorted(group) for group in groups if len(group) > 1)


def _length(node: Function) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _place(name: str, node: Function) -> str:
    return f"{name}:{node.lineno} {node.name}"


def _too_many_parameters(name: str, node: Function) -> bool:
    given = node.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return not name.startswith(SIGNATURES) and len([n for n in names if n not in ("self", "cls")]) > MAX_PARAMETERS


def _classes(trees: dict[str, ast.Module]) -> Iterator[tuple[str, str]]:
    for name, tree in trees.items():
        yield from ((node.name, f"{name}:{node.lineno}") for node in tree.body if isinstance(node, ast.ClassDef))


def _repeated(pairs: Iterator[tuple[str, str]]) -> dict[str, list[str]]:
    places: dict[str, list[str]] = defaultdict(list)
    for name, place in pairs:
        places[name].append(place)
    return {name: found for name, found in sorted(places.items()) if len(found) > 1}


def main() -> None:
    """Print a line a figure, or with --json everything as one object."""
    stats = asdict(measure())
    if "--json" in sys.argv:
        print(json.dumps(stats))
        return
    for name, value in stats.items():
        entries = value if isinstance(value, list) else _lines_of(value) if isinstance(value, dict) else []
        count = value if isinstance(value, int | float) else len(value)
        print(f"{name.replace('_', ' '):18} {count}", *(f"  {entry}" for entry in entries), sep="\n")


def _lines_of(places: dict[str, list[str]]) -> list[str]:
    return [f"{name}: {', '.join(found)}" for name, found in places.items()]


if __name__ == "__main__":
    main()
