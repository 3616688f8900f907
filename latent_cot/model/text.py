"""Between text and token ids, for any tokenizer: prompts, continuations, and a rationale's alphabet."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from transformers import PreTrainedTokenizerBase

from latent_cot.types import UsageError, first_line

_NO_TEXT = "\ufffd"
"""What bytes that are no character are decoded as."""
_SOMETHING = "0"


class TextCodec:
    """Encodes prompts and continuations, decodes chains, and holds the *actions*: what q may choose.

    A rationale is never retokenised: its ids are kept from the moment they are chosen or injected.
    Only whole pieces (a prompt, a tool's result, an answer) are encoded, each by itself, so that the
    ids before and after a piece do not depend on it.

    Args:
        tokenizer: any Hugging Face tokenizer. Its padding token is never used: padding lives in masks.
        stop: the text whose single token ends a rationale; None for the end-of-sequence token. A text
            that this tokenizer splits into several tokens falls back on end-of-sequence, as None does; with `chat`
            both stand for the special token that ends the assistant's turn, if there is one.
        allowed_characters: a rationale's tokens consist of these characters only; None for no limit.
        allows: a further condition on a token's text; None for none.
        triggers: the texts that call tools. No action has one before its end (" = 1"): the tool would not be called,
            and what follows be taken for its result. (One that two tokens make up, the second of which goes past it, is
            a failed call: `Chain`.)
        chat: a prompt is the user's turn of the tokenizer's chat template, if it has one ...
        opening: ... and this is how the assistant's turn begins, such as `<think>`.
    """

    # Sentencepiece tokenizers put a space before the first piece and strip it when they decode. With
    # a first piece of our own, cut off afterwards, all tokenizers behave alike. A text that the first of these
    # is one token with ("=" before "=> 5") has the next before it.
    _ANCHORS = ("=", "0", ",")

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        stop: str | None = None,
        allowed_characters: str | None = None,
        allows: Callable[[str], bool] | None = None,
        triggers: Sequence[str] = (),
        chat: bool = False,
        opening: str = "",
    ) -> None:
        self.tokenizer = tokenizer
        self._one_at_a_time = threading.Lock()
        self._known = frozenset(tokenizer.get_vocab().values())  # there may be holes between them
        self.vocab_size = max(self._known) + 1
        self._anchors = {anchor: self._plain(anchor) for anchor in self._ANCHORS}
        self._anchor = self._anchors[self._ANCHORS[0]]
        self._anchor_text = self._raw_decode(self._anchor)
        self._allowed_characters = allowed_characters
        self._allows = allows
        self._triggers = tuple(triggers)
        self.chat = chat and tokenizer.chat_template is not None
        """Whether prompts go through the chat template."""
        self._opening = opening
        self.stop_id = self._stop_id(stop)
        self.has_stop = stop is None or self.encode(stop) == [self.stop_id]
        """Whether the stop that was asked for is a single token. Else a rationale ends with `stop_id`."""

    # -- text to ids ---------------------------------------------------------------------------------

    def prompt_text(self, text: str) -> str:
        """A prompt as the model reads it: the text itself, or the chat template up to where the assistant goes on."""
        if not self.chat:
            return text
        turn = [{"role": "user", "content": text}]
        try:
            rendered = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template is a program
            why = f"the model's chat template fails: {first_line(error)}"
            raise UsageError(f"{why}; do without it (--data.options chat false), or take another --model") from error
        opening = self._opening.strip()
        if opening and str(rendered).rstrip().endswith(opening):  # the template has it already
            return str(rendered)
        return f"{rendered}{self._opening}"

    @cached_property
    def begins_a_line(self) -> bool:
        """Whether a rationale begins where a space would be strange: behind the line break of a chat template."""
        return self.chat and self.prompt_text(_NO_TEXT)[-1:].isspace()

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a prompt, with the special tokens that the tokenizer begins a text with, or the chat template has.
        Never empty."""
        if self.chat:
            return self._encode_chat(text)
        if not (plain := self._plain(text)):  # what stands before nothing is what stands before something
            return self.encode_prompt(_SOMETHING)[: -len(self._plain(_SOMETHING))] or [self._first]
        ids = self._ids(text, add_special_tokens=True)
        # A tokenizer may append special tokens: what stands before the text is kept, what stands behind it is not.
        ends = [end for end in range(len(ids), len(plain) - 1, -1) if ids[end - len(plain) : end] == plain]
        return ids[: ends[0]] if ends else plain

    def encode(self, text: str) -> list[int]:
        """Ids of `text` as the continuation of something, without special tokens."""
        for anchor, alone in self._anchors.items():
            anchored = self._plain(anchor + text)
            if anchored[: len(alone)] == alone:
                return anchored[len(alone) :]
        return self._plain(text)

    def encode_chosen(self, text: str) -> list[int]:
        """Ids of `text` as a policy may choose them: what follows a trigger is encoded by itself, since no action goes
        past one."""
        if not self._triggers:
            return self.encode(text)
        runs = "|".join(f"(?:{re.escape(trigger)})+" for trigger in self._triggers)
        parts = re.findall(rf".*?(?:{runs}|\Z)", text, re.DOTALL)
        return [token for part in parts if part for token in self.encode(part)]

    # -- ids to text ---------------------------------------------------------------------------------

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` as the continuation of something: a leading space is kept."""
        return self._raw_decode([*self._anchor, *ids])[len(self._anchor_text) :]

    @cached_property
    def pieces(self) -> list[str]:
        """The text of each token of the vocabulary by itself; V strings."""
        rows = [[*self._anchor, i] for i in range(self.vocab_size)]
        texts = self.tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False)
        return [text[len(self._anchor_text) :] for text in texts]

    # -- the alphabet of a rationale -----------------------------------------------------------------

    @cached_property
    def actions(self) -> torch.Tensor:
        """(A,) ascending ids of what the policy may choose: the allowed tokens and the stop."""
        usable = self._known - self._special
        if self._allowed_characters is None and self._allows is None and not self._triggers:
            return torch.tensor(sorted(usable | {self.stop_id}))
        ids = {i for i, piece in enumerate(self.pieces) if i in usable and self._is_allowed(piece)}
        if not ids - {self.stop_id}:
            which = f"no token of this model's vocabulary is allowed (characters: {self._allowed_characters!r})"
            raise UsageError(f"{which}: the task's rationales cannot be written with it; take another --model")
        return torch.tensor(sorted(ids | {self.stop_id}))

    @cached_property
    def action_index(self) -> torch.Tensor:
        """(V,) index of each token among `actions`; -1 for a token the policy may not choose."""
        index = torch.full((self.vocab_size,), -1)
        index[self.actions] = torch.arange(len(self.actions))
        return index

    def is_action(self, token: int) -> bool:
        """Whether the policy may choose it: a token of the alphabet, or the stop."""
        return 0 <= token < self.vocab_size and int(self.action_index[token]) >= 0

    @cached_property
    def stop_index(self) -> int:
        """Index of the stop among `actions`."""
        return int(self.action_index[self.stop_id])

    def ending_with(self, suffix: str) -> frozenset[int]:
        """Tokens after which a text may end with `suffix`."""
        ends = {
            i for i, piece in enumerate(self.pieces) if piece and (piece.endswith(suffix) or suffix.endswith(piece))
        }
        if not suffix.isascii():  # its last character may be several tokens, bytes that are no text by themselves
            usable = self._known - self._special
            ends |= {i for i, piece in enumerate(self.pieces) if _NO_TEXT in piece or (not piece and i in usable)}
            ends |= {*self.encode(suffix)[-1:]}
        return frozenset(ends)

    def going_past(self, suffix: str) -> frozenset[int]:
        """Tokens that begin with the rest of a `suffix` whose beginning stands before them, and go on behind it."""
        rests = [suffix[n:] for n in range(1, len(suffix))]
        if not rests:
            return frozenset()
        past = (i for i, piece in enumerate(self.pieces) if any(piece != r and piece.startswith(r) for r in rests))
        return frozenset(past)

    def _is_allowed(self, piece: str) -> bool:
        if self._allowed_characters is not None and not (piece and set(piece) <= set(self._allowed_characters)):
            return False
        if any(has_before_its_end(trigger, piece) for trigger in self._triggers):
            return False
        return self._allows is None or self._allows(piece)

    # -- helpers -------------------------------------------------------------------------------------

    @property
    def around_turn(self) -> tuple[str, str]:
        """What a chat template puts before and behind what the user says."""
        before, found, after = self.prompt_text(_NO_TEXT).partition(_NO_TEXT)
        if not found:
            raise UsageError("the model's chat template does not show what the user says; take another --model")
        return before, after

    def _encode_chat(self, text: str) -> list[int]:
        special = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        if not any(token in text for token in special):
            return self._with_special(self.prompt_text(text))
        # What the user writes ends no turn: it is encoded by itself, without special tokens.
        before, after = self.around_turn
        return [*self._with_special(before), *self._plain(text), *self._with_special(after)]

    def _with_special(self, text: str) -> list[int]:
        return self._ids(text, split_special_tokens=False)

    def _plain(self, text: str) -> list[int]:
        # A user who types "<|endoftext|>" means these characters, not the special token.
        return self._ids(text)

    def _ids(self, text: str, *, add_special_tokens: bool = False, split_special_tokens: bool = True) -> list[int]:
        with self._one_at_a_time:  # how to split is set in the tokenizer itself
            how = {"add_special_tokens": add_special_tokens, "split_special_tokens": split_special_tokens}
            return list(self.tokenizer(text, **how)["input_ids"])

    def _raw_decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    @cached_property
    def _special(self) -> frozenset[int]:
        added = self.tokenizer.added_tokens_decoder
        return frozenset((*self.tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)))

    @property
    def _first(self) -> int:
        first = self.tokenizer.bos_token_id
        first = self.tokenizer.eos_token_id if first is None else first
        if first is None:
            raise UsageError("the tokenizer has no token that an empty prompt could begin with; take another --model")
        return int(first)

    def _stop_id(self, stop: str | None) -> int:
        if stop is not None and len(ids := self.encode(stop)) == 1:
            return ids[0]
        if self.chat and (end := self._end_of_turn()) is not None:
            return end
        if self.tokenizer.eos_token_id is None:
            raise UsageError("the tokenizer has no end-of-sequence token, which ends a rationale; take another --model")
        return int(self.tokenizer.eos_token_id)

    def _end_of_turn(self) -> int | None:
        """The special token behind what the assistant says in the chat template, which need not be end-of-sequence."""
        turns = [{"role": "user", "content": _SOMETHING}, {"role": "assistant", "content": _NO_TEXT}]
        try:
            rendered = str(self.tokenizer.apply_chat_template(turns, tokenize=False))
        except Exception:  # it may show no assistant
            return None
        _, said, after = rendered.rpartition(_NO_TEXT)
        return next((i for i in self._with_special(after) if i in self._special), None) if said else None


def has_before_its_end(trigger: str, piece: str) -> bool:
    """Whether there is something behind a trigger in a text. Behind "=" in "==" is nothing but the trigger itself."""
    end = piece
    while end.endswith(trigger):
        end = end.removesuffix(trigger)
    return trigger in end
