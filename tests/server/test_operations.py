"""Models, health, version, metrics, the OpenAPI document, request ids and the access log."""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import replace

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from parhelion import __version__
from parhelion.config import ServerConfig
from parhelion.server import routes
from parhelion.types import EngineStats, ReplicaState, ReplicaStats

from .conftest import client_of
from .fake_engine import FakeEngine

pytestmark = pytest.mark.anyio
CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}


async def samples_of(client: httpx.AsyncClient) -> dict[str, float]:
    text = (await client.get("/metrics")).text
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


async def test_models_are_listed_under_the_served_name(engine: FakeEngine) -> None:
    async with client_of(engine, ServerConfig(served_model_name="my/model")) as client:
        (card,) = (await client.get("/v1/models")).json()["data"]
        assert (card["id"], card["object"], card["max_model_len"]) == ("my/model", "model", 4096)
        assert (await client.get("/v1/models/my/model")).json() == card
        assert (await client.get("/v1/models/fake")).status_code == 200
        answer = (await client.post("/v1/chat/completions", json={**CHAT, "model": "fake"})).json()
        assert answer["model"] == "my/model"


async def test_other_models_are_404(client: httpx.AsyncClient) -> None:
    for response in (
        await client.get("/v1/models/other"),
        await client.post("/v1/chat/completions", json={**CHAT, "model": "other"}),
        await client.post("/v1/completions", json={"prompt": "x", "model": "other"}),
        await client.post("/tokenize", json={"prompt": "x", "model": "other"}),
    ):
        assert response.status_code == 404
        error = response.json()["error"]
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert "other" in error["message"]
        assert "fake" in error["message"]


async def test_unknown_path_and_method_have_openai_errors(client: httpx.AsyncClient) -> None:
    missing = await client.get("/v1/nothing")
    assert missing.status_code == 404
    assert "/v1/nothing" in missing.json()["error"]["message"]
    wrong = await client.get("/v1/completions")
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    assert "POST" in wrong.json()["error"]["message"]


