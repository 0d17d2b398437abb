"""HTML and SVG from nested calls. Text is escaped unless `el` made it, so nothing a model wrote can become markup."""

import html
from collections.abc import Iterable
from typing import TypeAlias

from freerun.watch.page.style import CSS

CONTROL = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}
"""Control characters become the symbols that stand for them: they are not allowed in HTML, and a reader should see them."""


class Html(str):
    """Markup that is safe to insert. Only this file makes it from strings."""

    __slots__ = ()


Child: TypeAlias = "Html | str | int | Iterable[Child] | None"


def escape(text: object) -> Html:
    return Html(html.escape(str(text).translate(CONTROL)))


def el(name: str, /, *children: Child, **attributes: object) -> Html:
    """An element. Underscores in attribute names become hyphens and a trailing one goes (`class_`); None leaves an attribute
    out; floats are written with two digits."""
    written = "".join(f' {n.rstrip("_").replace("_", "-")}="{_value(v)}"' for n, v in attributes.items() if v is not None)
    if name in VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


VOID = frozenset({"meta", "br", "img"})


def join(children: Iterable[Child]) -> Html:
    """Children one after the other; strings are escaped, nested iterables are flattened, None is nothing."""
    parts = []
    for child in children:
        if isinstance(child, Html):
            parts.append(child)
        elif child is None:
            continue
        elif isinstance(child, str | int):
            parts.append(escape(child))
        else:
            parts.append(join(child))
    return Html("".join(parts))


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return escape(value)


def document(title: str, *body: Child) -> str:
    """A whole page that loads nothing: its policy forbids every request and every script, should markup ever slip through."""
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el(
            "meta", http_equiv="Content-Security-Policy", content="default-src 'none'; style-src 'unsafe-inline'; img-src data:"
        ),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        el("style", Html(CSS)),
    )
    return f"<!doctype html>\n{el('html', head, el('body', el('main', body)), lang='en')}\n"
