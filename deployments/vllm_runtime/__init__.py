"""vLLM, for every worker type that runs on it: the engine's start, text generation, media, and our changes to vLLM.

Which module runs in which process:

    rbee-serve check, plan     option_schema      options and their types, from vLLM's source files
                               parallel_sizes     how a model is divided among the GPUs of a worker
                               planned_needs      what a worker needs of each; kv_cache_size, forward_pass_memory
    replica (a Ray actor)      engine_options     options of `engine:`, checked
                               cpu_defaults       defaults on a CPU
                               memory_needs       what a model needs before it can be loaded
                               vllm_engine        start and statistics of `AsyncLLM`
                               generation_engine  prompt tokens in, text of each token out
                               media_renderer     chat tokens and media in, engine input out; patches the processor
                               mapping            seeds and merged outputs
    engine core (started       cpu_shm_wakeup     patch of the message queue to the workers
    by vLLM)
    worker process (one for    progress_loader    reads the weights and reports progress
    each device; on a GPU      cpu_worker         CPU threads for each step
    alone, the engine core)    cpu_shm_wakeup     the other end of the queue
    all of them                plugin             entry point `vllm.general_plugins`: registers the loader, applies
                                                  the patch, ends the process with its replica
                               private_api        vLLM's private names in use, and their probe

How they communicate:

    replica ⇄ engine core            ZeroMQ, by vLLM itself
    engine core ⇄ worker process     vLLM's queue in shared memory; wake-ups by datagram (cpu_shm_wakeup)
    worker process → replica         datagrams with `LoadProgress` (progress_loader)
    replica → its child processes    environment: RBEE_SERVE_ENGINE_OWNER (pid of the replica),
                                     RBEE_SERVE_LOAD_LISTENER (socket for progress), VLLM_CPU_NUM_OF_RESERVED_CPU
    replica → worker process         the engine option `worker_cls`, an import string (cpu_worker)

Each patch is applied only to a vLLM that has what the patch needs (`private_api.fits`). Otherwise one warning is
logged and vLLM works as it does without the patch.
"""
