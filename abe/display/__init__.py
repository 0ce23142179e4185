"""Results as text, HTML and JSON, for the command line and notebooks alike."""

from abe.display.lines import FIELDS, json_line, message_json, message_text
from abe.display.results import Backends, Backlog, Count, DeadLetters, Listing, Messages
from abe.display.table import Table
from abe.display.text import cell, group_name, limits, plural, preview, visible

__all__ = [
    "FIELDS",
    "Backends",
    "Backlog",
    "Count",
    "DeadLetters",
    "Listing",
    "Messages",
    "Table",
    "cell",
    "group_name",
    "json_line",
    "limits",
    "message_json",
    "message_text",
    "plural",
    "preview",
    "visible",
]
