"""Stop strings: found wherever the pieces are cut, never shown, and nothing else held back for longer than needed."""

from __future__ import annotations

import random

import pytest

from paiton_runtime.engine.params import TokenLogprobs, Update
from paiton_runtime.server.openai.output import Output, TextOptions
from paiton_runtime.server.openai.stop import StopText
from tests.text_codec import make_codec


def run(text: str, stops: list[str], cuts: list[int], *, include: bool = False) -> tuple[str, str | None]:
    """Feeds the text in pieces and returns what was shown, and the stop string that was found."""
    stop = StopText(stops, include=include)
    shown = [stop.push(text[start:end]) for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    return "".join(shown) + ("" if stop.found else stop.flush()), stop.found


def reference(text: str, stops: list[str], *, include: bool) -> tuple[str, str | None]:
    """Looks at the text letter by letter for the first stop string that is complete."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


def test_any_cuts_give_what_the_whole_text_gives() -> None:
    draw = random.Random(3)
    for _ in range(3000):
        text = "".join(draw.choices("ab\n", k=draw.randrange(14)))
        stops = ["".join(draw.choices("ab\n", k=draw.randrange(1, 5))) for _ in range(draw.randrange(4))]
        cuts = sorted(draw.randrange(len(text) + 1) for _ in range(draw.randrange(5)))
        include = draw.random() < 0.5
        assert run(text, stops, cuts, include=include) == reference(text, stops, include=include), (text, stops, cuts)


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    stop = StopText(["\n\n", "STOP"])
    assert stop.push("one\n") == "one"
    assert stop.push("two ST") == "\ntwo "
    assert stop.push("ART") == "START"
    assert stop.push("STOP and more") == ""
    assert (stop.found, stop.rest, stop.push("x")) == ("STOP", " and more", "")


def updates(text: str, *, reason: str = "length", ended_by: int | None = None) -> list[Update]:
    ids = make_codec().encode(text)
    report = TokenLogprobs(-1.0, 1, ())
    ends = [*[(None, None)] * (len(ids) - 1), (reason, ended_by)]
    return [Update((id_,), (report,), *end) for id_, end in zip(ids, ends, strict=True)]


def collect(options: TextOptions, given: list[Update]) -> tuple[str, Output, str | None]:
    output = Output(make_codec(), options)
    text, reason = "", None
    for update in given:
        delta = output.push(update)
        assert len(delta.tokens) == len(delta.logprobs) == len(delta.offsets) == 1
        text, reason = text + delta.text, delta.reason
        if output.finished:
            break
    return text, output, reason


def test_tokens_behind_the_stop_string_do_not_count() -> None:
    text, output, reason = collect(TextOptions(stops=["é!"]), updates("café! no"))
    assert (text, reason, output.tokens) == ("caf", "stop", len("café!".encode()))


def test_a_stop_string_before_min_tokens_does_not_count() -> None:
    text, _, reason = collect(TextOptions(stops=["a"], min_tokens=3), updates("aabxa!"))
    assert (text, reason) == ("aabx", "stop")


@pytest.mark.parametrize(("include", "skip", "shown"), [(False, False, "x"), (True, False, "x</s>"), (True, True, "x")])
def test_the_token_that_ends_it_is_shown_if_asked_for(include: bool, skip: bool, shown: str) -> None:
    options = TextOptions(include_stop=include, skip_special_tokens=skip)
    text, output, reason = collect(options, updates("x</s>", reason="stop", ended_by=257))
    assert (text, reason, output.tokens) == (shown, "stop", 2)


def test_what_is_held_back_comes_out_at_the_end() -> None:
    text, _, reason = collect(TextOptions(stops=["STOP"]), updates("ST"))
    assert (text, reason) == ("ST", "length")
    incomplete = [*updates("Sé")[:-1]]
    last = incomplete.pop()
    text, _, reason = collect(TextOptions(stops=["STOP"]), [*incomplete, Update(last.tokens, last.logprobs, "length")])
    assert (text, reason) == ("S\ufffd", "length")


def test_offsets_count_characters_of_the_text() -> None:
    output = Output(make_codec(), TextOptions())
    offsets = [offset for update in updates("aé🙂b") for offset in output.push(update).offsets]
    assert offsets == [0, 1, 1, 2, 2, 2, 2, 3]
