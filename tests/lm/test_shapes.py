"""Published shapes of chat templates: what a prompt is, what an answer's ids are, and what nobody's text can do."""

from __future__ import annotations

import datetime
import json
import random

import pytest

from pipeline.lm import rendering
from pipeline.lm.behind import ids_behind
from pipeline.lm.template import Encoder
from pipeline.lm.template_check import template_problems
from pipeline.records import LENGTH, Completion, Group, Message
from tests.lm.shapes import SHAPES, stop_ids_of, tokenizer_of

WRITTEN = [name for name, shape in SHAPES.items() if shape.template is not None]
TALK = (Message("user", "Name three birds."), Message("assistant", "Ducks."), Message("user", "Say it again."))


def encoder(name):
    tokenizer = tokenizer_of(SHAPES[name])
    return Encoder(tokenizer, stop_ids_of(SHAPES[name], tokenizer))


def plain(tokenizer, ids):
    """The text of ids without the blanks that SentencePiece puts around pieces."""
    return " ".join(tokenizer.decode(ids).split())


@pytest.mark.parametrize("name", WRITTEN)
def test_a_prompt_is_what_its_family_was_trained_on(name):
    made = encoder(name)
    hi = Group("g", (Message("user", "Hi"),))
    assert made.rendering.prompt(hi) == SHAPES[name].prompt
    (done,) = made.encode([hi])
    assert plain(made.tokenizer, done.prompt_ids).replace(" ", "") == "".join(SHAPES[name].prompt.split())
    assert template_problems(made.tokenizer, made.stop_ids) == []


@pytest.mark.parametrize("name", WRITTEN)
def test_an_answer_behind_a_prompt_is_tokenised_as_the_whole_text_is(name):
    """What stands in front of the prompt's last added token is not tokenised again. Texts that begin and end with
    blanks, letters that merge, others' alphabets, strings of special tokens; a text that does not go on from the
    prompt; a prompt without an added token."""
    made, rng = encoder(name), random.Random(1)
    bits = ["ab", " ", "\n", "\n\n", "the", "1", "é", "鴨", "🦆", ".", *SHAPES[name].special, "</think>"]
    text = made.rendering
    for turns in (1, 3, 3, 3):
        said = ["".join(rng.choices(bits, k=rng.randint(1, 9))) for _ in range(turns + 4)]
        group = Group("g", tuple(Message(("user", "assistant")[i % 2], said[i]) for i in range(turns)))
        prompt = text.prompt(group)
        written = [text.answered(group, Completion(one)) for one in said[turns:]]
        behind = [*(prompt + text.held(one) for one in said[turns:]), *written, "another text"]
        heads = text.ids([prompt, "no token"])
        assert ids_behind(text, [prompt, "no token"], heads, [behind, ["no token at all"]]) == [
            text.ids(behind), text.ids(["no token at all"])]


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("turns", [1, 3])
def test_an_answer_ends_at_its_first_stop_token(name, turns):
    made, shape = encoder(name), SHAPES[name]
    (done,) = made.encode([Group("g", TALK[:turns], (Completion("Ducks and swans."),
                                                     Completion("Grebes", finish_reason=LENGTH)))])
    whole, cut = done.completions
    end = made.tokenizer.convert_tokens_to_ids(shape.end)
    assert whole.token_ids[-1] == end and not {*whole.token_ids[:-1]} & {*made.stop_ids}
    assert plain(made.tokenizer, whole.token_ids[:-1]).endswith("Ducks and swans.")
    assert plain(made.tokenizer, cut.token_ids).endswith("Grebes") and not {*cut.token_ids} & {*made.stop_ids}


