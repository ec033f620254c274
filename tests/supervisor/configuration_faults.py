"""Faults of a configuration: a text in the valid file, what replaces it, and what the check reports."""

from __future__ import annotations

FAULTS = {
    "a misplaced option of autoscaling": (
        "cpus: 0",
        "autoscaling: {max_ongoing_requests: 10}",
        (
            "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].autoscaling.max_ongoing_requests: "
            "is not a key of autoscaling; move it out, beside autoscaling"
        ),
    ),
    "an option of autoscaling beside it": (
        "cpus: 0",
        "min_replicas: 1",
        (
            "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].min_replicas: "
            "unknown key; it belongs under autoscaling"
        ),
    ),
    "a misspelt option of autoscaling": (
        "cpus: 0",
        "autoscaling:\n            max_replica: 2",
        (
            "rbee-serve: serve_config.yaml:13: applications[0].args.workers[0].autoscaling.max_replica: "
            "unknown key; did you mean max_replicas?"
        ),
    ),
    "a minimum above the maximum": (
        "cpus: 0",
        "autoscaling: {min_replicas: 3, max_replicas: 2}",
        (
            "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].autoscaling: "
            "max_replicas: 2 is below min_replicas: 3"
        ),
    ),
    "a minimum at which nothing would start again": (
        "cpus: 0",
        "autoscaling: {min_replicas: 0, max_replicas: 2}",
        (
            "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].autoscaling: min_replicas: "
            "0 would stop the last replica, and no request starts another; set at least 1"
        ),
    ),
    "a number of replicas that is a word": (
        "cpus: 0",
        "autoscaling: {min_replicas: one}",
        (
            "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].autoscaling.min_replicas: "
            "must be a whole number such as 4, not 'one'"
        ),
    ),
    "a misspelt key of an override": (
        "    args:",
        "    deployments: [{name: echo-0, num_replica: 2}]\n    args:",
        (
            "rbee-serve: serve_config.yaml:8: applications[0].deployments[0].num_replica: "
            "unknown key; did you mean num_replicas?"
        ),
    ),
    "a misspelt option of an override's actor": (
        "    args:",
        "    deployments:\n      - name: echo-0\n        ray_actor_options: {num_cpu: 2}\n    args:",
        (
            "rbee-serve: serve_config.yaml:10: applications[0].deployments[0].ray_actor_options.num_cpu: "
            "unknown key; did you mean num_cpus?"
        ),
    ),
    "a misplaced option of an override": (
        "    args:",
        "    deployments:\n      - name: echo-0\n        num_cpus: 2\n    args:",
        (
            "rbee-serve: serve_config.yaml:10: applications[0].deployments[0].num_cpus: "
            "unknown key; it belongs under ray_actor_options"
        ),
    ),
    "a number of replicas that is neither a number nor auto": (
        "    args:",
        "    deployments: [{name: echo-0, num_replicas: some}]\n    args:",
        (
            "rbee-serve: serve_config.yaml:8: applications[0].deployments[0].num_replicas: "
            "must be a whole number such as 4 or one of auto, not 'some'"
        ),
    ),
    "a negative duration": (
        "  port: 8000",
        "  port: 8000\n  keep_alive_timeout_s: -1",
        "rbee-serve: serve_config.yaml:4: http_options.keep_alive_timeout_s: must be at least 0, not -1",
    ),
    "a capacity of more than all": (
        "http_options:",
        "target_capacity: 101\nhttp_options:",
        "rbee-serve: serve_config.yaml:1: target_capacity: must be at most 100, not 101",
    ),
    "a level of logging that is none": (
        "http_options:",
        "logging_config: {log_level: debug}\nhttp_options:",
        (
            "rbee-serve: serve_config.yaml:1: logging_config.log_level: "
            "must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL, not 'debug'"
        ),
    ),
    "a runtime environment's variable that is a number": (
        "    args:",
        "    runtime_env: {env_vars: {OMP_NUM_THREADS: 4}}\n    args:",
        (
            "rbee-serve: serve_config.yaml:8: applications[0].runtime_env: needs texts in env_vars; "
            "put each value in quotes, such as env_vars: {OMP_NUM_THREADS: '4'}"
        ),
    ),
    "a misspelt key of a runtime environment": (
        "    args:",
        "    runtime_env: {env_var: {A: b}}\n    args:",
        (
            "rbee-serve: serve_config.yaml:8: applications[0].runtime_env: "
            "has the unknown key env_var; did you mean env_vars?"
        ),
    ),
    "a number as an id": (
        "id: echo-0",
        "id: 010",
        (
            "rbee-serve: serve_config.yaml:10: applications[0].args.workers[0].id: "
            "must be letters, digits, - and _ only, such as llm-0, not the number 8; put it in quotes"
        ),
    ),
    "an id with a blank": (
        "id: echo-0",
        "id: echo 0",
        (
            "rbee-serve: serve_config.yaml:10: applications[0].args.workers[0].id: "
            "must be letters, digits, - and _ only, such as llm-0, not 'echo 0'"
        ),
    ),
    "a word that YAML reads as a boolean": (
        "cpus: 0",
        "model_name: no",
        (
            "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].model_name: must be text, not false; "
            "put it in quotes (YAML reads yes, no, on and off as true and false)"
        ),
    ),
    "a date in place of text": (
        "cpus: 0",
        "model_name: 2026-01-31",
        (
            "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].model_name: must be text, "
            "not the date 2026-01-31; put it in quotes"
        ),
    ),
    "a boolean in place of a number": (
        "cpus: 0",
        "gpus: yes",
        (
            "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].gpus: "
            "must be a number such as 0.5, not true"
        ),
    ),
    "a key without a value": (
        "cpus: 0",
        "cpus:",
        (
            "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].cpus: has no value; "
            "give it one, or remove the key"
        ),
    ),
    "a mapping in place of a list": (
        "      workers:\n        - id: echo-0\n          type: echo\n          cpus: 0",
        "      workers:\n        echo-0: {type: echo}",
        ("rbee-serve: serve_config.yaml:9: applications[0].args.workers: must be a list such as [a, b], not a mapping"),
    ),
    "a URL without a scheme": (
        "      workers:",
        "      public_url: box:8000\n      workers:",
        (
            "rbee-serve: serve_config.yaml:9: applications[0].args.public_url: "
            "must be a URL such as http://box:8000, not 'box:8000'"
        ),
    ),
    "a helper worker's id that is none": (
        "cpus: 0",
        "uses: {audio: a b}",
        (
            "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].uses.audio: "
            "must be letters, digits, - and _ only, such as llm-0, not 'a b'"
        ),
    ),
    "a choice that is none": (
        "cpus: 0",
        "backend: gpu",
        (
            "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].backend: "
            "must be one of auto, cuda, cpu, metal, not 'gpu'"
        ),
    ),
    "a limit that is text": (
        "cpus: 0",
        "limits: {max_tokens: many}",
        (
            "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].limits.max_tokens: "
            "must be a whole number such as 4 or a number such as 0.5, not 'many'"
        ),
    ),
    "a key that is a number": (
        "cpus: 0",
        "cpus: 0\n          3: 4",
        (
            "rbee-serve: serve_config.yaml:13: applications[0].args.workers[0].3: "
            "is a key that is no text; put it in quotes"
        ),
    ),
    "a tab": (
        "          cpus: 0",
        "\tcpus: 0",
        "rbee-serve: serve_config.yaml:12: is not valid YAML: has a tab in its indentation; use blanks",
    ),
    "an alias without its anchor": (
        "cpus: 0",
        "cpus: *none",
        "rbee-serve: serve_config.yaml:12: is not valid YAML: found undefined alias 'none'",
    ),
    "a wrong key of a worker": (
        "cpus: 0",
        "cpus: 0\n          modell_ref: x",
        (
            "rbee-serve: serve_config.yaml:13: applications[0].args.workers[0].modell_ref: "
            "unknown key; did you mean model_ref?"
        ),
    ),
    "a wrong key of the application's arguments": (
        "      workers:",
        "      autth: {}\n      workers:",
        "rbee-serve: serve_config.yaml:9: applications[0].args.autth: unknown key; did you mean auth?",
    ),
    "a wrong key of an application": (
        "route_prefix",
        "rout_prefix",
        "rbee-serve: serve_config.yaml:6: applications[0].rout_prefix: unknown key; did you mean route_prefix?",
    ),
    "a wrong key of the HTTP options": (
        "  host:",
        "  hosst:",
        "rbee-serve: serve_config.yaml:2: http_options.hosst: unknown key; did you mean host?",
    ),
    "a wrong key at the top": (
        "http_options",
        "http_option",
        "rbee-serve: serve_config.yaml:1: http_option: unknown key; did you mean http_options?",
    ),
    "a wrong key of a nested model": (
        "      workers:",
        "      orchestrator: {callback_url: 'http://hive', timeout: 3}\n      workers:",
        (
            "rbee-serve: serve_config.yaml:9: applications[0].args.orchestrator.timeout: "
            "unknown key; did you mean timeout_s?"
        ),
    ),
    "a wrong key with no key near it": (
        "cpus: 0",
        "zzz: 0",
        "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].zzz: unknown key",
    ),
    "the former key for running requests": (
        "cpus: 0",
        "capacity: 8",
        (
            "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].capacity: "
            "is called max_ongoing_requests now; rename the key"
        ),
    ),
    "the former key for waiting requests": (
        "cpus: 0",
        "queue: 8",
        (
            "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].queue: "
            "is called max_queued_requests now; rename the key"
        ),
    ),
    "an override of a worker's limit on requests": (
        "    args:",
        "    deployments: [{name: echo-0, max_ongoing_requests: 2}]\n    args:",
        (
            "rbee-serve: serve_config.yaml:8: applications[0].deployments[0].max_ongoing_requests: is derived by "
            "rbee-serve and cannot be overridden; set max_ongoing_requests of the worker echo-0 under args.workers"
        ),
    ),
    "an override of the ingress's limit on requests": (
        "    args:",
        "    deployments: [{name: ingress, max_queued_requests: 2}]\n    args:",
        (
            "rbee-serve: serve_config.yaml:8: applications[0].deployments[0].max_queued_requests: is derived by "
            "rbee-serve and cannot be overridden; remove the key"
        ),
    ),
    "a value of the wrong type": (
        "cpus: 0",
        "cpus: many",
        (
            "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].cpus: must be a number such as 0.5, "
            "not 'many'"
        ),
    ),
    "a missing key": (
        "- id: echo-0\n          type: echo",
        "- id: echo-0",
        "rbee-serve: serve_config.yaml:10: applications[0].args.workers[0].type: is missing",
    ),
    "an unknown worker type": (
        "type: echo",
        "type: ecko",
        (
            "rbee-serve: serve_config.yaml:11: applications[0].args.workers[0].type: "
            "worker type 'ecko' is unknown; did you mean echo?"
        ),
    ),
    "a key for a worker that does not exist": (
        "      workers:",
        "      auth: {keys: [{name: a, token_file: /dev/null, workers: [llm-0]}]}\n      workers:",
        (
            "rbee-serve: serve_config.yaml:9: applications[0].args.auth.keys[0].token_file: /dev/null is not a "
            "regular file; name one\n"
            "rbee-serve: serve_config.yaml:9: applications[0].args.auth.keys[0].workers[0]: no worker has the id llm-0"
        ),
    ),
    "a page that is no origin": (
        "      workers:",
        "      cors: {allow_origins: ['http://localhost:3000/']}\n      workers:",
        (
            "rbee-serve: serve_config.yaml:9: applications[0].args.cors.allow_origins[0]: must be an origin such as "
            "https://app.example:8443, without a path or a slash at its end; * allows every origin"
        ),
    ),
    "a password that is a number, which is not repeated": (
        "http_options:",
        "http_options:\n  ssl_keyfile_password: 123456",
        "rbee-serve: serve_config.yaml:2: http_options.ssl_keyfile_password: must be text",
    ),
    "a host beyond this machine without a token": (
        "127.0.0.1",
        "0.0.0.0",
        (
            "rbee-serve: serve_config.yaml: http_options.host is 0.0.0.0, but without a token the server answers on "
            "127.0.0.1 only; set auth.token_file or auth.keys, or that host"
        ),
    ),
    "a port that is none": (
        "8000",
        "80000",
        "rbee-serve: serve_config.yaml:3: http_options.port: must be at most 65535, not 80000",
    ),
    "a builder that is not there": (
        "deployments.app",
        "deploymentz.app",
        (
            "rbee-serve: serve_config.yaml:7: applications[0].import_path: "
            "there is no module deploymentz here or in the environment"
        ),
    ),
    "a builder that has another name": (
        ":build_app",
        ":build",
        "rbee-serve: serve_config.yaml:7: applications[0].import_path: deployments.app has no build",
    ),
    "a builder of somebody else": (
        "deployments.app:build_app",
        "json:dumps",
        (
            "rbee-serve: serve_config.yaml:4: applications: none has a builder of rbee-serve; "
            "import_path is deployments.app:build_app"
        ),
    ),
    "an override of a deployment that is not there": (
        "    args:",
        "    deployments: [{name: echo-1, num_replicas: 2}]\n    args:",
        (
            "rbee-serve: serve_config.yaml:8: applications[0].deployments[0].name: "
            "'echo-1' is none of the deployments echo-0, hub, ingress"
        ),
    ),
    "a key that is given twice": (
        "cpus: 0",
        "cpus: 0\n          cpus: 1",
        "rbee-serve: serve_config.yaml:13: applications[0].args.workers[0].cpus: the key is given twice",
    ),
    "text that is not YAML": (
        "type: echo",
        "type: [echo",
        "rbee-serve: serve_config.yaml:12: is not valid YAML: expected ',' or ']', but got ':'",
    ),
}
