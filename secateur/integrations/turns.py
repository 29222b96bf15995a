"""Where a chat template puts what the user says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SAID = {"user": "secateurasks", "assistant": "secateuranswers", "tool": "secateurfinds"}
"""What stands for the words of each role when a chat template is taken apart."""

PUT_IN = re.compile(
    r"(<\d+(\.\d+)?seconds>|(Picture|Video)\d+:)(?=<\|vision_start\|>)"
    r"|<row_\d+_col_\d+>|<global-img>|<fake_token_around_image>"
    r"|(?<=<\|end_of_image\|>)\d+(\.\d+)?(seconds)?"
    r"(?=<\|(begin_of_image|end_of_video)\|>)(?=((?!<\|begin_of_video\|>).)*<\|end_of_video\|>)"
)
"""What is put into a user's words: before Qwen's pictures the time of a video's frame, or, where a
template is told to count, the number of a picture or video; around Idefics3's and SmolVLM's tiles
their places; after the frames of GLM-4V's videos their time."""


def squeezed(text: str) -> str:
    """A text without white space, which tokenizers and templates move about."""
    return "".join(text.split())


@dataclass(frozen=True)
class Turns:
    """What a chat template writes around the words of a user, without white space.

    Parameters
    ----------
    opening, closing
        Right before and right after the words of a turn.
    tool
        What opens the answer of a tool, where a template gives it in the user's name; else empty.

    Notes
    -----
    Learned from what the template makes of short conversations: an opening is what stands before
    the first turn of a user as well as before a later one, a closing what stands after both,
    whether an answer follows or not. Where these marks are words, as in ``USER:``, the same words
    in a user's mouth are taken for marks.
    """

    opening: str
    closing: str
    tool: str = ""

    @classmethod
    def of(cls, processor: Any, tokenizer: Any) -> Turns | None:
        """Of the chat template of a processor or its tokenizer; None where there is none."""
        for owner in (processor, tokenizer):
            if getattr(owner, "chat_template", None) is None:
                continue
            for listed in (True, False):
                found = cls._learned(owner, listed=listed)
                if found is not None:
                    return found
        return None

    @classmethod
    def _learned(cls, owner: Any, *, listed: bool) -> Turns | None:
        alone = _told(owner, ("user",), listed=listed)
        if alone is None or len(alone) != 2:
            return None
        before, after = alone
        ended = _told(owner, ("user",), listed=listed, answer=False) or alone
        longer = _told(owner, ("user", "assistant", "user"), listed=listed)
        if longer is not None and len(longer) == 4:
            between, again, after_again = longer[1:]
            before = _start_shared(before[::-1], again[::-1])[::-1]
            after = _start_shared(_start_shared(after, between), after_again)
            answered = _told(owner, ("user", "assistant"), listed=listed, answer=False)
            if answered is not None and len(answered) == 3:
                # What ends an answer is no part of what opens the turn after it.
                before = before.removeprefix(answered[-1])
        after = _start_shared(after, ended[-1]) or after
        if not before:
            return None
        tool = ""
        used = _told(owner, ("user", "assistant", "tool"), listed=listed)
        if used is not None and len(used) == 4:
            start = used[2].rfind(before)
            tool = used[2][start:] if start >= 0 else ""
        return cls(before, after, tool if tool != before else "")

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Start and stop of the user's words in a squeezed prompt, the last turn first."""
        start = text.rfind(self.opening)
        while start >= 0:
            if not self.tool or not text.startswith(self.tool, start):
                begin = start + len(self.opening)
                stop = text.find(self.closing, begin) if self.closing else -1
                yield begin, stop if stop >= 0 else len(text)
            start = text.rfind(self.opening, 0, start)


def _told(
    owner: Any, roles: tuple[str, ...], *, listed: bool, answer: bool = True
) -> list[str] | None:
    """What a template writes around the words of these roles; None where it takes no such talk."""
    words = [f"{SAID[role]}{number}." for number, role in enumerate(roles)]
    messages: list[Mapping[str, Any]] = [
        {"role": role, "content": [{"type": "text", "text": said}] if listed else said}
        for role, said in zip(roles, words, strict=True)
    ]
    try:
        told = owner.apply_chat_template(messages, add_generation_prompt=answer, tokenize=False)
    except Exception:  # A template is somebody's program, and raises what it likes.
        return None
    parts, rest = [], squeezed(str(told))
    for said in words:
        part, found, rest = rest.partition(said)
        if not found:
            return None
        parts.append(part)
    return [*parts, rest]


def _start_shared(one: str, other: str) -> str:
    n = 0
    while n < min(len(one), len(other)) and one[n] == other[n]:
        n += 1
    return one[:n]
