"""Results as text, HTML and JSON, for the command line and notebooks alike."""

from abe.display.results import Backends, Backlog, Count, DeadLetters, Listing, Messages
from abe.display.table import Table

__all__ = ["Backends", "Backlog", "Count", "DeadLetters", "Listing", "Messages", "Table"]
