"""What is wrong with a chat template, found by rendering a short talk and looking for its texts. Loads no torch.

A template that leaves a text out, begins an answer where the prompt ends without its beginning, or never ends one
trains without any other sign, so it is refused before anything is computed.
"""

from typing import Any

from pipeline.lm.rendering import Rendering
from pipeline.lm.template import bos_fault

NO_TEMPLATE = ("no chat template; give one with model.chat_template=FILE (Jinja), take a shape by its name "
               "(model.chat_template=chatml or roles, where the vocabulary has its tokens), or plain text for a base "
               "model (model.chat_template=plain, ended by the tokenizer's eos_token)")
_TALK = [{"role": "user", "content": "Quince? <b>é</b> 1"}, {"role": "assistant", "content": "Zebra & 'two'.\n- Newt"},
         {"role": "user", "content": "Plum {{ three }}"}]
_TIMES = 4  # renderings of one talk that have to be the same


def talk_problems(tokenizer: Any) -> list[str]:
    """What keeps a model from being shown conversations as they were said, as for `template_problems`."""
    if tokenizer.chat_template is None:
        return [NO_TEMPLATE]
    text = Rendering(tokenizer)
    try:
        prompt, answered = text.apply(_TALK[:1], True), text.apply(_TALK[:2], False)
        longer = {text.apply(_TALK, True) for _ in range(_TIMES)}
    except Exception as error:  # of Jinja: syntax, an unknown name, or what the template raises
        return [f"the chat template cannot be used: {' '.join(str(error).split())[:200]}; expected one that takes user "
                "and assistant in turn; mend it, or give another with model.chat_template=FILE"]
    if len(longer) > 1:
        return ["the chat template writes the same talk differently each time; expected one text for one talk"]
    lost = _lost(prompt, answered, longer.pop())
    return [lost] if lost else []


def template_problems(tokenizer: Any, stop_ids: tuple[int, ...] = ()) -> list[str]:
    """Every fault of the tokenizer's chat template, one line each; none where it is fit to train and sample with.

    stop_ids: what ends an answer; empty: whether the template ends one is not asked. System turns are no fault: where
    the template refuses them, they go into the first user turn.
    """
    if unread := talk_problems(tokenizer):
        return unread
    text = Rendering(tokenizer, stop_ids)
    prompt, bare = text.apply(_TALK[:1], True), text.apply(_TALK[:1], False)
    answered, longer = text.apply(_TALK[:2], False), text.apply(_TALK, True)
    problems = _boundary(text, prompt, bare, answered)
    ends = text.ids([answered.rpartition(_TALK[1]["content"])[2]])[0]
    if stop_ids and not set(ends) & {*stop_ids}:
        names = [tokenizer.convert_ids_to_tokens(i) for i in stop_ids]
        problems.append(f"the chat template ends an answer with {text.shown(answered)[-20:]!r}, expected one of the "
                        f"stop tokens {names} there; add the token it ends with to eos_token_id of "
                        "generation_config.json")
    if fault := bos_fault(tokenizer, stop_ids, text.ids([longer])[0]):
        problems.append(f"the chat template: {fault}: {longer[:80]!r}")
    return problems


def _lost(prompt: str, answered: str, longer: str) -> str:
    """A turn whose text is not in the rendering; '' where all are there, in their order."""
    for name, rendering, turns in (("a prompt", prompt, 1), ("an answer", answered, 2), ("a longer talk", longer, 3)):
        at = 0
        for turn in _TALK[:turns]:
            found = rendering.find(turn["content"], at)
            if found < 0:
                return (f"the chat template leaves the {turn['role']}'s text out of {name}, or changes it: "
                        f"{turn['content']!r} became {rendering[-120:]!r}; expected every turn as it was said")
            at = found + len(turn["content"])
    return ""


def _boundary(text: Rendering, prompt: str, bare: str, answered: str) -> list[str]:
    """What is wrong where a prompt ends and an answer begins."""
    if not answered.startswith(prompt):
        if text.thinks and answered.startswith(bare) and prompt.startswith(bare):
            return []  # it opens the reasoning in the prompt and leaves it out of what was said
        return [f"the chat template changes the prompt once there is an answer: {prompt[-60:]!r} became "
                f"{answered[:len(prompt) + 20][-80:]!r}; expected the answer behind the prompt"]
    between = answered[len(prompt):].partition(_TALK[1]["content"])[0]
    if prompt == bare and between.strip():
        return [f"the chat template has no generation prompt: an answer begins with {between!r}, and a prompt ends "
                f"{prompt[-20:]!r}; write it where add_generation_prompt is true"]
    return []
