"""A language model on Ray Serve LLM, with its default settings."""

from __future__ import annotations

import argparse
import json
import threading

import ray
from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--engine", type=json.loads, default={}, help="engine arguments of vLLM, in JSON")
    options = parser.parse_args()
    ray.init(address="local", include_dashboard=False, num_cpus=8)  # each of its three deployments needs one
    serve.start(http_options={"host": "127.0.0.1", "port": options.port})
    config = LLMConfig(
        model_loading_config={"model_id": options.served_model_name, "model_source": options.model},
        engine_kwargs=options.engine,
        placement_group_config={"bundles": [{"CPU": 1}]},
        deployment_config={"num_replicas": 1, "max_ongoing_requests": 100},
    )
    serve.run(build_openai_app({"llm_configs": [config]}))
    threading.Event().wait()


if __name__ == "__main__":
    main()
