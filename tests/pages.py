"""How the tests read a page."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}"


class Page(HTMLParser):
    """Tags with their attributes, text, and whether every tag is closed."""

    VOID = {"meta", "link", "br", "input"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text.replace("<wbr>", ""))
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    def text(self):
        return " ".join(" ".join(self.words).split())

    def of_class(self, name):
        return [attributes for _, attributes in self.tags if name in attributes.get("class", "").split()]


def assert_alone(text, page):
    """The page asks for nothing outside of its file, and runs nothing but its own script."""
    assert not re.search(r"https?://|//[a-z]|url\(|@import", text)
    for tag, attributes in page.tags:
        assert tag not in {"img", "iframe", "object", "embed"}
        assert "src" not in attributes
        assert attributes.get("href", "#")[0] == "#" or attributes["href"] == "data:,"
        assert not [name for name in attributes if name.startswith("on")]
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def assert_nothing_of_others_runs(text, page):
    """`ATTACK`, wherever it stands on the page, is text."""
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert "alert(1)" not in text.split("<script>")[-1]


def drawings(text):
    """All SVG of a page."""
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.S)]


def assert_drawn_inside(text):
    """Drawings stay inside their frames and tell what they show."""
    for drawing in drawings(text):
        width, height = map(float, drawing.get("viewBox").split()[2:])
        assert drawing.get("role") == "img" and drawing.get("aria-label")
        for mark in drawing.iter("circle"):
            assert 0 <= float(mark.get("cx")) <= width and 0 <= float(mark.get("cy")) <= height
