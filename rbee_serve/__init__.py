"""rbee-serve: multi-modal inference workers as one Ray Serve application."""
