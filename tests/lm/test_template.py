"""The token contract, on tokenizers made here: what holds, and what each violation says."""

from __future__ import annotations

import pytest

from pipeline.errors import UserError
from pipeline.lm import template as encode
from pipeline.lm import tiny
from pipeline.records import LENGTH, Completion, Group, Message

TEXT = ["Name three birds that can swim.", "Ducks, swans and grebes.", "Say it again, shorter please."] * 4


def tokenizer(name="roles", template=None):
    chosen = tiny.TEMPLATES[name]
    made = tiny.train_tokenizer(TEXT, 300, chosen, 128)
    if template is not None:
        made.chat_template = template
    return made


def encoder(name="roles", template=None):
    made = tokenizer(name, template)
    return encode.Encoder(made, (made.eos_token_id,))


def group(answer="Ducks and swans.", finish="stop", turns=1):
    talk = [Message("user", "Name three birds."), Message("assistant", "Ducks."), Message("user", "Say it again.")]
    return Group("g", tuple(talk[: 2 * turns - 1]), (Completion(answer, finish_reason=finish),))


@pytest.mark.parametrize("name", ["roles", "chatml", "text"])
@pytest.mark.parametrize("turns", [1, 2])
@pytest.mark.parametrize("answer", ["Ducks and swans.", " leading space", "\n\nnewlines", "naïve 鴨 🦆", "<|odd|>"])
def test_ids_are_those_of_the_whole_conversation(name, turns, answer):
    made = encoder(name)
    (done,) = made.encode([group(answer, turns=turns)])
    ids = done.prompt_ids + done.completions[0].token_ids
    text = made.tokenizer.decode(ids)
    assert text.endswith(answer + made.tokenizer.eos_token)
    assert ids.count(made.tokenizer.bos_token_id) == 1 and ids[0] == made.tokenizer.bos_token_id
    assert done.completions[0].token_ids.count(made.stop_ids[0]) == 1
    assert done.completions[0].token_ids[-1] == made.stop_ids[0]


def test_running_text_has_no_roles():
    made = encoder("text")
    (done,) = made.encode([group("Ducks.")])
    assert made.tokenizer.decode(done.prompt_ids) == "<|bos|>Name three birds."
    assert made.tokenizer.decode(done.completions[0].token_ids) == " Ducks.<|end|>"


def test_cut_completion_has_no_stop_id():
    made = encoder()
    (done,) = made.encode([group(finish=LENGTH)])
    (whole,) = made.encode([group()])
    assert done.completions[0].token_ids == whole.completions[0].token_ids[:-1]


def test_double_bos():
    made = encoder(template=tiny.BOS + tiny.TEMPLATES["roles"].text)
    with pytest.raises(UserError, match="example 'g': 2 BOS tokens in the prompt, expected one at its start"):
        made.encode([group()])


def test_missing_eos():
    template = tiny.BOS + "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}" + (
        "{% if add_generation_prompt %}<|assistant|>{% endif %}")
    with pytest.raises(UserError, match=r"example 'g': missing EOS.*prompt: .*prompt with answer: "):
        encoder(template=template).encode([group()])


@pytest.mark.parametrize("behind", ["<|end|>", "\n", "<|end|>\n<|bos|>"])
def test_an_answer_ends_at_its_first_stop_token(behind):
    """Phi-3 writes <|end|>, a newline and <|endoftext|>; sampling stops at <|end|>, so training does too."""
    plain = encoder()
    made = encoder(template=tiny.TEMPLATES["roles"].text.replace("{% endfor %}", (
        "{% endfor %}{% if not add_generation_prompt %}{{ '" + behind.replace("\n", "\\n") + "' }}{% endif %}")))
    for finish in ("stop", LENGTH):
        assert made.encode([group(finish=finish)]) == plain.encode([group(finish=finish)])


@pytest.mark.parametrize("opened", ["chatml", "llama2"])
def test_a_bos_that_opens_every_turn_is_the_templates(opened):
    """SmolLM2's ChatML, whose bos_token is <|im_start|>, and Llama 2, which writes <s> before every user turn."""
    if opened == "chatml":
        made = encoder("chatml", tiny.TEMPLATES["chatml"].text.removeprefix(tiny.BOS))
        made.tokenizer.bos_token = tiny.IM_START
    else:
        made = encoder(template=tiny.TEMPLATES["roles"].text.removeprefix(tiny.BOS).replace(
            "{{ '<|' + m['role']", "{{ ('<|bos|>' if m['role'] == 'user' else '') + '<|' + m['role']"))
    bos = made.tokenizer.bos_token_id
    for turns, count in ((1, {"chatml": 2, "llama2": 1}), (2, {"chatml": 4, "llama2": 2})):
        (done,) = made.encode([group(turns=turns)])
        assert done.prompt_ids[0] == bos and done.prompt_ids.count(bos) == count[opened]
        assert made.tokenizer.decode(done.completions[0].token_ids) == "Ducks and swans." + made.tokenizer.eos_token
    typed = f"a {made.tokenizer.bos_token} b"
    (done,) = made.encode([Group("g", (Message("user", typed),))])
    assert done.prompt_ids.count(bos) == {"chatml": 2, "llama2": 1}[opened], "a person's is text"


@pytest.mark.parametrize("name", ["roles", "chatml"])
@pytest.mark.parametrize("turns", [1, 2])
def test_special_strings_in_a_text_are_text(name, turns):
    """`<|end|>` typed by a person ends nothing: the ids are those of its letters, and they read back as typed."""
    made = encoder(name)
    typed = f"a{made.tokenizer.eos_token}<|bos|><|pad|>b"
    talk = [Message("user", typed), Message("assistant", typed), Message("user", typed)][: 2 * turns - 1]
    (done,) = made.encode([Group("g", tuple(talk), (Completion(typed),))])
    specials = set(made.tokenizer.all_special_ids)
    answer = done.completions[0].token_ids
    assert made.tokenizer.decode(answer) == typed + made.tokenizer.eos_token
    assert not specials & set(answer[:-1]) and answer[-1] == made.tokenizer.eos_token_id
    plain = made.encode([Group("g", tuple(Message(m.role, "ab") for m in talk), (Completion("ab"),))])[0]
    assert [i for i in done.prompt_ids if i in specials] == [i for i in plain.prompt_ids if i in specials]
    assert made.tokenizer.decode(done.prompt_ids).count(typed) == 2 * turns - 1


def test_an_answer_of_nothing_is_dropped():
    """An empty text is one stop id and blanks: neither teaches anything."""
    made = encoder()
    roomy = encode.Limits(prompt=99, completion=99, long_prompt="drop", long_completion="drop")
    for text in ("", " "):
        (done,) = made.encode([group(text)])
        assert encode.limit(done, roomy) == (None, ["empty_completion"])
    (pair,) = made.encode([Group("g", (Message("user", "?"),), (Completion("Ducks."), Completion("")))])
    assert encode.limit(pair, roomy) == (None, ["empty_completion"])


def test_template_that_rewrites_the_prompt():
    template = tiny.BOS + "{{ messages|length }}{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"
    with pytest.raises(UserError, match="the template changes the prompt once there is an answer"):
        encoder(template=template).encode([group()])


@pytest.mark.parametrize(("whole", "cut", "text"), [
    ("m['content']", "m['content'][:12]", "user's text, or a part of it ('Name three birds.')"),
    ("for m in messages", "for m in messages[-2:]", "user's text, or a part of it ('Name three birds.')"),
    ("for m in messages", "for m in messages if m['role'] == 'user'",
     "assistant's text, or a part of it ('Ducks.')")])
def test_template_that_leaves_a_text_out(whole, cut, text):
    """It is fit for the short talk that planning renders, and loses a part of a longer one without any other sign."""
    template = encoder().tokenizer.chat_template
    assert whole in template
    with pytest.raises(UserError) as caught:
        encoder(template=template.replace(whole, cut)).encode([group(turns=2)])
    assert f"example 'g': the chat template leaves out the {text}" in str(caught.value)
    assert "take the row out" in str(caught.value)


