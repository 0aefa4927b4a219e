"""The document and the page as they are served: to everybody, whole, and nothing but themselves."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from runbell.service.openapi import PATHS
from runbell.service.openapi.document import document
from tests.served import Api, Served

VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """The elements of a page; every element that begins has to end."""

    def __init__(self, text):
        super().__init__()
        self.open = []
        self.ids = []
        self.links = []
        self.tags = set()
        self.text = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        given = dict(attrs)
        if "id" in given:
            self.ids.append(given["id"])
        self.links += [given[name] for name in ("href", "src") if name in given]
        assert not any(name.startswith("on") or name == "style" for name in given), given
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text.append(data)


@pytest.fixture(scope="module")
def docs(house: Served):
    return house.request("GET", "/docs")


@pytest.fixture(scope="module")
def page(docs):
    return Page(docs.body.decode())


def test_the_document_is_served_as_it_is(house: Served):
    answer = house.request("GET", "/openapi.json")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == json.loads(json.dumps(document()))


@pytest.mark.parametrize("path", PATHS)
def test_who_has_it_already_is_told_so(house: Served, path):
    whole = house.request("GET", path)
    again = house.request("GET", path, headers={"If-None-Match": whole.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    assert again.headers["etag"] == whole.headers["etag"]
    other = house.request("GET", path, headers={"If-None-Match": '"another"'})
    assert other.body == whole.body


@pytest.mark.parametrize("path", PATHS)
def test_heads_are_answered_and_other_methods_are_not(house: Served, house_api: Api, path):
    head = house.request("HEAD", path)
    assert (head.status, head.body) == (200, b"")
    post = house_api.post(path)
    assert (post.status, post.headers["allow"]) == (405, "GET, HEAD")


def test_the_page_may_do_nothing_but_be_shown(docs):
    policy = docs.headers["content-security-policy"]
    style = re.search("<style>(.*?)</style>", docs.body.decode(), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    assert docs.headers["content-type"] == "text/html; charset=utf-8"
    assert docs.headers["x-content-type-options"] == "nosniff"
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_the_page_loads_nothing_and_every_link_leads_somewhere(page):
    assert not page.tags & {"script", "img", "iframe", "object", "form"}
    assert len(set(page.ids)) == len(page.ids)
    for link in page.links:
        assert link in ("openapi.json", "data:,") or link.removeprefix("#") in page.ids, link


def test_the_page_shows_every_operation_schema_and_error(page):
    operations = {
        operation["operationId"]: operation
        for item in document()["paths"].values()
        for method, operation in item.items()
        if method != "parameters"
    }
    assert set(operations) | set(document()["components"]["schemas"]) <= set(page.ids)
    text = " ".join(page.text)
    for operation in operations.values():
        assert operation["summary"] in text
        for parameter in operation.get("parameters", []):
            if "$ref" not in parameter:
                assert parameter["name"] in text
    for response in document()["components"]["responses"].values():
        assert response["description"].split("`")[0] in text


def test_the_page_marks_what_is_ours(docs):
    shown = docs.body.decode()
    assert '<h3>Find runs across threads <span class="mark"' in shown
    assert '<code>expires_after</code> <span class="mark"' in shown
    assert '<h3>List assistants <span class="mark"' not in shown


def test_what_a_document_says_cannot_become_markup():
    """The page is made of texts that somebody writes: each is escaped."""
    from runbell.service.openapi.page import page as make

    evil = "<script>alert('\"&')</script>"
    whole = json.loads(json.dumps(document()))

    def poison(value, key=None):
        if isinstance(value, dict):
            return {each: poison(item, each) for each, item in value.items()}
        if isinstance(value, list):
            return [poison(item, key) for item in value]
        if isinstance(value, str) and key in ("summary", "description", "title", "pattern"):
            return evil
        return value

    shown = make(poison(whole))
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown
