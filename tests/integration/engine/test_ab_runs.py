"""An A/B run whose judge is a model of the real engine."""

from __future__ import annotations

import openai

from tests.ab_scene import Scene
from tests.api_server import ApiServer
from tests.integration.engine.names import TUNED


def test_a_model_of_the_engine_judges(engine_api: ApiServer) -> None:
    with engine_api.client() as http:
        sdk = openai.OpenAI(base_url=f"{engine_api.url}/v1", api_key=engine_api.key, max_retries=0)
        scene = Scene(sdk, http)
        judge = {"model": TUNED, "sampling_params": {"temperature": 1, "seed": 1, "max_completions_tokens": 40}}
        done = scene.end(scene.create(scene.run(["0"]), scene.run(["no"]), judge=judge))
        assert (done["status"], done["result_counts"]["total"], done["result_counts"]["left_out"]) == (
            "completed",
            1,
            0,
        )
        (item,) = scene.get("/items", done)["data"]
    said = [one["choice"] or one["error"]["code"] for one in item["judgements"]]
    assert set(said) <= {"first", "second", "tie", "model_grader_parse_error"}, "the engine takes what is asked for"
    (usage,) = done["per_model_usage"]
    assert (usage["model_name"], usage["invocation_count"]) == (TUNED, len(said))
    assert usage["prompt_tokens"] > 100 and 0 < usage["completion_tokens"] <= 40 * len(said)
