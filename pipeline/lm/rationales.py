"""The question a rationale answers: which of two answers is better, and why (Just et al. 2024, the released prompt).

The rationale is the answer of the policy to that question, in a conversation of its own behind the pair's system turn.
The released code shows the preferred answer first, always, so that its place tells which one it is. Here a hash of the
group's id says which answer comes first, and where that is the other one, "Assistant 1" and "Assistant 2" change places
in the rationale too.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from pipeline.lm.template import Encoder
from pipeline.records import Completion, Group, Message
from pipeline.stage import derive_seed

ORDERS = ("random", "chosen_first")
QUESTION = (
    "Given the prompt:\n{prompt}\nWhich of the following assistant's response is more preferable and strictly follows "
    'with the prompt question?\nAssistant 1:"{one}"\nor\nAssistant 2:"{two}"?\nProvide a rationale of your answer.')


def asked(group: Group, text: str, order: str = "random") -> Group:
    """The question about a pair as a group of its own, answered by the rationale `text`, which calls the preferred
    answer Assistant 1. Of a conversation of several turns the prompt is a line for each, "role: content".
    """
    system, turns = [m for m in group.messages if m.role == "system"], [m for m in group.messages if m.role != "system"]
    prompt = turns[0].content if len(turns) == 1 else "\n".join(f"{m.role}: {m.content}" for m in turns)
    one, two = (c.text or c.more for c in group.completions[:2])
    if order == "random" and derive_seed(0, "rationale", group.id) % 2:
        one, two = two, one
        text = re.sub(r"\b(assistant )([12])\b", lambda m: f"{m[1]}{3 - int(m[2])}", text, flags=re.IGNORECASE)
    question = Message("user", QUESTION.format(prompt=prompt, one=one, two=two))
    return Group(group.id, (*system, question), (Completion(text),), template=group.template)


def encoded(groups: Sequence[Group], encoder: Encoder, order: str) -> list[Group]:
    """`encoder.encode`, with the ids of rationales and of the questions they answer. Raises what it raises."""
    answers = iter(encoder.encode([asked(g, g.rationale.text, order) for g in groups if g.rationale is not None]))

    def explained(group: Group) -> Group:
        if group.rationale is None:
            return group
        answer = next(answers)
        return replace(group, rationale=replace(answer.completions[0], prompt_ids=answer.prompt_ids))

    return [explained(group) for group in encoder.encode(groups)]
