"""Speech to text, and text to audio."""

from deployments.audio.generate import SpeechRequest
from deployments.audio.transcription_request import TranscribeRequest

__all__ = ["SpeechRequest", "TranscribeRequest"]
