"""OpenAI's own Python library, as it is, against the service: every answer by its exact shape.

Arguments: the base URL with /v1, an access token, the model's name.
"""

import sys
import time

import openai
from openai import OpenAI

from schema import Optional, check, one_of, prefixed

BASE, TOKEN, MODEL = sys.argv[1:4]
client = OpenAI(base_url=BASE, api_key=TOKEN, max_retries=0, timeout=60)

NULL = lambda value: value is None
NUMBER = lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)
USAGE = {"prompt_tokens": int, "completion_tokens": int, "total_tokens": int}
LOGPROBS = {
    "tokens": [str],
    "token_logprobs": [NUMBER],
    "top_logprobs": [lambda top: all(isinstance(name, str) and NUMBER(value) for name, value in top.items())],
    "text_offset": [int],
}


def completion(logprobs=NULL):
    choice = {"text": str, "index": int, "finish_reason": one_of("stop", "length", "content_filter"), "logprobs": logprobs}
    return {
        "id": prefixed("cmpl-"),
        "object": "text_completion",
        "created": int,
        "model": MODEL,
        "choices": [choice],
        "usage": USAGE,
        "system_fingerprint": str,
    }


def raw(method, **arguments):
    """What was answered, as JSON and as the library read it."""
    answer = method(**arguments)
    return answer.http_response.json(), answer.parse()


def completions():
    create = client.completions.with_raw_response.create
    asked = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 12, "seed": 7}
    body, parsed = raw(create, **asked)
    check(body, completion())
    assert parsed.choices[0].text == body["choices"][0]["text"] and parsed.usage.completion_tokens == 12
    again, _ = raw(create, **asked)
    assert again["choices"] == body["choices"], "the seed fixes the text"

    body, _ = raw(create, **asked, n=2, logprobs=2)
    check(body, completion(LOGPROBS))
    assert len(body["choices"]) == 2 and len(body["choices"][0]["logprobs"]["tokens"]) == 12

    several = {**asked, "prompt": ["Once", "There"], "n": 2, "best_of": 3, "echo": True}
    body, _ = raw(create, **several)
    check(body, completion())
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert [choice["text"][:4] for choice in body["choices"]] == ["Once", "Once", "Ther", "Ther"]

    more = {"temperature": 0.5, "top_p": 0.9, "presence_penalty": 0.5, "frequency_penalty": 0.5, "user": "u-17",
            "logit_bias": {"5": -100}, "stop": ["zzz"], "suffix": None}
    body, _ = raw(create, model=MODEL, prompt=[1, 2, 3], **more)
    check(body, completion())
    assert body["usage"]["prompt_tokens"] == 3 and body["usage"]["completion_tokens"] == 16
    body, _ = raw(create, model=MODEL, prompt=[[1], [2, 3]], max_tokens=1)
    check(body, completion())


def streams():
    asked = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 40, "seed": 7, "n": 2}
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    choice = {"text": str, "index": int, "finish_reason": Optional(one_of("stop", "length")), "logprobs": NULL}
    head = {"id": prefixed("cmpl-"), "object": "text_completion", "created": int, "model": MODEL, "system_fingerprint": str}
    texts, reasons = ["", ""], [None, None]
    for chunk in chunks[:-1]:
        check(chunk.to_dict(), {**head, "choices": [choice], "usage": NULL})
        for part in chunk.choices:
            texts[part.index] += part.text
            reasons[part.index] = part.finish_reason or reasons[part.index]
    check(chunks[-1].to_dict(), {**head, "choices": [], "usage": USAGE})
    assert texts == [part.text for part in whole.choices], "the pieces add up to the text"
    assert reasons == [part.finish_reason for part in whole.choices]
    assert chunks[-1].usage.to_dict() == whole.usage.to_dict()
    plain = client.completions.create(**asked, stream=True)
    check(next(iter(plain)).to_dict(), {**head, "choices": [choice]})
    plain.close()


