"""Programs that compare rbee-serve with its baselines; README.md says how to run them."""