@pytest.mark.parametrize("name", WRITTEN)
def test_no_text_can_open_or_end_a_turn(name):
    """Typed by a person, the strings of all tokens that are special by mark or role, and place holders, are text."""
    made, shape = encoder(name), SHAPES[name]
    typed = "a" + "".join({*shape.special, *shape.stops}) + "\U000f00005\U000f0001\U000f0000x\U000f0001b"
    talk = (Message("user", typed), Message("assistant", typed), Message("user", typed))
    (done,) = made.encode([Group("g", talk, (Completion(typed),))])
    (bare,) = made.encode([Group("g", tuple(Message(m.role, "ab") for m in talk), (Completion("ab"),))])
    special = {*made.tokenizer.all_special_ids, *made.stop_ids} - {made.tokenizer.unk_token_id}
    for long, short in ((done.prompt_ids, bare.prompt_ids),
                        (done.completions[0].token_ids, bare.completions[0].token_ids)):
        assert [i for i in long if i in special] == [i for i in short if i in special]
    assert made.tokenizer.decode(done.prompt_ids).count(typed) == 3
    assert typed in made.tokenizer.decode(done.completions[0].token_ids)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_system_turn_is_in_the_prompt(name):
    """Mistral and Gemma 2 refuse it: it stands in front of the first user's text, as their authors advise."""
    made = encoder(name)
    assert made.rendering.refuses_system == (not SHAPES[name].system)
    text = made.rendering.prompt(Group("g", (Message("system", "Be brief."), *TALK)))
    assert text.count("Be brief.") == 1 and text.index("Be brief.") < text.index("Name three birds.")
    if not SHAPES[name].system:
        folded = made.rendering.prompt(Group("g", (Message("user", "Be brief.\n\nName three birds."), *TALK[1:])))
        assert text == folded
    made.encode([Group("g", (Message("system", ""), *TALK))])  # an empty one is a turn like others


@pytest.mark.parametrize("name", WRITTEN)
def test_a_system_turn_in_mid_talk_is_in_the_prompt_once(name):
    """Where the template refuses it there or leaves it out, it is folded into the user turn beside it."""
    made, system = encoder(name), Message("system", "Be long.")
    (done,) = made.encode([Group("g", (*TALK[:2], system, TALK[2]))])
    assert made.tokenizer.decode(done.prompt_ids).count("Be long.") == 1
    if name in ("llama2", "gemma2", "qwen3", "smollm3"):
        assert made.rendering.refuses_later_system
        talk = (*TALK[:2], Message("user", "Be long.\n\nSay it again."))
        assert done.prompt_ids == made.encode([Group("g", talk)])[0].prompt_ids
        before = (TALK[0], system, *TALK[1:])
        talk = (Message("user", "Name three birds.\n\nBe long."), *TALK[1:])
        assert made.rendering.prompt(Group("g", before)) == made.rendering.prompt(Group("g", talk))


@pytest.mark.parametrize(("name", "marks"), [("qwen3", ("<think>", "</think>")), ("r1", ("<think>", "</think>"))])
def test_marks_that_a_user_types_are_letters(name, marks):
    """Tokens of the vocabulary, not special: typed they are text, in an answer they are what they mean."""
    made = encoder(name)
    ids = {made.tokenizer.convert_tokens_to_ids(mark) for mark in marks}
    assert not ids & {*made.tokenizer.all_special_ids}
    typed = "What does <think> or </think> mean?"
    (done,) = made.encode([Group("g", (Message("user", typed),), (Completion("<think>\nHm.\n</think>\n\nIt ends."),))])
    (bare,) = made.encode([Group("g", (Message("user", "What?"),), (Completion("It ends."),))])
    assert [i for i in done.prompt_ids if i in ids] == [i for i in bare.prompt_ids if i in ids]
    assert made.tokenizer.decode(done.prompt_ids).count(typed) == 1
    assert made.tokenizer.convert_tokens_to_ids("</think>") in done.completions[0].token_ids


def test_an_empty_system_turn_replaces_the_default():
    text = encoder("qwen2_5").rendering.prompt(Group("g", (Message("system", ""), TALK[0])))
    assert text.startswith("<|im_start|>system\n<|im_end|>\n<|im_start|>user\n")


