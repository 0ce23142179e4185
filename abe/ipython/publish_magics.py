"""The magic that publishes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from abe.display.results import Count
from abe.display.text import cell, plural
from abe.ipython.grammar import (
    OUT,
    Option,
    Syntax,
    assignment,
    identifier,
    one_of,
    seconds,
)
from abe.ipython.payloads import FORMATS, Payloads, payloads_of, read_file, read_payloads
from abe.ipython.progress import Progress
from abe.ipython.session import Call, Settings, magic, say

__all__ = ["PublishMagics"]


def _variable(text: str) -> str:
    try:
        return identifier(text)
    except ValueError as error:
        raise ValueError(f"{error}; for an expression write {{{{…}}}} as the payload") from None


_COMMON = (
    Option("--header", "-H", "K=V", assignment, repeat=True),
    Option("--delay", "-d", "S", seconds, default=0.0),
    Option("--format", "-f", "|".join(FORMATS), one_of(*FORMATS)),
    OUT,
)

LINE = Syntax(
    "%abe_publish",
    "[--header K=V]… [--delay S] KEY PAYLOAD, or KEY -i VAR, or KEY --file PATH",
    (*_COMMON, Option("--in", "-i", "VAR", _variable), Option("--file", "-F", "PATH")),
    payload=True,
)
CELL = Syntax(
    "%%abe_publish",
    f"[--header K=V]… [--delay S] KEY [--format {'|'.join(FORMATS)}], then PAYLOAD as the cell",
    _COMMON,
    payload=True,
)


class PublishMagics(Settings):
    """Publish."""

    @magic(LINE, CELL)
    def abe_publish(self, call: Call) -> Any:
        """Publish one message, or one for each item of a list.

        ::

            %abe_publish orders.created {"id": 1, "note": "costs $5"}
            %abe_publish orders.created {"id": {{order_id}}, "tags": {{tags}}}
            %abe_publish orders.{{region}}.created {{order}}
            %abe_publish orders.created -i orders
            %abe_publish orders.created --file orders.csv
            %abe_publish --header source=notebook --delay 60 orders.created {"id": 1}

            %%abe_publish orders.created --format jsonl
            {"id": 1}
            {"id": 2}

        PAYLOAD is JSON: an object is one message, a list of objects one message each. It is the
        rest of the line and is published exactly as it stands; only {{expr}} outside strings is
        replaced by the value of the Python expression, which may be any JSON value.
        A payload that is one {{expr}}, or -i VAR, may be a dict, a list of dicts, a generator of
        dicts or a DataFrame of pandas or polars: one message per row without the index, missing
        values as null, dates and times as ISO 8601. Options stand before KEY or between KEY and
        PAYLOAD. Everything is checked before the first message is sent. After Ctrl-C the number of
        published messages is printed: the first ones, in order.

        Options:
          -i, --in VAR      publish the value of the variable VAR
          -F, --file PATH   publish a file: .csv, .jsonl, .json or .yaml, else with --format
          -H, --header K=V  text metadata of the messages; repeatable
          -d, --delay S     deliver after S seconds at the earliest
          -f, --format F    how PAYLOAD is written: json (the default), jsonl (one object a line),
                            yaml, csv (the first line names the columns, all values are text) or
                            python (a literal). {{expr}} works in json and jsonl only
          -o, --out NAME    also store the result in the variable NAME

        Returns:
          the number of messages published
        """
        _require_key_and_payload(call)
        key, options = call.words[0], call.options
        payloads = _payloads(call)
        backend = self.session.backend()
        live = self.session.in_notebook
        items = payloads.items
        try:
            prepared = backend.prepare(
                items if isinstance(items, list) else _counted(items, live),
                key=key,
                headers=dict(options["header"]),
                delay=options["delay"],
                label=payloads.label,
            )
        except KeyboardInterrupt:
            say("interrupted: nothing is published")
            raise
        total = len(prepared)
        with Progress(total, "published", live=live) as progress:
            try:
                backend.send(prepared, progress=progress)
            except KeyboardInterrupt as error:
                notes = "; ".join(["", *getattr(error, "__notes__", [])])
                say(f"interrupted: {progress.count:,} of {total:,} are published{notes}")
                raise
        self.session.keys.add([key])
        sentence = f"published {plural(total, 'message')} to {{}} on {{}}"
        return call.result(Count(total, sentence, key, backend.name))


def _counted(items: Iterable[Any], live: bool) -> Iterator[Any]:
    """Show how many items have been made and checked: that may take longer than sending them."""
    with Progress(None, "checked", live=live) as progress:
        for count, item in enumerate(items, 1):
            yield item
            progress(count)


def _require_key_and_payload(call: Call) -> None:
    syntax, given = call.syntax, call.payload
    variable, path = call.options.get("in"), call.options.get("file")
    if not call.words:
        raise syntax.error("KEY is missing: which key to publish under, e.g. orders.created")
    if call.body is not None:
        if given is not None:
            raise syntax.error(
                f"the payload of %%abe_publish is the cell, so {cell(given, 40)} cannot follow KEY"
            )
        return
    sources = {"-i {}": variable, "--file {}": path, "a payload ({})": given}
    found = {form: text for form, text in sources.items() if text is not None}
    if len(found) > 1:
        shown = " and ".join(form.format(cell(text, 40)) for form, text in found.items())
        raise syntax.error(f"only one of {shown} can be published")
    if not found:
        key = cell(call.words[0], 40)
        raise syntax.error(f"nothing to publish: {key} was taken for KEY and no PAYLOAD follows it")


def _payloads(call: Call) -> Payloads:
    variable = call.options.get("in")
    if variable is not None:
        return payloads_of(call.variable(variable), variable)
    path = call.options.get("file")
    if path is not None:
        return read_file(path, call.options["format"])
    return read_payloads(
        call.payload or "" if call.body is None else call.body,
        call.options["format"] or "json",
        call.evaluate,
        f"%abe_publish {call.words[0]}",
    )
