"""Model files: references, downloads, formats, and checks of their headers before anything is loaded."""