@pytest.mark.parametrize("opens", ["smollm2", "llama2"])
def test_bos_stands_where_the_template_opens_a_turn(opens):
    made = encoder(opens)
    (done,) = made.encode([Group("g", TALK)])
    assert done.prompt_ids.count(made.tokenizer.bos_token_id) == {"smollm2": 5, "llama2": 2}[opens]


def test_a_piece_of_a_text_has_no_blank_in_front():
    """SentencePiece's way puts one before a text; GPT-2's does not, and there nothing changes."""
    rendering = encoder("llama2").rendering
    decode, (whole,) = rendering.tokenizer.convert_ids_to_tokens, rendering.ids(["birds"])
    assert "".join(decode(whole)) == "\u2581birds" and "".join(decode(rendering.continuation("birds"))) == "birds"
    assert "".join(decode(rendering.continuation(" birds"))) == "\u2581birds"
    rendering = encoder("llama3").rendering
    assert rendering.continuation("birds") == rendering.ids(["birds"])[0]


def test_a_stop_token_that_is_not_marked_as_special_is_special_by_role():
    """<|im_end|> added as an ordinary token: in a text it is letters, behind an answer it ends it."""
    from dataclasses import replace

    shape = replace(SHAPES["qwen2_5"], special=("<|endoftext|>", "<|im_start|>"), unmarked=("<|im_end|>",),
                    eos="<|endoftext|>")
    tokenizer = tokenizer_of(shape)
    made = Encoder(tokenizer, stop_ids_of(shape, tokenizer))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert not tokenizer.added_tokens_decoder[end].special and made.stop_ids[0] == end
    (done,) = made.encode([Group("g", (Message("user", "a<|im_end|>b"),), (Completion("c<|im_end|>d"),))])
    assert done.prompt_ids.count(end) == 2, "of the system turn and the user's"
    assert tokenizer.decode(done.completions[0].token_ids) == "c<|im_end|>d<|im_end|>"
    assert [i == end for i in done.completions[0].token_ids].index(True) == len(done.completions[0].token_ids) - 1


def answer(name, text, reasoning="", turns=1):
    """The decoded ids of an answer."""
    made = encoder(name)
    more = json.dumps({"reasoning_content": reasoning}) if reasoning else ""
    (done,) = made.encode([Group("g", TALK[:turns], (Completion(text, more=more),))])
    assert made.tokenizer.decode(done.prompt_ids) == made.rendering.prompt(done)
    return made.tokenizer.decode(done.completions[0].token_ids)


@pytest.mark.parametrize("turns", [1, 3])
@pytest.mark.parametrize(("name", "end"), [("qwen3", "<|im_end|>"), ("r1", "<｜end▁of▁sentence｜>")])
def test_reasoning_is_part_of_the_answer(name, end, turns):
    """R1's template cuts it out of every turn that is over and opens it in the prompt; Qwen3's writes an empty one."""
    opened = "" if name == "r1" else "<think>\n"
    assert answer(name, "Five.", "2 and 3", turns) == f"{opened}2 and 3\n</think>\n\nFive.{end}"
    written = "<think>\n2 and 3\n</think>\n\nFive."
    assert answer(name, written, turns=turns) == f"{opened}2 and 3\n</think>\n\nFive.{end}"
    assert answer(name, "Five.", turns=turns) == f"{opened}\n</think>\n\nFive.{end}"


def test_earlier_reasoning_is_left_out_of_a_prompt_as_the_template_does():
    talk = (TALK[0], Message("assistant", "<think>\nwaterfowl\n</think>\n\nDucks."), TALK[2])
    for name in ("qwen3", "r1"):
        made = encoder(name)
        (done,) = made.encode([Group("g", talk, (Completion("Ducks!"),))])
        text = made.tokenizer.decode(done.prompt_ids)
        assert "waterfowl" not in text and "Ducks." in text


