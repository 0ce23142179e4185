"""The magic that publishes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from abe.display.options import DELAY, HEADER, Option
from abe.display.results import Count
from abe.display.text import cell, plural
from abe.ipython.grammar import OUT, Syntax, identifier, one_of
from abe.ipython.payloads import FORMATS, Payloads, payloads_of, read_file, read_payloads
from abe.ipython.progress import Progress
from abe.ipython.session import Call, Settings, magic, say


def _variable(text: str) -> str:
    try:
        return identifier(text)
    except ValueError as error:
        raise ValueError(f"{error}; for an expression write {{{{…}}}} as the payload") from None


FORMAT = Option(
    *("--format", "-f", "FORMAT"),
    "How PAYLOAD is written: json, jsonl (one object a line), yaml, csv (the first line names the "
    "columns, all values are text) or python (a literal). {{expr}} works in json and jsonl alone.",
    one_of(*FORMATS),
    "json",
)
VARIABLE = Option("--in", "-i", "VAR", "Publish the value of the variable VAR.", _variable)
FILE = Option(
    *("--file", "-F", "PATH"),
    "Publish a file: .csv, .jsonl, .json or .yaml, else with --format.",
)
_COMMON = (HEADER, DELAY, FORMAT, OUT)
LINE = Syntax("%abe_publish", "KEY [PAYLOAD]", (VARIABLE, FILE, *_COMMON), payload=True)
CELL = Syntax("%%abe_publish", "KEY, then PAYLOAD as the cell", _COMMON, payload=True)


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

        Returns:
          the number of messages published
        """
        payloads = _payloads(call)
        key, options = call.words[0], call.options
        backend = self.session.backend()
        live = self.session.in_notebook
        items = payloads.items
        try:
            prepared = backend.prepare(
                items if isinstance(items, list) else _counted(items, live),
                key=key,
                headers=dict(options["header"]),
                delay=options["delay"] or 0.0,
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
        self.session.note([key])
        sentence = f"published {plural(total, 'message')} to {{}} on {{}}"
        return call.result(Count(total, sentence, key, backend.name))


def _counted(items: Iterable[Any], live: bool) -> Iterator[Any]:
    """Show how many items have been made and checked: that may take longer than sending them."""
    with Progress(None, "checked", live=live) as progress:
        for count, item in enumerate(items, 1):
            yield item
            progress(count)


def _payloads(call: Call) -> Payloads:
    syntax, options = call.syntax, call.options
    if not call.words:
        raise syntax.error("KEY is missing: which key to publish under, e.g. orders.created")
    if call.body is not None and call.payload is not None:
        given = cell(call.payload, 40)
        raise syntax.error(
            f"the payload of %%abe_publish is the cell, so {given} cannot follow KEY"
        )
    text = call.payload if call.body is None else call.body
    variable, path = options.get("in"), options.get("file")
    sources = {"-i {}": variable, "--file {}": path, "a payload ({})": text}
    if len(found := [form for form, it in sources.items() if it is not None]) > 1:
        shown = " and ".join(form.format(cell(str(sources[form]), 40)) for form in found)
        raise syntax.error(f"only one of {shown} can be published")
    if variable is not None:
        return payloads_of(call.variable(variable), variable)
    if path is not None:
        return read_file(path, options["format"])
    key = call.words[0]
    if text is None:
        shown = cell(key, 40)
        raise syntax.error(
            f"nothing to publish: {shown} was taken for KEY and no PAYLOAD follows it"
        )
    return read_payloads(text, options["format"] or "json", call.evaluate, f"%abe_publish {key}")