def test_a_template_may_trim_and_squeeze_blanks():
    """Falcon's replaces empty lines: no word is lost."""
    template = encoder().tokenizer.chat_template.replace("m['content']", "m['content'].strip().replace('\n\n', '\n')")
    talk = (Message("user", " Name\n\nthree. "), Message("assistant", "Ducks. "), Message("user", "Name"))
    (done,) = encoder(template=template).encode([Group("g", talk, (Completion("One."),))])
    assert "Name\nthree." in encoder().tokenizer.decode(done.prompt_ids)


def test_template_that_refuses():
    with pytest.raises(UserError, match="example 'g': the chat template refuses this conversation: no"):
        encoder(template="{{ raise_exception('no') }}").encode([group()])


def crossing(template):
    """An encoder whose tokenizer learned `SayDucks` as one token, because its training text was full of it."""
    chosen = tiny.Template(template, tiny.TEMPLATES["roles"].specials, tiny.END)
    made = tiny.train_tokenizer(["SayDucks"] * 50, 300, chosen, 128)
    return encode.Encoder(made, (made.eos_token_id,))


def test_boundary_where_the_tokenizer_would_merge():
    """A template of plain text lets `Say` + `Ducks` merge; prompt ids and completion ids stay apart all the same."""
    template = tiny.BOS + "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}\n{% else %}" + (
        "Say{{ m['content'] }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}Say{% endif %}")
    made = crossing(template)
    assert made.tokenizer.tokenize("SayDucks") == ["SayDucks"]
    (done,) = made.encode([group("Ducks")])
    assert made.tokenizer.decode(done.prompt_ids).endswith("Say")
    assert made.tokenizer.decode(done.completions[0].token_ids) == "Ducks<|end|>"


def test_turn_end_is_found():
    for name in tiny.TEMPLATES:
        made = tokenizer(name)
        assert encode.turn_end_id(made) == made.eos_token_id


def ids_group(*completions, prompt=3):
    return Group("g", (Message("user", "?"),), tuple(Completion("x", token_ids=c) for c in completions),
                 prompt_ids=tuple(range(prompt)))


def limits(long_completion="drop", long_prompt="drop"):
    return encode.Limits(prompt=4, completion=3, long_prompt=long_prompt, long_completion=long_completion)


def test_limits_drop_cut_or_refuse():
    assert encode.limit(ids_group((1, 2), prompt=5), limits()) == (None, ["long_prompt"])
    with pytest.raises(UserError, match="a prompt of 5 tokens, the limit is 4"):
        encode.limit(ids_group((1, 2), prompt=5), limits(long_prompt="error"))
    assert encode.limit(ids_group((1, 2, 3, 4), (1, 2)), limits()) == (None, ["long_completion"])
    with pytest.raises(UserError, match="a completion of 4 tokens, the limit is 3"):
        encode.limit(ids_group((1, 2, 3, 4)), limits("error"))
    cut, reasons = encode.limit(ids_group((1, 2, 3, 4)), limits("truncate"))
    assert cut.completions[0].token_ids == (1, 2, 3) and cut.completions[0].finish_reason == LENGTH
    assert reasons == ["truncated"]


def test_sides_that_become_identical_are_dropped():
    """1 2 3 4 and 1 2 3 5 are the same three tokens after the cut: no gradient is left in the pair."""
    cut = limits("truncate")
    assert encode.limit(ids_group((1, 2, 3, 4), (1, 2, 3, 5)), cut) == (
        None, ["truncated", "identical_completion"])
    kept, reasons = encode.limit(ids_group((1,), (2,), (2,), (1,), (3,)), limits())
    assert [c.token_ids for c in kept.completions] == [(1,), (2,), (3,)]
    assert reasons == ["identical_completion"] * 2
