"""OpenAI's own Python library, as it is, against the service: every answer by its exact shape.

Arguments: the base URL with /v1, an access token, the model's name.
"""

import json
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
ERROR = {"message": str, "type": str, "param": Optional(str), "code": str}
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


FILE = {
    "id": prefixed("file-"), "object": "file", "bytes": int, "created_at": int, "expires_at": Optional(int), "filename": str,
    "purpose": one_of("batch", "batch_output"), "status": "processed", "status_details": NULL, "lines": int,
}
FEASIBILITY = {
    "window": one_of("feasible", "infeasible", "unknown"), "lines_ahead": int, "seconds_at_present_pace": Optional(int),
    "seconds_at_best": Optional(int), "earliest_window": Optional(str), "message": str,
}


def batch(status, **more):
    times = ["in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"]
    return {
        "id": prefixed("batch_"), "object": "batch", "endpoint": "/v1/completions", "errors": NULL,
        "input_file_id": prefixed("file-"), "completion_window": "24h", "status": status, "output_file_id": NULL,
        "error_file_id": NULL, "created_at": int, "expires_at": int, **{f"{time}_at": Optional(int) for time in times},
        "request_counts": {"total": int, "completed": int, "failed": int},
        "usage": {
            "input_tokens": int, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": int,
            "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": int,
        },
        "metadata": Optional(dict), "paused_at": NULL, "retry_of": NULL, "feasibility": FEASIBILITY, **more,
    }


def line(name, **body):
    body = {"model": MODEL, "prompt": "Once", "max_tokens": 4, **body}
    return json.dumps({"custom_id": name, "method": "POST", "url": "/v1/completions", "body": body}) + "\n"


def upload(text):
    return client.files.create(file=("lines.jsonl", text.encode()), purpose="batch")


def files():
    text = line("one") + line("two")
    sent = ("lines.jsonl", text.encode())
    body, parsed = raw(client.files.with_raw_response.create, file=sent, purpose="batch")
    check(body, FILE)
    assert (parsed.bytes, parsed.filename, parsed.purpose) == (len(text), "lines.jsonl", "batch")
    limited = client.files.create(file=sent, purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600})
    assert limited.expires_at == limited.created_at + 3600
    got, _ = raw(lambda **_: client.files.with_raw_response.retrieve(parsed.id))
    assert got == body
    assert client.files.content(parsed.id).text == text
    page, _ = raw(client.files.with_raw_response.list, purpose="batch", limit=1)
    check(page, {"object": "list", "data": [FILE], "first_id": str, "last_id": str, "has_more": True})
    every = [file.id for file in client.files.list(purpose="batch", limit=1, order="asc")]
    assert every == sorted(every) and {parsed.id, limited.id} <= set(every), "page by page"
    gone, _ = raw(lambda **_: client.files.with_raw_response.delete(parsed.id))
    check(gone, {"id": parsed.id, "object": "file", "deleted": True})
    for call in [client.files.retrieve, client.files.content, client.files.delete]:
        try:
            call(parsed.id)
        except openai.NotFoundError:
            continue
        raise AssertionError("it was deleted")


def batches():
    file = upload(line("good") + line("bad", prompt="x" * 5000) + line("other"))
    asked = {"input_file_id": file.id, "endpoint": "/v1/completions", "completion_window": "24h"}
    body, parsed = raw(client.batches.with_raw_response.create, **asked, metadata={"order": "17"})
    check(body, batch(one_of("validating", "in_progress"), metadata={"order": "17"}))
    while parsed.status in ("validating", "in_progress", "finalizing"):
        time.sleep(0.1)
        parsed = client.batches.retrieve(parsed.id)
    body, _ = raw(lambda **_: client.batches.with_raw_response.retrieve(parsed.id))
    made = {"output_file_id": prefixed("file-"), "error_file_id": prefixed("file-")}
    check(body, batch("completed", **made, metadata={"order": "17"}, in_progress_at=int, finalizing_at=int, completed_at=int))
    assert parsed.request_counts.to_dict() == {"total": 3, "completed": 2, "failed": 1}
    assert client.files.retrieve(parsed.output_file_id).purpose == "batch_output"
    done = [json.loads(one) for one in client.files.content(parsed.output_file_id).text.splitlines()]
    answered = {"status_code": 200, "request_id": prefixed("job_"), "body": completion()}
    for one in done:
        check(one, {"id": prefixed("batch_req_"), "custom_id": str, "response": answered, "error": NULL})
    assert [one["custom_id"] for one in done] == ["good", "other"]
    [failed] = [json.loads(one) for one in client.files.content(parsed.error_file_id).text.splitlines()]
    refused = {"status_code": 400, "request_id": prefixed("job_"), "body": {"error": ERROR}}
    check(failed, {"id": prefixed("batch_req_"), "custom_id": "bad", "response": refused, "error": NULL})

    long = upload("".join(line(f"line-{number}", max_tokens=4000) for number in range(300)))
    running = client.batches.create(**{**asked, "input_file_id": long.id})
    body, cancelled = raw(lambda **_: client.batches.with_raw_response.cancel(running.id))
    check(body, batch("cancelling", cancelling_at=int))
    while cancelled.status == "cancelling":
        time.sleep(0.1)
        cancelled = client.batches.retrieve(cancelled.id)
    assert cancelled.status == "cancelled" and cancelled.cancelled_at

    wrong = client.batches.create(**{**asked, "input_file_id": upload("{}\n").id})
    while wrong.status == "validating":
        time.sleep(0.1)
        wrong = client.batches.retrieve(wrong.id)
    problem = {"code": str, "line": 1, "message": str, "param": Optional(str)}
    check(wrong.to_dict(), batch("failed", errors={"object": "list", "data": [problem], "count": 1}, failed_at=int))

    page, _ = raw(client.batches.with_raw_response.list, limit=1)
    check({**page, "data": []}, {"object": "list", "data": [dict], "first_id": wrong.id, "last_id": wrong.id, "has_more": True})
    every = [one.id for one in client.batches.list(limit=1)]
    assert every == sorted(every, reverse=True) and {parsed.id, running.id, wrong.id} <= set(every), "page by page"
    try:
        client.batches.create(**{**asked, "completion_window": "30m"})
    except openai.BadRequestError as error:
        check(error.response.json(), {"error": ERROR})
        assert error.param == "completion_window"
    else:
        raise AssertionError("a window of half an hour was accepted")


def errors():
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
            check(refused.response.json(), {"error": ERROR})
            assert (refused.code, refused.param) == (code, param), refused
        else:
            raise AssertionError(f"{arguments} was accepted")
    try:
        OpenAI(base_url=BASE, api_key="nobody", max_retries=0).models.list()
    except openai.AuthenticationError as refused:
        check(refused.response.json(), {"error": ERROR})
    else:
        raise AssertionError("a wrong key was accepted")


for part in [completions, streams, responses, models, files, batches, errors]:
    part()
print(f"openai {openai.__version__} conforms")
