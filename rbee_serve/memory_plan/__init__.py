"""The memory plan: what each worker of a configuration needs on its GPU, known before anything is loaded."""
