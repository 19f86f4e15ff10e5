"""What the app refuses, and the headers of its answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import itsdangerous
import pytest

from tests.demo.demo import KEY, SECRET, Visitor, failure

pytestmark = pytest.mark.slow

# What each endpoint takes from somebody who is connected.
POSTS: dict[str, dict[str, Any]] = {
    "/ws/pre-connect": {"name": "Ana"},
    "/ws/offline": {},
    "/ws/get-channels": {},
    "/ws/subscr-channel": {"channel": "lobby"},
    "/ws/leave-channel": {"channel": "lobby"},
    "/ws/send-channelmsg": {"channel": "lobby", "message": "hi", "key": KEY},
    "/ws/send-broadcast": {"message": "hi", "key": KEY},
    "/ws/send-msg": {"receiveWebsocketId": 5, "message": "hi", "key": KEY},
    "/me/hello": {},
    "/me/name": {"name": "Ana"},
}


@pytest.fixture
def ana(shared_page: str) -> Iterator[Visitor]:
    """Somebody who is connected."""
    with Visitor(shared_page, "Ana") as visitor:
        yield visitor


def get(base: str, path: str, **options: Any) -> httpx.Response:
    return httpx.get(base + path, trust_env=False, **options)


def post(base: str, path: str, **options: Any) -> httpx.Response:
    return httpx.post(base + path, trust_env=False, **options)


@pytest.mark.parametrize("path", POSTS)
def test_without_a_cookie_nothing_can_be_done_but_to_choose_a_name(shared_page: str, path: str) -> None:
    response = post(shared_page, path, json=POSTS[path])
    if path == "/ws/pre-connect":
        assert response.status_code == 200
    else:
        failure(response, 401, "no-identity")


@pytest.mark.parametrize("change", ["another secret", "another id", "no signature", "rubbish"])
def test_a_forged_cookie_is_no_identity(shared_page: str, ana: Visitor, change: str) -> None:
    [(name, value)] = ana.http.cookies.items()
    data, _, signature = value.strip('"').partition(".")
    forged = {
        "another secret": itsdangerous.TimestampSigner(SECRET + "!").sign(data).decode(),
        "another id": f"{data[:-4]}AAAA.{signature}",
        "no signature": data,
        "rubbish": "rubbish",
    }[change]
    genuine = itsdangerous.TimestampSigner(SECRET).sign(data).decode()
    for cookie, known in ((genuine, True), (forged, False)):
        headers = {"Cookie": f"{name}={cookie}"}
        assert (get(shared_page, "/me", headers=headers).json()["me"] is not None) == known
        status = post(shared_page, "/me/hello", headers=headers, json={}).status_code
        assert status == (200 if known else 401)


# What is asked of every request


@pytest.mark.parametrize("path", [*POSTS, "/files"])
def test_a_get_changes_nothing(shared_page: str, path: str) -> None:
    response = get(shared_page, path)
    failure(response, 405, "http")
    assert "POST" in response.headers["allow"]


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "content_type", ["application/x-www-form-urlencoded", "multipart/form-data", "text/plain", None]
)
def test_what_a_form_of_another_site_can_post_is_refused(ana: Visitor, path: str, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    failure(ana.http.post(path, content=b"{}", headers=headers), 415, "content-type")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"a"', b"\xff", b"[" * 60_000])
def test_what_is_no_json_object_is_refused(ana: Visitor, body: bytes) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    failure(ana.http.post("/ws/send-broadcast", content=body, headers=headers), 400, "json")


def test_a_long_request_is_refused(ana: Visitor) -> None:
    failure(ana.post("/ws/send-broadcast", message="x" * 70_000, key=KEY), 413, "too-large")


ROOM, TEXT = {"channel": "lobby", "key": KEY}, {"message": "hi", "key": KEY}


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        *(
            (path, {"name": name}, "name")
            for path in ("/ws/pre-connect", "/me/name")
            for name in ("", "  ", "x" * 25, "a\nb", "a\x00", "\u202eanA", "\ud800", "\u200b", "\u3164\ufeff", 7, ["a"])
        ),
        ("/me/name", {}, "name"),
        *(
            (path, {**TEXT, "channel": channel}, "room")
            for path in ("/ws/subscr-channel", "/ws/leave-channel", "/ws/send-channelmsg")
            for channel in ("", " ", "x" * 33, "a/b", "a<b>", "a\nb", "\ud800", None, 7)
        ),
        *(
            (path, {**ROOM, "receiveWebsocketId": 5, "message": message}, "text")
            for path in ("/ws/send-channelmsg", "/ws/send-broadcast", "/ws/send-msg")
            for message in ("", " \n ", "x" * 2001, "a\x00b", "\udc00", None, {"a": 1})
        ),
        *(
            (path, {**ROOM, "receiveWebsocketId": 5, "message": "hi", "key": key}, "key")
            for path in ("/ws/send-channelmsg", "/ws/send-broadcast", "/ws/send-msg")
            for key in (None, "", "short", "x" * 65, "with space", 12345678)
        ),
        *(
            ("/ws/send-msg", {**TEXT, "receiveWebsocketId": client}, "client")
            for client in (None, 0, -1, 2**53, 1.5, True, "x", "-1", [5])
        ),
    ],
)
def test_wrong_fields_are_refused(ana: Visitor, path: str, body: dict[str, Any], reason: str) -> None:
    assert failure(ana.post(path, **body), 400, reason)


def test_every_answer_has_the_headers_that_keep_scripts_of_others_out(shared_page: str) -> None:
    for path in ("/", "/static/main.js", "/me", "/nothing"):
        headers = get(shared_page, path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'self'; ")
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"


def test_the_page_holds_no_script_or_style_of_its_own_and_nothing_from_elsewhere(shared_page: str) -> None:
    page = get(shared_page, "/").text
    assert page.count("<script") == page.count('<script type="module" src="/static/main.js"></script>') == 1
    assert "<style" not in page
    assert " style=" not in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"])
def test_the_app_on_the_loopback_answers_to_the_names_of_the_loopback(shared_page: str, name: str) -> None:
    port = shared_page.rpartition(":")[2]
    for host in (name, f"{name}:{port}"):
        assert get(shared_page, "/me", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost@evil.example", "[::1", "", "[]"]
)
def test_a_name_that_somebody_points_at_the_loopback_is_refused(shared_page: str, host: str) -> None:
    for path in ("/", "/me", "/static/main.js"):
        failure(get(shared_page, path, headers={"Host": host}), 421, "host")


def test_an_unknown_address_is_a_404_in_the_same_form(shared_page: str) -> None:
    failure(get(shared_page, "/nothing"), 404, "http")
