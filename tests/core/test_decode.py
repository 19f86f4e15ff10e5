"""The fast decoder against the tolerant one: what it takes it reads alike, and what is no message it never takes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from freeim import envelope
from freeim._core import Message, control_frame, decode
from freeim.names import INT64_MAX, INT64_MIN, IdKind
from freeim.node.decode import BadPayload, decode_tolerantly

INTS = st.one_of(st.integers(INT64_MIN, INT64_MAX), st.integers(-3, 300))
GUIDS = st.uuids().map(str)
# Any code point, half surrogates too: helpers of other languages send what their strings hold.
TEXTS = st.one_of(
    st.text(),
    st.text(alphabet=st.characters(codec=None, categories=["Cs", "Lu", "Cc"])),
    st.text(alphabet='"\\/\b\f\n\r\t\x00\x1f\x7f\x85\u2028\u2029\ufffd\ud83d\ude00é中'),
)
JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)


def kind(guid: bool) -> IdKind:
    return "guid" if guid else "int"


def ids(guid: bool) -> st.SearchStrategy[Any]:
    return GUIDS if guid else INTS


def fast_reads(client_id: int | str) -> bool:
    """The fast decoder leaves ids of 19 digits alone, whose range it would have to check."""
    return isinstance(client_id, str) or len(str(abs(client_id))) < 19


def tolerant(payload: bytes, guid: bool) -> Message | None:
    try:
        return decode_tolerantly(payload, kind(guid))
    except BadPayload:
        return None


def check(payload: bytes, guid: bool) -> Message | None:
    """The one law: what the fast decoder takes, the tolerant one reads alike."""
    message = decode(payload, guid)
    if message is not None:
        slow = tolerant(payload, guid)
        assert slow is not None, "taken by the fast decoder, refused by the tolerant one"
        assert message.fields == slow.fields
        assert message.frame == slow.frame
        assert message.header == slow.header
        if message.text is not None:
            message.text.decode("utf-8")
    return message


@st.composite
def our_payloads(draw: st.DrawFn, guid: bool) -> tuple[bytes, bool]:
    """A payload as our helper writes it, and whether the fast decoder is to take it."""
    text = envelope.message_json(draw(JSON_VALUES))
    sender = draw(ids(guid))
    if draw(st.booleans()):
        receivers = draw(st.lists(ids(guid), max_size=5))
        payload = envelope.direct(sender, receivers, envelope.direct_tail(text, draw(st.booleans())))
        return payload, all(map(fast_reads, [sender, *receivers]))
    return envelope.channel(sender, draw(st.one_of(st.none(), TEXTS)), text), fast_reads(sender)


@st.composite
def loose_payloads(draw: st.DrawFn, guid: bool) -> bytes:
    """JSON of about the right shape, written in other ways."""
    an_id = st.one_of(ids(guid), ids(guid).map(str), st.none(), st.booleans(), st.just(1.5))
    items: dict[str, Any] = {
        "Item1": draw(an_id),
        "Item2": draw(st.one_of(st.lists(an_id, max_size=3), TEXTS, st.none())),
        "Item3": draw(st.one_of(TEXTS, st.none(), JSON_VALUES)),
        "Item4": draw(st.one_of(st.booleans(), st.none(), st.just("true"), st.just(0))),
    }
    keys = draw(st.permutations(list(items)))
    chosen = {key: items[key] for key in keys[: draw(st.integers(2, 4))]}
    separators = draw(st.sampled_from([(",", ":"), (", ", ": ")]))
    try:
        body = json.dumps(chosen, ensure_ascii=draw(st.booleans()), separators=separators).encode()
    except UnicodeEncodeError:
        body = json.dumps(chosen, separators=separators).encode()
    head = draw(st.sampled_from([b"", b"__FreeIM__(ChanMessage)", b"__FreeIM__(ForceOffline)", b"__FreeIM__(Probe)"]))
    return head + body


@given(st.booleans(), st.data())
def test_what_our_helper_writes_takes_the_fast_way_and_means_the_same_to_both_decoders(
    guid: bool, data: st.DataObject
) -> None:
    payload, fast = data.draw(our_payloads(guid))
    message = check(payload, guid)
    assert (message is not None) == fast
    assert tolerant(payload, guid) is not None


@given(st.booleans(), st.data())
def test_json_in_other_forms_is_read_alike_or_left_to_the_tolerant_decoder(guid: bool, data: st.DataObject) -> None:
    check(data.draw(loose_payloads(guid)), guid)


@given(st.binary(max_size=200), st.booleans())
@example(b"", False)
@example(b"__FreeIM__(ChanMessage)", True)
def test_arbitrary_bytes_never_become_a_message_that_is_no_json(payload: bytes, guid: bool) -> None:
    check(payload, guid)
    check(b'{"Item1":' + payload, guid)
    check(b'{"Item1":1,"Item2":[1],"Item3":"' + payload + b'","Item4":false}', False)
    check(b'__FreeIM__(ChanMessage){"Item1":1,"Item2":"' + payload + b'","Item3":"x"}', False)


@settings(max_examples=400)
@given(st.booleans(), st.data())
def test_a_mutated_payload_never_becomes_a_message_that_is_no_json(guid: bool, data: st.DataObject) -> None:
    payload, _ = data.draw(our_payloads(guid))
    mutated = bytearray(payload)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(mutated)))
        change = data.draw(st.sampled_from(["cut", "insert", "replace", "truncate", "repeat"]))
        if change == "cut":
            del mutated[at : at + data.draw(st.integers(1, 8))]
        elif change == "insert":
            mutated[at:at] = data.draw(
                st.one_of(st.binary(max_size=4), st.sampled_from(list(b'\\"u,]}[0-')).map(bytes_of))
            )
        elif change == "replace" and at < len(mutated):
            mutated[at] = data.draw(st.integers(0, 255))
        elif change == "truncate":
            del mutated[at:]
        else:
            mutated[at:at] = mutated[at : at + 10]
    check(bytes(mutated), guid)


def bytes_of(byte: int) -> bytes:
    return bytes([byte])


def test_every_prefix_of_a_payload_is_refused() -> None:
    for payload in (
        envelope.direct(1, [2, -3], envelope.direct_tail('"é\\u0000 \\n"', True)),
        envelope.channel(1, 'a"\\b', '"x"'),
    ):
        assert check(payload, False) is not None
        for size in range(len(payload)):
            assert decode(payload[:size], False) is None, payload[:size]
        assert decode(payload + b" ", False) is None
        assert decode(payload + b"}", False) is None


@pytest.mark.parametrize("special", ['"', "\\", "\x00", "\x1f", " ", "!", "#", "[", "]", "\x7f", "\x80", "é", "😀"])
def test_a_character_is_read_wherever_it_stands_in_a_text(special: str) -> None:
    for before in range(20):
        for after in range(20):
            text = "x" * before + special + "y" * after
            message = decode(envelope.channel(0, "c", text))
            assert message is not None
            assert message.text == text.encode()


@pytest.mark.parametrize("control", [b"\x00", b"\n", b"\x1f"])
def test_a_control_character_that_is_not_escaped_is_refused_wherever_it_stands(control: bytes) -> None:
    for before in range(20):
        for after in range(20):
            inner = b"x" * before + control + b"y" * after
            assert decode(b'{"Item1":0,"Item2":[1],"Item3":"%b","Item4":false}' % inner) is None


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 65537])
def test_the_frame_around_a_text_has_the_header_that_its_size_wants(size: int) -> None:
    text = "x" * size
    message = decode(envelope.direct(0, [1], envelope.direct_tail(text, False)))
    assert message is not None
    header = {True: bytes([0x81, size & 0x7F])}.get(size < 126)
    if header is None:
        header = b"\x81\x7e" + size.to_bytes(2, "big") if size < 65536 else b"\x81\x7f" + size.to_bytes(8, "big")
    assert message.frame == header + text.encode()
    assert message.header == len(header)
    assert message.text == text.encode()
    assert control_frame(1, text.encode()) == message.frame
    assert Message.direct(b"0", [b"1"], text.encode(), False).frame == message.frame


@pytest.mark.parametrize(
    ("escaped", "text"),
    [
        (rb"\ud83d\ude00", "😀"),
        (rb"\uD83D\uDE00", "😀"),
        (rb"\ud83d", "\ufffd"),
        (rb"\ude00", "\ufffd"),
        (rb"\ude00\ud83d", "\ufffd\ufffd"),
        (rb"\ud83d\ud83d\ude00", "\ufffd😀"),
        (rb"\ud83dx\ude00", "\ufffdx\ufffd"),
        (rb"\ud83d\n", "\ufffd\n"),
        (rb"\udbff\udfff", "\U0010ffff"),
        (rb"\ud800\udc00", "\U00010000"),
        (rb"\u0000\u007f\u0080\u07ff\u0800\uffff", "\x00\x7f\x80\u07ff\u0800\uffff"),
        ("\U0010ffff\u0800é".encode(), "\U0010ffff\u0800é"),
    ],
)
def test_surrogates_and_escapes_become_the_characters_that_they_spell(escaped: bytes, text: str) -> None:
    payload = b'{"Item1":1,"Item2":[2],"Item3":"' + escaped + b'","Item4":false}'
    message = check(payload, False)
    assert message is not None
    assert message.text == text.encode()
    channel = check(b'__FreeIM__(ChanMessage){"Item1":1,"Item2":"' + escaped + b'","Item3":""}', False)
    assert channel is not None
    assert channel.channel == text.encode()


@pytest.mark.parametrize(
    "inner",
    [
        b"\xed\xa0\xbd",  # a surrogate as UTF-8
        b"\xc0\x80",  # an overlong zero
        b"\xff",
        b"12345678\xe4\xb8",  # a character cut short, behind a full block of ASCII
        b"\xf4\x90\x80\x80",  # beyond U+10FFFF
        b"a\nb",
        b"\\x41",
        b"\\u12",
        b"\\u12g4",
        b"\\",
    ],
)
def test_what_is_no_json_string_or_no_utf8_is_no_message(inner: bytes) -> None:
    for payload in (
        b'{"Item1":1,"Item2":[2],"Item3":"' + inner + b'","Item4":false}',
        b'__FreeIM__(ChanMessage){"Item1":1,"Item2":"' + inner + b'","Item3":"x"}',
        b'__FreeIM__(ChanMessage){"Item1":1,"Item2":"x","Item3":"' + inner + b'"}',
    ):
        assert decode(payload, False) is None
        assert tolerant(payload, False) is None


@pytest.mark.parametrize("text", ["-0", "00", "01", "+1", "1.0", "1e3", "", "-", "0x1", "1_0", " 1", "1 "])
def test_a_number_that_is_not_in_canonical_form_never_takes_the_fast_way(text: str) -> None:
    number = text.encode()
    assert decode(b'{"Item1":' + number + b',"Item2":[1],"Item3":"","Item4":false}') is None
    assert decode(b'{"Item1":1,"Item2":[' + number + b'],"Item3":"","Item4":false}') is None or text == ""


@given(st.integers(-(10**19), 10**19))
@example(INT64_MAX)
@example(INT64_MIN)
@example(INT64_MAX + 1)
@example(INT64_MIN - 1)
def test_an_id_is_taken_exactly_when_it_fits_64_bits(number: int) -> None:
    payload = b'{"Item1":1,"Item2":[%d],"Item3":"","Item4":false}' % number
    message = decode(payload) or tolerant(payload, False)
    assert (message is not None) == (INT64_MIN <= number <= INT64_MAX)
    if message is not None:
        assert message.receivers == [b"%d" % number]


@given(GUIDS)
def test_a_guid_in_any_spelling_ends_up_in_lower_case_with_hyphens(guid: str) -> None:
    for spelling in (guid.upper(), guid.replace("-", ""), "{" + guid + "}"):
        assume(spelling != guid)
        payload = f'{{"Item1":"{spelling}","Item2":["{spelling}"],"Item3":"","Item4":false}}'.encode()
        assert decode(payload, True) is None
        message = decode_tolerantly(payload, "guid")
        assert message.sender == guid.encode()
        assert message.receivers == [guid.encode()]
