"""Templates that train without any other sign, each with the line that refuses it."""

from __future__ import annotations

import pytest

from pipeline.errors import UserError
from pipeline.lm import shapes as named_shapes
from pipeline.lm.template import Encoder, turn_end_id
from pipeline.lm.template_check import NO_TEMPLATE, template_problems
from pipeline.records import Completion, Group, Message
from tests.lm.shapes import SHAPES, stop_ids_of, tokenizer_of

TURN = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def problems(template):
    tokenizer = tokenizer_of(SHAPES["smollm2"])
    tokenizer.chat_template = template
    return template_problems(tokenizer, stop_ids_of(SHAPES["smollm2"], tokenizer))


def loop(turn=TURN, prompt=PROMPT, head=""):
    return head + "{% for m in messages %}" + turn + "{% endfor %}" + prompt


@pytest.mark.parametrize(("template", "found"), [
    (loop("{{ m['content'] "), "the chat template cannot be used: "),
    (loop(head="{{ raise_exception('no talk') }}"), "the chat template cannot be used: no talk; expected"),
    (loop(head="{{ [1, 2, 3, 4, 5, 6, 7, 8, 9] | random }}"), "writes the same talk differently each time"),
    (loop(prompt=""), "has no generation prompt: an answer begins with '<|im_start|>assistant\\n', and a prompt ends"),
    (loop(TURN.replace("m['content']", "m['content'] | upper")), "leaves the user's text out of a prompt, or changes"),
    (loop(TURN.replace("m['content']", "m['content'] | e")), "leaves the user's text out of a prompt, or changes it"),
    (loop("{% if m['role'] == 'user' %}" + TURN + "{% endif %}"), "leaves the assistant's text out of an answer"),
    (loop("{% if m['role'] == 'user' or loop.last %}" + TURN + "{% endif %}"),
     "leaves the assistant's text out of a longer talk"),
    (loop(TURN.replace("<|im_end|>", "")), "expected one of the stop tokens ['<|im_end|>'] there"),
    (loop(head="{{ messages | length }}"), "changes the prompt once there is an answer"),
    (loop(head="<|im_start|>"), "BOS tokens in the prompt, expected one at its start and no two in a row"),
])
def test_a_template_that_is_unfit_is_refused(template, found):
    assert found in problems(template)[0]


def test_a_shape_as_published_has_no_fault():
    assert problems(loop()) == []
    assert template_problems(tokenizer_of(SHAPES["gpt2"])) == [NO_TEMPLATE]


@pytest.mark.parametrize(("family", "choice", "prompt"), [
    ("gpt2", "plain", "User: Hi\n\nAssistant:"),
    ("llama2", "plain", "<s>User: Hi\n\nAssistant:"),
    ("qwen3", "chatml", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
])
def test_a_model_without_a_template_takes_one_by_name(family, choice, prompt):
    """BOS is written where the tokenizer itself puts one; the plain one ends an answer with eos_token."""
    tokenizer = tokenizer_of(SHAPES[family])
    tokenizer.chat_template = named_shapes.named(choice, tokenizer)
    stops = (tokenizer.eos_token_id,)
    assert template_problems(tokenizer, stops) == [] and turn_end_id(tokenizer) == tokenizer.eos_token_id
    made = Encoder(tokenizer, stops)
    hi = Group("g", (Message("user", "Hi"),), (Completion("Ducks."),))
    assert made.rendering.prompt(hi) == prompt
    (done,) = made.encode([hi])
    assert tokenizer.decode(done.completions[0].token_ids).strip() == f"Ducks.{tokenizer.eos_token}"


def test_a_name_that_does_not_fit_says_what_would(tmp_path):
    tokenizer = tokenizer_of(SHAPES["gpt2"])
    with pytest.raises(UserError, match=r"chatml needs <\|im_start\|>, <\|im_end\|>, which this model's vocabulary"):
        named_shapes.named("chatml", tokenizer)
    assert named_shapes.choice_problem("chatm") == (
        "'chatm' is no file, expected a file of Jinja or one of roles, chatml, text, plain (did you mean chatml?)")
    (tmp_path / "own.jinja").write_text("{{ messages }}")
    assert named_shapes.named(str(tmp_path / "own.jinja"), tokenizer) == "{{ messages }}"
    assert named_shapes.files(str(tmp_path / "own.jinja")) == [tmp_path / "own.jinja"]
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="plain needs an eos_token"):
        named_shapes.named("plain", tokenizer)
    assert named_shapes.date_problem("26 Jul") == "'26 Jul', expected a day such as 2024-07-26"


def test_one_token_may_be_both_bos_and_what_ends_an_answer():
    """GPT-2's <|endoftext|>: behind an earlier answer it is an end, not a second beginning."""
    tokenizer = tokenizer_of(SHAPES["gpt2"])
    tokenizer.chat_template = named_shapes.named("plain", tokenizer)
    assert template_problems(tokenizer) == template_problems(tokenizer, (tokenizer.eos_token_id,)) == []