def response(status, output):
    return {
        "id": prefixed("resp_"), "object": "response", "created_at": int, "status": status, "background": bool, "error": NULL,
        "incomplete_details": Optional({"reason": "max_output_tokens"}), "instructions": NULL, "max_output_tokens": int,
        "metadata": dict, "model": MODEL, "output": output, "parallel_tool_calls": bool, "previous_response_id": NULL,
        "reasoning": {"effort": NULL, "summary": NULL}, "service_tier": "default", "store": bool, "temperature": NUMBER,
        "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [dict], "top_p": NUMBER,
        "truncation": "disabled", "user": NULL,
        "usage": Optional({
            "input_tokens": int, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": int,
            "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": int,
        }),
    }


def responses():
    asked = {"model": MODEL, "input": "Once upon a time", "max_output_tokens": 30}
    content = {"type": "output_text", "text": str, "annotations": [dict], "logprobs": [dict]}
    message = {"id": prefixed("msg_"), "type": "message", "status": str, "role": "assistant", "content": [content]}
    body, parsed = raw(client.responses.with_raw_response.create, **asked, background=True, metadata={"a": "1"})
    check(body, response(one_of("queued", "in_progress", "incomplete"), [message]))
    while parsed.status in ("queued", "in_progress"):
        time.sleep(0.1)
        parsed = client.responses.retrieve(parsed.id)
    body = client.responses.with_raw_response.retrieve(parsed.id).http_response.json()
    check(body, response("incomplete", [message]))
    assert parsed.output_text and parsed.usage.output_tokens == 30

    events = list(client.responses.create(**asked, background=True, stream=True))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[0] == "created" and kinds[-1] == "incomplete", kinds
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(set(numbers)), numbers
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    whole = events[-1].response
    assert text == whole.output_text
    after = next(event for event in events if event.type == "response.output_text.delta")
    resumed = list(client.responses.retrieve(whole.id, stream=True, starting_after=after.sequence_number))
    rest = "".join(event.delta for event in resumed if event.type == "response.output_text.delta")
    assert after.delta + rest == text
    assert client.responses.create(**asked).output_text
    assert client.responses.cancel(whole.id).status == "incomplete", "it had ended"
    client.responses.delete(whole.id)
    try:
        client.responses.retrieve(whole.id)
    except openai.NotFoundError:
        pass
    else:
        raise AssertionError("it was deleted")


def models():
    body, parsed = raw(client.models.with_raw_response.list)
    assert body["object"] == "list" and [model.id for model in parsed.data] == [MODEL]
    model, parsed = raw(lambda **_: client.models.with_raw_response.retrieve(MODEL))
    assert (model["object"], model["owned_by"], parsed.id) == ("model", "claimcheck", MODEL)
    assert isinstance(model["created"], int)


def errors():
    error = {"message": str, "type": str, "param": Optional(str), "code": str}
    for arguments, kind, code, param in [
        ({"model": "nobody"}, openai.NotFoundError, "model_not_found", "model"),
        ({"suffix": "end"}, openai.BadRequestError, "unsupported_parameter", "suffix"),
        ({"max_tokens": 0}, openai.BadRequestError, "invalid_value", "max_tokens"),
        ({"extra_body": {"messages": []}}, openai.BadRequestError, "unknown_field", "messages"),
        ({"prompt": "x" * 9000}, openai.BadRequestError, "context_length_exceeded", "max_tokens"),
    ]:
        try:
            client.completions.create(**{"model": MODEL, "prompt": "a", **arguments})
        except kind as refused:
            check(refused.response.json(), {"error": error})
            assert (refused.code, refused.param) == (code, param), refused
        else:
            raise AssertionError(f"{arguments} was accepted")
    try:
        OpenAI(base_url=BASE, api_key="nobody", max_retries=0).models.list()
    except openai.AuthenticationError as refused:
        check(refused.response.json(), {"error": error})
    else:
        raise AssertionError("a wrong key was accepted")


for part in [completions, streams, responses, models, errors]:
    part()
print(f"openai {openai.__version__} conforms")
