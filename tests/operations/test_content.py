from __future__ import annotations

import pytest

from optimizer.operations.content import is_content

# As instrumentations of 2024 to 2026 write them.
TEXTS = [
    "ai.prompt",
    "ai.prompt.messages",
    "ai.response.object",
    "ai.response.text",
    "ai.response.toolCalls",
    "ai.toolCall.args",
    "ai.toolCall.result",
    "all_messages_events",
    "answer",
    "completion",
    "crewai.task.description",
    "db.query.text",
    "embedding.embeddings.0.embedding.text",
    "events",
    "exception.message",
    "gcp.vertex.agent.llm_request",
    "gcp.vertex.agent.llm_response",
    "gcp.vertex.agent.tool_call_args",
    "gcp.vertex.agent.tool_response",
    "gen_ai.completion.0.tool_calls.0.arguments",
    "GEN_AI.output.messages",
    "gen_ai.prompt.0.content",
    "gen_ai.prompt.0.role",
    "gen_ai.system_instructions",
    "gen_ai.tool.call.arguments",
    "input.value",
    "langfuse.observation.input",
    "langfuse.trace.output",
    "lk.response.text",
    "lk.user_transcript",
    "llm.output_messages.0.message.content",
    "llm.prompts.0.user",
    "mlflow.spanInputs",
    "mlflow.spanOutputs",
    "output.value",
    "pydantic_ai.all_messages",
    "request_data",
    "response",
    "response_data",
    "retrieval.documents.0.document.content",
    "reranker.query",
    "system_prompt",
    "tool_responses",
    "traceloop.entity.input",
    "system",
    "userMessage",
]
OTHERS = [
    "ai.model.id",
    "gen_ai.data_source.id",
    "gen_ai.evaluation.name",
    "gen_ai.output.type",
    "gen_ai.prompt.name",
    "gen_ai.prompt.version",
    "gen_ai.request.choice.count",
    "gen_ai.request.encoding_formats",
    "gen_ai.request.model",
    "gen_ai.request.stop_sequences",
    "gen_ai.response.finish_reasons",
    "gen_ai.response.id",
    "gen_ai.system",
    "gen_ai.tool.name",
    "http.request.method",
    "input.mime_type",
    "langfuse.environment",
    "message_id",
    "openai.response.system_fingerprint",
    "openinference.span.kind",
    "query_language",
    "region",
    "server.address",
    "service_tier",
    "tool_choice",
    "url.path",
    "",
    "...",
]


@pytest.mark.parametrize("name", TEXTS)
def test_names_of_texts_are_known(name: str) -> None:
    for value in ("text", ["text"], {"a": "text"}):
        assert is_content(name, value)
    for number in (1, 0.5, True, None):
        assert not is_content(name, number)


@pytest.mark.parametrize("name", OTHERS)
def test_names_of_anything_else_stay(name: str) -> None:
    assert not is_content(name, "text")


@pytest.mark.parametrize(
    "text",
    [
        '[{"role": "user", "content": "text"}]',
        ' {"model": "m", "messages": []}',
        '"{\\"prompt\\": \\"text\\"}"',
        '{"choices":[{"index": 0}]}',
    ],
)
def test_messages_are_seen_behind_any_name(text: str) -> None:
    assert is_content("x", text)
    assert not is_content("x", "as " + text)


def test_other_json_stays() -> None:
    assert not is_content("x", '{"temperature": 0.5, "contents_hash": "1"}')


def test_long_names_are_looked_at_in_part() -> None:
    assert is_content("prompt." + "x" * 10_000, "text")
