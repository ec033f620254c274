"""A kit for GPUs on a machine without one: a driver that reports what a test gives it (`fake_nvml`), what is known of
models without their weights (`models/`, read by `rbee_serve.memory_plan.facts_file`), and the shipped configurations
with the cards that they are for (`shipped`)."""