async def test_health_follows_the_engine(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    assert (await client.get("/health")).status_code == 200
    engine.is_dead = True
    response = await client.get("/health")
    assert (response.status_code, response.json()) == (503, {"status": "engine_dead"})


async def test_health_answers_balancers_that_send_head(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    assert (await client.head("/health")).status_code == 200
    engine.is_dead = True
    assert (await client.head("/health")).status_code == 503


async def test_health_says_which_replicas_serve_and_what_ended_the_others(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    serves = ReplicaState(replica=0, status="serving", process=70)
    ended = ReplicaState(replica=1, status="waiting", restarts=2, error="killed", retry_s=4.0)
    engine.replicas = [serves, serves]
    assert (await client.get("/health")).json()["status"] == "ok"
    engine.replicas = [serves, ended]
    response = await client.get("/health")
    assert (response.status_code, response.json()) == (
        200,
        {
            "status": "degraded",
            "serving": 1,
            "replicas": [
                {"replica": 0, "status": "serving", "restarts": 0},
                {"replica": 1, "status": "waiting", "restarts": 2, "error": "killed", "retry_s": 4.0},
            ],
        },
    )
    engine.replicas = [ended]
    response = await client.get("/health")
    assert (response.status_code, response.json()["status"], response.json()["serving"]) == (503, "engine_dead", 0)


async def test_metrics_of_replicas_stand_beside_their_sums(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    assert not [name for name in await samples_of(client) if "replica" in name]
    counts = [EngineStats(num_waiting=1, num_blocks=10, num_blocks_in_use=5, preemptions_total=2), EngineStats()]
    states = [ReplicaState(replica=0, status="serving"), ReplicaState(replica=1, status="waiting", restarts=3)]
    replicas = [ReplicaStats(state=state, stats=stats) for state, stats in zip(states, counts, strict=True)]
    engine.counts = replace(engine.counts, replicas=tuple(replicas))
    samples = await samples_of(client)
    assert samples["parhelion_engine_up"] == 1
    assert samples["parhelion_preemptions_total"] == 3
    expected = {
        "replica_up": (1, 0),
        "replica_restarts_total": (0, 3),
        "replica_requests_waiting": (1, 0),
        "replica_kv_cache_usage_ratio": (0.5, 0),
        "replica_preemptions_total": (2, 0),
    }
    for name, values in expected.items():
        assert tuple(samples[f"parhelion_{name}{{replica={index}}}"] for index in range(2)) == values
    engine.counts = replace(engine.counts, replicas=tuple(replicas[1:]))
    assert (await samples_of(client))["parhelion_engine_up"] == 0


async def test_version_is_the_packages(client: httpx.AsyncClient) -> None:
    assert (await client.get("/version")).json() == {"version": __version__}


async def test_metrics_count_what_happened(client: httpx.AsyncClient) -> None:
    await client.post("/v1/chat/completions", json=CHAT)
    await client.post("/v1/chat/completions", json={**CHAT, "n": 2, "stop": ["r"]})
    await client.post("/v1/chat/completions", json={**CHAT, "n": 0})
    samples = await samples_of(client)
    assert samples["parhelion_requests_total{finish_reason=length}"] == 1
    assert samples["parhelion_requests_total{finish_reason=stop}"] == 2
    assert samples["parhelion_request_errors_total{type=invalid_request_error}"] == 1
    assert samples["parhelion_time_to_first_token_seconds_count"] == 3
    assert samples["parhelion_e2e_request_latency_seconds_count"] == 2
    assert samples["parhelion_inter_token_latency_seconds_count"] == 4 + 1 + 0
    assert samples["parhelion_generation_tokens_total"] == 5 + 2 + 1
    assert samples["parhelion_kv_cache_usage_ratio"] == 0.25
    assert samples["parhelion_kv_blocks_in_use"] == 25
    assert samples["parhelion_preemptions_total"] == 3
    assert samples["parhelion_requests_running"] == 0


async def test_metrics_outlive_the_engine(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    assert (await samples_of(client))["parhelion_engine_up"] == 1
    engine.is_dead = True
    samples = await samples_of(client)
    assert samples["parhelion_engine_up"] == 0
    assert samples["parhelion_preemptions_total"] == 3


async def test_metrics_do_not_wait_for_a_busy_engine(
    client: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await samples_of(client))["parhelion_preemptions_total"] == 3
    monkeypatch.setattr(routes, "STATS_WAIT_S", 0.05)
    monkeypatch.setattr(engine, "stats", asyncio.Event().wait)
    samples = await samples_of(client)
    assert samples["parhelion_engine_up"] == 1
    assert samples["parhelion_preemptions_total"] == 3
    assert samples["parhelion_engine_stats_age_seconds"] >= 0.05


SPECULATION_GAUGES = ("acceptance_ratio", "mean_accepted_length", "speculation_gain_ratio")


async def test_metrics_tell_what_guesses_did(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.counts = replace(
        engine.counts,
        guessed_tokens_total=200,
        accepted_tokens_total=90,
        checked_rows_total=60,
        speculation_gain=1.25,
    )
    samples = await samples_of(client)
    assert samples["parhelion_guessed_tokens_total"] == 200
    assert samples["parhelion_accepted_tokens_total"] == 90
    assert samples["parhelion_checked_rows_total"] == 60
    assert [samples[f"parhelion_{name}"] for name in SPECULATION_GAUGES] == [0.45, 2.5, 1.25]


async def test_ratios_of_guesses_are_left_out_where_there_are_none(client: httpx.AsyncClient) -> None:
    samples = await samples_of(client)
    assert samples["parhelion_guessed_tokens_total"] == 0
    assert samples["parhelion_checked_rows_total"] == 0
    assert not {f"parhelion_{name}" for name in SPECULATION_GAUGES} & samples.keys()


async def test_metrics_of_two_applications_are_apart(engine: FakeEngine) -> None:
    async with client_of(engine) as one, client_of(engine) as other:
        await one.post("/v1/completions", json={"prompt": "x"})
        assert (await samples_of(one))["parhelion_time_to_first_token_seconds_count"] == 1
        assert (await samples_of(other))["parhelion_time_to_first_token_seconds_count"] == 0


async def test_request_id_is_kept_if_usable_and_made_if_not(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health", headers={"X-Request-Id": "abc-1"})).headers["x-request-id"] == "abc-1"
    for unusable in ("a b", "x" * 129, "é"):
        made = await client.get("/health", headers={"X-Request-Id": unusable.encode("latin-1")})
        assert re.fullmatch("[0-9a-f]{32}", made.headers["x-request-id"])


async def test_a_request_is_one_line_in_the_log(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "parhelion.access")
    await client.post("/v1/chat/completions", json=CHAT, headers={"X-Request-Id": "mine"})
    await client.get("/line%0Abreak")
    first, second = [record.getMessage() for record in caplog.records if record.name == "parhelion.access"]
    assert first.startswith("request_id=mine POST /v1/chat/completions 200 prompt_tokens=22 completion_tokens=5 ")
    assert "GET /line?break 404" in second


async def test_the_log_says_why_a_request_failed(
    client: httpx.AsyncClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "parhelion.access")
    await client.post("/v1/chat/completions", json={**CHAT, "temperature": -1})
    await client.post("/v1/chat/completions", json={**CHAT, "messages": [{"role": "a\nb", "content": ""}]})
    engine.fail_after = 2
    await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    wrong, escaped, died = [record.getMessage() for record in caplog.records if record.name == "parhelion.access"]
    assert " 400 " in wrong
    assert " client=127.0.0.1:" in wrong
    assert " error=invalid_value param=temperature message='temperature is -1.0; it must lie in " in wrong
    assert "\n" not in escaped
    assert "param=messages[0].role" in escaped
    assert " 200 prompt_tokens=22 completion_tokens=2 " in died
    assert " error=engine_dead param=None message='the engine died'" in died


async def test_probes_are_logged_only_if_they_fail(engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "parhelion.access")
    async with client_of(engine, ServerConfig(root_path="/llm")) as client:
        for path in ("/health", "/llm/health", "/metrics"):
            assert (await client.get(path)).status_code == 200
        assert not [record for record in caplog.records if record.name == "parhelion.access"]
        engine.is_dead = True
        await client.get("/health")
    (failed,) = [record.getMessage() for record in caplog.records if record.name == "parhelion.access"]
    assert "GET /health 503" in failed


async def test_openapi_document_resolves_all_its_references(client: httpx.AsyncClient) -> None:
    response = await client.get("/openapi.json")
    document = response.json()
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', response.text))
    assert {"ChatCompletionRequest", "CompletionRequest", "ErrorBody", "ChatCompletion"} <= references
    assert references <= document["components"]["schemas"].keys()
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert chat["requestBody"]["content"]["application/json"]["examples"]
    assert {"200", "400", "401", "404", "413", "429", "503"} <= chat["responses"].keys()


async def test_examples_of_the_document_work(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    for path, methods in document["paths"].items():
        for example in methods.get("post", {}).get("requestBody", {}).get("content", {}).values():
            for shown in example["examples"].values():
                assert (await client.post(path, json=shown["value"])).status_code == 200, path
