"""How much of what a worker type runs on is shared with all others, beside what the plan promised."""