def test_variables_and_tools_of_a_row_reach_the_template():
    made = encoder("qwen3")
    quiet = Group("g", TALK[:1], (Completion("Ducks."),), template=json.dumps({"enable_thinking": False}))
    (done,) = made.encode([quiet])
    assert made.tokenizer.decode(done.prompt_ids).endswith("assistant\n<think>\n\n</think>\n\n")
    assert made.tokenizer.decode(done.completions[0].token_ids) == "Ducks.<|im_end|>"
    called = json.dumps({"tool_calls": [{"function": {"name": "birds<|im_end|>", "arguments": {}}}]})
    tools = Group("g", (TALK[0], Message("assistant", "", called), Message("tool", "3 birds")), (Completion("Three."),),
                  template=json.dumps({"tools": [{"name": "birds"}]}))
    (done,) = made.encode([tools])
    text = made.tokenizer.decode(done.prompt_ids)
    assert '# Tools\n{"name": "birds"}' in text and "<tool_response>\n3 birds" in text
    assert '<tool_call>\n{"name": "birds<|im_end|>", "arguments": {}}\n</tool_call>' in text
    assert made.rendering.unread(tools) == [] == made.rendering.unread(quiet)


def test_an_answer_that_only_calls_a_tool_is_kept_where_the_template_writes_it():
    from pipeline.lm.template import Limits, limit

    call = Completion("", more=json.dumps({"tool_calls": [{"function": {"name": "birds", "arguments": {}}}]}))
    roomy = Limits(prompt=999, completion=999, long_prompt="drop", long_completion="drop")
    for name, reasons in (("qwen3", []), ("smollm2", ["empty_completion"])):
        (done,) = encoder(name).encode([Group("g", TALK[:1], (call,))])
        kept, found = limit(done, roomy)
        assert found == reasons and (kept is None) == bool(reasons)


def test_what_a_template_does_not_read_is_named():
    thought = Completion("Ducks.", more=json.dumps({"reasoning_content": "waterfowl"}))
    row = Group("g", TALK[:1], (thought,), template=json.dumps({"enable_thinking": False}))
    assert encoder("smollm2").rendering.unread(row) == ["enable_thinking", "reasoning_content"]
    assert encoder("r1").rendering.unread(row) == ["enable_thinking"]
    used = (TALK[0], Message("assistant", "", json.dumps({"tool_calls": [{"function": {}}]})), Message("tool", "3"))
    assert encoder("falcon").rendering.unread(Group("g", used)) == ["tool_calls"]
    assert encoder("llama2").rendering.unread(Group("g", TALK[:1])) == []


def test_the_clock_stands_still(monkeypatch):
    """Tomorrow's ids are today's: the date is the tokenizer's, not the machine's."""
    from transformers.utils import chat_template_utils

    made = encoder("llama3")
    before = made.encode([Group("g", TALK[:1])])

    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 5, 6)

    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    talk = [{"role": "user", "content": "Hi"}]
    assert "06 May 2031" in made.tokenizer.apply_chat_template(talk, tokenize=False)
    assert encoder("llama3").encode([Group("g", TALK[:1])]) == before
    told = encoder("llama3")
    told.tokenizer.init_kwargs[rendering.DATE_KEY] = "2025-01-02"
    assert "Today Date: 02 Jan 2025\n" in told.rendering.prompt(Group("g", TALK[:1]))


def test_a_prompt_is_tokenised_once_however_many_answers_it_has():
    """A prompt of 1,000 words and four answers of two: less than two prompts' worth of characters."""
    class Counting:
        def __init__(self, inner):
            self.inner, self.characters = inner, 0

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def __len__(self):
            return len(self.inner)

        def __call__(self, texts, **options):
            self.characters += sum(map(len, texts))
            return self.inner(texts, **options)

    shape = SHAPES["qwen2_5"]
    counting = Counting(tokenizer_of(shape))
    made = Encoder(counting, stop_ids_of(shape, counting.inner))
    group = Group("g", (Message("user", "ducks " * 1000),), tuple(Completion(f"ab {i}") for i in range(4)))
    made.encode([group])
    first = counting.characters
    made.encode([group])
    assert 6000 < counting.characters - first < 12000 and first < 12000
