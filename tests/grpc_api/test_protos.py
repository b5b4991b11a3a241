"""
The committed code is what the files under protos/ say, and they follow the rules of their trade.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from google.protobuf.descriptor import FileDescriptor

from optimizer.pb.v1 import event_pb2, health_pb2, selection_pb2

ROOT = Path(__file__).parents[2]
FILES: list[FileDescriptor] = [event_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR, selection_pb2.DESCRIPTOR]


def test_the_committed_code_is_generated_from_the_protos() -> None:
    pytest.importorskip("grpc_tools", reason="the compiler (grpcio-tools) is not installed")
    spec = importlib.util.spec_from_file_location("generate", ROOT / "protos" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    committed = {path.name: path.read_text() for path in (ROOT / "optimizer" / "pb" / "v1").glob("*.py*")}
    assert generator.generate() == committed, "run make protos"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.name))
def test_names_follow_the_style_guide(file: FileDescriptor) -> None:
    assert file.package == "llm.optimizer.v1"
    assert file.name.startswith("llm/optimizer/v1/")
    for message in file.message_types_by_name.values():
        assert re.fullmatch("([A-Z][a-z0-9]+)+", message.name)
        for field in message.fields:
            assert re.fullmatch("[a-z][a-z0-9]*(_[a-z0-9]+)*", field.name)
    for service in file.services_by_name.values():
        assert service.name.endswith("Service")
        for method in service.methods:
            assert (method.input_type.name, method.output_type.name) == (
                f"{method.name}Request",
                f"{method.name}Response",
            )


def test_an_event_has_the_fields_of_the_contract() -> None:
    # design section 5; "not observed" differs from 0, so every field knows whether it is set
    fields = event_pb2.Event.DESCRIPTOR.fields
    assert {field.name for field in fields} == {
        "id", "time", "service", "task", "selection_id", "variant", "provider", "model", "input_tokens",
        "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens", "cost_usd", "latency_ms",
        "time_to_first_token_ms", "error", "finish_reason", "parameters", "quality", "scores", "feedback", "context",
        "session", "user", "attributes",
    }  # fmt: skip
    assert all(field.has_presence for field in fields if field.name != "scores")
