"""Dead letters: what their headers say, and the key that stands in for them."""

from __future__ import annotations

from abe.backends.message_queue.base import dead_headers


def test_headers_of_a_message_that_nobody_knows_more_of() -> None:
    headers = dead_headers({"a": "b"}, reason="broken", attempts=3, id=None, key=None)
    moment = headers.pop("abe-dead-time")
    assert float(moment) > 1.7e9
    assert headers == {
        "a": "b",
        "abe-dead-reason": "broken",
        "abe-dead-traceback": "",
        "abe-dead-attempts": "3",
        "abe-dead-id": "",
        "abe-dead-key": "",
    }


def test_long_reasons_are_cut_where_it_hurts_least() -> None:
    """The summary keeps its beginning, the traceback its end."""
    reason = "s" * 1500 + "\n" + "first" + "t" * 1000 + "last"
    headers = dead_headers({}, reason=reason, attempts=1, id="1", key="k")
    assert headers["abe-dead-reason"] == "s" * 1000
    assert headers["abe-dead-traceback"] == "t" * 996 + "last"


def test_text_that_is_no_text_is_replaced() -> None:
    headers = dead_headers({}, reason="bad \ud800", attempts=1, id="1", key="k")
    assert headers["abe-dead-reason"] == "bad ?"
