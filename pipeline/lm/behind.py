"""The ids of texts that go on from a prompt whose ids are known."""

from collections.abc import Sequence

from pipeline.lm.rendering import Rendering


def ids_behind(rendering: Rendering, prompts: Sequence[str], heads: Sequence[list[int]], texts: Sequence[list[str]]
               ) -> list[list[list[int]]]:
    """Of each prompt's renderings with an answer: what `rendering.ids` gives, for less. heads: the prompts' ids.

    A tokenizer splits a text at its added tokens first, so what stands in front of the last one in the prompt is not
    tokenised again for every answer. Where the prompt's own end comes out otherwise, all of the text is.
    """
    added = {i: token.content for i, token in rendering.tokenizer.added_tokens_decoder.items()}
    cuts = [_last(prompt, head, added) for prompt, head in zip(prompts, heads, strict=True)]
    rest = iter(rendering.ids([text[place:] if text.startswith(prompt) else text
                               for prompt, (_, place), of in zip(prompts, cuts, texts, strict=True) for text in of]))
    found = list[list[list[int]]]()
    for prompt, head, (number, _), of in zip(prompts, heads, cuts, texts, strict=True):
        made = [[*(head[:number] if text.startswith(prompt) else ()), *next(rest)] for text in of]
        found.append([ids if not number or ids[: len(head)] == head else rendering.ids([text])[0]
                      for text, ids in zip(of, made, strict=True)])
    return found


def _last(prompt: str, head: list[int], added: dict[int, str]) -> tuple[int, int]:
    """How many ids, and how many characters, stand in front of the last added token; 0, 0 where there is none."""
    number = next((i for i in reversed(range(len(head))) if head[i] in added), 0)
    place = prompt.rfind(added[head[number]]) if number else -1
    return (number, place) if place > 0 else (0, 0)
