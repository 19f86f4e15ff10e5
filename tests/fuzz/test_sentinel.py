"""Any URL and any answer of a Sentinel is read, or refused with a ValueError."""

from __future__ import annotations

import contextlib
from typing import Any
from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st

from freeim.node.sentinel import read_master
from freeim.redis_url import parse_redis_url

words = st.text(min_size=1, max_size=8)
hosts = st.from_regex(r"[a-z][a-z0-9.-]{0,8}", fullmatch=True) | st.just("::1")
places = st.lists(st.tuples(hosts, st.integers(1, 65535)), min_size=1, max_size=4)
values = st.none() | st.integers() | st.binary(max_size=8) | st.text(max_size=8) | st.lists(st.binary(max_size=4))
keys = st.sampled_from([b"ip", b"port", b"config-epoch", b"name"])


@given(places, words, words, words, st.integers(0, 15), words)
def test_what_is_written_into_a_url_is_read_from_it(
    where: list[tuple[str, int]], service: str, user: str, password: str, database: int, other: str
) -> None:
    listed = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in where)
    user, password, service, other = (quote(word, safe="") for word in (user, password, service, other))
    url = f"redis+sentinel://{user}:{password}@{listed}/{service}/{database}?sentinel_password={other}"
    found = parse_redis_url(url)
    assert list(found.sentinels) == where
    assert (quote(found.service, safe=""), found.database) == (service, database)
    assert (quote(found.username or "", safe=""), quote(found.password or "", safe="")) == (user, password)
    assert quote(found.sentinel_password or "", safe="") == other


@given(st.text(max_size=30))
def test_any_text_behind_the_scheme_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_redis_url(f"redis+sentinel://{text}").sentinels


@given(values | st.dictionaries(keys, values) | st.lists(keys | values))
def test_any_answer_is_read_or_refused(reply: Any) -> None:
    with contextlib.suppress(ValueError):
        epoch, host, port = read_master(reply)
        assert isinstance(epoch, int)
        assert isinstance(host, str)
        assert 0 < port < 65536
