"""/decode, and /tokenize in text-embeddings-inference's form: texts of token ids, tokens of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import Meta

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.encoder_inputs import prompt_of_name
from pellucid.serve.request_body import BodyType, ModelFields, RequestBody, TokenId, listed_texts
from pellucid.serve.served_model import ServedModel
from pellucid.util.checks import token_id

IdLists = Annotated[
    list[TokenId | list[TokenId]], Meta(title="token ids, or a list of lists of token ids", min_length=1)
]


class DecodeFields(ModelFields, frozen=True, kw_only=True):
    """Fields of /decode."""

    ids: IdLists
    skip_special_tokens: bool = True


DECODE = BodyType(DecodeFields)


def decoded(body: RequestBody[DecodeFields], llm: ServedModel, name: str, number: str) -> list[Any]:
    """Response body of /decode: the text of each list of token ids."""
    ids: Any = body.fields.ids
    lists = listed_texts("ids", ids if isinstance(ids[0], list) else [ids])
    for at, one in enumerate(lists):
        if not isinstance(one, list):
            raise InvalidRequest(f"ids[{at}]={brief(one)}: must be a list of token ids, as ids[0]")
    size = llm.inputs.vocabulary
    checked = [[token_id("ids", token, size) for token in one] for one in lists]
    return [llm.tokenizer.decode(one, skip_special=body.fields.skip_special_tokens) for one in checked]


def tokens_of(
    llm: ServedModel, texts: Sequence[str], add_special: bool, parse_special: bool, prompt_name: str | None
) -> list[list[dict[str, Any]]]:
    """The tokens of each text: their ids and texts, and the characters that they cover."""
    prompt = llm.inputs.prompt_of(prompt_of_name(llm, prompt_name)) if prompt_name else ""
    return [
        [
            {
                "id": token.id,
                "text": token.text,
                "special": token.special,
                "start": None if token.special else token.start,
                "stop": None if token.special else token.end,
            }
            for token in llm.tokenizer.encode_with_offsets(
                prompt + text, add_special=add_special, parse_special=parse_special
            )
        ]
        for text in texts
    ]
