"""Assertions whose texts tell what was expected and what came, with or without pytest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = ["check", "exactly", "only", "refused", "same", "shown"]

T = TypeVar("T")


def check(condition: object, text: str) -> None:
    """Fail with ``text`` unless ``condition`` holds."""
    __tracebackhide__ = True
    if not condition:
        raise AssertionError(text)


def shown(value: object, length: int = 300) -> str:
    """Return ``value`` as text of bounded length, which says how long the whole is."""
    text = repr(dict(value) if isinstance(value, dict) else value)
    if len(text) <= length:
        return text
    return f"{text[: length - 40]} … {text[-30:]} ({len(text):,} characters)"


def same(arrived: object, published: object, what: str) -> None:
    """Fail unless two JSON values are equal and of equal types: 1 is neither 1.0 nor True."""
    __tracebackhide__ = True
    difference = _difference(arrived, published, what)
    if difference:
        raise AssertionError(
            f"{difference}\n  published: {shown(published)}\n  arrived:   {shown(arrived)}"
        )


def _difference(arrived: Any, published: Any, path: str) -> str:
    """Name the first place where two JSON values differ; "" if they do not."""
    if isinstance(published, dict) and isinstance(arrived, dict):
        if set(arrived) != set(published):
            odd = sorted(set(arrived) ^ set(published), key=repr)
            return f"{path}: these keys are missing or new: {shown(odd)}"
        parts = [(arrived[k], published[k], f"{path}[{k!r}]") for k in published]
    elif isinstance(published, list) and isinstance(arrived, list):
        if len(arrived) != len(published):
            return f"{path}: {len(published)} items became {len(arrived)}"
        parts = [
            (a, p, f"{path}[{i}]") for i, (a, p) in enumerate(zip(arrived, published, strict=True))
        ]
    elif type(arrived) is not type(published):
        return f"{path}: {type(published).__name__} became {type(arrived).__name__}"
    else:
        # repr tells 0.0 from -0.0 and finds NaN equal to itself.
        changed = repr(arrived) != repr(published)
        return f"{path}: {shown(published, 120)} became {shown(arrived, 120)}" if changed else ""
    return next(filter(None, (_difference(*part) for part in parts)), "")


def exactly(
    arrived: Sequence[Mapping[str, Any]],
    published: Sequence[Mapping[str, Any]],
    what: str,
    *,
    ordered: bool = False,
) -> None:
    """Fail unless ``arrived`` holds each published payload once, and in order if so asked."""
    __tracebackhide__ = True
    came, sent = [_text(p) for p in arrived], [_text(p) for p in published]
    problems = {
        "never arrived": Counter(sent) - Counter(came),
        "arrived more often than published": Counter(came) - Counter(sent),
    }
    texts = [
        f"{sum(c.values())} {problem}: {', '.join(list(c)[:5])}{' …' if len(c) > 5 else ''}"
        for problem, c in problems.items()
        if c
    ]
    if not texts and ordered and came != sent:
        first = next(i for i, pair in enumerate(zip(came, sent, strict=True)) if len({*pair}) > 1)
        texts = [f"out of order from position {first}: expected {sent[first]}, got {came[first]}"]
    if texts:
        raise AssertionError(
            f"{what}: {'; '.join(texts)}\n  published ({len(sent)}): {_listed(sent)}"
            f"\n  arrived ({len(came)}):   {_listed(came)}"
        )


def only(found: Sequence[T], what: str) -> T:
    """Return the one item of ``found``; fail unless there is exactly one."""
    __tracebackhide__ = True
    check(len(found) == 1, f"{what} should return one message, but returned {shown(list(found))}")
    return found[0]


def _text(payload: Mapping[str, Any]) -> str:
    return json.dumps(dict(payload), sort_keys=True, ensure_ascii=True, default=repr)


def _listed(texts: Sequence[str]) -> str:
    head = ", ".join(text[:60] for text in texts[:12]) or "nothing"
    return head + (f", … ({len(texts) - 12} more)" if len(texts) > 12 else "")


@contextmanager
def refused(
    what: str,
    *errors: type[BaseException],
    naming: str = "",
    missing_is_fine: bool = False,
) -> Iterator[None]:
    """Fail unless the body raises one of ``errors``, with ``naming`` in its text.

    Args:
        what: What the body does, for the failure.
        errors: What it must raise.
        naming: What the error's text must contain.
        missing_is_fine: Whether the method or parameter may be absent altogether.
    """
    __tracebackhide__ = True
    expected = " or ".join(error.__name__ for error in errors)
    try:
        yield
    except errors as error:
        text = str(error)
        check(naming in text, f"{what}: the error should name {naming!r}, but reads: {text!r}")
    except Exception as error:
        if missing_is_fine and isinstance(error, AttributeError | TypeError):
            return
        raise AssertionError(f"{what} should raise {expected}, but raised {error!r}") from error
    else:
        raise AssertionError(f"{what} should raise {expected}, but it returned")
