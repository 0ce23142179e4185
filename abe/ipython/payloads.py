"""The payloads of ``%abe_publish``: text in several formats, values, files."""

from __future__ import annotations

import ast
import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from abe.backends.message_queue.base.outgoing import Label, item_label, no_label
from abe.display.text import cell
from abe.errors import PayloadError, UnsupportedError
from abe.ipython.errors import short
from abe.ipython.expressions import Evaluate, whole_expression
from abe.ipython.frames import is_frame, rows_of
from abe.ipython.json_text import Template, parse_json

if TYPE_CHECKING:
    import yaml

FORMATS = ("json", "jsonl", "yaml", "csv", "python")
"""How the text of a payload may be written."""
MAX_ALIASED = 1 << 20
"""Maximum number of characters and values that the aliases of a YAML document stand for."""
_SUFFIXES = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".yaml": "yaml",
    ".yml": "yaml",
}


class Payloads(NamedTuple):
    """The payloads to publish, one message each; not checked yet.

    Attributes:
        items: The payloads, perhaps made on demand.
        label: Returns how errors name the item at a position.
    """

    items: Iterable[Any]
    label: Label = item_label


def read_payloads(text: str, format: str, evaluate: Evaluate, command: str) -> Payloads:
    """Return the payloads in the text behind KEY or in the body of a cell.

    ``{{expr}}`` is evaluated in ``json`` and ``jsonl``; the other formats are taken verbatim.
    Errors show the right spelling behind ``command``, unless the text comes from a file.
    """
    text = text.removeprefix("\ufeff")
    if format == "json":
        text = text.strip()
        if text.startswith("{{") and (source := whole_expression(text)):
            return payloads_of(evaluate(source), f"{{{{{cell(source, 60)}}}}}")
        template = parse_json(text, command)
        value = template.value(evaluate) if template.expressions else template.parsed
        return payloads_of(value, "the payload")
    if format == "jsonl":
        return _read_json_lines(text, evaluate)
    read = {"yaml": _yaml, "csv": _csv, "python": _python}[format]
    return payloads_of(read(text), f"the {format} payload")


def read_file(path: str, format: str | None) -> Payloads:
    """Return the payloads that a file holds; without a format the end of its name decides."""
    file = Path(path).expanduser()
    name = cell(file.name, 60)
    found = format or _SUFFIXES.get(file.suffix.lower())
    if found is None:
        raise PayloadError(
            f"the format of {name} cannot be told from its name; give --format {'|'.join(FORMATS)}"
        )
    try:
        text = file.read_bytes().decode()  # not as text: line ends in quotes belong to the values
    except UnicodeDecodeError as error:
        raise PayloadError(f"{name} is not UTF-8: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise short(error) from None
    try:
        items, label = read_payloads(text, found, _refuse, "")
    except PayloadError as error:
        raise PayloadError(f"{name}: {error}") from None
    return Payloads(items, lambda position: f"{name}: {label(position)}".removesuffix(": "))


def _refuse(expression: str) -> object:
    raise PayloadError(f"{{{{{cell(expression, 40)}}}}} is not evaluated in a file")


def payloads_of(value: object, name: str) -> Payloads:
    """Return what publishing ``value`` sends: a dict is one message, an iterable one per item."""
    if isinstance(value, dict):
        return Payloads([value], no_label)
    kind = type(value).__name__
    if is_frame(value):
        value = rows_of(value, name)
    if isinstance(value, str | bytes | bytearray) or not isinstance(value, Iterable):
        raise PayloadError(
            f"{name} must be an object (one message) or a list of objects (one message each),"
            f" not {kind}"
        )
    return Payloads(value if isinstance(value, list) else _noting_failures(value, name))


def _noting_failures(items: Iterable[Any], name: str) -> Iterator[Any]:
    count = 0
    try:
        for item in items:
            yield item
            count += 1
    except Exception as error:  # of the user's generator
        error.add_note(f"{name} failed at item {count}; nothing is published")
        raise


def _read_json_lines(text: str, evaluate: Evaluate) -> Payloads:
    templates: list[Template] = []
    numbers: list[int] = []
    # JSON strings may hold other characters that str.splitlines takes for line ends.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            numbers.append(number)
            try:
                templates.append(parse_json(line.strip(), ""))
            except PayloadError as error:
                raise PayloadError(f"line {number}: {error}") from None
    items = (t.value(evaluate) if t.expressions else t.parsed for t in templates)
    return Payloads(items, lambda position: f"line {numbers[position]}")


def _python(text: str) -> object:
    try:
        return ast.literal_eval(text.strip())
    except SyntaxError as error:
        where = f" (line {error.lineno})" if error.lineno else ""
        raise PayloadError(f"the payload is not a Python literal: {error.msg}{where}") from None
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        # Behind the colon is the address of an object.
        problem = cell(str(error).partition(":")[0], 80)
        raise PayloadError(
            f"the payload is not a Python literal: {problem}; names and calls are not evaluated"
        ) from None


def _yaml(text: str) -> object:
    try:
        import yaml
    except ImportError:
        raise UnsupportedError(
            "--format yaml needs PyYAML, which is not installed: run %pip install pyyaml"
        ) from None
    try:
        return yaml.load(text, _yaml_loader())  # noqa: S506 - a safe one
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        problem = ", ".join(filter(None, (error.context, error.problem)))
        raise PayloadError(f"the payload is not YAML: {problem}{where}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise PayloadError(f"the payload is not YAML: {cell(str(error))}") from None


def _yaml_loader() -> type[yaml.SafeLoader]:
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses names that stand twice in a mapping, and aliases that stand for too much."""

        def __init__(self, stream: str) -> None:
            super().__init__(stream)
            self._length = len(stream)
            self._total = self._aliased = 0
            self._sizes: dict[yaml.Node, int] = {}

        def compose_node(self, parent: Any, index: Any) -> Any:
            is_alias = self.check_event(yaml.AliasEvent)
            before = self._total
            node: Any = super().compose_node(parent, index)
            if not is_alias:
                self._total += 1 + len(node.value) * isinstance(node, yaml.ScalarNode)
                self._sizes[node] = self._total - before
                return node
            size = self._sizes.get(node, self._length)  # not known yet if it contains itself
            self._total += size
            self._aliased += size
            if self._aliased > MAX_ALIASED:
                problem = f"the aliases stand for more than {MAX_ALIASED:,} characters and values"
                raise yaml.composer.ComposerError(None, None, problem, node.start_mark)
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names: set[tuple[str, str]] = set()
            for name, _ in node.value:
                key = (str(name.tag), str(name.value))
                if key in names:
                    problem = f"the name {cell(key[1], 60)} stands twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, name.start_mark)
                names.add(key)
            return super().construct_mapping(node, deep)

    return Loader


def _csv(text: str) -> object:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise PayloadError(f"line {reader.line_num} is not CSV: {error}") from None
    names = rows[0][1] if rows else []
    if len(set(names)) != len(names) or not all(names):
        raise PayloadError("the first line of the CSV must name each column, once")
    for number, row in rows:
        if len(row) != len(names):
            raise PayloadError(f"line {number} of the CSV has {len(row)} cells, not {len(names)}")
    return [dict(zip(names, row, strict=True)) for _, row in rows[1:]]
